//! One run, in rounds: each round observes, plans, and executes the steps that are due. The round in which no step
//! is left runs the proof and ends the run.

use super::{Daemons, Finished, Request, device_changed, no_device};
use std::cell::LazyCell;
use std::time::Duration;

use nix::unistd::Gid;

use crate::codes::{Warning, WarningCode};
use crate::error::{Error, Result};
use crate::execute::{self, Locks};
use crate::judge::next_events::next_events;
use crate::judge::{Ahead, Case, Judgement, advisories, judge};
use crate::observe::daemons::StaleDaemons;
use crate::observe::{Observation, directories_above, observe};
use crate::plan::{Memory, Outcome, Plan, Step, plan, primary_users};
use crate::prove::{Proof, ProofResult, prove};
use crate::report::build::{View, build};
use crate::report::{Change, changes};
use crate::sys::device::Device;
use crate::sys::file::LOCK_WAIT;
use crate::sys::processes::qemus_with_group;
use crate::sys::settle::{self, Settled};
use crate::text::join_first;
use crate::verdict::Verdict;

/// Maximum number of rounds of `apply` while another process keeps changing the device; then it reports an error. The
/// change that udevd makes after a module reload takes one round.
const ROUNDS: usize = 5;

/// Maximum number of rounds of `check` in that case; then it reports the last observation.
const LOOKS: usize = 3;

/// Maximum number of rounds in total. Concurrent runs that each add another member to the group file all
/// succeed in the end, but each may have to repeat its round once for every other run.
const TURNS: usize = 100;

/// Upper limit for the time in a guest start between libvirt's lookup of QEMU's groups (`virExec`) and its copy of
/// the device into the guest's private /dev (`qemuDomainBuildNamespace`).
const STARTS: Duration = Duration::from_secs(1);

/// Waits for the device to stop changing (`--settle`). Returns a warning if it did not.
fn settle(request: &Request) -> Result<Option<Warning>> {
    let device = &request.sources.device;
    if request.settle.is_zero() || settle::wait(device, request.settle)? != Settled::Moving {
        return Ok(None);
    }
    let text = format!(
        "{} was still changing after {:?} (--settle)",
        device.display(),
        request.settle
    );
    Ok(Some(Warning::new(WarningCode::Unsettled, text)))
}

/// A run and its changes so far, which are reported even if an error ends it.
pub(super) struct Run<'a> {
    request: &'a Request,
    memory: Option<&'a Memory>,
    /// Set for `check` and `--dry-run`.
    daemons: Option<&'a Daemons>,
    changes: Vec<Change>,
    warnings: Vec<Warning>,
    /// Whether this run has changed the device or a file.
    changed: bool,
    /// Whether a lock was taken, for which an output directory may have been created or changed.
    has_begun: bool,
    /// The last observation and plan, for the report on a failed step.
    view: Option<View>,
    locks: Locks,
    /// Rounds used, of [`ROUNDS`] or [`LOOKS`]; rounds that only write group files do not count.
    rounds: usize,
    last_change: Option<Step>,
}

/// The result of a round.
enum Round {
    /// Something was changed, by this run or by another process, so that the next round must observe again.
    Again,
    /// No step is left.
    Done(Proof),
}

impl<'a> Run<'a> {
    pub(super) fn new(
        request: &'a Request,
        memory: Option<&'a Memory>,
        daemons: Option<&'a Daemons>,
    ) -> Self {
        Self {
            request,
            memory,
            daemons,
            changes: Vec::new(),
            warnings: Vec::new(),
            changed: false,
            has_begun: false,
            view: None,
            locks: Locks::default(),
            rounds: 0,
            last_change: None,
        }
    }

    pub(super) fn go(mut self) -> Finished {
        match self.rounds() {
            Ok((seen, plan, proof)) => {
                let mut finished = self.finish(&seen, &plan, &proof);
                finished.seen = Some(seen);
                finished
            }
            Err(error) => self.fail(&error),
        }
    }

    fn rounds(&mut self) -> Result<(Observation, Plan, Proof)> {
        self.warnings.extend(settle(self.request)?);
        let most = if self.daemons.is_some() {
            LOOKS
        } else {
            ROUNDS
        };
        for _ in 0..TURNS {
            let (mut seen, device) = observe(&self.request.sources)?;
            if let Some(memory) = self.memory {
                memory.complete(&mut seen);
            }
            let plan = plan(&seen, &self.request.policy, self.memory)?;
            let round = match self.daemons {
                Some(daemons) => self.look(&seen, &plan, daemons)?,
                None => self.work(&seen, &plan, device.as_ref())?,
            };
            if let Round::Done(proof) = round {
                let may_differ =
                    matches!(plan.outcome, Outcome::Act(_)) && !proof.result.is_settled();
                if !may_differ || !device_changed(&seen) {
                    return Ok((seen, plan, proof));
                }
                self.rounds += 1;
                if self.daemons.is_some() && self.rounds == most {
                    return Ok((seen, plan, proof));
                }
            }
            if self.rounds == most {
                break;
            }
        }
        let last = self
            .last_change
            .as_ref()
            .map(|step| format!(" (this run's last change: {})", changes::line(step)));
        Err(Error::Contended(format!(
            "another process repeatedly changes {} or the group file{}; find it with `inotifywait -m /dev` or \
             `udevadm monitor`, then run again with --settle 30s",
            self.request.sources.device.display(),
            last.unwrap_or_default()
        )))
    }

    /// A round of `check`, which changes nothing.
    fn look(&mut self, seen: &Observation, plan: &Plan, daemons: &Daemons) -> Result<Round> {
        let steps = match &plan.outcome {
            Outcome::Act(steps) => steps,
            Outcome::NoKvm(no_kvm) => &no_kvm.steps,
            Outcome::Refuse(_) => &Vec::new(),
        };
        self.changes = steps.iter().flat_map(changes::changes).collect();
        // Search for the daemons while the proof's child runs.
        self.prove(seen, plan, || _ = LazyCell::force(daemons))
    }

    /// A round of `apply`, which executes the steps that are due.
    fn work(&mut self, seen: &Observation, plan: &Plan, device: Option<&Device>) -> Result<Round> {
        let steps = self.due(plan);
        if let (Outcome::Act(all), None) = (&plan.outcome, self.memory) {
            execute::refuse_rule(all)?;
        }
        if !steps.is_empty() {
            self.view = Some(View::new(
                seen,
                plan,
                &self.request.policy,
                plan.identity.as_ref(),
            ));
            // The files may have changed before the lock was taken, so the next round observes them again.
            let is_file = |step: &Step| matches!(step, Step::GroupFile(_) | Step::UdevRule(_));
            if steps.iter().any(is_file) && self.locks.take(steps, self.patience())? {
                self.has_begun = true;
                return Ok(Round::Again);
            }
        }
        self.note_old_gid(seen, plan);
        if !steps.is_empty() {
            self.last_change = steps.last().cloned();
            let is_done = self.perform(steps, seen, plan, device)?;
            self.locks = Locks::default();
            let is_group_file = |step: &Step| matches!(step, Step::GroupFile(_));
            self.rounds += usize::from(is_done && !steps.iter().all(is_group_file));
            self.changed |= is_done && matches!(plan.outcome, Outcome::Act(_));
            return Ok(Round::Again);
        }
        // Release the locks: no file is written any more, and the proof can take up to 10 s.
        self.locks = Locks::default();
        self.prove(seen, plan, || {})
    }

    /// The steps that this round executes.
    fn due<'p>(&self, plan: &'p Plan) -> &'p [Step] {
        match &plan.outcome {
            Outcome::Act(steps) => execute::due(steps),
            Outcome::NoKvm(no_kvm) if !self.changed => &no_kvm.steps,
            Outcome::NoKvm(_) | Outcome::Refuse(_) => &[],
        }
    }

    fn prove(&mut self, seen: &Observation, plan: &Plan, beside: impl FnOnce()) -> Result<Round> {
        if !matches!(plan.outcome, Outcome::Act(_)) {
            return Ok(Round::Done(ProofResult::not_done(None, None).into()));
        }
        let proof = prove(seen, plan, self.request.proof, beside).inspect_err(|_| {
            let identity = plan.identity_now.as_ref().ok();
            self.view = Some(View::new(seen, plan, &self.request.policy, identity));
        })?;
        Ok(Round::Done(proof))
    }

    /// Maximum time to wait for a lock. It is shorter for `watch`, which tries again later and has to handle events.
    fn patience(&self) -> Duration {
        match self.memory {
            Some(_) => LOCK_WAIT / 10,
            None => LOCK_WAIT,
        }
    }

    /// Warns about users and running QEMUs that keep the group's old GID.
    fn note_old_gid(&mut self, seen: &Observation, plan: &Plan) {
        const NAMED: usize = 20;
        let Some(old) = plan.renumbered else {
            return;
        };
        let users = join_first(primary_users(&seen.pod.passwd, old), NAMED, ", ");
        let qemus = qemus_with_group(old);
        let qemus = join_first(qemus.iter().map(ToString::to_string), NAMED, ", ");
        let mut parts = Vec::new();
        if !users.is_empty() {
            parts.push(format!("as the primary group of {users} in etc/passwd"));
        }
        if !qemus.is_empty() {
            parts.push(format!(
                "by running QEMU processes until their guests are restarted (pid {qemus})"
            ));
        }
        if !parts.is_empty() {
            let text = format!(
                "the group's old GID {old} is still used {}",
                parts.join(", and ")
            );
            self.warnings
                .push(Warning::new(WarningCode::OldGidInUse, text));
        }
    }

    /// Executes the steps in order, so that the device is not changed if the group file cannot be written. Returns
    /// false if a file has changed since the observation.
    fn perform(
        &mut self,
        steps: &[Step],
        seen: &Observation,
        plan: &Plan,
        device: Option<&Device>,
    ) -> Result<bool> {
        for step in steps {
            let before = self.changes.len();
            self.changes.extend(changes::changes(step));
            match step {
                Step::GroupFile(_) | Step::UdevRule(_) => {
                    if !execute::write(step, &self.locks)? {
                        self.changes.truncate(before);
                        return Ok(false);
                    }
                }
                _ => execute::perform(step, device.ok_or_else(|| no_device(seen))?)?,
            }
            for change in &mut self.changes[before..] {
                change.applied = true;
            }
            self.changed |= matches!(plan.outcome, Outcome::Act(_));
            log::info!("{}", changes::line(step));
            if let Some(note) = changes::note(step) {
                log::info!("{note}");
            }
            // A guest that is starting has the old groups, because libvirt has already looked them up. Wait until it
            // has its copy of the device before the device gets another GID.
            if matches!(step, Step::GroupFile(_)) && self.leaves_good_gid(plan) {
                self.locks.release_group();
                std::thread::sleep(STARTS);
            }
        }
        Ok(true)
    }

    /// Whether the next steps change the device from a GID with which QEMU can open it (`watch`).
    fn leaves_good_gid(&self, plan: &Plan) -> bool {
        let good = self.memory.and_then(|memory| memory.last_good_gid);
        let target: Option<Gid> = plan.resolution.target().map(|target| target.gid);
        good.is_some() && good != target
    }

    pub(super) fn finish(mut self, seen: &Observation, plan: &Plan, proof: &Proof) -> Finished {
        let policy = &self.request.policy;
        let ahead = self.daemons.map(|_| Ahead {
            next_events: next_events(seen, policy.persist),
            directories: match proof.result.is_settled() {
                true => Vec::new(),
                false => directories_above(&seen.device_path),
            },
        });
        let judgement = judge(&Case {
            seen,
            plan,
            policy,
            proof,
            ahead: ahead.as_ref(),
            changed: self.changed,
        });
        let identity = plan.identity_now.as_ref().ok();
        let mut view = View::new(seen, plan, policy, identity);
        let off = (proof.result == ProofResult::Off).then(proof_is_off);
        if let Some(daemons) = self.daemons {
            let stale = StaleDaemons::find(seen, daemons);
            let advisories = advisories::warnings(seen, policy, identity, &stale);
            view.warnings.extend(advisories);
            view.warnings.extend(off);
        } else {
            self.warnings.extend(off);
        }
        let is_good = matches!(judgement.verdict, Verdict::Ok | Verdict::Drift);
        Finished {
            is_ready: is_good && judgement.proof_counts && proof.result.is_ok(),
            opens: proof.result.is_ok(),
            of_device: judgement.of_device,
            report: build(Some(view), judgement, proof, self.changes, self.warnings),
            seen: None,
        }
    }

    /// The report on a run that an error ended.
    fn fail(mut self, error: &Error) -> Finished {
        if let crate::config::Libvirtd::Unclear(text) = &self.request.sources.libvirtd {
            self.warnings.push(crate::judge::libvirtd_unseen(text));
        }
        // "Usage" promises that nothing was changed. The options were valid when the run began, so the cause is
        // a change during the run.
        let is_late = self.has_begun && matches!(error, Error::Usage(_));
        let judgement = Judgement::of_error(error, self.changed || is_late);
        let proof = ProofResult::not_done(None, None).into();
        Finished {
            is_ready: false,
            opens: false,
            of_device: judgement.verdict,
            report: build(self.view, judgement, &proof, self.changes, self.warnings),
            seen: None,
        }
    }
}

fn proof_is_off() -> Warning {
    let text = "--proof off is set, so it is unknown whether QEMU can open KVM";
    Warning::new(WarningCode::Unproven, text)
}
