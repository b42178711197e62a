//! `check`: reports the current state with a proof, the target state and the next udev events. It writes and locks
//! nothing.

use std::fmt::Write;
use std::path::Path;

use super::apply::hold;
use crate::config::{Libvirtd, PodRoot};
use crate::judge::Judgement;
use crate::observe::daemons::daemons;
use crate::observe::host_root;
use crate::observe::libvirtd::{Target, find};
use crate::pipeline::{Daemons, Request, look};
use crate::report::Report;

/// On a node where libvirtd runs in a container, the pod root is that container's root unless `--root` is set, so that
/// the report shows both the node and the pod.
pub fn check(request: &Request) -> Report {
    let daemons = Daemons::new(daemons);
    let mut request = match hold(request) {
        Ok(request) => request,
        Err(error) => return Report::from(Judgement::of_error(&error, false)),
    };
    request.policy.allow_private_device = true;
    request.settle = std::time::Duration::ZERO;
    let sources = &mut request.sources;
    let target = match sources.pod_root.path() == Path::new("/") && host_root::on_the_node() {
        true => find(sources, &daemons),
        false => Target::Own,
    };
    match target {
        Target::Container(libvirtd) => {
            // Without --root, `apply` on the node would only change the device, not the files of that container.
            let root = libvirtd.root.path().display();
            let _ = write!(request.policy.replay_flags, " --root={root}");
            sources.pod_root = PodRoot::of_process(libvirtd.root);
            sources.libvirtd = Libvirtd::Container;
        }
        Target::OtherDevice(libvirtd) => {
            sources.pod_root = PodRoot::of_process(libvirtd.root);
            sources.libvirtd = Libvirtd::Container;
        }
        Target::Ambiguous(text) => sources.libvirtd = Libvirtd::Unclear(text),
        Target::Own | Target::Node | Target::None => {}
    }
    look(&request, None, &daemons).report
}
