//! One device, kept as it shall be.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::Gid;

use super::opponent::who_did;
use super::publish::{Published, Status};
use super::tally::{Tally, is_ready};
use super::tug::{Move, PATIENCE, Tug};
use super::voice::Voice;
use crate::apply::apply_and_see;
use crate::check;
use crate::config::{Config, Origin, ProofKind};
use crate::exit::Verdict;
use crate::judge::{conclude, moved, proof};
use crate::libvirtd::{Found, Libvirtd, find};
use crate::observe::{GROUP_FILE, Observed, group_file_stands, look_again};
use crate::oddities::daemons;
use crate::place::{self, HostRoot};
use crate::plan::{Course, Decision, Step, decide};
use crate::report::{Action, Report};
use crate::snapshot;
use crate::steps;
use crate::sys::device::Device;

/// The first wait before a state that is not right is looked at again without an event.
const SOON_AGAIN: Duration = Duration::from_secs(1);

/// How much a look may cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thorough {
    /// All that was asked for.
    Yes,
    /// No virtual machine: the kernel tells udev of it, and udev touches the device, which is an
    /// event that would be answered with the next one.
    No,
}

/// Why a proof may say nothing of a libvirtd that runs.
enum Doubt {
    /// The one in another container may have a device of its own, or a mount that ignores devices.
    OtherDevice,
    /// None runs whose files could be kept; perhaps one with a /dev of its own.
    Nobody(Option<u32>),
    /// It cannot be told from others, or may not be looked at.
    Unclear(String),
}

/// What is kept, and how that goes.
pub(super) struct Keeper {
    /// As it was configured.
    asked: Config,
    /// The same, with what was found out since: libvirtd's root, and the number that is kept.
    config: Config,
    /// The libvirtd in another container whose root that is.
    libvirtd: Option<Libvirtd>,
    /// Whether there may be one that was not found yet.
    seeks: bool,
    /// Why a proof may say nothing of a libvirtd that runs.
    doubt: Option<Doubt>,
    /// What was seen last.
    seen: Option<Observed>,
    report: Report,
    tally: Tally,
    tug: Tug,
    voice: Voice,
    paused_until: Option<Instant>,
    looked: Option<Instant>,
    /// How long to wait before looking again while the state is not right.
    again: Option<Duration>,
    /// The number with which QEMU could open the device.
    good: Option<Gid>,
    /// Why the device keeps that number though the node has another one.
    keeps: Option<String>,
    /// The root whose group file was the node's own when the node was seen last.
    nodes: Option<PathBuf>,
    /// The number that the pod's group had before it was brought in line.
    old: Option<String>,
    /// What was said last about a state that is not right.
    said: Option<String>,
    metrics: Published,
    status: Status,
}

impl Keeper {
    pub(super) fn new(asked: Config) -> Self {
        Self {
            config: asked.clone(),
            asked,
            libvirtd: None,
            seeks: false,
            doubt: None,
            seen: None,
            report: Report::new(Verdict::Unproven, "nothing was looked at yet"),
            tally: Tally::default(),
            tug: Tug::default(),
            voice: Voice::new(Instant::now()),
            paused_until: None,
            looked: None,
            again: None,
            good: None,
            keeps: None,
            nodes: None,
            old: None,
            said: None,
            metrics: Published::default(),
            status: Status::default(),
        }
    }

    /// What was seen of another device says nothing of this one.
    pub(super) fn configure(&mut self, config: Config) {
        if config.device != self.asked.device {
            self.good = None;
        }
        self.seen = None;
        if config.status_file != self.asked.status_file {
            self.withdraw();
        }
        self.asked = config;
        // To wait for the device to hold still is for the start.
        self.asked.settle = Duration::ZERO;
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    /// The libvirtd in another container whose files are kept.
    pub(super) fn libvirtd(&self) -> Option<&Libvirtd> {
        self.libvirtd.as_ref()
    }

    /// Whether a libvirtd may start whose files are to be kept.
    pub(super) fn seeks(&self) -> bool {
        self.seeks
    }

    /// How many changes were made so far.
    pub(super) fn heals(&self) -> u64 {
        self.tally.heals()
    }

    /// Whether there is nothing to wait for.
    pub(super) fn is_right(&self) -> bool {
        self.report.exit_code == Verdict::Ok.code()
    }

    /// Until when nothing is mended, for somebody undoes it at once.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// How long ago all was looked at.
    pub(super) fn looked_before(&self, now: Instant) -> Duration {
        self.looked.map_or(Duration::MAX, |looked| {
            now.saturating_duration_since(looked)
        })
    }

    /// When all is to be looked at again though nothing happened.
    pub(super) fn recheck(&self) -> Duration {
        let again = self.again.unwrap_or(self.asked.recheck);
        again.min(self.asked.recheck)
    }

    /// Looks at everything and mends it, as `apply` does.
    pub(super) fn look(&mut self, thorough: Thorough) {
        let found = find(&self.asked, &daemons());
        self.config = self.to_do(&found);
        if thorough == Thorough::No && self.config.proof == ProofKind::CreateVm {
            self.config.proof = ProofKind::ApiVersion;
        }
        let is_seeking = matches!(found, Found::Nobodys | Found::OtherDevice(_));
        let lost = self.libvirtd.is_some() && is_seeking;
        if !lost {
            // What was seen before is not needed any more, and may be as large as what will be.
            self.seen = None;
        }
        let (mut report, mut seen) = apply_and_see(&self.config);
        self.count(&report, seen.as_ref());
        self.keeps = None;
        if let Some(good) = self.stuck_with(&report) {
            self.config.gid = Some((good, Origin::Kept));
            self.config.strict = false;
            self.config.sealed = true;
            self.keeps = Some(format!(
                "the device keeps the number {good}, which QEMU can use: {}",
                report.summary
            ));
            drop(seen.take());
            (report, seen) = apply_and_see(&self.config);
            self.count(&report, seen.as_ref());
        } else if report.verdict == Verdict::Ok {
            let target = report.target.as_ref();
            self.good = target.map(|target| Gid::from_raw(target.gid));
        }
        if let Some(seen) = seen.as_ref().filter(|seen| seen.host.is_some()) {
            self.nodes = seen.pod.is_host.then(|| seen.pod.root.clone());
        }
        self.doubt = match &found {
            Found::Own | Found::Nodes => None,
            Found::Of(_) => Some(Doubt::OtherDevice),
            Found::OtherDevice(libvirtd) => Some(Doubt::Nobody(Some(libvirtd.pid))),
            Found::Nobodys => Some(Doubt::Nobody(None)),
            Found::Unclear(text) => Some(Doubt::Unclear(text.clone())),
        };
        let is_settled = matches!(report.verdict, Verdict::Ok | Verdict::Absent);
        self.apply_doubt(&mut report);
        self.asked.settle = Duration::ZERO;
        self.seeks = is_seeking || matches!(found, Found::Unclear(_));
        self.libvirtd = match found {
            Found::Of(libvirtd) => Some(libvirtd),
            // One that ran will run again.
            _ => self.libvirtd.take().filter(|_| lost),
        };
        // Until it does, the device is kept as it was for that one.
        if seen.is_some() || !lost {
            self.seen = seen;
        }
        self.conclude(report);
        let waits = self.seeks || !self.is_right() && self.report.verdict != Verdict::Absent;
        // The start of the libvirtd that is missing is an event.
        let is_told = is_seeking && is_settled && super::sees_sockets(&self.asked);
        let waits = waits && !is_told;
        self.again = waits.then(|| self.again.map_or(SOON_AGAIN, |again| again * 2));
        if self.recheck() == self.asked.recheck {
            self.again = waits.then_some(self.asked.recheck);
        }
        self.looked = Some(Instant::now());
    }

    /// What is asked for, with what is known.
    fn to_do(&self, found: &Found) -> Config {
        let mut config = self.asked.clone();
        match found {
            Found::Own => {}
            Found::Of(libvirtd) => match libvirtd.root.again() {
                Ok(root) => config = config.with_root(root),
                Err(error) => {
                    log::warn!("{error}");
                    config.sealed = true;
                }
            },
            // An image of nothing but this program: until a libvirtd runs there is just the node.
            Found::Nodes | Found::Nobodys | Found::OtherDevice(_) | Found::Unclear(_) => {
                let is_own =
                    !matches!(found, Found::Nodes) && config.root.join(GROUP_FILE).exists();
                if !is_own && let Ok(HostRoot::At(host)) = place::find(config.host_root.as_deref())
                {
                    host.path().clone_into(&mut config.root);
                }
                if matches!(found, Found::Unclear(_)) {
                    self.keep_number(&mut config);
                }
            }
        }
        config.kept = self.good;
        config.was_nodes = self.nodes.as_ref() == Some(&config.root);
        config.watching = true;
        config
    }

    /// What was proven is the node's device, for the QEMU identity of the files that are kept. Whether that is about
    /// a libvirtd that runs is added here.
    fn apply_doubt(&self, report: &mut Report) {
        match &self.doubt {
            None => {}
            Some(Doubt::OtherDevice) => check::find_private_device(report, &self.config),
            Some(Doubt::Nobody(other)) => waits_for(report, *other),
            Some(Doubt::Unclear(text)) => check::unclear(report, text),
        }
    }

    /// Where nobody's group file may be edited, the device keeps the GID that it has, unless one was named: what
    /// those files have is not known.
    fn keep_number(&self, config: &mut Config) {
        config.sealed = true;
        let now = || {
            let facts = Device::find(&config.device).ok()??.facts();
            let is_usable = facts.is_kvm() && crate::config::is_id(facts.gid.as_raw());
            is_usable.then_some(facts.gid)
        };
        if config.gid.is_none()
            && let Some(gid) = self.good.or_else(now)
        {
            config.gid = Some((gid, Origin::Kept));
            config.strict = false;
        }
    }

    /// Mends the device, from what was seen last of all that decides about it.
    pub(super) fn heal(&mut self) {
        let waited = self.paused_until.take().is_some();
        if self.seeks {
            // The chart's lines touch the device just before libvirtd starts.
            self.again = None;
        }
        match self.quickly(waited) {
            Ok(true) => {}
            // What was in vain a moment ago is not tried at every event.
            _ if self.looked_before(Instant::now()) < super::QUIET => {}
            Ok(false) => self.look(Thorough::No),
            Err(error) => {
                log::debug!("{error:#}");
                self.look(Thorough::No);
            }
        }
    }

    /// False where that takes a look at everything. What is no device, or none that may be touched, is
    /// left for the quiet moment: it may be right again by then.
    fn quickly(&mut self, waited: bool) -> anyhow::Result<bool> {
        let Some(seen) = &mut self.seen else {
            return Ok(false);
        };
        let before = seen.device.as_ref().map(|node| node.facts.inode);
        let device = look_again(seen, &self.config)?;
        let decision = decide(seen, &self.config)?;
        let Course::Act(steps) = &decision.course else {
            return Ok(true);
        };
        if steps.iter().any(|step| !is_the_devices(step)) {
            return Ok(false);
        }
        // No other number goes onto the device than the pod's group file has.
        if !steps.is_empty() && !group_file_stands(seen, &self.config)? {
            return Ok(false);
        }
        let same = before == seen.device.as_ref().map(|node| node.facts.inode);
        if steps.is_empty() && same {
            return Ok(true);
        }
        if !steps.is_empty()
            && !waited
            && let Move::After(wait, count) = self.tug.found_undone(changed(seen))
        {
            self.paused_until = Some(Instant::now() + wait);
            // Now and then is enough.
            if count.is_power_of_two() || count == PATIENCE {
                let path = self.config.device.display();
                let who = seen.device.as_ref();
                let who = who.and_then(|node| who_did(seen, node, self.old.as_deref()));
                let who = who.unwrap_or_else(|| {
                    format!("`auditctl -w {path} -p a` on the node tells the process")
                });
                log::warn!(
                    "{path} was changed back at once {count} times in a row, the next change waits \
                     {wait:?}: {who}"
                );
            }
            // Who asks meanwhile whether QEMU can open the device shall not hear of the last change.
            if wait >= super::QUIET {
                let mut report = proven(seen, &self.config, decision)?;
                self.apply_doubt(&mut report);
                self.report = report;
                self.save();
            }
            return Ok(true);
        }
        let now = Instant::now();
        for step in steps {
            steps::perform(step, &self.config, device.as_ref())?;
            self.tally
                .healed(steps::changes(step).iter().map(|change| change.action));
            match self.voice.may(now) {
                Some(0) => log::info!("healed: {}", steps::line(step)),
                Some(more) => log::info!(
                    "healed: {}, after {more} changes that were not logged",
                    steps::line(step)
                ),
                None => {}
            }
        }
        look_again(seen, &self.config)?;
        self.tug.changed(changed(seen));
        let mut report = proven(seen, &self.config, decision)?;
        // What changed meanwhile is the next event.
        if report.proof.result == "ok" || !moved(seen, &self.config) {
            self.apply_doubt(&mut report);
            self.conclude(report);
        }
        Ok(true)
    }

    fn conclude(&mut self, mut report: Report) {
        if let Some(why) = self
            .keeps
            .as_ref()
            .filter(|_| report.verdict == Verdict::Ok)
        {
            report.verdict = Verdict::Drift;
            report.exit_code = Verdict::Drift.code();
            report.summary.clone_from(why);
        }
        let right = report.exit_code == Verdict::Ok.code();
        let line = (!right).then(|| report.closing_line());
        if self.said != line {
            // The first report is told in full by whoever asked for it.
            match &line {
                _ if !self.tally.has_looked() => {}
                Some(line) => log::warn!("{line}"),
                None => log::info!("{}", report.summary),
            }
            self.said = line;
        }
        self.tally.looked(SystemTime::now());
        self.report = report;
    }

    /// What `apply` changed after the first time was drift.
    fn count(&mut self, report: &Report, seen: Option<&Observed>) {
        let applied = || report.changes.iter().filter(|change| change.applied);
        if self.tally.has_looked() {
            self.tally.healed(applied().map(|change| change.action));
        }
        let renumbered = applied().find(|change| change.action == Action::SetGroupGid);
        if let Some(from) = renumbered.and_then(|change| change.from.clone()) {
            self.old = Some(from);
        }
        if let Some(seen) = seen
            && applied().any(|change| is_of_the_device(change.action))
        {
            self.tug.changed(changed(seen));
        }
    }

    /// The number that the device is to keep, for the pod's group file could not be brought in line
    /// with the one that it has to go to.
    fn stuck_with(&self, report: &Report) -> Option<Gid> {
        let stuck = matches!(report.verdict, Verdict::Failed | Verdict::Refused);
        let mut undone = report.changes.iter().filter(|change| !change.applied);
        if !stuck || !undone.any(|change| is_the_group_files(change.action)) {
            return None;
        }
        let target = report.target.as_ref().map(|target| target.gid);
        let good = self.good.or_else(|| {
            // At the start only QEMU can tell.
            let now = check::judge(&self.config);
            let opens = now.proof.result == "ok";
            let gid = now.device.filter(|_| opens)?.gid?;
            crate::config::is_id(gid).then(|| Gid::from_raw(gid))
        });
        good.filter(|good| target != Some(good.as_raw()))
    }

    /// What a status file says that nobody keeps up to date is not true for long.
    pub(super) fn withdraw(&mut self) {
        let path = self.asked.status_file.clone();
        self.status.withdraw(path.as_deref());
    }

    /// Leaves the state for others.
    pub(super) fn save(&mut self) {
        let (tally, report) = (&self.tally, &self.report);
        self.metrics.write(self.asked.metrics_file.as_deref(), || {
            tally.prometheus(report, SystemTime::now())
        });
        let is_proven = is_ready(report);
        let json = || report.to_json().unwrap_or_default();
        let path = self.asked.status_file.as_deref();
        self.status.write(path, is_proven, json);
    }
}

/// When the device was changed last; long ago where there is none.
fn changed(seen: &Observed) -> Duration {
    let (seconds, nanos) = seen.device.as_ref().map_or((0, 0), |node| node.facts.ctime);
    let seconds = u64::try_from(seconds).unwrap_or(0);
    Duration::new(seconds, u32::try_from(nanos).unwrap_or(0))
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

fn is_the_group_files(action: Action) -> bool {
    matches!(
        action,
        Action::SetGroupGid | Action::AddGroup | Action::AddMember | Action::WriteGroupFile
    )
}

fn proven(seen: &Observed, config: &Config, decision: Decision) -> anyhow::Result<Report> {
    let mut report = snapshot::report(seen, &decision, config);
    report.proof = proof(config, seen, &decision, &mut report.warnings, || {})?;
    conclude(&mut report, &decision);
    Ok(report)
}

/// There is no libvirtd whose files could be kept: nothing that was proven is about the QEMU of one.
fn waits_for(report: &mut Report, other: Option<u32>) {
    let other = other.map(|pid| {
        format!(
            "; the one that runs (pid {pid}) has a /dev of its own: mount the node's /dev at /dev in its container"
        )
    });
    if report.verdict == Verdict::Ok {
        let why = format!(
            "no libvirtd with the node's device runs on this node, so there is no QEMU to prove it for{}",
            other.unwrap_or_default()
        );
        check::unproven(report, &why);
    }
}
