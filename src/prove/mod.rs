//! The proof: a child with the QEMU identity opens the device and asks KVM for its API version, and its answer
//! is told apart by cause.

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

/// What the proof came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// What opening the device came to.
    pub result: ProofResult,
    /// What the permissions say by themselves; nothing where they cannot be told.
    pub permission: Option<Permission>,
}

/// What opening the device came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProofResult {
    /// QEMU can open KVM; its API version.
    Ok(i32),
    /// `--proof off`.
    Off,
    /// Nothing was opened.
    NotDone {
        /// Why; nothing where another reason ended the run.
        cause: Option<Cause>,
        /// What to do.
        advice: Option<Advice>,
        /// Whether the proof itself failed, which says nothing of the device.
        failed: bool,
    },
    /// Another device or API version than expected.
    Mismatch {
        /// Which of them.
        cause: Cause,
        /// What KVM answered.
        api_version: Option<i32>,
        /// What to do.
        advice: Advice,
    },
    /// A system call of the child failed.
    Failed {
        /// What came back.
        errno: Errno,
        /// Why.
        cause: Cause,
        /// What to do.
        advice: Advice,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// The text, without a command to run `apply`.
    pub text: String,
    /// Whether `apply` is what helps.
    pub by_apply: bool,
}

impl Advice {
    /// One in which `apply` has no part.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            by_apply: false,
        }
    }
}

impl ProofResult {
    /// Nothing was opened, and that is about the device or this container.
    pub fn not_done(cause: Option<Cause>, advice: Option<Advice>) -> Self {
        Self::NotDone {
            cause,
            advice,
            failed: false,
        }
    }

    /// The proof itself failed.
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

    /// Whether it stands whatever happens to the device next.
    pub fn is_settled(&self) -> bool {
        matches!(self, Self::Ok(_) | Self::Off)
    }

    /// The report's word for it.
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

    /// What to do.
    pub fn advice(&self) -> Option<&Advice> {
        match self {
            Self::Ok(_) | Self::Off => None,
            Self::NotDone { advice, .. } => advice.as_ref(),
            Self::Mismatch { advice, .. } | Self::Failed { advice, .. } => Some(advice),
        }
    }

    /// What KVM answered.
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

/// Proves for the identity with which libvirt starts QEMU now, or says why nothing was opened. `beside` is done
/// while the child is at work, if there is one.
///
/// # Errors
/// When no child could be made or waited for.
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
    if let Some(at) = &plan.excluded_by_device_acl {
        return Ok(excluded(at).into());
    }
    let credentials = Credentials {
        uid: identity.uid,
        gid: identity.gid,
        groups: normalised(identity.groups.clone()),
    };
    let answer = probe::probe(path, &device.facts, &credentials, kind, beside)?;
    let directories = match answer {
        ProbeResult::Ok(_) => Vec::new(),
        _ => directories_above(path),
    };
    let context = context(&directories);
    Ok(Proof {
        result: meaning(answer, &context),
        permission: context.permission(),
    })
}

/// Why nothing was opened without a QEMU identity, or a device.
fn unknown_identity(plan: &Plan, kind: ProofKind) -> ProofResult {
    match (kind, &plan.excluded_by_device_acl) {
        (ProofKind::Off, _) => ProofResult::Off,
        (_, Some(at)) => excluded(at),
        (_, None) => {
            let why = plan.identity_now.as_ref().err().and_then(Option::as_ref);
            let advice = why.map(|why| Advice::new(why.to_string()));
            ProofResult::not_done(Some(Cause::Unknown), advice)
        }
    }
}

/// qemu.conf keeps the device from every guest.
fn excluded(at: &str) -> ProofResult {
    let advice = format!(
        "add \"/dev/kvm\" to cgroup_device_acl ({at}) and restart libvirtd: no guest gets a \
         device that is not in that list"
    );
    ProofResult::not_done(Some(Cause::DeviceCgroup), Some(Advice::new(advice)))
}

/// What the child's answer means, where this process may ask what QEMU would.
fn meaning(answer: ProbeResult, context: &AccessContext<'_>) -> ProofResult {
    let is_denied = matches!(
        answer,
        ProbeResult::Open(Errno::EACCES) | ProbeResult::Stat(Errno::EACCES)
    );
    if !is_denied || !context.needs_dac_override() || has_dac_override() {
        return diagnose(answer, context);
    }
    let advice = format!(
        "{} opens by CAP_DAC_OVERRIDE alone, which QEMU as root has and this process has not: \
         run it with that capability (privileged: true)",
        context.path.display()
    );
    ProofResult::not_done(Some(Cause::Unknown), Some(Advice::new(advice)))
}

/// What gives the QEMU user the device where owner, group and mode deny it; nothing where `apply` does.
fn remedy(seen: &Observation, plan: &Plan, identity: &Identity) -> Option<String> {
    let Some(target) = plan.resolution.target().map(|target| target.gid) else {
        return Some("give --gid".to_owned());
    };
    if is_private(seen) && !seen.device_explicit {
        return Some("mount the node's /dev at /dev".to_owned());
    }
    if seen.device.as_ref().is_some_and(|device| device.unmapped) {
        let text = "this user namespace does not show whose it is: run it without hostUsers: false";
        return Some(text.to_owned());
    }
    if identity.gid == target || identity.groups.contains(&target) {
        return None;
    }
    let pod = &seen.pod;
    match identity.user.as_deref().map(String::from_utf8_lossy) {
        None if !identity.placeholder => Some(format!(
            "libvirt gives no other group to a uid without a name: name {} in {}, or set group = \
             \"+{target}\" in {}",
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
