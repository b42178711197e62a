//! The proof: a child process with the QEMU identity opens the device and reads KVM's API version. A failure is
//! attributed to one cause.

mod access;
mod diagnose;
mod probe;

use nix::errno::Errno;

use crate::codes::{Cause, Permission, ProofWord};
use crate::config::ProofKind;
use crate::observe::{Observation, directories_above};
use crate::plan::qemu_identity::Identity;
use crate::plan::{Plan, is_private};
use crate::sys;
use crate::sys::identity::{Credentials, has_dac_override, normalised};

pub use access::{AccessContext, Directory, allows, closed_directory};
pub use diagnose::diagnose;
pub use probe::ProbeResult;

/// The result of opening the device, and the permission computed without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub result: ProofResult,
    /// Whether owner, group, mode and ACL allow access; `None` if that could not be determined.
    pub permission: Option<Permission>,
}

/// The result of opening the device as QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProofResult {
    /// QEMU can open KVM; its API version.
    Ok(i32),
    /// `--proof off`.
    Off,
    /// Nothing was opened.
    NotDone {
        /// `None` if the run ended for another reason.
        cause: Option<Cause>,
        advice: Option<Advice>,
        /// Whether the proof itself failed, which implies nothing about the device.
        failed: bool,
    },
    /// Another device or API version than expected.
    Mismatch {
        cause: Cause,
        /// KVM's API version if that is what differs.
        api_version: Option<i32>,
        advice: Advice,
    },
    /// A system call of the child failed.
    Failed {
        errno: Errno,
        cause: Cause,
        advice: Advice,
    },
}

/// Why the proof failed, and the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// The reason. It contains the next step as well unless `next_step` does.
    pub reason: String,
    pub next_step: NextStep,
}

/// The next step after a failed proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextStep {
    /// Run `apply`.
    Apply,
    /// Another step. It is not needed if `apply` repairs the cause as well.
    Other(String),
    /// None, or the reason contains it.
    None,
}

impl Advice {
    /// Advice that is one text.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            reason: text.into(),
            next_step: NextStep::None,
        }
    }
}

impl ProofResult {
    /// Nothing was opened, because of the device or because this container lacks a privilege.
    pub fn not_done(cause: Option<Cause>, advice: Option<Advice>) -> Self {
        Self::NotDone {
            cause,
            advice,
            failed: false,
        }
    }

    /// The proof itself failed, for example because the child was killed.
    pub fn undone(advice: impl Into<String>) -> Self {
        Self::NotDone {
            cause: Some(Cause::Unknown),
            advice: Some(Advice::new(advice)),
            failed: true,
        }
    }

    /// Whether QEMU can open KVM.
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Ok(_))
    }

    /// Whether a concurrent change of the device cannot explain the result, so that no retry is needed.
    pub fn is_settled(&self) -> bool {
        matches!(self, Self::Ok(_) | Self::Off)
    }

    /// The value of `proof.result` in the report.
    pub fn word(&self) -> ProofWord {
        match self {
            Self::Ok(_) => ProofWord::Ok,
            Self::Off => ProofWord::Off,
            Self::NotDone { .. } => ProofWord::None,
            Self::Mismatch { .. } => ProofWord::Mismatch,
            Self::Failed { errno, .. } => ProofWord::Errno(format!("{errno:?}")),
        }
    }

    /// Why QEMU cannot open KVM.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Ok(_) | Self::Off => None,
            Self::NotDone { cause, .. } => *cause,
            Self::Mismatch { cause, .. } | Self::Failed { cause, .. } => Some(*cause),
        }
    }

    pub fn advice(&self) -> Option<&Advice> {
        match self {
            Self::Ok(_) | Self::Off => None,
            Self::NotDone { advice, .. } => advice.as_ref(),
            Self::Mismatch { advice, .. } | Self::Failed { advice, .. } => Some(advice),
        }
    }

    /// KVM's API version, if the child could read it.
    pub fn api_version(&self) -> Option<i32> {
        match self {
            Self::Ok(version) => Some(*version),
            Self::Mismatch { api_version, .. } => *api_version,
            _ => None,
        }
    }
}

impl From<ProofResult> for Proof {
    fn from(result: ProofResult) -> Self {
        Self {
            result,
            permission: None,
        }
    }
}

/// Runs the proof with the identity with which libvirt starts QEMU now, or returns why nothing was opened. If a
/// child is started, `beside` runs in this process in parallel.
pub fn prove(
    seen: &Observation,
    plan: &Plan,
    kind: ProofKind,
    beside: impl FnOnce(),
) -> sys::Result<Proof> {
    let path = &seen.device_path;
    let (Ok(identity), Some(device)) = (&plan.identity_now, &seen.device) else {
        return Ok(unknown_identity(plan, kind).into());
    };
    let context = |directories| AccessContext {
        path,
        device,
        directories,
        identity,
        remedy: remedy(seen, plan, identity),
    };
    if kind == ProofKind::Off {
        return Ok(Proof {
            result: ProofResult::Off,
            permission: context(&directories_above(path)).permission(),
        });
    }
    if plan.excluded_by_device_acl.is_some() {
        return Ok(excluded().into());
    }
    let credentials = Credentials {
        uid: identity.uid,
        gid: identity.gid,
        groups: normalised(identity.groups.clone()),
    };
    let result = probe::probe(path, &device.facts, &credentials, kind, beside)?;
    let directories = match result {
        ProbeResult::Ok(_) => Vec::new(),
        _ => directories_above(path),
    };
    let context = context(&directories);
    Ok(Proof {
        result: meaning(result, &context),
        permission: context.permission(),
    })
}

/// The result if the QEMU identity is unknown or the device does not exist.
fn unknown_identity(plan: &Plan, kind: ProofKind) -> ProofResult {
    match (kind, &plan.excluded_by_device_acl) {
        (ProofKind::Off, _) => ProofResult::Off,
        (_, Some(_)) => excluded(),
        (_, None) => {
            let why = plan.identity_now.as_ref().err().and_then(Option::as_ref);
            let advice = why.map(|why| Advice::new(why.to_string()));
            ProofResult::not_done(Some(Cause::Unknown), advice)
        }
    }
}

/// The result if `cgroup_device_acl` in qemu.conf does not list the device.
fn excluded() -> ProofResult {
    let advice = "add \"/dev/kvm\" to that list and restart libvirtd";
    ProofResult::not_done(Some(Cause::DeviceCgroup), Some(Advice::new(advice)))
}

/// Diagnoses the child's result, unless this process lacks the `CAP_DAC_OVERRIDE` that QEMU would use.
fn meaning(result: ProbeResult, context: &AccessContext<'_>) -> ProofResult {
    let is_denied = matches!(
        result,
        ProbeResult::Open(Errno::EACCES) | ProbeResult::Stat(Errno::EACCES)
    );
    if !is_denied || !context.needs_dac_override() || has_dac_override() {
        return diagnose(result, context);
    }
    let advice = format!(
        "opening {} requires CAP_DAC_OVERRIDE, which QEMU has as root but this process lacks; run this \
         step with that capability (privileged: true)",
        context.path.display()
    );
    ProofResult::not_done(Some(Cause::Unknown), Some(Advice::new(advice)))
}

/// The next step if owner, group and mode deny access and `apply` does not repair that.
fn remedy(seen: &Observation, plan: &Plan, identity: &Identity) -> Option<String> {
    let Some(target) = plan.resolution.target().map(|target| target.gid) else {
        return Some("set the GID with --gid".to_owned());
    };
    if is_private(seen) && !seen.device_explicit {
        return Some("mount the node's /dev at /dev".to_owned());
    }
    if seen.device.as_ref().is_some_and(|device| device.unmapped) {
        let text =
            "its owner is not mapped in this user namespace; run the pod without hostUsers: false";
        return Some(text.to_owned());
    }
    if identity.gid == target || identity.groups.contains(&target) {
        return None;
    }
    let pod = &seen.pod;
    match identity.user.as_deref().map(String::from_utf8_lossy) {
        None if !identity.placeholder => Some(format!(
            "libvirt assigns no supplementary groups to a UID without a name; add a line for UID {} to \
             {}, or set group = \"+{target}\" in {}",
            identity.uid,
            pod.root.join("etc/passwd").display(),
            pod.qemu_conf_name
        )),
        Some(user) if pod.is_host && pod.out_path.is_none() => Some(format!(
            "run `usermod -a -G {} {user}` on the node",
            plan.group
        )),
        _ => None,
    }
}
