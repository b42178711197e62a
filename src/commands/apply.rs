//! `apply`: aligns pod and device with the node, and proves the result.

use crate::error::Result;
use crate::judge::Judgement;
use crate::observe::daemons::daemons;
use crate::observe::libvirtd;
use crate::pipeline::{self, Daemons, Request};
use crate::report::Report;

pub fn apply(request: &Request) -> Report {
    match hold(request) {
        Ok(request) if request.dry_run => {
            pipeline::look(&request, None, &Daemons::new(daemons)).report
        }
        Ok(request) => pipeline::apply(&request, None).report,
        Err(error) => Report::from(Judgement::of_error(&error, false)),
    }
}

/// Opens the pod root for the whole run if it is the root of another process.
pub(super) fn hold(request: &Request) -> Result<Request> {
    libvirtd::hold(&request.sources.pod_root).map(|root| request.with_root(root))
}
