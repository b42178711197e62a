//! Repairs one device and its group file, and maintains the report, the metrics and the status file.

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

/// The first wait before a full check without an event, while the state is not ok.
const SOON_AGAIN: Duration = Duration::from_secs(1);
/// The factor by which each further wait is longer.
const LONGER: u32 = 4;

/// The proof that a full check includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProofLevel {
    /// The proof that `--proof` sets.
    AsAsked,
    /// At most `api-version`. For each virtual machine the kernel sends a change event
    /// (kvm_uevent_notify_change), udev then touches the device, and a check after that event would create the
    /// next machine.
    NoVm,
}

/// The state of `watch` between two events.
pub(super) struct Reconciler {
    /// The request as configured.
    asked: Request,
    output: Output,
    /// The request as configured, with the root of the libvirtd that was found.
    request: Request,
    memory: Memory,
    /// The libvirtd of another container, if `watch` maintains its group file.
    libvirtd: Option<Libvirtd>,
    /// Whether no libvirtd was found, or several.
    seeks: bool,
    /// The last observation, from which events are handled until the next full check.
    seen: Option<Observation>,
    report: Report,
    is_ready: bool,
    counts: Metrics,
    backoff: Backoff,
    log_limit: RateLimiter,
    paused_until: Option<Instant>,
    /// When the last full check ended.
    checked: Option<Instant>,
    /// The wait before the next full check, while the state is not ok.
    retry: Option<Duration>,
    /// The GID that the pod's group had before it was aligned.
    old_gid: Option<String>,
    /// The last logged reason why the state is not ok.
    logged: Option<String>,
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
            report: Report::new(Verdict::Unproven, "the first check has not ended yet"),
            is_ready: false,
            counts: Metrics::default(),
            backoff: Backoff::default(),
            log_limit: RateLimiter::new(Instant::now()),
            paused_until: None,
            checked: None,
            retry: None,
            old_gid: None,
            logged: None,
            metrics: Published::default(),
            status: Status::default(),
        }
    }

    /// Sets a new configuration. The next full check applies it.
    pub(super) fn configure(&mut self, request: Request, output: Output) {
        // The last good GID is that of the old device.
        if request.sources.device != self.asked.sources.device {
            self.memory.last_good_gid = None;
        }
        self.seen = None;
        if output.status_file != self.output.status_file {
            self.withdraw();
        }
        self.output = output;
        self.asked = request;
        // `--settle` applies only to the start.
        self.asked.settle = Duration::ZERO;
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    pub(super) fn libvirtd(&self) -> Option<&Libvirtd> {
        self.libvirtd.as_ref()
    }

    /// Whether no libvirtd was found, or several: then starts of libvirtd must be noticed.
    pub(super) fn seeks(&self) -> bool {
        self.seeks
    }

    pub(super) fn repairs(&self) -> u64 {
        self.counts.repairs()
    }

    /// Whether the last report has exit code 0.
    pub(super) fn is_right(&self) -> bool {
        self.report.exit_code == Verdict::Ok.code()
    }

    /// The end of the current backoff, before which nothing is repaired.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// The time since the last full check.
    pub(super) fn since_reconciled(&self, now: Instant) -> Duration {
        self.checked.map_or(Duration::MAX, |checked| {
            now.saturating_duration_since(checked)
        })
    }

    /// The time after which a full check follows even without an event.
    pub(super) fn recheck(&self) -> Duration {
        let retry = self.retry.unwrap_or(self.output.recheck);
        retry.min(self.output.recheck)
    }

    /// The full check: observes and repairs everything, as `apply` does.
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
            // Dropped first to save memory: the next observation may be just as large.
            self.seen = None;
        }
        self.memory.kept_because = None;
        let mut finished = pipeline::apply(&self.request, Some(&self.memory));
        self.count(&finished);
        if let Some(good) = self.stuck_with(&finished.report) {
            self.memory.kept_gid = Some(good);
            self.memory.group_file_readonly = true;
            self.memory.kept_because = Some(format!(
                "the device keeps GID {good}, which QEMU can use, because the group file cannot be aligned: {}",
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
            // A libvirtd that has ended is expected to start again.
            _ => self.libvirtd.take().filter(|_| lost),
        };
        // Until libvirtd has started again, the device is repaired from the last observation of its files.
        if seen.is_some() || !lost {
            self.seen = seen;
        }
        let is_settled = matches!(finished.of_device, Verdict::Ok | Verdict::Absent);
        self.conclude(finished);
        let waits = self.seeks || !self.is_right() && self.report.verdict != Verdict::Absent;
        // If only a libvirtd is missing, its start causes an event.
        let causes_event = is_seeking && is_settled && super::sees_sockets(&self.asked);
        let waits = waits && !causes_event;
        self.retry = waits.then(|| self.retry.map_or(SOON_AGAIN, |retry| retry * LONGER));
        if self.recheck() == self.output.recheck {
            self.retry = waits.then_some(self.output.recheck);
        }
        self.checked = Some(Instant::now());
    }

    /// Repairs the device from the last observation, or does a full check if that is not enough.
    pub(super) fn repair(&mut self) {
        let waited = self.paused_until.take().is_some();
        if self.seeks {
            // The chart's libvirt.sh touches the device just before libvirtd starts.
            self.retry = None;
        }
        match self.repair_device(waited) {
            Ok(true) => {}
            // A full check that has just failed to repair the device is not repeated at every event.
            _ if self.since_reconciled(Instant::now()) < super::QUIET => {}
            Ok(false) => self.reconcile(ProofLevel::NoVm),
            Err(error) => {
                log::debug!("{error:#}");
                self.reconcile(ProofLevel::NoVm);
            }
        }
    }

    /// Returns false if a full check is needed at once. True also if the path is not a device, or is a device that
    /// must not be changed: the full check after the quiet period handles that, if the device is not back by then.
    fn repair_device(&mut self, waited: bool) -> Result<bool> {
        let Some(mut seen) = self.seen.take() else {
            return Ok(false);
        };
        let done = self.repair_seen(&mut seen, waited);
        self.seen = Some(seen);
        done
    }

    fn repair_seen(&mut self, seen: &mut Observation, waited: bool) -> Result<bool> {
        let before = seen.device.as_ref().map(|device| device.facts.inode);
        let device = look_again(seen, &self.request.sources)?;
        let plan = plan(seen, &self.request.policy, Some(&self.memory))?;
        let Outcome::Act(steps) = &plan.outcome else {
            return Ok(true);
        };
        if steps.iter().any(|step| !changes_only_device(step)) {
            return Ok(false);
        }
        // The device gets a GID only if the group file that contains it is unchanged.
        if !steps.is_empty() && !group_file_stands(seen)? {
            return Ok(false);
        }
        let same = before == seen.device.as_ref().map(|device| device.facts.inode);
        if steps.is_empty() && same {
            return Ok(true);
        }
        if !steps.is_empty()
            && !waited
            && let backoff::Action::After(wait, count) = self.backoff.next_action(changed(seen))
        {
            self.pause(seen, &plan, wait, count)?;
            return Ok(true);
        }
        self.perform(steps, device.as_ref(), seen)?;
        look_again(seen, &self.request.sources)?;
        self.backoff.record_repair(changed(seen));
        let finished = pipeline::prove_again(&self.request, seen, &plan)?;
        // If the proof failed because the device changed during the run, the event of that change repeats it.
        if finished.opens || !device_changed(seen) {
            self.conclude(finished);
        }
        Ok(true)
    }

    /// Starts a backoff of `wait`, after another process reverted `count` repairs in a row.
    fn pause(&mut self, seen: &Observation, plan: &Plan, wait: Duration, count: u32) -> Result<()> {
        self.paused_until = Some(Instant::now() + wait);
        // Logged after 20, 32, 64, … reversals.
        if count.is_power_of_two() || count == PATIENCE {
            let path = self.request.sources.device.display();
            let device = seen.device.as_ref();
            let culprit = device.and_then(|device| culprit(seen, device, self.old_gid.as_deref()));
            let culprit = culprit.unwrap_or_else(|| {
                format!("run `auditctl -w {path} -p a` on the node to find the process")
            });
            log::warn!(
                "{path} was reverted {count} times in a row; next repair in {wait:?}; {culprit}"
            );
        }
        // During a long wait, `ready` must not report the proof of the last repair, which no longer holds.
        if wait >= super::QUIET {
            let finished = pipeline::prove_again(&self.request, seen, plan)?;
            self.is_ready = finished.is_ready;
            self.report = finished.report;
            self.save();
        }
        Ok(())
    }

    /// Executes the steps for the device, counts them and logs them.
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
                .count_repairs(changes.iter().map(|change| change.action));
            match self.log_limit.allow(now) {
                Some(0) => log::info!("repaired: {}", changes::line(step)),
                Some(more) => log::info!(
                    "repaired: {} ({more} repairs before this one were not logged)",
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
        if self.logged != line {
            // The first report is printed in full, so it is not logged.
            match &line {
                _ if !self.counts.has_checked() => {}
                Some(line) => log::warn!("{line}"),
                None => log::info!("{}", report.summary),
            }
            self.logged = line;
        }
        self.counts.record_check(SystemTime::now());
        self.report = report;
        self.is_ready = finished.is_ready;
    }

    /// Counts the changes of a full check as repairs, except those of the first one.
    fn count(&mut self, finished: &Finished) {
        let applied = || {
            finished
                .report
                .changes
                .iter()
                .filter(|change| change.applied)
        };
        if self.counts.has_checked() {
            self.counts
                .count_repairs(applied().map(|change| change.action));
        }
        let renumbered = applied().find(|change| change.action == Action::SetGroupGid);
        if let Some(from) = renumbered.and_then(|change| change.from.clone()) {
            self.old_gid = Some(from);
        }
        if let Some(seen) = &finished.seen
            && applied().any(|change| is_of_device(change.action))
        {
            self.backoff.record_repair(changed(seen));
        }
    }

    /// The GID that the device must keep, if the pod's group file could not be aligned with the target GID.
    fn stuck_with(&self, report: &Report) -> Option<Gid> {
        let stuck = matches!(report.verdict, Verdict::Failed | Verdict::Refused);
        let mut undone = report.changes.iter().filter(|change| !change.applied);
        if !stuck || !undone.any(|change| is_of_group_file(change.action)) {
            return None;
        }
        let target = report.target.as_ref().map(|target| target.gid);
        let good = self.memory.last_good_gid.or_else(|| {
            // At the start no GID is known to be good: the current one is, if QEMU can open the device.
            let now = pipeline::look(&self.request, Some(&self.memory), &Daemons::new(Vec::new));
            let gid = now.report.device.filter(|_| now.opens)?.gid?;
            is_id(gid).then(|| Gid::from_raw(gid))
        });
        good.filter(|good| target != Some(good.as_raw()))
    }

    /// Removes the status file, which becomes stale as soon as it is no longer updated.
    pub(super) fn withdraw(&mut self) {
        let path = self.output.status_file.clone();
        self.status.withdraw(path.as_deref());
    }

    /// Writes the metrics file and the status file.
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

/// The device's ctime as a Unix timestamp; 0 without a device.
fn changed(seen: &Observation) -> Duration {
    let device = seen.device.as_ref();
    let (seconds, nanos) = device.map_or((0, 0), |device| device.facts.ctime);
    let seconds = u64::try_from(seconds).unwrap_or(0);
    Duration::new(seconds, u32::try_from(nanos).unwrap_or(0))
}

fn changes_only_device(step: &Step) -> bool {
    let changes = changes::changes(step);
    changes.iter().all(|change| is_of_device(change.action))
}

fn is_of_device(action: Action) -> bool {
    matches!(
        action,
        Action::SetDeviceOwner | Action::SetDeviceMode | Action::SetDeviceAcl
    )
}

fn is_of_group_file(action: Action) -> bool {
    matches!(
        action,
        Action::SetGroupGid | Action::AddGroup | Action::AddMember | Action::WriteGroupFile
    )
}
