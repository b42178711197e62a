//! One device, kept as it shall be.

use std::time::{Instant, SystemTime};

use nix::unistd::Gid;

use super::tally::Tally;
use super::tug::{Move, PATIENCE, Tug};
use crate::apply::apply_and_see;
use crate::config::{Config, Origin};
use crate::exit::Verdict;
use crate::forecast;
use crate::judge::{conclude, proof};
use crate::observe::{Node, Observed, look_again};
use crate::oddities::{daemons, libvirtd_elsewhere};
use crate::plan::{Course, Decision, Step, decide};
use crate::report::{Action, Report};
use crate::snapshot;
use crate::steps;
use crate::sys::root::Root;

/// What is kept, and how that goes.
pub(super) struct Keeper {
    /// As it was configured.
    asked: Config,
    /// The same, with what was found out since: libvirtd's root, and the number that is kept.
    config: Config,
    /// What was seen when all was right.
    seen: Option<Observed>,
    report: Report,
    tally: Tally,
    tug: Tug,
    paused_until: Option<Instant>,
    /// The number with which QEMU could open the device.
    good: Option<u32>,
    /// What was said last about a state that is not right.
    said: Option<String>,
}

impl Keeper {
    pub(super) fn new(config: Config) -> Self {
        Self {
            asked: config.clone(),
            config,
            seen: None,
            report: Report::new(Verdict::Unproven, "nothing was looked at yet"),
            tally: Tally::default(),
            tug: Tug::default(),
            paused_until: None,
            good: None,
            said: None,
        }
    }

    pub(super) fn configure(&mut self, config: Config) {
        self.asked = config;
        self.good = None;
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// Until when nothing is mended, for somebody undoes it at once.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Whether what is missing comes with a libvirtd: this container has no accounts of its own, so
    /// that it can only look after somebody else's.
    pub(super) fn waits_for_libvirtd(&self) -> bool {
        let own = std::path::Path::new("/");
        let has_accounts = |root: Root| root.stat("etc/passwd").is_ok_and(|found| found.is_some());
        self.asked.group_file_out.is_none()
            && self.config.root == own
            && !Root::open(own).is_ok_and(has_accounts)
    }

    /// Looks at everything and mends it, as `apply` does.
    pub(super) fn look(&mut self) {
        self.config = with_libvirtds_root(&self.asked);
        let (mut report, mut seen) = apply_and_see(&self.config);
        self.count(&report);
        if let Some(good) = self.good.filter(|good| is_stuck(&report, *good)) {
            self.config.gid = Some((Gid::from_raw(good), Origin::Kept));
            let (mut kept, at) = apply_and_see(&self.config);
            self.count(&kept);
            if kept.verdict == Verdict::Ok {
                kept.verdict = Verdict::Drift;
                kept.exit_code = Verdict::Drift.code();
                kept.summary = format!(
                    "the device keeps the number {good}, which QEMU can use: {}",
                    report.summary
                );
            }
            (report, seen) = (kept, at);
        }
        self.asked.settle = std::time::Duration::ZERO;
        // A device that went away comes back, and is mended then from what was seen before.
        if seen.is_some() || report.verdict != Verdict::Absent {
            self.seen = seen;
        }
        self.conclude(report);
    }

    /// Mends the device, from what was seen last of all that decides about it.
    pub(super) fn heal(&mut self) {
        self.paused_until = None;
        match self.quickly() {
            Ok(true) => {}
            Ok(false) => self.look(),
            Err(error) => {
                log::debug!("{error:#}");
                self.look();
            }
        }
    }

    /// False where that takes a look at everything.
    fn quickly(&mut self) -> anyhow::Result<bool> {
        let Some(seen) = &mut self.seen else {
            return Ok(false);
        };
        let before = seen.device.as_ref().map(|node| node.facts.inode);
        let device = look_again(seen, &self.config)?;
        let decision = decide(seen, &self.config)?;
        let Course::Act(steps) = &decision.course else {
            return Ok(false);
        };
        if steps.iter().any(|step| !is_the_devices(step)) {
            return Ok(false);
        }
        let same = before == seen.device.as_ref().map(|node| node.facts.inode);
        if steps.is_empty() && same {
            return Ok(true);
        }
        let now = Instant::now();
        if let (false, Move::After(wait, count)) = (steps.is_empty(), self.tug.found_undone(now)) {
            self.paused_until = Some(now + wait);
            // Now and then is enough.
            if count.is_power_of_two() || count == PATIENCE {
                let path = self.config.device.display();
                let who = seen.device.as_ref().and_then(|node| who(seen, node));
                let who = who.unwrap_or_else(|| {
                    format!("`auditctl -w {path} -p a` on the node tells the process")
                });
                log::warn!(
                    "{path} was changed back at once {count} times in a row, the next change waits \
                     {wait:?}: {who}"
                );
            }
            return Ok(true);
        }
        for step in steps {
            steps::perform(step, &self.config, device.as_ref())?;
            self.tug.changed(Instant::now());
            self.tally
                .healed(steps::changes(step).iter().map(|change| change.action));
            log::info!("healed: {}", steps::line(step));
        }
        look_again(seen, &self.config)?;
        let report = proven(seen, &self.config, decision)?;
        self.conclude(report);
        Ok(true)
    }

    fn conclude(&mut self, report: Report) {
        if report.proof.result == "ok" {
            self.good = report.device.as_ref().and_then(|device| device.gid);
        }
        let right = report.verdict == Verdict::Ok || report.exit_code == Verdict::Ok.code();
        let line = (!right).then(|| report.closing_line());
        if self.said != line {
            match &line {
                Some(line) => log::warn!("{line}"),
                None => log::info!("{}", report.summary),
            }
            self.said = line;
        }
        self.tally.looked(SystemTime::now());
        self.report = report;
    }

    /// What `apply` changed after the first time was drift.
    fn count(&mut self, report: &Report) {
        let applied = report.changes.iter().filter(|change| change.applied);
        let applied: Vec<_> = applied.map(|change| change.action).collect();
        if self.tally.has_looked() {
            self.tally.healed(applied.iter().copied());
        }
        if applied.iter().any(|action| is_of_the_device(*action)) {
            self.tug.changed(Instant::now());
        }
    }

    /// Leaves the state for others.
    pub(super) fn save(&self) {
        let (config, report) = (&self.asked, &self.report);
        if let Some(path) = &config.metrics_file {
            let text = self.tally.prometheus(report, SystemTime::now());
            publish(path, text.as_bytes());
        }
        if let Some(path) = &config.status_file {
            publish(path, report.to_json().unwrap_or_default().as_bytes());
        }
    }
}

fn publish(path: &std::path::Path, content: &[u8]) {
    if let Err(error) = crate::sys::file::publish(path, content) {
        log::warn!("{error}");
    }
}

/// Where no root was named, the root of the libvirtd that runs in another container.
fn with_libvirtds_root(asked: &Config) -> Config {
    let mut config = asked.clone();
    let here = std::path::Path::new("/");
    if config.root == here
        && config.group_file_out.is_none()
        && let Some(process) = libvirtd_elsewhere(&daemons())
    {
        config.root = process.root_path();
    }
    config
}

/// Whether the group file could not be brought in line, and the device has another number to go to.
fn is_stuck(report: &Report, good: u32) -> bool {
    let stuck = matches!(report.verdict, Verdict::Failed | Verdict::Refused);
    let is_group = |action| {
        matches!(
            action,
            Action::SetGroupGid | Action::AddGroup | Action::AddMember | Action::WriteGroupFile
        )
    };
    let mut undone = report.changes.iter().filter(|change| !change.applied);
    let target = report.target.as_ref().map(|target| target.gid);
    stuck && target != Some(good) && undone.any(|change| is_group(change.action))
}

fn is_the_devices(step: &Step) -> bool {
    let changes = steps::changes(step);
    changes.iter().all(|change| is_of_the_device(change.action))
}

fn is_of_the_device(action: Action) -> bool {
    matches!(
        action,
        Action::SetDeviceOwner | Action::SetDeviceMode | Action::SetDeviceAcl
    )
}

fn proven(seen: &Observed, config: &Config, decision: Decision) -> anyhow::Result<Report> {
    let mut report = snapshot::report(seen, &decision, config);
    report.proof = proof(config, seen, &decision, &mut report.warnings)?;
    conclude(&mut report, &decision);
    Ok(report)
}

/// Who left the device as it is, as far as its numbers tell.
fn who(seen: &Observed, node: &Node) -> Option<String> {
    let facts = &node.facts;
    let numbers = format!("{}:{} {:04o}", facts.uid, facts.gid, facts.mode);
    let like = |coming: &forecast::Coming| {
        let its = coming.node.facts;
        (its.uid, its.gid, its.mode) == (facts.uid, facts.gid, facts.mode)
    };
    let coming = forecast::coming(seen);
    let coming = coming.iter().find(|coming| like(coming))?;
    Some(format!("{numbers} is what {} gives it", coming.what))
}
