//! The way that `apply`, `check` and `watch` go: observe, plan, execute, prove, judge, report.
//!
//! A run that changes something goes round until nothing is left to do: what was planned is done, and all is
//! observed and planned again. Files come first and the device last, so that a run that is killed in between
//! leaves a device that is no more open than before. A run that only looks lists the steps instead, and adds
//! what is ahead.

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
    /// [`Error::Usage`] for the first value that is not what it may be, and for a configuration file that
    /// cannot be read.
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

    /// The same for another pod root.
    pub fn with_root(&self, root: PodRoot) -> Self {
        let mut request = self.clone();
        request.sources.pod_root = root;
        request
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Finished {
    /// What is printed.
    pub report: Report,
    /// Whether QEMU can open KVM, and that was proven for the QEMU in question.
    pub is_ready: bool,
    /// Whether the device opens for the QEMU identity, whichever libvirtd starts QEMU.
    pub opens: bool,
    /// The verdict without a doubt about which libvirtd starts QEMU.
    pub of_device: Verdict,
    /// What was seen when nothing was left to do, or nothing could be done.
    pub seen: Option<Observation>,
}

/// Which daemons run, found when that is first asked: the most expensive thing that `check` does, for all
/// processes are looked at.
pub type Daemons = LazyCell<Vec<Process>>;

/// Does what is asked for and proves it. `memory` is what `watch` remembers; nothing for another command.
pub fn apply(request: &Request, memory: Option<&Memory>) -> Finished {
    Run::new(request, memory, None).go()
}

/// Looks, proves what is, and lists what would be done. `memory` as for [`apply`].
pub fn look(request: &Request, memory: Option<&Memory>, daemons: &Daemons) -> Finished {
    Run::new(request, memory, Some(daemons)).go()
}

/// Proves what was seen and planned, where no step is left.
///
/// # Errors
/// When no child could be made or waited for.
pub fn prove_again(request: &Request, seen: &Observation, plan: &Plan) -> Result<Finished> {
    let proof = prove(seen, plan, request.proof, || {})?;
    Ok(Run::new(request, None, None).finish(seen, plan, &proof))
}

/// Whether the device is not as it was seen: then a failed proof says nothing yet.
pub fn device_changed(seen: &Observation) -> bool {
    let before = seen.device.as_ref().map(|device| device.facts);
    let now = Device::find(&seen.device_path).ok().flatten();
    now.map(|device| device.facts()) != before
}

/// A device that went away between two looks.
pub(crate) fn no_device(seen: &Observation) -> Error {
    let call = format!("open({})", seen.device_path.display());
    let errno = Errno::ENOENT;
    Error::Syscall {
        error: SyscallError::new(call, errno),
        on: Object::Device,
    }
}
