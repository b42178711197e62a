//! `watch`: apply, then keep it so.
//!
//! Nothing is polled as long as inotify has watches left. One on the device's directory, one on the device,
//! and a few on the directories of the files that decide about it wake this process. What is wrong with the device
//! is repaired at once, from what
//! was seen last of those files, and when nothing has happened for a moment all of it is looked at
//! again, as `apply` would. So a heal costs a few system calls, and the truth is never older than the
//! last quiet moment. Its own changes come back as events, too, and find nothing to do.
//!
//! What libvirt's QEMU can use comes first: the group file that libvirtd reads is brought in line
//! before the device (memberships count at the next guest start, without a restart of libvirtd); where
//! that is not possible the device keeps the number that worked, and that is reported as drift.
//!
//! What cannot be seen by an event (a file system that becomes writable in another container, a
//! libvirtd that starts and whose socket is not seen) is asked for after one second, four, sixteen and so on up to
//! `--recheck`, as long as the state is not right.

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

use super::output::{note_format, say};
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

/// How long nothing must happen before all is looked at again.
const QUIET: Duration = Duration::from_millis(500);
/// A flood of events puts that off no longer than this.
const NEVER_LATER: Duration = Duration::from_secs(5);

/// How often all that has no inotify watch, for none is left, is looked at.
const POLL: Duration = Duration::from_secs(1);

/// Where libvirt's daemons make the sockets that clients connect to.
const SOCKETS: &str = "run/libvirt";

/// Runs until a signal ends the process, which [`sys::end_well_on_request`] has seen to. Gives the exit code of one
/// that could not even begin.
pub fn run(flags: &Flags) -> u8 {
    let again = || match resolve(flags) {
        Ok((request, _)) if request.dry_run => {
            Err(Error::Usage("watch has no --dry-run: see check".to_owned()))
        }
        resolved => resolved,
    };
    let report = match again() {
        Ok((request, output)) => {
            let format = output.format;
            note_format(format);
            let told = |report: &Report| {
                say(report, Some(format));
            };
            watch(request, output, again, told)
        }
        Err(usage) => {
            not_begun(flags, |name| std::env::var_os(name));
            Report::new(Verdict::Usage, usage.to_string())
        }
    };
    say(&report, None)
}

/// The same for a request. Returns the report on why it could not even begin.
///
/// `again` gives the configuration again at SIGHUP; `told` gets the first report.
fn watch(
    request: Request,
    output: Output,
    again: impl Fn() -> Result<(Request, Output), Error>,
    told: impl FnOnce(&Report),
) -> Report {
    // The root of another process stays the one that it is now.
    let again = || {
        let (request, output) = again().map_err(|usage| usage.to_string())?;
        match libvirtd::hold(&request.sources.pod_root) {
            Ok(root) => Ok((request.with_root(root), output)),
            Err(error) => Err(error.to_string()),
        }
    };
    let report = match libvirtd::hold(&request.sources.pod_root) {
        Ok(root) => begin(request.with_root(root), output, again, told).map_err(Into::into),
        Err(error) => {
            Status::default().withdraw(output.status_file.as_deref());
            Err(error)
        }
    };
    report.unwrap_or_else(|error| Report::from(Judgement::of_error(&error, false)))
}

/// For a run that ends before it begins, as its configuration cannot be meant: a status that an earlier
/// one has left says nothing any more. A file that only that configuration names stays.
fn not_begun(flags: &Flags, env: impl Fn(&str) -> Option<OsString>) {
    let flag = flags.get("status-file").map(OsString::from);
    let path = flag.or_else(|| env(&variable("status-file")));
    let path = path.filter(|path| !path.is_empty()).map(PathBuf::from);
    Status::default().withdraw(path.as_deref());
}

fn begin(
    request: Request,
    output: Output,
    again: impl Fn() -> Result<(Request, Output), String>,
    told: impl FnOnce(&Report),
) -> sys::Result<Report> {
    let mut reconciler = Reconciler::new(request, output);
    reconciler.withdraw();
    let mut watcher = Watcher::new(POLL);
    watcher.follow_hangup()?;
    watcher.follow_mounts();
    // What happens from here on is not missed, whatever the first look takes.
    follow_device(&mut watcher, reconciler.request())?;
    reconciler.reconcile(ProofLevel::AsAsked);
    if reconciler.report().verdict == Verdict::Usage {
        return Ok(reconciler.report().clone());
    }
    told(reconciler.report());
    reconciler.save();
    let mut watch = Watch {
        watcher,
        reconciler,
        problem: None,
    };
    loop {
        watch.watcher.use_events();
        // What happened in a directory before it was followed is looked at like an event.
        let events = watch.follow();
        let looked = watch.until_reconciled(events, &again);
        if let Err(error) = looked {
            watch.reconciler.withdraw();
            return Err(error);
        }
    }
}

struct Watch {
    watcher: Watcher,
    reconciler: Reconciler,
    /// What was said last about a directory that cannot be followed.
    problem: Option<String>,
}

impl Watch {
    /// Until all has been looked at again.
    fn until_reconciled(
        &mut self,
        first: Events,
        again: &impl Fn() -> Result<(Request, Output), String>,
    ) -> sys::Result<()> {
        let recheck = Instant::now() + self.reconciler.recheck();
        let mut quiet: Option<Instant> = None;
        let mut latest: Option<Instant> = None;
        let mut events = first;
        loop {
            if events.hangup && self.configure(again) {
                return Ok(());
            }
            let now = Instant::now();
            let over = |due: Option<Instant>| due.is_some_and(|due| now >= due);
            let waited = self.reconciler.paused_until().is_some();
            let repairs = self.reconciler.repairs();
            // A flood costs one look at its beginning, and the next one when it is over.
            if events.files && self.reconciler.since_reconciled(now) >= QUIET {
                self.reconciler.reconcile(ProofLevel::NoVm);
            } else if events.device || waited {
                self.reconciler.repair();
            }
            if self.reconciler.repairs() != repairs {
                self.watcher.was_needed();
            }
            if waited {
                // Whether this change holds shows by the next event, and then by a quiet moment.
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

    /// Follows what an event says has moved, and adds what happened there.
    fn follow_moved(&mut self, events: &mut Events) {
        if events.directories || events.polled {
            let more = self.follow();
            events.device |= more.device;
            events.files |= more.files;
            // Whatever was mounted may be what was missing.
            events.files |= events.directories && !self.reconciler.is_right();
        }
    }

    /// Whether there is another configuration than before.
    fn configure(&mut self, again: &impl Fn() -> Result<(Request, Output), String>) -> bool {
        match again() {
            Ok((request, output)) => {
                log::info!("the configuration was read again");
                self.reconciler.configure(request, output);
                self.reconciler.reconcile(ProofLevel::AsAsked);
                self.reconciler.save();
                true
            }
            Err(error) => {
                log::warn!("the configuration stays as it was: {error}");
                false
            }
        }
    }

    /// Directories come and go, so that each is followed again whenever all is looked at; that costs little
    /// where it is followed already.
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
                log::warn!("what happens there is seen when all is looked at again: {problem}");
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

/// A libvirtd that starts makes its socket, on the node or where this container shares that directory.
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

/// Whether the start of a libvirtd on this node is such an event for certain: the host root shows the directory.
fn sees_sockets(request: &Request) -> bool {
    match host_root::find(request.sources.host_root.as_deref()) {
        Ok(HostRoot::At(root)) => matches!(root.find_directory(SOCKETS), Ok(Some(_))),
        _ => false,
    }
}
