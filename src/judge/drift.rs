//! Drift: QEMU cannot open KVM and `apply` would repair it; or it can, and something that is known to come takes
//! it away. Pure.
#![forbid(unsafe_code)]

use std::path::Path;

use super::next_events::{CHARTS_GROUP, NextEvent};
use super::{Ahead, Case, Judgement, fix_command};
use crate::codes::Permission;
use crate::plan::qemu_identity::Identity;
use crate::plan::{GroupFile, Outcome, Step, is_private};
use crate::prove::{ProofResult, allows, closed_directory};
use crate::verdict::Verdict;

const NOT_THE_NODES: &str =
    "this container's /dev is not the node's, and `apply` leaves it alone: mount the node's";

/// Adds to the verdict on the proof what is ahead.
pub fn judge(case: &Case<'_>, mut found: Judgement) -> Judgement {
    let Some(ahead) = case.ahead else {
        return found;
    };
    let drift = Drift { case, ahead };
    match found.verdict {
        Verdict::Unproven => drift.of_unproven(&mut found),
        Verdict::Ok => drift.of_ok(&mut found),
        _ => {}
    }
    found
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

    /// Where `apply` has to run, if not here.
    fn place(&self) -> &'static str {
        let pod = &self.case.seen.pod;
        let is_here = pod.is_host || pod.root.path() != Path::new("/");
        if is_here { "" } else { " in the pod" }
    }

    /// Whether `apply` leaves the device alone: it changes none but the node's, unless that one was named.
    fn is_left_alone(&self) -> bool {
        is_private(self.case.seen) && !self.case.seen.device_explicit
    }

    /// QEMU cannot open it: whether `apply` would repair that, or a part of it.
    fn of_unproven(&self, found: &mut Judgement) {
        let (plan, policy) = (self.case.plan, self.case.policy);
        let proof = self.case.proof;
        let then = plan.identity.as_ref();
        let is_repaired = then.is_some_and(|then| self.would_open(then));
        // Where the permissions allow it already something else denies it.
        let by_rights = is_denied(&proof.result)
            && proof.permission != Some(Permission::Allowed)
            && plan.excluded_by_device_acl.is_none();
        if by_rights && self.is_left_alone() {
            found.summary.push_str("; ");
            found.summary.push_str(NOT_THE_NODES);
        } else if by_rights && is_repaired {
            let summary = format!("{}; {}", found.summary, fix_command(policy, self.place()));
            found.set(Verdict::Drift, summary);
            // The command is in the summary.
            found.advice = proof.result.advice().map(|advice| advice.text.clone());
        } else if !self.steps().is_empty()
            && !is_repaired
            && let Some(advice) = proof.result.advice().filter(|advice| advice.by_apply)
        {
            let apply = policy.command(policy.persist);
            let text = &advice.text;
            found.advice = Some(format!(
                "{text}; {apply} mends a part, and names what is left"
            ));
        }
    }

    /// QEMU can open it: whether something takes that away, or a file is pending.
    fn of_ok(&self, found: &mut Judgement) {
        let out = self.steps().iter().find_map(|step| match step {
            Step::GroupFile(step) => match &step.file {
                GroupFile::Out { path, .. } => Some(path),
                GroupFile::InPlace { .. } => None,
            },
            _ => None,
        });
        if let Some(out) = out.filter(|_| !self.is_left_alone()) {
            let summary = format!(
                "{}, but {} is not as it shall be; {}",
                found.summary,
                out.display(),
                fix_command(self.case.policy, "")
            );
            found.set(Verdict::Drift, summary);
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
                "{}, but {} makes it {}, and then it cannot; {}",
                found.summary,
                loss.what,
                super::numbers(&loss.device),
                self.way_out(loss)
            );
            found.set(Verdict::Drift, summary);
        }
    }

    /// What prevents that an event takes the device away.
    fn way_out(&self, loss: &NextEvent) -> String {
        let policy = self.case.policy;
        let then = self.case.plan.identity.as_ref();
        let is_harmless = || then.is_some_and(|then| allows(&loss.device, then));
        let writes_rule = || {
            self.steps()
                .iter()
                .any(|step| matches!(step, Step::UdevRule(_)))
        };
        if self.is_left_alone() {
            NOT_THE_NODES.to_owned()
        } else if loss.by_udev && writes_rule() {
            format!("{} writes a rule that prevents it", policy.command(true))
        } else if loss.by_udev && !is_harmless() {
            "`apply` cannot prevent that: change the rule on the node, which is what `apply --persist` \
             is for"
                .to_owned()
        } else if policy.group != CHARTS_GROUP && !is_harmless() {
            "`apply` cannot prevent that, as libvirt.sh names the group kvm: leave out --group"
                .to_owned()
        } else {
            let place = self.place();
            format!("{}{place} makes both agree", policy.command(policy.persist))
        }
    }

    /// Whether there is something to do, and QEMU could open the device once it is done, as far as
    /// rights and the mount tell.
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
        // `apply` leaves alone whose IDs it cannot see.
        !device.nodev
            && !device.unmapped
            && closed_directory(&self.ahead.directories, then).is_none()
            && allows(&device, then)
    }
}

/// Whether it may be owner, mode or ACL that deny the open.
fn is_denied(result: &ProofResult) -> bool {
    use nix::errno::Errno;
    match result {
        ProofResult::NotDone { .. } => true,
        ProofResult::Failed { errno, .. } => *errno == Errno::EACCES,
        ProofResult::Ok(_) | ProofResult::Off | ProofResult::Mismatch { .. } => false,
    }
}
