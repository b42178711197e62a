//! Derives the verdict, its summary and the advice from the observation, the plan and the proof. Pure.
#![forbid(unsafe_code)]

pub mod advisories;
mod drift;
pub mod next_events;

use crate::codes::{Cause, Warning, WarningCode};
use crate::config::{Missing, Policy};
use crate::error::Error;
use crate::observe::{DeviceState, Doubt, Observation, OtherDevice};
use crate::plan::{Outcome, Plan};
use crate::prove::{Advice, Directory, NextStep, Proof, ProofResult};
use crate::sys::device::DeviceStat;
use crate::verdict::Verdict;

use next_events::NextEvent;

/// The input of [`judge`].
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    pub seen: &'a Observation,
    pub plan: &'a Plan,
    pub policy: &'a Policy,
    pub proof: &'a Proof,
    /// Set by `check` and `--dry-run` only, which do not execute the steps.
    pub ahead: Option<&'a Ahead>,
    /// Whether this run has already changed something.
    pub changed: bool,
}

/// Additional facts about a state that was checked and not changed.
#[derive(Debug)]
pub struct Ahead {
    pub next_events: Vec<NextEvent>,
    /// The directories above the device; empty if the proof was ok or off.
    pub directories: Vec<Directory>,
}

/// The verdict and the texts that explain it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// The exit code; differs from the verdict's own if KVM is missing and `--missing skip` is set.
    pub exit_code: u8,
    /// The fact that decides the verdict, and the next step unless `advice` contains it.
    pub summary: String,
    /// Why QEMU cannot open KVM.
    pub cause: Option<Cause>,
    /// Why the proof failed and what to do; for drift only why, because the summary names the command.
    pub advice: Option<String>,
    /// The verdict before any doubt about which libvirtd starts QEMU is applied.
    pub of_device: Verdict,
    /// Whether the proof is valid for the QEMU that the running libvirtd starts.
    pub proof_counts: bool,
    /// Warnings about libvirtd that resulted from the judgement.
    pub warnings: Vec<Warning>,
}

impl Judgement {
    /// A judgement without cause, advice and warnings.
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

    /// The judgement on a run that an error ended. If the run had `changed` something, "refused" and
    /// "usage", which promise that nothing was changed, become "failed".
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

    /// Sets the verdict `unproven`, because the proof is not valid for the QEMU that the running libvirtd starts.
    fn set_unproven(&mut self, summary: String) {
        self.set(Verdict::Unproven, summary);
        self.proof_counts = false;
        self.cause = Some(Cause::Unknown);
        self.advice = None;
    }
}

pub fn judge(case: &Case<'_>) -> Judgement {
    let mut judgement = match &case.plan.outcome {
        // "Refused" promises that nothing was changed.
        Outcome::Refuse(refusal) if case.changed => Judgement {
            cause: refusal.cause,
            ..Judgement::new(Verdict::Failed, &refusal.text)
        },
        Outcome::Refuse(refusal) => Judgement {
            cause: refusal.cause,
            ..Judgement::new(Verdict::Refused, &refusal.text)
        },
        Outcome::NoKvm(no_kvm) => {
            let mut judgement = Judgement::new(Verdict::Failed, &no_kvm.text);
            if !case.changed {
                judgement.verdict = Verdict::Absent;
                judgement.exit_code = absent_code(case.policy);
            }
            judgement.cause = Some(no_kvm.cause);
            judgement.advice = Some(no_kvm.advice.clone());
            judgement
        }
        Outcome::Act(_) => drift::judge(case, of_proof(case)),
    };
    judgement.of_device = judgement.verdict;
    apply_doubt(&mut judgement, case);
    // The device keeps a GID that is not the target GID.
    if let Some(why) = case
        .plan
        .kept_because
        .as_ref()
        .filter(|_| judgement.verdict == Verdict::Ok)
    {
        judgement.set(Verdict::Drift, why.clone());
    }
    judgement
}

/// The exit code for a node without KVM; 0 with `--missing skip`.
fn absent_code(policy: &Policy) -> u8 {
    match policy.missing {
        Missing::Fail => Verdict::Absent.code(),
        Missing::Skip => Verdict::Ok.code(),
    }
}

/// The judgement on the proof alone.
fn of_proof(case: &Case<'_>) -> Judgement {
    let identity = case.plan.identity_now.as_ref().ok();
    let qemu = match identity {
        Some(identity) => format!("QEMU as {}", identity.label()),
        None => "QEMU".to_owned(),
    };
    let path = case.seen.device_path.display();
    let result = &case.proof.result;
    let (verdict, summary) = match result {
        ProofResult::Ok(_) => match identity.filter(|identity| identity.placeholder) {
            Some(nobody) => (
                Verdict::Ok,
                format!(
                    "a process with GID {} can open {path} (tested as nobody, because this node has no QEMU user)",
                    nobody
                        .groups
                        .first()
                        .map_or_else(String::new, ToString::to_string)
                ),
            ),
            None => (Verdict::Ok, format!("{qemu} can open {path}")),
        },
        ProofResult::Off if has_pending_steps(case) => (
            Verdict::Ok,
            format!("changes are pending, and opening {path} was not tested (--proof off)"),
        ),
        ProofResult::Off => (
            Verdict::Ok,
            format!("no change is pending, and opening {path} was not tested (--proof off)"),
        ),
        ProofResult::NotDone { failed, .. } => match &case.plan.excluded_by_device_acl {
            Some(at) => (
                Verdict::Unproven,
                format!("no guest can use {path}: cgroup_device_acl in {at} does not list it"),
            ),
            // If this container lacks a privilege, the state can still be right.
            None => (
                if *failed {
                    Verdict::Failed
                } else {
                    Verdict::Unproven
                },
                format!("could not test whether {qemu} can open {path}"),
            ),
        },
        ProofResult::Mismatch { .. } | ProofResult::Failed { .. } => (
            Verdict::Unproven,
            format!("{qemu} cannot open {path}: {}", result.word().as_str()),
        ),
    };
    let mut judgement = Judgement {
        cause: result.cause(),
        advice: result
            .advice()
            .map(|advice| with_command(advice, case.policy)),
        proof_counts: true,
        ..Judgement::new(verdict, summary)
    };
    if result.cause() == Some(Cause::NoDriver) && !case.changed {
        judgement.verdict = Verdict::Absent;
        judgement.exit_code = absent_code(case.policy);
    }
    judgement
}

/// Whether this is a run of `check` or `--dry-run` that lists steps.
fn has_pending_steps(case: &Case<'_>) -> bool {
    case.ahead.is_some() && matches!(&case.plan.outcome, Outcome::Act(steps) if !steps.is_empty())
}

/// The advice, followed by the command if `apply` repairs the cause.
fn with_command(advice: &Advice, policy: &Policy) -> String {
    let reason = &advice.reason;
    match &advice.next_step {
        NextStep::Apply => format!("{reason}; {}", fix_command(policy, "")),
        NextStep::Other(step) => format!("{reason}; {step}"),
        NextStep::None => reason.clone(),
    }
}

/// The next step if `apply` repairs the state. `place` is empty or ` in the pod`.
fn fix_command(policy: &Policy, place: &str) -> String {
    format!("run {}{place} to repair it", policy.command(policy.persist))
}

/// Adjusts a judgement about the node's device and the QEMU identity in the inspected files if a running
/// libvirtd uses others, or if it cannot be determined which libvirtd starts QEMU.
fn apply_doubt(judgement: &mut Judgement, case: &Case<'_>) {
    let is_good = matches!(judgement.verdict, Verdict::Ok | Verdict::Drift);
    match &case.seen.doubt {
        None => {}
        Some(Doubt::OtherDevice(other)) => apply_other_device(judgement, case, other),
        Some(Doubt::NoLibvirtd(other)) if judgement.verdict == Verdict::Ok => {
            let other = other.map(|pid| {
                format!(
                    "; the running one (pid {pid}) has a private /dev: mount the node's /dev at /dev \
                     in its container"
                )
            });
            judgement.set_unproven(format!(
                "no libvirtd that uses the node's device is running, so there is no QEMU to test \
                 for{}",
                other.unwrap_or_default()
            ));
        }
        Some(Doubt::NoLibvirtd(_)) => {}
        Some(Doubt::Unclear(text)) => {
            judgement.warnings.push(libvirtd_unseen(text));
            if is_good {
                judgement.set_unproven(format!(
                    "cannot determine which libvirtd starts QEMU: {text}"
                ));
            }
        }
    }
}

pub fn libvirtd_unseen(text: &str) -> Warning {
    Warning::new(WarningCode::LibvirtdUnseen, text)
}

/// The proof opened the node's device. If the node's /dev is not mounted in libvirtd's container, QEMU opens
/// another device there, or finds none.
fn apply_other_device(judgement: &mut Judgement, case: &Case<'_>, other: &OtherDevice) {
    let shown = |facts: &DeviceStat| format!("{}:{} {:04o}", facts.uid, facts.gid, facts.mode);
    let path = case.seen.device_path.display();
    let there = match &other.there {
        Some(_) if other.is_nodev => "on a mount with the option nodev".to_owned(),
        Some(facts) => shown(facts),
        None => "missing or not a KVM device".to_owned(),
    };
    let text = format!(
        "libvirtd's /dev ({}) is not the node's: its {path} is {there}, the node's is {}; mount the \
         node's /dev at /dev in that container",
        case.seen.pod.root.join("dev").display(),
        shown(&other.here)
    );
    let warning = Warning::new(WarningCode::PrivateDevice, text);
    judgement.warnings.push(warning);
    if !matches!(judgement.verdict, Verdict::Ok | Verdict::Drift) {
        return;
    }
    if case.proof.result.is_ok() {
        let summary = format!(
            "{}, but only the node's device was tested: libvirtd's own {path} is a different one \
             ({there}); run this command in the pod",
            judgement.summary
        );
        judgement.set(Verdict::Unproven, summary);
    } else {
        // Running `apply` there would not help: it refuses a device that is not the node's.
        let advice = "mount the node's /dev at /dev in that container, then run this command again";
        judgement.advice = Some(advice.to_owned());
        judgement.set(
            Verdict::Unproven,
            format!("libvirtd's own {path} is not the node's device ({there}) and was not tested"),
        );
    }
}

/// Owner, group and mode, for example `0:108 0660`.
fn owner_and_mode(device: &DeviceState) -> String {
    let facts = &device.facts;
    format!("{}:{} {:04o}", facts.uid, facts.gid, facts.mode)
}
