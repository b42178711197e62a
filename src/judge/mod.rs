//! The verdict on a run: one judgement of what was seen, planned and proven. Pure.
#![forbid(unsafe_code)]

pub mod advisories;
mod drift;
pub mod next_events;

use crate::codes::{Cause, Warning, WarningCode};
use crate::config::{Missing, Policy};
use crate::error::Error;
use crate::observe::{DeviceState, Doubt, Observation, OtherDevice};
use crate::plan::{Outcome, Plan};
use crate::prove::{Advice, Directory, Proof, ProofResult};
use crate::sys::device::DeviceStat;
use crate::verdict::Verdict;

use next_events::NextEvent;

/// What a verdict rests on.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// What was seen.
    pub seen: &'a Observation,
    /// What was planned from it.
    pub plan: &'a Plan,
    /// What is wanted.
    pub policy: &'a Policy,
    /// What opening the device came to.
    pub proof: &'a Proof,
    /// What `check` looks at as well; nothing where the steps were done.
    pub ahead: Option<&'a Ahead>,
    /// Whether a step of this run was done before.
    pub changed: bool,
}

/// What is ahead of a state that was looked at and not changed.
#[derive(Debug)]
pub struct Ahead {
    /// What will happen to the device next.
    pub next_events: Vec<NextEvent>,
    /// The directories above the device, where it was not opened.
    pub directories: Vec<Directory>,
}

/// The verdict, and what a person is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// The exit code, which differs from the verdict's own for a missing KVM that is accepted.
    pub exit_code: u8,
    /// One sentence that says why.
    pub summary: String,
    /// Why QEMU cannot open KVM.
    pub cause: Option<Cause>,
    /// What to do, where the summary does not say it.
    pub advice: Option<String>,
    /// The verdict without a doubt about which libvirtd starts QEMU.
    pub of_device: Verdict,
    /// Whether what was proven is about the QEMU in question.
    pub proof_counts: bool,
    /// What is odd about that.
    pub warnings: Vec<Warning>,
}

impl Judgement {
    /// One that says no more than this.
    pub fn new(verdict: Verdict, summary: impl Into<String>) -> Self {
        Self {
            verdict,
            exit_code: verdict.code(),
            summary: summary.into(),
            cause: None,
            advice: None,
            of_device: verdict,
            proof_counts: false,
            warnings: Vec::new(),
        }
    }

    /// That on a run that an error ended. `changed` says whether a step was done before.
    pub fn of_error(error: &Error, changed: bool) -> Self {
        let verdict = match error.verdict() {
            Verdict::Refused | Verdict::Usage if changed => Verdict::Failed,
            verdict => verdict,
        };
        Self::new(verdict, error.to_string())
    }

    fn set(&mut self, verdict: Verdict, summary: String) {
        self.verdict = verdict;
        self.exit_code = verdict.code();
        self.summary = summary;
    }

    /// What was opened was not opened for the QEMU in question.
    fn set_unproven(&mut self, summary: String) {
        self.set(Verdict::Unproven, summary);
        self.proof_counts = false;
        self.cause = Some(Cause::Unknown);
        self.advice = None;
    }
}

/// The verdict.
pub fn judge(case: &Case<'_>) -> Judgement {
    let mut found = match &case.plan.outcome {
        // After a step it is a failure: something was changed.
        Outcome::Refuse(refusal) if case.changed => Judgement {
            cause: refusal.cause,
            ..Judgement::new(Verdict::Failed, &refusal.text)
        },
        Outcome::Refuse(refusal) => Judgement {
            cause: refusal.cause,
            ..Judgement::new(Verdict::Refused, &refusal.text)
        },
        Outcome::NoKvm(no_kvm) => {
            let mut found = Judgement::new(Verdict::Failed, &no_kvm.text);
            if !case.changed {
                found.verdict = Verdict::Absent;
                found.exit_code = absent_code(case.policy);
            }
            found.cause = Some(no_kvm.cause);
            found.advice = Some(no_kvm.advice.clone());
            found
        }
        Outcome::Act(_) => drift::judge(case, of_proof(case)),
    };
    found.of_device = found.verdict;
    apply_doubt(&mut found, case);
    // The device keeps a GID that is not the node's.
    if let Some(why) = case
        .plan
        .kept_because
        .as_ref()
        .filter(|_| found.verdict == Verdict::Ok)
    {
        found.set(Verdict::Drift, why.clone());
    }
    found
}

/// Where guests may run without KVM its absence is accepted.
fn absent_code(policy: &Policy) -> u8 {
    match policy.missing {
        Missing::Fail => Verdict::Absent.code(),
        Missing::Skip => Verdict::Ok.code(),
    }
}

/// The verdict on the proof alone.
fn of_proof(case: &Case<'_>) -> Judgement {
    let identity = case.plan.identity_now.as_ref().ok();
    let qemu = match identity {
        Some(identity) => format!("QEMU as {}", identity.label()),
        None => "QEMU".to_owned(),
    };
    let path = case.seen.device_path.display();
    let result = &case.proof.result;
    let (verdict, summary) = match result {
        ProofResult::Ok(_) if identity.is_some_and(|identity| identity.placeholder) => (
            Verdict::Ok,
            format!("the group can open {path}; this node has no QEMU user to prove it for"),
        ),
        ProofResult::Ok(_) => (Verdict::Ok, format!("{qemu} can open {path}")),
        ProofResult::Off => (Verdict::Ok, format!("{path} is as it shall be; not proven")),
        ProofResult::NotDone { failed, .. } => match &case.plan.excluded_by_device_acl {
            Some(at) => (
                Verdict::Unproven,
                format!("no guest gets {path}: cgroup_device_acl in {at} leaves it out"),
            ),
            // Where this container may not ask, the state can still be right.
            None => (
                if *failed {
                    Verdict::Failed
                } else {
                    Verdict::Unproven
                },
                format!("whether {qemu} can open {path} could not be asked"),
            ),
        },
        ProofResult::Mismatch { .. } | ProofResult::Failed { .. } => (
            Verdict::Unproven,
            format!("{qemu} cannot open {path}: {}", result.word().as_str()),
        ),
    };
    let mut found = Judgement {
        cause: result.cause(),
        advice: result.advice().map(|advice| full(advice, case.policy)),
        proof_counts: true,
        ..Judgement::new(verdict, summary)
    };
    if result.cause() == Some(Cause::NoDriver) && !case.changed {
        found.verdict = Verdict::Absent;
        found.exit_code = absent_code(case.policy);
    }
    found
}

/// An advice with the command that it is about.
fn full(advice: &Advice, policy: &Policy) -> String {
    match advice.by_apply {
        true => format!("{}; {}", advice.text, fix_command(policy, "")),
        false => advice.text.clone(),
    }
}

/// That `apply`, run in a `place`, is what helps.
fn fix_command(policy: &Policy, place: &str) -> String {
    format!("{}{place} mends it", policy.command(policy.persist))
}

/// What was proven is the node's device, with the QEMU identity of the files that were looked at. Whether that
/// is about a libvirtd that runs is added here.
fn apply_doubt(found: &mut Judgement, case: &Case<'_>) {
    let is_good = matches!(found.verdict, Verdict::Ok | Verdict::Drift);
    match &case.seen.doubt {
        None => {}
        Some(Doubt::OtherDevice(other)) => apply_other_device(found, case, other),
        Some(Doubt::NoLibvirtd(other)) if found.verdict == Verdict::Ok => {
            let other = other.map(|pid| {
                format!(
                    "; the one that runs (pid {pid}) has a /dev of its own: mount the node's /dev at \
                     /dev in its container"
                )
            });
            found.set_unproven(format!(
                "no libvirtd with the node's device runs on this node, so there is no QEMU to prove it \
                 for{}",
                other.unwrap_or_default()
            ));
        }
        Some(Doubt::NoLibvirtd(_)) => {}
        Some(Doubt::Unclear(text)) => {
            found.warnings.push(libvirtd_unseen(text));
            if is_good {
                found.set_unproven(format!("which libvirtd starts QEMU is unclear: {text}"));
            }
        }
    }
}

/// That it is unclear which libvirtd starts QEMU.
pub fn libvirtd_unseen(text: &str) -> Warning {
    Warning::new(WarningCode::LibvirtdUnseen, text)
}

/// What was proven is the node's device. A container that was not given the node's /dev has another one, or
/// none, and its QEMU opens that.
fn apply_other_device(found: &mut Judgement, case: &Case<'_>, other: &OtherDevice) {
    let shown = |facts: &DeviceStat| format!("{}:{} {:04o}", facts.uid, facts.gid, facts.mode);
    let path = case.seen.device_path.display();
    let there = match &other.there {
        Some(_) if other.is_nodev => "on a mount with the option nodev".to_owned(),
        Some(facts) => shown(facts),
        None => "no KVM device".to_owned(),
    };
    let text = format!(
        "libvirtd's /dev ({}) is not the node's: {path} is {there} there, and {} here; mount the \
         node's /dev at /dev in that container",
        case.seen.pod.root.join("dev").display(),
        shown(&other.here)
    );
    let warning = Warning::new(WarningCode::PrivateDevice, text);
    found.warnings.push(warning);
    if !matches!(found.verdict, Verdict::Ok | Verdict::Drift) {
        return;
    }
    if case.proof.result.is_ok() {
        let summary = format!(
            "{}, but that is the node's: libvirtd's own {path} is another one ({there}), and it was \
             not opened; run this in the pod",
            found.summary
        );
        found.set(Verdict::Unproven, summary);
    } else {
        // `apply` in that pod refuses a device that is not the node's.
        let advice = "mount the node's /dev at /dev in that container, and run this again";
        found.advice = Some(advice.to_owned());
        found.set(
            Verdict::Unproven,
            format!("libvirtd's own {path} is not the node's ({there}), and it was not opened"),
        );
    }
}

/// Owner, group and mode: `0:108 0660`.
fn numbers(device: &DeviceState) -> String {
    let facts = &device.facts;
    format!("{}:{} {:04o}", facts.uid, facts.gid, facts.mode)
}
