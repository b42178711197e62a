//! `watch`: runs `apply`, then repairs drift when it happens.
//!
//! Nothing is polled as long as inotify has watches left. This process sleeps until an event of the device, of
//! its directory, or of a directory with a group file, udev rule or qemu.conf. The device is repaired at once,
//! from the last observation of those files, which takes only a few system calls. After 500 ms without events
//! a full check follows, which does what `apply` does. Events that are caused by repairs find nothing to
//! repair.
//!
//! The group file that libvirtd reads is aligned before the device: libvirt re-reads group membership at each
//! guest start. If the group file cannot be aligned, the device keeps the GID that QEMU can use, and the
//! report shows drift.
//!
//! Some changes cause no event, such as a file system that becomes writable in another container, or a
//! libvirtd that starts while its socket directory is not visible. So while the state is not ok, full checks
//! follow after 1, 4, 16 seconds and so on, up to `--recheck`.

mod backoff;
mod culprit;
mod log_limit;
mod metrics;
mod reconcile;
mod request_for;
mod status_file;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::output::{note_format, print_report};
use super::resolve;
use crate::config::options::Flags;
use crate::config::{Output, variable};
use crate::error::Error;
use crate::formats::udev::RULE_DIRECTORIES;
use crate::judge::Judgement;
use crate::observe::GROUP_FILE;
use crate::observe::group_db;
use crate::observe::host_root::{self, HostRoot};
use crate::observe::libvirtd;
use crate::pipeline::Request;
use crate::report::Report;
use crate::sys;
use crate::sys::inotify::{Events, Names, Watcher};
use crate::sys::root::Root;
use crate::verdict::Verdict;

pub use metrics::Metrics;
use reconcile::{ProofLevel, Reconciler};
use status_file::Status;

/// A full check follows after this time without events.
const QUIET: Duration = Duration::from_millis(500);
/// The longest time by which a flood of events delays a full check.
const NEVER_LATER: Duration = Duration::from_secs(5);

/// The poll interval for everything that could not get an inotify watch.
const POLL: Duration = Duration::from_secs(1);

/// The directory in which libvirt's daemons create the sockets for their clients.
const SOCKETS: &str = "run/libvirt";

/// Runs until a signal ends the process ([`sys::end_well_on_request`]). Returns the exit code if it could not
/// start.
pub fn run(flags: &Flags) -> u8 {
    let load = || match resolve(flags) {
        Ok((request, _)) if request.dry_run => Err(Error::Usage(
            "--dry-run cannot be used with watch; use `check`".to_owned(),
        )),
        resolved => resolved,
    };
    let report = match load() {
        Ok((request, output)) => {
            let format = output.format;
            note_format(format);
            let print = |report: &Report| {
                print_report(report, Some(format));
            };
            watch(request, output, load, print)
        }
        Err(usage) => {
            withdraw_status(flags, |name| std::env::var_os(name));
            Report::new(Verdict::Usage, usage.to_string())
        }
    };
    print_report(&report, None)
}

/// Watches for a resolved request. Returns only if that could not start, with a report of the reason.
///
/// `load` reads the configuration again at SIGHUP; `print` is called with the first report.
fn watch(
    request: Request,
    output: Output,
    load: impl Fn() -> Result<(Request, Output), Error>,
    print: impl FnOnce(&Report),
) -> Report {
    // A root of another process (/proc/PID/root) is held open, since the PID may be reused later.
    let load = || {
        let (request, output) = load().map_err(|usage| usage.to_string())?;
        match libvirtd::hold(&request.sources.pod_root) {
            Ok(root) => Ok((request.with_root(root), output)),
            Err(error) => Err(error.to_string()),
        }
    };
    let report = match libvirtd::hold(&request.sources.pod_root) {
        Ok(root) => begin(request.with_root(root), output, load, print).map_err(Into::into),
        Err(error) => {
            Status::default().withdraw(output.status_file.as_deref());
            Err(error)
        }
    };
    report.unwrap_or_else(|error| Report::from(Judgement::of_error(&error, false)))
}

/// Removes the status file of an earlier run if the configuration is invalid and `watch` cannot start: the
/// file is stale. A path that is set only in the invalid configuration file is not known here.
fn withdraw_status(flags: &Flags, env: impl Fn(&str) -> Option<OsString>) {
    let flag = flags.get("status-file").map(OsString::from);
    let path = flag.or_else(|| env(&variable("status-file")));
    let path = path.filter(|path| !path.is_empty()).map(PathBuf::from);
    Status::default().withdraw(path.as_deref());
}

fn begin(
    request: Request,
    output: Output,
    load: impl Fn() -> Result<(Request, Output), String>,
    print: impl FnOnce(&Report),
) -> sys::Result<Report> {
    let mut reconciler = Reconciler::new(request, output);
    reconciler.withdraw();
    let mut watcher = Watcher::new(POLL);
    watcher.follow_hangup()?;
    watcher.follow_mounts();
    // The device is watched before the first full check, so that a change during the check is not missed.
    follow_device(&mut watcher, reconciler.request())?;
    reconciler.reconcile(ProofLevel::AsAsked);
    if reconciler.report().verdict == Verdict::Usage {
        return Ok(reconciler.report().clone());
    }
    print(reconciler.report());
    reconciler.save();
    let mut watch = Watch {
        watcher,
        reconciler,
        problem: None,
    };
    loop {
        watch.watcher.use_events();
        // A directory may have changed before it got its watch: a new watch counts as an event.
        let events = watch.follow();
        let checked = watch.until_reconciled(events, &load);
        if let Err(error) = checked {
            watch.reconciler.withdraw();
            return Err(error);
        }
    }
}

struct Watch {
    watcher: Watcher,
    reconciler: Reconciler,
    /// The last logged reason why a directory cannot be watched.
    problem: Option<String>,
}

impl Watch {
    /// Handles events until the next full check has ended. `first` are the events to handle at once.
    fn until_reconciled(
        &mut self,
        first: Events,
        load: &impl Fn() -> Result<(Request, Output), String>,
    ) -> sys::Result<()> {
        let recheck = Instant::now() + self.reconciler.recheck();
        let mut quiet: Option<Instant> = None;
        let mut latest: Option<Instant> = None;
        let mut events = first;
        loop {
            if events.hangup && self.configure(load) {
                return Ok(());
            }
            let now = Instant::now();
            let over = |due: Option<Instant>| due.is_some_and(|due| now >= due);
            let waited = self.reconciler.paused_until().is_some();
            let repairs = self.reconciler.repairs();
            // A flood of events causes one full check when it begins, and the next one when it ends.
            if events.files && self.reconciler.since_reconciled(now) >= QUIET {
                self.reconciler.reconcile(ProofLevel::NoVm);
            } else if events.device || waited {
                self.reconciler.repair();
            }
            if self.reconciler.repairs() != repairs {
                self.watcher.was_needed();
            }
            if waited {
                // The next event, or a quiet period, shows whether this repair holds.
                quiet = Some(now + QUIET);
                latest = None;
            }
            let happened = events.device || events.files;
            let due = if over(Some(recheck)) {
                Some(ProofLevel::AsAsked)
            } else {
                let paused = self.reconciler.paused_until().is_some();
                let is_over = !paused && (over(quiet) && !happened || over(latest));
                is_over.then_some(ProofLevel::NoVm)
            };
            if let Some(level) = due {
                self.reconciler.reconcile(level);
                self.reconciler.save();
                return Ok(());
            }
            if happened {
                quiet = Some(now + QUIET);
                latest.get_or_insert(now + NEVER_LATER);
            }
            let due = [Some(recheck), quiet, latest].into_iter().flatten().min();
            events = match self.reconciler.paused_until() {
                Some(until) => self.watcher.rest(until)?,
                None => self.watcher.wait(due)?,
            };
            self.follow_moved(&mut events);
        }
    }

    /// Sets the watches again after a directory or a mount changed, and adds the events that this causes.
    fn follow_moved(&mut self, events: &mut Events) {
        if events.directories || events.polled {
            let more = self.follow();
            events.device |= more.device;
            events.files |= more.files;
            // A new mount may contain the files that were missing.
            events.files |= events.directories && !self.reconciler.is_right();
        }
    }

    /// Reloads the configuration. False if it is invalid, so that the old one stays in effect.
    fn configure(&mut self, load: &impl Fn() -> Result<(Request, Output), String>) -> bool {
        match load() {
            Ok((request, output)) => {
                log::info!("the configuration was reloaded");
                self.reconciler.configure(request, output);
                self.reconciler.reconcile(ProofLevel::AsAsked);
                self.reconciler.save();
                true
            }
            Err(error) => {
                log::warn!("keeping the old configuration: {error}");
                false
            }
        }
    }

    /// Sets all watches again, since directories come and go. An unchanged directory costs little. Returns the
    /// events that this causes.
    fn follow(&mut self) -> Events {
        let libvirtd = self.reconciler.libvirtd();
        let libvirtd = libvirtd.map(|libvirtd| (libvirtd.pid, &libvirtd.pidfd));
        self.watcher.follow_process(libvirtd);
        let (request, seeks) = (self.reconciler.request(), self.reconciler.seeks());
        let mut problems = Vec::new();
        let events = self.watcher.follow_again(|watcher| {
            problems.extend(follow_device(watcher, request).err());
            follow_files(watcher, request, &mut problems);
            if seeks {
                follow_sockets(watcher, request, &mut problems);
            }
        });
        let problem = problems.first().map(|error| match error.advice() {
            Some(advice) => format!("{error}; {advice}"),
            None => error.to_string(),
        });
        if self.problem != problem {
            if let Some(problem) = &problem {
                log::warn!("cannot watch for changes; only full checks will find them: {problem}");
            }
            self.problem = problem;
        }
        events
    }
}

fn follow_device(watcher: &mut Watcher, request: &Request) -> sys::Result<bool> {
    let here = Path::new(".");
    let directory = request.sources.device.parent().unwrap_or(here);
    let directory = Some(directory).filter(|directory| !directory.as_os_str().is_empty());
    let name = request.sources.device.file_name().unwrap_or_default();
    watcher.follow_device(directory.unwrap_or(here), name)
}

fn follow_files(watcher: &mut Watcher, request: &Request, problems: &mut Vec<sys::SyscallError>) {
    let one = |path: &'static str| {
        let directory = path
            .rsplit_once('/')
            .map_or(".", |(directory, _)| directory);
        (directory, Names::last_of(Path::new(path)))
    };
    for path in [&request.sources.group_file_out, &request.sources.qemu_conf]
        .into_iter()
        .flatten()
    {
        problems.extend(watcher.follow_file(path).err());
    }
    if let Ok(root) = request.sources.pod_root.open() {
        for file in [GROUP_FILE, "etc/passwd", "etc/libvirt/qemu.conf"] {
            let (directory, names) = one(file);
            problems.extend(watcher.follow_files(&root, directory, names).err());
        }
    }
    if let Ok(HostRoot::At(root)) = host_root::find(request.sources.host_root.as_deref()) {
        let files = group_db::FILES.into_iter().map(one);
        let records =
            group_db::RECORD_DIRECTORIES.map(|directory| (directory, Names::EndIn(".group")));
        let rules = RULE_DIRECTORIES.map(|directory| (directory, Names::EndIn(".rules")));
        for (directory, names) in files.chain(records).chain(rules) {
            problems.extend(watcher.follow_files(&root, directory, names).err());
        }
    }
}

/// Watches for the socket that libvirtd creates when it starts, on the node or in a directory that this
/// container shares with it.
fn follow_sockets(watcher: &mut Watcher, request: &Request, problems: &mut Vec<sys::SyscallError>) {
    let own = Root::open(Path::new("/")).ok();
    let host = match host_root::find(request.sources.host_root.as_deref()) {
        Ok(HostRoot::At(root)) => Some(root),
        _ => None,
    };
    for root in [own, host].into_iter().flatten() {
        let names = Names::EndIn("-sock");
        problems.extend(watcher.follow_files(&root, SOCKETS, names).err());
    }
}

/// Whether the start of a libvirtd on this node certainly causes an event: its socket directory is visible
/// below the host root.
fn sees_sockets(request: &Request) -> bool {
    match host_root::find(request.sources.host_root.as_deref()) {
        Ok(HostRoot::At(root)) => matches!(root.find_directory(SOCKETS), Ok(Some(_))),
        _ => false,
    }
}
