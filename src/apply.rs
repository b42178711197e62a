//! The main job: observe, decide, act, observe again, prove. The pod's group file comes first and
//! the device last, so that a run that is killed in between leaves a device that is no more open
//! than before.

use std::time::Duration;

use crate::check;
use crate::config::{Config, Missing};
use crate::exit::Verdict;
use crate::judge::{absent_code, conclude, failure, group_file_for_the_pod, moved, proof};
use crate::libvirtd;
use crate::observe::{Observed, observe};
use crate::plan::{Course, Decision, Step, decide, primary_users};
use crate::report::{Cause, Change, Code, Proof, Report, Warning, some_of, some_of_many};
use crate::snapshot;
use crate::steps::{self, Held};
use crate::sys::device::Device;
use crate::sys::processes;
use crate::sys::settle::{self, Settled};

/// How often the work is done again when somebody else changes the device meanwhile, before that
/// is reported. udevd answering a reloaded module is over after one.
const ROUNDS: usize = 5;

/// The same for the group files: many runs at once, each with its own member, are no quarrel, and each
/// is done after its turn.
const TURNS: usize = 100;

/// How long the start of a guest takes at most from when libvirt looks up QEMU's groups (`virExec`)
/// until it copies the device into the guest's own /dev (`qemuDomainBuildNamespace`).
const STARTS: Duration = Duration::from_secs(1);

/// Does what was asked and reports it.
pub fn apply(config: &Config) -> Report {
    apply_and_see(config).0
}

/// The same, with what was seen once it was done; nothing where it did not come to that.
pub fn apply_and_see(config: &Config) -> (Report, Option<Observed>) {
    let mut work = Work::default();
    let report = match libvirtd::hold(config) {
        Ok(config) => work.whole(&config),
        Err(error) => failure(&error, None),
    };
    let seen = work.seen.take();
    (work.finish(report), seen)
}

/// What has been done so far, kept for the report whatever happens next.
#[derive(Default)]
struct Work {
    changes: Vec<Change>,
    warnings: Vec<Warning>,
    /// The last view of things, for a report on a step that failed.
    view: Option<Report>,
    /// What was seen when nothing was left to do, or nothing could be done.
    seen: Option<Observed>,
    /// Directories are held, which may have been made or taken over for that.
    has_begun: bool,
}

impl Work {
    fn whole(&mut self, config: &Config) -> Report {
        if let Err(error) = self.settle(config) {
            return failure(&error, None);
        }
        if config.dry_run {
            return check::judge(config);
        }
        self.run(config).unwrap_or_else(|error| {
            let mut report = failure(&error, self.view.take());
            // What was not wrong with the options at first is not wrong with them now.
            let is_late = self.has_begun && report.verdict == Verdict::Usage;
            let is_no = matches!(report.verdict, Verdict::Refused | Verdict::Usage);
            if is_late || self.touched() && is_no {
                report.verdict = Verdict::Failed;
                report.exit_code = Verdict::Failed.code();
            }
            report
        })
    }

    /// Waits for the device to hold still, if that was asked for.
    fn settle(&mut self, config: &Config) -> anyhow::Result<()> {
        if !config.settle.is_zero()
            && settle::wait(&config.device, config.settle)? == Settled::Moving
        {
            let text = format!(
                "{} was still being changed after {:?}",
                config.device.display(),
                config.settle
            );
            self.warnings.push(Warning::new(Code::Unsettled, text));
        }
        Ok(())
    }

    fn run(&mut self, config: &Config) -> anyhow::Result<Report> {
        let mut last_change = None;
        let mut rounds = 0;
        let mut held = Held::default();
        for _ in 0..TURNS {
            let (seen, device) = observe(config)?;
            let decision = decide(&seen, config)?;
            let mut report = snapshot::report(&seen, &decision, config);
            if let Course::Act(steps) = &decision.course
                && !config.watching
            {
                steps::refuse_rule(steps)?;
            }
            let files = self.files_of(&decision, config);
            if !files.is_empty() {
                self.view = Some(report.clone());
                // What was seen before a lock was taken may be out of date.
                if held.take(files, config)? {
                    self.has_begun = true;
                    continue;
                }
            }
            let steps = match decision.course {
                Course::Refuse(ref refusal) => {
                    self.seen = Some(seen);
                    return Ok(self.refuse(report, refusal.cause, &refusal.text));
                }
                Course::Absent { .. } => {
                    let done = self.absent(config, &seen, decision, report, &mut held);
                    let Some(done) = done.transpose() else {
                        continue;
                    };
                    self.seen = Some(seen);
                    return done;
                }
                Course::Act(ref steps) => steps::due(steps),
            };
            self.note_old_number(&seen, &decision);
            self.view = Some(report.clone());
            if !steps.is_empty() {
                last_change = steps.last().cloned();
                let is_done = self.perform_all(steps, config, &seen, device.as_ref(), &mut held)?;
                held = Held::default();
                let is_file = |step: &Step| matches!(step, Step::GroupFile(_));
                rounds += usize::from(is_done && !steps.iter().all(is_file));
                if rounds == ROUNDS {
                    break;
                }
                continue;
            }
            // Nothing is left to write, and the proof may take a while.
            held = Held::default();
            report.proof = proof(config, &seen, &decision, &mut self.warnings, || {})?;
            if report.proof.result == "ok" || report.proof.result == "off" || !moved(&seen, config)
            {
                conclude(&mut report, &decision);
                if report.proof.cause == Some(Cause::NoDriver) && !self.touched() {
                    report.verdict = Verdict::Absent;
                    report.exit_code = absent_code(config);
                }
                self.seen = Some(seen);
                return Ok(report);
            }
            rounds += 1;
            if rounds == ROUNDS {
                break;
            }
        }
        let what = last_change.map(|step| format!(" (last: {})", steps::line(&step)));
        Err(anyhow::anyhow!(
            "{} or the group file is changed by somebody else again and again{}: see which process \
             does it (`inotifywait -m /dev`, `udevadm monitor`), then run again with --settle 30s",
            config.device.display(),
            what.unwrap_or_default()
        ))
    }

    fn touched(&self) -> bool {
        self.changes.iter().any(|change| change.applied)
    }

    fn finish(self, mut report: Report) -> Report {
        report.changes.extend(self.changes);
        let known = std::mem::take(&mut report.warnings);
        for warning in self.warnings.into_iter().chain(known) {
            if !report.warnings.contains(&warning) {
                report.warnings.push(warning);
            }
        }
        report
    }

    /// A rule said no. After a step of an earlier round it is a failure: something was changed.
    fn refuse(&self, mut report: Report, cause: Option<Cause>, text: &str) -> Report {
        report.verdict = if self.touched() {
            Verdict::Failed
        } else {
            Verdict::Refused
        };
        report.exit_code = report.verdict.code();
        text.clone_into(&mut report.summary);
        report.proof = Proof::none(cause, None);
        report
    }

    /// What a missing KVM comes to; nothing where a file has changed in the meantime.
    fn absent(
        &mut self,
        config: &Config,
        seen: &Observed,
        decision: Decision,
        mut report: Report,
        held: &mut Held,
    ) -> anyhow::Result<Option<Report>> {
        let Course::Absent {
            cause,
            text,
            advice,
            steps,
        } = decision.course
        else {
            return Ok(Some(report));
        };
        let touched = self.touched();
        report.verdict = if touched {
            Verdict::Failed
        } else {
            Verdict::Absent
        };
        report.exit_code = report.verdict.code();
        report.summary = text;
        report.proof = Proof::none(Some(cause), Some(advice));
        if config.missing == Missing::Skip && !touched {
            group_file_for_the_pod(config, seen)?;
            if !self.perform_all(&steps, config, seen, None, held)? {
                return Ok(None);
            }
            report.exit_code = absent_code(config);
        }
        Ok(Some(report))
    }

    /// The steps whose files are to be locked before any of them is done: none where no file is written.
    fn files_of<'a>(&self, decision: &'a Decision, config: &Config) -> &'a [Step] {
        let is_file = |step: &Step| matches!(step, Step::GroupFile(_) | Step::UdevRule(_));
        match &decision.course {
            Course::Act(steps) if steps::due(steps).iter().any(is_file) => steps::due(steps),
            Course::Absent { steps, .. } if config.missing == Missing::Skip && !self.touched() => {
                steps
            }
            _ => &[],
        }
    }

    /// What the renumbering leaves behind: primary groups in passwd, and QEMUs that run.
    fn note_old_number(&mut self, seen: &Observed, decision: &Decision) {
        /// How many of each are named.
        const NAMED: usize = 20;
        let Some(old) = decision.renumbered else {
            return;
        };
        let users = some_of_many(primary_users(&seen.pod.passwd, old), NAMED, ", ");
        let qemus = processes::qemus_with_group(old);
        let mut parts = Vec::new();
        if !users.is_empty() {
            parts.push(format!(
                "it is the primary group of {} in etc/passwd",
                users
            ));
        }
        if !qemus.is_empty() {
            let pids: Vec<_> = qemus.iter().map(ToString::to_string).collect();
            parts.push(format!(
                "QEMUs that run with it keep it until they are restarted (pid {})",
                some_of(&pids, NAMED, ", ")
            ));
        }
        if !parts.is_empty() {
            let text = format!("the old number {old} stays in use: {}", parts.join("; "));
            self.warnings.push(Warning::new(Code::OldGidInUse, text));
        }
    }

    /// Does the steps in their order, the group file first and the device later: where the group file cannot be
    /// written the device is left alone. False where a file has changed since it was looked at.
    fn perform_all(
        &mut self,
        steps: &[Step],
        config: &Config,
        seen: &Observed,
        device: Option<&Device>,
        held: &mut Held,
    ) -> anyhow::Result<bool> {
        for step in steps {
            let found = self.changes.len();
            self.changes.extend(steps::changes(step));
            match step {
                Step::GroupFile(_) | Step::UdevRule(_) => {
                    if !steps::write(step, config, seen, held)? {
                        self.changes.truncate(found);
                        return Ok(false);
                    }
                }
                _ => steps::perform(step, config, device)?,
            }
            for change in &mut self.changes[found..] {
                change.applied = true;
            }
            log::info!("{}", steps::line(step));
            if let Some(note) = steps::note(step) {
                log::info!("{note}");
            }
            // The old number is good for a guest that is starting now, the new one is not.
            if matches!(step, Step::GroupFile(_)) && self.leaves(config) {
                held.release_group();
                std::thread::sleep(STARTS);
            }
        }
        Ok(true)
    }

    /// Whether the device is about to leave a number with which QEMU can open it (`watch`).
    fn leaves(&self, config: &Config) -> bool {
        let target = self.view.as_ref().and_then(|view| view.target.as_ref());
        let kept = config.kept.map(nix::unistd::Gid::as_raw);
        kept.is_some() && kept != target.map(|target| target.gid)
    }
}
