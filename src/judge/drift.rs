//! Detects drift: QEMU cannot open KVM and `apply` would repair it; or QEMU can open it, but only until a predictable
//! event changes the device, or the file of `--group-file-out` is missing or out of date. Pure.
#![forbid(unsafe_code)]

use std::path::Path;

use super::next_events::{CHARTS_GROUP, NextEvent};
use super::{Ahead, Case, Judgement, fix_command};
use crate::codes::Permission;
use crate::plan::qemu_identity::Identity;
use crate::plan::{GroupFile, Outcome, Step, is_private};
use crate::prove::{NextStep, ProofResult, allows, closed_directory};
use crate::verdict::Verdict;

const MOUNT_DEV: &str = "mount the node's /dev at /dev";
const NOT_THE_NODES: &str =
    "this container's /dev is not the node's, and `apply` does not change its device";

/// Returns the judgement, changed to `drift` if `apply` would repair the state, or if a predicted event will deny
/// access.
pub fn judge(case: &Case<'_>, mut judgement: Judgement) -> Judgement {
    let Some(ahead) = case.ahead else {
        return judgement;
    };
    let drift = Drift { case, ahead };
    match judgement.verdict {
        Verdict::Unproven => drift.of_unproven(&mut judgement),
        Verdict::Ok => drift.of_ok(&mut judgement),
        _ => {}
    }
    judgement
}

struct Drift<'a> {
    case: &'a Case<'a>,
    ahead: &'a Ahead,
}

impl Drift<'_> {
    fn steps(&self) -> &[Step] {
        match &self.case.plan.outcome {
            Outcome::Act(steps) => steps,
            Outcome::Refuse(_) | Outcome::NoKvm(_) => &[],
        }
    }

    /// Text to append to the command: where to run `apply`. Empty on the node, or if the pod root is not `/`: then the
    /// command can run as printed.
    fn place(&self) -> &'static str {
        let pod = &self.case.seen.pod;
        let is_here = pod.is_host || pod.root.path() != Path::new("/");
        if is_here { "" } else { " in the pod" }
    }

    /// Whether `apply` does not change the device, because it is private to this container and `--device` does not
    /// name it.
    fn is_left_alone(&self) -> bool {
        is_private(self.case.seen) && !self.case.seen.device_explicit
    }

    /// For a device that QEMU cannot open: adds the `apply` command if it would remove the cause, completely (then the
    /// verdict is `drift`) or in part. For a device that `apply` leaves alone, adds how to mount the node's /dev.
    fn of_unproven(&self, judgement: &mut Judgement) {
        let (plan, policy) = (self.case.plan, self.case.policy);
        let proof = self.case.proof;
        let then = plan.identity.as_ref();
        let is_repaired = then.is_some_and(|then| self.would_open(then));
        // If owner, group, mode and ACL already allow access, the cause is something that `apply` does not change.
        let by_permission = is_denied(&proof.result)
            && proof.permission != Some(Permission::Allowed)
            && plan.excluded_by_device_acl.is_none();
        // The summary names the next step, so the advice contains only the reason.
        let reason = proof.result.advice().map(|advice| advice.reason.clone());
        if by_permission && self.is_left_alone() {
            judgement.summary = format!("{}; {NOT_THE_NODES}; {MOUNT_DEV}", judgement.summary);
            judgement.advice = reason;
        } else if by_permission && is_repaired {
            let next_step = fix_command(policy, self.place());
            let summary = format!("{}; {next_step}", judgement.summary);
            judgement.set(Verdict::Drift, summary);
            judgement.advice = reason;
        } else if !self.steps().is_empty()
            && !is_repaired
            && let Some(advice) = proof
                .result
                .advice()
                .filter(|advice| advice.next_step == NextStep::Apply)
        {
            let apply = policy.command(policy.persist);
            let text = &advice.reason;
            judgement.advice = Some(format!(
                "{text}; run {apply}: it repairs part of the problem and reports what remains"
            ));
        }
    }

    /// For a device that QEMU can open: checks for a pending `--group-file-out` and for events that will deny QEMU
    /// access.
    fn of_ok(&self, judgement: &mut Judgement) {
        let out = self.steps().iter().find_map(|step| match step {
            Step::GroupFile(step) => match &step.file {
                GroupFile::Out { path, .. } => Some(path),
                GroupFile::InPlace { .. } => None,
            },
            _ => None,
        });
        if let Some(out) = out.filter(|_| !self.is_left_alone()) {
            let summary = format!(
                "{}, but {} is missing or out of date; {}",
                judgement.summary,
                out.display(),
                fix_command(self.case.policy, "")
            );
            judgement.set(Verdict::Drift, summary);
            return;
        }
        let identity = self.case.plan.identity_now.as_ref().ok();
        let identity = identity.filter(|_| self.case.proof.result.is_ok());
        let Some(identity) = identity else {
            return;
        };
        let mut events = self.ahead.next_events.iter();
        if let Some(loss) = events.find(|event| !allows(&event.device, identity)) {
            let summary = format!(
                "{}, but {} will set it to {}, which denies QEMU access; {}",
                judgement.summary,
                loss.what,
                super::owner_and_mode(&loss.device),
                self.prevention(loss)
            );
            judgement.set(Verdict::Drift, summary);
        }
    }

    /// The advice that prevents an event from denying QEMU access.
    fn prevention(&self, loss: &NextEvent) -> String {
        let policy = self.case.policy;
        let then = self.case.plan.identity.as_ref();
        let is_harmless = || then.is_some_and(|then| allows(&loss.device, then));
        let writes_rule = || {
            self.steps()
                .iter()
                .any(|step| matches!(step, Step::UdevRule(_)))
        };
        if self.is_left_alone() {
            format!("{NOT_THE_NODES}; {MOUNT_DEV}")
        } else if loss.by_udev && writes_rule() {
            format!(
                "run {} to write a udev rule that prevents it",
                policy.command(true)
            )
        } else if loss.by_udev && !is_harmless() {
            "`apply` alone cannot prevent it: change the rule on the node, or run `apply --persist`"
                .to_owned()
        } else if policy.group != CHARTS_GROUP && !is_harmless() {
            "`apply` cannot prevent it, because libvirt.sh uses the group kvm; omit --group"
                .to_owned()
        } else {
            let place = self.place();
            format!(
                "run {}{place} to prevent it",
                policy.command(policy.persist)
            )
        }
    }

    /// Whether the pending steps would let QEMU open the device, as far as its owner, mode and ACL, the directories
    /// above it and its mount options decide. `then` is the identity of QEMU after the steps, so it includes a pending
    /// change of the group file. False without pending steps.
    fn would_open(&self, then: &Identity) -> bool {
        let steps = self.steps();
        let device = self.case.seen.device.clone().filter(|_| !steps.is_empty());
        let Some(mut device) = device else {
            return false;
        };
        for step in steps {
            match step {
                Step::GroupFile(_) | Step::UdevRule(_) => {}
                Step::Owner { to, .. } => (device.facts.uid, device.facts.gid) = *to,
                Step::Mode { to, .. } => device.facts.mode = *to,
                Step::Acl { to, .. } => device.acl = Some(to.clone()),
            }
        }
        // `apply` does not change a device whose IDs are not mapped in this user namespace.
        !device.nodev
            && !device.unmapped
            && closed_directory(&self.ahead.directories, then).is_none()
            && allows(&device, then)
    }
}

/// Whether owner, mode or ACL may have caused the failure.
fn is_denied(result: &ProofResult) -> bool {
    use nix::errno::Errno;
    match result {
        ProofResult::NotDone { .. } => true,
        ProofResult::Failed { errno, .. } => *errno == Errno::EACCES,
        ProofResult::Ok(_) | ProofResult::Off | ProofResult::Mismatch { .. } => false,
    }
}
