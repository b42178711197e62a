//! The pipeline of `apply`, `check` and `watch`: observe, plan, execute, prove, judge, report.
//!
//! `apply` repeats observe, plan and execute until no step is left. Files are written first and the device is
//! changed last, so that a run that is killed in between does not leave the device more accessible than before.
//! `check` and `--dry-run` list the steps instead of executing them, and predict the next events.

mod run;

use std::cell::LazyCell;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use crate::config::options::Flags;
use crate::config::{Output, PodRoot, Policy, ProofKind, Sources, Values};
use crate::error::{Error, Object, Result};
use crate::observe::Observation;
use crate::plan::{Memory, Plan};
use crate::prove::prove;
use crate::report::Report;
use crate::sys::SyscallError;
use crate::sys::device::Device;
use crate::sys::processes::Process;
use crate::verdict::Verdict;
use run::Run;

/// The configuration of a run. Only the pipeline uses all parts; each stage gets the part it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub sources: Sources,
    pub policy: Policy,
    pub proof: ProofKind,
    /// Maximum time to wait for the device to stop changing; zero for no wait.
    pub settle: Duration,
    pub dry_run: bool,
}

impl Request {
    /// Resolves flags, environment and configuration file, also to where the report goes. `env` returns the value
    /// of a variable, `read` the content of the configuration file.
    ///
    /// # Errors
    /// [`Error::Usage`] for the first invalid value, and for a configuration file that cannot be read.
    pub fn resolve(
        flags: &Flags,
        env: impl Fn(&str) -> Option<OsString>,
        read: impl FnOnce(&Path) -> std::result::Result<Vec<u8>, String>,
    ) -> Result<(Self, Output)> {
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

    /// A copy of this request with another pod root.
    pub fn with_root(&self, root: PodRoot) -> Self {
        let mut request = self.clone();
        request.sources.pod_root = root;
        request
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Finished {
    pub report: Report,
    /// Whether QEMU can open KVM, and the proof is valid for the QEMU that the running libvirtd starts.
    pub is_ready: bool,
    /// Whether the device opens for the QEMU identity, regardless of which libvirtd starts QEMU.
    pub opens: bool,
    /// The verdict before any doubt about which libvirtd starts QEMU is applied.
    pub of_device: Verdict,
    /// The last observation; `None` if an error ended the run.
    pub seen: Option<Observation>,
}

/// The running daemons. The list is built on first use, because inspecting all processes is the most expensive
/// part of `check`.
pub type Daemons = LazyCell<Vec<Process>>;

/// Executes the steps and proves the result. `memory` is set by `watch` only.
pub fn apply(request: &Request, memory: Option<&Memory>) -> Finished {
    Run::new(request, memory, None).go()
}

/// Proves the present state and lists the steps without executing them. `memory` is set by `watch` only.
pub fn look(request: &Request, memory: Option<&Memory>, daemons: &Daemons) -> Finished {
    Run::new(request, memory, Some(daemons)).go()
}

/// Repeats the proof for a plan that has no steps left.
pub fn prove_again(request: &Request, seen: &Observation, plan: &Plan) -> Result<Finished> {
    let proof = prove(seen, plan, request.proof, || {})?;
    Ok(Run::new(request, None, None).finish(seen, plan, &proof))
}

/// Whether the device has changed since the observation, so that a failed proof must be repeated.
pub fn device_changed(seen: &Observation) -> bool {
    let before = seen.device.as_ref().map(|device| device.facts);
    let now = Device::find(&seen.device_path).ok().flatten();
    now.map(|device| device.facts()) != before
}

/// The error for a device that disappeared after the observation.
pub(crate) fn no_device(seen: &Observation) -> Error {
    let call = format!("open({})", seen.device_path.display());
    let errno = Errno::ENOENT;
    Error::Syscall {
        error: SyscallError::new(call, errno),
        on: Object::Device,
    }
}
