//! The main job: observe, decide, act, observe again, prove. The pod's group file comes first and
//! the device last, so that a run that is killed in between leaves a device that is no more open
//! than before.

use crate::config::{Config, Missing, ProofKind};
use crate::diagnose::{Scene, allows, closed_folder, diagnose};
use crate::exit::{Usage, Verdict, verdict_of};
use crate::observe::{GROUP_FILE, Observed, folders_above, observe};
use crate::plan::{Course, Decision, Step, decide, primary_users};
use crate::prove::{Sight, prove};
use crate::qemu::Identity;
use crate::report::{Action, Cause, Change, Code, Proof, Report, Warning};
use crate::snapshot;
use crate::steps;
use crate::sys::device::Device;
use crate::sys::identity::{Credentials, normalised};
use crate::sys::settle::{self, Settled};
use crate::sys::{CallError, processes};

/// How often the work is done again when somebody else changes the device meanwhile, before that
/// is reported. udevd answering a reloaded module is over after one.
const ROUNDS: usize = 5;

/// Does what was asked and reports it.
pub fn apply(config: &Config) -> Report {
    let mut work = Work::default();
    match work.run(config) {
        Ok(report) => work.finish(report),
        Err(error) => {
            let advice = error.downcast_ref().and_then(CallError::advice);
            let summary = match advice {
                Some(advice) => format!("{error:#}; {advice}"),
                None => format!("{error:#}"),
            };
            let mut report = work
                .view
                .take()
                .unwrap_or_else(|| Report::new(Verdict::Ok, ""));
            report.verdict = match verdict_of(&error) {
                Verdict::Refused | Verdict::Usage if work.touched() => Verdict::Failed,
                verdict => verdict,
            };
            report.exit_code = report.verdict.code();
            report.summary = summary;
            report.proof = Proof::none(None, None);
            work.finish(report)
        }
    }
}

/// What has been done so far, kept for the report whatever happens next.
#[derive(Default)]
struct Work {
    changes: Vec<Change>,
    warnings: Vec<Warning>,
    /// The last view of things, for a report on a step that failed.
    view: Option<Report>,
}

impl Work {
    fn run(&mut self, config: &Config) -> anyhow::Result<Report> {
        if !config.settle.is_zero() {
            let settled = settle::wait(&config.device, config.settle)?;
            if settled == Settled::Moving {
                let text = format!(
                    "{} was still being changed after {:?}",
                    config.device.display(),
                    config.settle
                );
                self.warnings.push(Warning::new(Code::Unsettled, text));
            }
        }
        let mut last_change = None;
        for _ in 0..ROUNDS {
            let (seen, device) = observe(config)?;
            let mut decision = decide(&seen, config)?;
            let then = decision.identity.clone();
            if config.dry_run {
                decision.identity = decision.identity_now.take();
            }
            let mut report = snapshot::report(&seen, &decision, config);
            let steps = match decision.course {
                Course::Refuse(ref refusal) => {
                    return Ok(self.refuse(report, refusal.cause, &refusal.text));
                }
                Course::Absent { .. } => return self.absent(config, &seen, decision, report),
                Course::Act(ref steps) => steps,
            };
            self.note_old_number(&seen, &decision);
            if config.dry_run {
                self.changes = steps.iter().flat_map(steps::changes).collect();
                let opens = then.is_some_and(|then| would_open(config, &seen, steps, &then));
                return self.judge_dry_run(config, &seen, &decision, report, opens);
            }
            self.view = Some(report.clone());
            if !steps.is_empty() {
                last_change = steps.last().cloned();
                for step in steps {
                    self.perform(step, config, device.as_ref())?;
                }
                continue;
            }
            report.proof = proof(config, &seen, &decision, &mut self.warnings)?;
            if report.proof.result == "ok" || report.proof.result == "off" || !moved(&seen, config)
            {
                conclude(&mut report, &decision);
                if report.proof.cause == Some(Cause::NoDriver) && !self.touched() {
                    report.verdict = Verdict::Absent;
                    report.exit_code = absent_code(config);
                }
                return Ok(report);
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
        report.changes = self.changes;
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

    fn absent(
        &mut self,
        config: &Config,
        seen: &Observed,
        decision: Decision,
        mut report: Report,
    ) -> anyhow::Result<Report> {
        let Course::Absent {
            cause,
            text,
            advice,
            steps,
        } = decision.course
        else {
            return Ok(report);
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
            if config.group_file_out.is_some() && seen.pod.group.is_none() {
                let path = seen.pod.root.join(GROUP_FILE);
                return Err(Usage(format!(
                    "{} does not exist: run this in the libvirt image",
                    path.display()
                ))
                .into());
            }
            for step in &steps {
                if config.dry_run {
                    self.changes.extend(steps::changes(step));
                } else {
                    self.perform(step, config, None)?;
                }
            }
            report.exit_code = absent_code(config);
        }
        Ok(report)
    }

    fn judge_dry_run(
        &mut self,
        config: &Config,
        seen: &Observed,
        decision: &Decision,
        mut report: Report,
        would_open: bool,
    ) -> anyhow::Result<Report> {
        report.proof = proof(config, seen, decision, &mut self.warnings)?;
        conclude(&mut report, decision);
        // A device or a pod with another number than the node's is taken back by the next event.
        let takes_back = |change: &Change| {
            matches!(
                change.action,
                Action::SetGroupGid | Action::AddGroup | Action::SetDeviceOwner
            )
        };
        // What owner, mode, ACL and groups do not decide stays as it is, whatever is changed.
        let by_rights = matches!(report.proof.result.as_str(), "EACCES" | "none");
        let mends = report.verdict == Verdict::Unproven && by_rights && would_open;
        let drifts = report.verdict == Verdict::Ok && self.changes.iter().any(takes_back);
        if mends || drifts {
            report.verdict = Verdict::Drift;
            report.exit_code = Verdict::Drift.code();
            // A group file of its own that is only out of date has no change of its lines to show.
            let count = self.changes.len().max(1);
            report.summary = format!(
                "{count} change{} to make; nothing was changed (--dry-run)",
                if count == 1 { "" } else { "s" }
            );
        }
        Ok(report)
    }

    /// What the renumbering leaves behind: primary groups in passwd, and QEMUs that run.
    fn note_old_number(&mut self, seen: &Observed, decision: &Decision) {
        let Some(old) = decision.renumbered else {
            return;
        };
        let users = primary_users(&seen.pod.passwd, old);
        let qemus = processes::qemus_with_group(old);
        let mut parts = Vec::new();
        if !users.is_empty() {
            parts.push(format!(
                "it is the primary group of {} in etc/passwd",
                users.join(", ")
            ));
        }
        if !qemus.is_empty() {
            let pids: Vec<_> = qemus.iter().map(ToString::to_string).collect();
            parts.push(format!(
                "QEMUs that run with it keep it until they are restarted (pid {})",
                pids.join(", ")
            ));
        }
        if !parts.is_empty() {
            let text = format!("the old number {old} stays in use: {}", parts.join("; "));
            self.warnings.push(Warning::new(Code::OldGidInUse, text));
        }
    }

    fn perform(
        &mut self,
        step: &Step,
        config: &Config,
        device: Option<&Device>,
    ) -> anyhow::Result<()> {
        let found = self.changes.len();
        self.changes.extend(steps::changes(step));
        steps::perform(step, config, device)?;
        for change in &mut self.changes[found..] {
            change.applied = true;
        }
        log::info!("{}", steps::line(step));
        Ok(())
    }
}

/// Where guests may run without KVM its absence is accepted.
fn absent_code(config: &Config) -> u8 {
    match config.missing {
        Missing::Fail => Verdict::Absent.code(),
        Missing::Skip => Verdict::Ok.code(),
    }
}

/// Proves for the identity that libvirt will use, or says why nobody asked.
fn proof(
    config: &Config,
    seen: &Observed,
    decision: &Decision,
    warnings: &mut Vec<Warning>,
) -> anyhow::Result<Proof> {
    if config.proof == ProofKind::Off {
        let text = "the proof was turned off (--proof off): whether QEMU can open KVM is unknown";
        warnings.push(Warning::new(Code::Unproven, text));
        let mut proof = Proof::none(None, None);
        proof.result = "off".to_owned();
        return Ok(proof);
    }
    let (Some(identity), Some(node)) = (&decision.identity, &seen.device) else {
        return Ok(Proof::none(Some(Cause::Unknown), None));
    };
    let who = Credentials {
        uid: identity.uid,
        gid: identity.gid,
        groups: normalised(identity.groups.clone()),
    };
    let sight = prove(&config.device, &node.facts, &who, config.proof)?;
    let folders = match sight {
        Sight::Ok(_) => Vec::new(),
        _ => folders_above(&config.device),
    };
    let scene = Scene {
        device: &config.device,
        node,
        folders: &folders,
        identity,
    };
    Ok(diagnose(sight, &scene))
}

/// Whether there is something to do, and QEMU could open the device once it is done, as far as
/// rights and the mount tell.
fn would_open(config: &Config, seen: &Observed, steps: &[Step], then: &Identity) -> bool {
    let Some(mut node) = seen.device.clone().filter(|_| !steps.is_empty()) else {
        return false;
    };
    for step in steps {
        match step {
            Step::GroupFile(_) => {}
            Step::Owner { to, .. } => (node.facts.uid, node.facts.gid) = *to,
            Step::Mode { to, .. } => node.facts.mode = *to,
            Step::Acl { to, .. } => node.acl = Some(to.clone()),
        }
    }
    let folders = folders_above(&config.device);
    let scene = Scene {
        device: &config.device,
        node: &node,
        folders: &folders,
        identity: then,
    };
    !node.nodev && closed_folder(&scene).is_none() && allows(&node, then)
}

/// Whether the device is not as it was seen: then a failed proof says nothing yet.
fn moved(seen: &Observed, config: &Config) -> bool {
    let before = seen.device.as_ref().map(|node| node.facts);
    let now = Device::find(&config.device).ok().flatten();
    now.map(|device| device.facts()) != before
}

/// The verdict on a state in which nothing is left to change.
fn conclude(report: &mut Report, decision: &Decision) {
    let who = decision.identity.as_ref().map(|identity| identity.label());
    let who = who.unwrap_or_default();
    let path = report.device.as_ref().map(|device| device.path.clone());
    let path = path.unwrap_or_default();
    let stand_in = decision
        .identity
        .as_ref()
        .is_some_and(|identity| identity.stand_in);
    (report.verdict, report.summary) = match report.proof.result.as_str() {
        "ok" if stand_in => (
            Verdict::Ok,
            format!("the group can open {path}; this node has no QEMU user to prove it for"),
        ),
        "ok" => (Verdict::Ok, format!("QEMU as {who} can open {path}")),
        "off" => (Verdict::Ok, format!("{path} is as it shall be; not proven")),
        "none" => (
            Verdict::Unproven,
            format!("whether QEMU as {who} can open {path} could not be asked"),
        ),
        result => (
            Verdict::Unproven,
            format!("QEMU as {who} cannot open {path}: {result}"),
        ),
    };
    report.exit_code = report.verdict.code();
}
