//! What a run is asked for.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use crate::config::options::Flags;
use crate::config::{Output, PodRoot, Policy, ProofKind, Sources, Values};
use crate::exit::Usage;

/// What a run is asked for. Only the pipeline looks at the parts together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to look at.
    pub sources: Sources,
    /// What is wanted.
    pub policy: Policy,
    /// How far the proof goes.
    pub proof: ProofKind,
    /// How long to wait for the device to hold still.
    pub settle: Duration,
    /// Whether nothing may be changed.
    pub dry_run: bool,
}

impl Request {
    /// From flags, environment and the configuration file; also where the report goes. `env` answers for a
    /// variable's name, `read` for the configuration file's content.
    ///
    /// # Errors
    /// [`Usage`] for the first value that is not what it may be, and for a configuration file that cannot be
    /// read.
    pub fn resolve(
        flags: &Flags,
        env: impl Fn(&str) -> Option<OsString>,
        read: impl FnOnce(&Path) -> Result<Vec<u8>, String>,
    ) -> Result<(Self, Output), Usage> {
        let values = Values::collect(flags, env, read)?;
        let request = Self {
            sources: values.sources()?,
            policy: values.policy()?,
            proof: values.proof()?,
            settle: values.settle()?,
            dry_run: values.dry_run()?,
        };
        Ok((request, values.output()?))
    }

    /// The same for another pod root.
    pub fn with_root(&self, root: PodRoot) -> Self {
        let mut request = self.clone();
        request.sources.pod_root = root;
        request
    }
}
