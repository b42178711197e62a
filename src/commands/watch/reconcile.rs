//! One device, kept as it is wanted.

use std::time::{Duration, Instant, SystemTime};

use nix::unistd::Gid;

use super::backoff::{self, Backoff, PATIENCE};
use super::culprit::culprit;
use super::log_limit::RateLimiter;
use super::metrics::Metrics;
use super::request_for::request_for;
use super::status_file::{Published, Status};
use crate::codes::Action;
use crate::config::{Output, ProofKind, is_id};
use crate::error::Result;
use crate::execute;
use crate::observe::daemons::daemons;
use crate::observe::libvirtd::{Libvirtd, Target, find};
use crate::observe::{Observation, group_file_stands, look_again};
use crate::pipeline::{self, Daemons, Finished, Request, device_changed, no_device};
use crate::plan::{Memory, Outcome, Plan, Step, plan};
use crate::report::{Report, changes};
use crate::sys::device::Device;
use crate::verdict::Verdict;

/// The first wait before a state that is not right is looked at again without an event.
const SOON_AGAIN: Duration = Duration::from_secs(1);
/// How much longer each next wait is.
const LONGER: u32 = 4;

/// How far the proof of a look goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProofLevel {
    /// All that was asked for.
    AsAsked,
    /// No virtual machine: the kernel tells udev of it, and udev touches the device, which is an
    /// event that would be answered with the next one.
    NoVm,
}

/// What is kept, and how that goes.
pub(super) struct Reconciler {
    /// As it was configured.
    asked: Request,
    /// Where the report goes, and when.
    output: Output,
    /// As it was configured, with what was found out since: libvirtd's root.
    request: Request,
    /// What is known from before.
    memory: Memory,
    /// The libvirtd in another container whose root that is.
    libvirtd: Option<Libvirtd>,
    /// Whether there may be one that was not found yet.
    seeks: bool,
    /// What was seen last.
    seen: Option<Observation>,
    report: Report,
    /// Whether QEMU can open KVM, by that report.
    is_ready: bool,
    counts: Metrics,
    backoff: Backoff,
    log_limit: RateLimiter,
    paused_until: Option<Instant>,
    looked: Option<Instant>,
    /// How long to wait before looking again while the state is not right.
    again: Option<Duration>,
    /// The number that the pod's group had before it was brought in line.
    old: Option<String>,
    /// What was said last about a state that is not right.
    said: Option<String>,
    metrics: Published,
    status: Status,
}

impl Reconciler {
    pub(super) fn new(asked: Request, output: Output) -> Self {
        Self {
            request: asked.clone(),
            asked,
            output,
            memory: Memory::default(),
            libvirtd: None,
            seeks: false,
            seen: None,
            report: Report::new(Verdict::Unproven, "nothing was looked at yet"),
            is_ready: false,
            counts: Metrics::default(),
            backoff: Backoff::default(),
            log_limit: RateLimiter::new(Instant::now()),
            paused_until: None,
            looked: None,
            again: None,
            old: None,
            said: None,
            metrics: Published::default(),
            status: Status::default(),
        }
    }

    /// What was seen of another device says nothing of this one.
    pub(super) fn configure(&mut self, request: Request, output: Output) {
        if request.sources.device != self.asked.sources.device {
            self.memory.last_good_gid = None;
        }
        self.seen = None;
        if output.status_file != self.output.status_file {
            self.withdraw();
        }
        self.output = output;
        self.asked = request;
        // To wait for the device to hold still is for the start.
        self.asked.settle = Duration::ZERO;
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
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
    pub(super) fn repairs(&self) -> u64 {
        self.counts.repairs()
    }

    /// Whether there is nothing to wait for.
    pub(super) fn is_right(&self) -> bool {
        self.report.exit_code == Verdict::Ok.code()
    }

    /// Until when nothing is repaired, as another process undoes it at once.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// How long ago all was looked at.
    pub(super) fn since_reconciled(&self, now: Instant) -> Duration {
        self.looked.map_or(Duration::MAX, |looked| {
            now.saturating_duration_since(looked)
        })
    }

    /// When all is to be looked at again though nothing happened.
    pub(super) fn recheck(&self) -> Duration {
        let again = self.again.unwrap_or(self.output.recheck);
        again.min(self.output.recheck)
    }

    /// Looks at everything and repairs it, as `apply` does.
    pub(super) fn reconcile(&mut self, level: ProofLevel) {
        let found = find(&self.asked.sources, &daemons());
        self.memory.group_file_readonly = false;
        self.memory.kept_gid = None;
        self.request = request_for(&self.asked, &found, &mut self.memory);
        if level == ProofLevel::NoVm && self.request.proof == ProofKind::CreateVm {
            self.request.proof = ProofKind::ApiVersion;
        }
        let is_seeking = matches!(found, Target::None | Target::OtherDevice(_));
        let lost = self.libvirtd.is_some() && is_seeking;
        if !lost {
            // What was seen before is not needed any more, and may be as large as what will be.
            self.seen = None;
        }
        self.memory.kept_because = None;
        let mut finished = pipeline::apply(&self.request, Some(&self.memory));
        self.count(&finished);
        if let Some(good) = self.stuck_with(&finished.report) {
            self.memory.kept_gid = Some(good);
            self.memory.group_file_readonly = true;
            self.memory.kept_because = Some(format!(
                "the device keeps the number {good}, which QEMU can use: {}",
                finished.report.summary
            ));
            drop(finished);
            finished = pipeline::apply(&self.request, Some(&self.memory));
            self.count(&finished);
        } else if finished.of_device == Verdict::Ok {
            let target = finished.report.target.as_ref();
            self.memory.last_good_gid = target.map(|target| Gid::from_raw(target.gid));
        }
        let seen = finished.seen.take();
        if let Some(seen) = seen.as_ref().filter(|seen| seen.host.is_some()) {
            let root = seen.pod.root.path();
            self.memory.pod_was_host = seen.pod.is_host.then(|| root.to_owned());
        }
        self.asked.settle = Duration::ZERO;
        self.seeks = is_seeking || matches!(found, Target::Ambiguous(_));
        self.libvirtd = match found {
            Target::Container(libvirtd) => Some(libvirtd),
            // One that ran will run again.
            _ => self.libvirtd.take().filter(|_| lost),
        };
        // Until it does, the device is kept as it was for that one.
        if seen.is_some() || !lost {
            self.seen = seen;
        }
        let is_settled = matches!(finished.of_device, Verdict::Ok | Verdict::Absent);
        self.conclude(finished);
        let waits = self.seeks || !self.is_right() && self.report.verdict != Verdict::Absent;
        // The start of the libvirtd that is missing is an event.
        let is_told = is_seeking && is_settled && super::sees_sockets(&self.asked);
        let waits = waits && !is_told;
        self.again = waits.then(|| self.again.map_or(SOON_AGAIN, |again| again * LONGER));
        if self.recheck() == self.output.recheck {
            self.again = waits.then_some(self.output.recheck);
        }
        self.looked = Some(Instant::now());
    }

    /// Repairs the device, from what was seen last of all that decides about it.
    pub(super) fn repair(&mut self) {
        let waited = self.paused_until.take().is_some();
        if self.seeks {
            // The chart's lines touch the device just before libvirtd starts.
            self.again = None;
        }
        match self.repair_device(waited) {
            Ok(true) => {}
            // What was in vain a moment ago is not tried at every event.
            _ if self.since_reconciled(Instant::now()) < super::QUIET => {}
            Ok(false) => self.reconcile(ProofLevel::NoVm),
            Err(error) => {
                log::debug!("{error:#}");
                self.reconcile(ProofLevel::NoVm);
            }
        }
    }

    /// False where that takes a look at everything. What is no device, or none that may be touched, is
    /// left for the quiet moment: it may be right again by then.
    fn repair_device(&mut self, waited: bool) -> Result<bool> {
        let Some(mut seen) = self.seen.take() else {
            return Ok(false);
        };
        let done = self.repair_seen(&mut seen, waited);
        self.seen = Some(seen);
        done
    }

    fn repair_seen(&mut self, seen: &mut Observation, waited: bool) -> Result<bool> {
        let before = seen.device.as_ref().map(|node| node.facts.inode);
        let device = look_again(seen, &self.request.sources)?;
        let plan = plan(seen, &self.request.policy, Some(&self.memory))?;
        let Outcome::Act(steps) = &plan.outcome else {
            return Ok(true);
        };
        if steps.iter().any(|step| !is_the_devices(step)) {
            return Ok(false);
        }
        // No other number goes onto the device than the pod's group file has.
        if !steps.is_empty() && !group_file_stands(seen)? {
            return Ok(false);
        }
        let same = before == seen.device.as_ref().map(|node| node.facts.inode);
        if steps.is_empty() && same {
            return Ok(true);
        }
        if !steps.is_empty()
            && !waited
            && let backoff::Action::After(wait, count) = self.backoff.found_undone(changed(seen))
        {
            self.pause(seen, &plan, wait, count)?;
            return Ok(true);
        }
        self.perform(steps, device.as_ref(), seen)?;
        look_again(seen, &self.request.sources)?;
        self.backoff.changed(changed(seen));
        let finished = pipeline::prove_again(&self.request, seen, &plan)?;
        // What changed at the same time is the next event.
        if finished.opens || !device_changed(seen) {
            self.conclude(finished);
        }
        Ok(true)
    }

    /// Leaves the device as another process made it for the `count`th time in a row, until `wait` is over.
    fn pause(&mut self, seen: &Observation, plan: &Plan, wait: Duration, count: u32) -> Result<()> {
        self.paused_until = Some(Instant::now() + wait);
        // Now and then is enough.
        if count.is_power_of_two() || count == PATIENCE {
            let path = self.request.sources.device.display();
            let device = seen.device.as_ref();
            let who = device.and_then(|device| culprit(seen, device, self.old.as_deref()));
            let who = who.unwrap_or_else(|| {
                format!("`auditctl -w {path} -p a` on the node tells the process")
            });
            log::warn!(
                "{path} was changed back at once {count} times in a row, the next change waits \
                 {wait:?}: {who}"
            );
        }
        // Who asks in this time whether QEMU can open the device must not hear of the last change.
        if wait >= super::QUIET {
            let finished = pipeline::prove_again(&self.request, seen, plan)?;
            self.is_ready = finished.is_ready;
            self.report = finished.report;
            self.save();
        }
        Ok(())
    }

    /// Does what the device lacks.
    fn perform(
        &mut self,
        steps: &[Step],
        device: Option<&Device>,
        seen: &Observation,
    ) -> Result<()> {
        let now = Instant::now();
        for step in steps {
            execute::perform(step, device.ok_or_else(|| no_device(seen))?)?;
            let changes = changes::changes(step);
            self.counts
                .healed(changes.iter().map(|change| change.action));
            match self.log_limit.allow(now) {
                Some(0) => log::info!("healed: {}", changes::line(step)),
                Some(more) => log::info!(
                    "healed: {}, after {more} changes that were not logged",
                    changes::line(step)
                ),
                None => {}
            }
        }
        Ok(())
    }

    fn conclude(&mut self, finished: Finished) {
        let report = finished.report;
        let right = report.exit_code == Verdict::Ok.code();
        let line = (!right).then(|| report.closing_line());
        if self.said != line {
            // The first report is told in full by whoever asked for it.
            match &line {
                _ if !self.counts.has_looked() => {}
                Some(line) => log::warn!("{line}"),
                None => log::info!("{}", report.summary),
            }
            self.said = line;
        }
        self.counts.looked(SystemTime::now());
        self.report = report;
        self.is_ready = finished.is_ready;
    }

    /// What `apply` changed after the first time was drift.
    fn count(&mut self, finished: &Finished) {
        let applied = || {
            finished
                .report
                .changes
                .iter()
                .filter(|change| change.applied)
        };
        if self.counts.has_looked() {
            self.counts.healed(applied().map(|change| change.action));
        }
        let renumbered = applied().find(|change| change.action == Action::SetGroupGid);
        if let Some(from) = renumbered.and_then(|change| change.from.clone()) {
            self.old = Some(from);
        }
        if let Some(seen) = &finished.seen
            && applied().any(|change| is_of_the_device(change.action))
        {
            self.backoff.changed(changed(seen));
        }
    }

    /// The number that the device is to keep, as the pod's group file could not be brought in line
    /// with the one that it has to go to.
    fn stuck_with(&self, report: &Report) -> Option<Gid> {
        let stuck = matches!(report.verdict, Verdict::Failed | Verdict::Refused);
        let mut undone = report.changes.iter().filter(|change| !change.applied);
        if !stuck || !undone.any(|change| is_the_group_files(change.action)) {
            return None;
        }
        let target = report.target.as_ref().map(|target| target.gid);
        let good = self.memory.last_good_gid.or_else(|| {
            // At the start only QEMU can tell.
            let now = pipeline::look(&self.request, Some(&self.memory), &Daemons::new(Vec::new));
            let gid = now.report.device.filter(|_| now.opens)?.gid?;
            is_id(gid).then(|| Gid::from_raw(gid))
        });
        good.filter(|good| target != Some(good.as_raw()))
    }

    /// What a status file says that nobody keeps up to date is not true for long.
    pub(super) fn withdraw(&mut self) {
        let path = self.output.status_file.clone();
        self.status.withdraw(path.as_deref());
    }

    /// Leaves the state for others.
    pub(super) fn save(&mut self) {
        let (counts, report, is_ready) = (&self.counts, &self.report, self.is_ready);
        self.metrics.write(self.output.metrics_file.as_deref(), || {
            counts.prometheus(report, is_ready, SystemTime::now())
        });
        let json = || report.to_json().unwrap_or_default();
        let path = self.output.status_file.as_deref();
        self.status.write(path, is_ready, json);
    }
}

/// When the device was changed last; long ago where there is none.
fn changed(seen: &Observation) -> Duration {
    let (seconds, nanos) = seen.device.as_ref().map_or((0, 0), |node| node.facts.ctime);
    let seconds = u64::try_from(seconds).unwrap_or(0);
    Duration::new(seconds, u32::try_from(nanos).unwrap_or(0))
}

fn is_the_devices(step: &Step) -> bool {
    let changes = changes::changes(step);
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
