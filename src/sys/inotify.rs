//! Waits for changes of the device and of the files that determine its owner and mode, and for SIGHUP, without
//! polling.
//!
//! An inotify watch on a directory reports every name that appears or disappears in it, including a name that is
//! recreated; a watch on a file ends with the inode. Changes of owner, mode and ACL are reported as `IN_ATTRIB`, even
//! if they came from another mount namespace or changed nothing (drivers/base/devtmpfs.c creates and removes devices
//! as any process would). A second watch, on the inode of the device, receives them: a watch on /dev would report them
//! for every device there, and any user can touch /dev/null in a loop. The rate of wake-ups without effect is limited
//! (`Pace`).
//!
//! inotify instances and watches are limited per user, and a container without any capability can use up those of
//! root. A directory without a watch is polled: [`Watcher::wait`] returns at an interval, and
//! [`Watcher::follow_again`] compares the state of the directory with the previous one.
//!
//! For a directory that does not exist, the nearest existing parent is watched. inotify does not report a mount over a
//! directory, but the kernel reports every change of this mount namespace through `/proc/self/mountinfo`
//! (proc_pid_mountinfo(5), `POLLPRI`).

mod wait;
mod watched;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::device::Device;
use super::pace::Pace;
use super::root::Root;
use super::{Context, Result, SyscallError, open, retry, syscalls};
use watched::{Means, Watched, exhausted, is_exhausted, state_of};

/// The subject of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Device,
    /// A file that determines the owner or mode of the device.
    Files,
}

/// The names in a directory for which events are reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    One(OsString),
    /// All names with this suffix.
    EndIn(&'static str),
}

impl Names {
    /// The last component of a path.
    pub fn last_of(path: &Path) -> Self {
        Self::One(path.file_name().unwrap_or_default().to_owned())
    }

    fn has(&self, name: &OsStr) -> bool {
        match self {
            Self::One(one) => one == name,
            Self::EndIn(end) => name.as_bytes().ends_with(end.as_bytes()),
        }
    }
}

/// The kinds of events that [`Watcher::wait`] has received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    pub device: bool,
    /// A file that determines the owner or mode of the device has changed, or the followed process has ended.
    pub files: bool,
    /// A directory or mount changed: all watches must be re-established ([`Watcher::follow_again`]).
    pub directories: bool,
    pub hangup: bool,
    /// The polling interval is over: call [`Watcher::follow_again`], which checks the directories without a watch.
    pub polled: bool,
}

impl Events {
    fn add(&mut self, kind: EventKind) {
        match kind {
            EventKind::Device => self.device = true,
            EventKind::Files => self.files = true,
        }
    }

    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// The watched directories and, if requested, SIGHUP, mounts and a process.
#[derive(Debug)]
pub struct Watcher {
    /// `None` if this user's inotify instances are used up.
    inotify: Option<Inotify>,
    signals: Option<SignalFd>,
    mounts: Option<File>,
    process: Option<(u32, OwnedFd)>,
    watched: Vec<Watched>,
    device: PathBuf,
    /// Polling interval for directories without a watch.
    every: Duration,
    pace: Pace,
    /// The error because of which a directory has no watch.
    exhausted: Option<SyscallError>,
    /// Whether this watcher has logged the start of polling, and not yet the end.
    polls: bool,
}

/// Whether a watcher has logged the start of polling. It is logged once per run.
static LOGGED: AtomicBool = AtomicBool::new(false);

impl Watcher {
    /// A watcher that watches nothing yet. Directories that get no watch will be polled at the interval `every`.
    pub fn new(every: Duration) -> Self {
        let mut watcher = Self {
            inotify: None,
            signals: None,
            mounts: None,
            process: None,
            watched: Vec::new(),
            device: PathBuf::new(),
            every,
            pace: Pace::new(Instant::now()),
            exhausted: None,
            polls: false,
        };
        watcher.use_events();
        watcher
    }

    /// Requests an inotify instance if there is none. The next [`Watcher::follow_again`] then replaces polling by
    /// watches.
    pub fn use_events(&mut self) {
        if self.inotify.is_none() {
            let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
            match Inotify::init(flags) {
                Ok(inotify) => self.inotify = Some(inotify),
                Err(errno) => self.exhausted = Some(exhausted("inotify_init1()".to_owned(), errno)),
            }
        }
    }

    /// Whether any directory is polled because it has no watch.
    fn is_polling(&self) -> bool {
        let polled = |watched: &Watched| matches!(watched.means, Means::Polling(_));
        self.inotify.is_none() || self.watched.iter().any(polled)
    }

    fn log_polling(&mut self) {
        let polls = self.is_polling();
        if polls && !LOGGED.swap(true, Ordering::Relaxed) {
            self.polls = true;
            let error = self.exhausted.as_ref();
            let why = error.map(ToString::to_string).unwrap_or_default();
            let advice = error.and_then(SyscallError::advice);
            let advice = advice.map(|advice| format!("; {advice}"));
            log::warn!(
                "polling every {:?}, because inotify has no resources left for this user: {why}{}",
                self.every,
                advice.unwrap_or_default()
            );
        } else if !polls && std::mem::take(&mut self.polls) {
            log::info!("inotify has resources for this user again: polling has stopped");
        }
    }

    /// Blocks SIGHUP, which from now on is reported by [`Watcher::wait`] and no longer ends the process.
    pub fn follow_hangup(&mut self) -> Result<()> {
        let mut hangup = SigSet::empty();
        hangup.add(Signal::SIGHUP);
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = hangup.thread_block();
        let signals = signals.and_then(|()| SignalFd::with_flags(&hangup, flags));
        self.signals = Some(signals.context(|| "signalfd(SIGHUP)".into())?);
        Ok(())
    }

    /// Reports changes of this mount namespace from now on, if /proc is mounted.
    pub fn follow_mounts(&mut self) {
        self.mounts = File::open("/proc/self/mountinfo").ok();
    }

    /// Reports the end of this process, as an event of a file. It replaces the process that was followed before.
    pub fn follow_process(&mut self, process: Option<(u32, &OwnedFd)>) {
        if self.process.as_ref().map(|(pid, _)| *pid) != process.map(|(pid, _)| pid) {
            let copy = |(pid, fd): (u32, &OwnedFd)| Some((pid, fd.try_clone().ok()?));
            self.process = process.and_then(copy);
        }
    }

    /// Replaces all watches by those that `follow` sets up. Returns an event for each one that differs: its directory
    /// is another one than before, or its polled state has changed.
    pub fn follow_again(&mut self, follow: impl FnOnce(&mut Self)) -> Events {
        let before = std::mem::take(&mut self.watched);
        follow(self);
        let mut happened = Events::default();
        let compare = |these: &[Watched], those: &[Watched], happened: &mut Events| {
            for watched in these.iter().filter(|watched| !those.contains(watched)) {
                happened.add(watched.kind);
            }
        };
        compare(&self.watched, &before, &mut happened);
        compare(&before, &self.watched, &mut happened);
        self.unwatch(&before);
        self.log_polling();
        happened
    }

    /// Removes those of these watches that are no longer needed.
    fn unwatch(&self, these: &[Watched]) {
        for Watched { means, .. } in these {
            let needed = self.watched.iter().any(|watched| watched.means == *means);
            if let (Means::Watch(wd), Some(inotify), false) = (means, &self.inotify, needed) {
                // The kernel has already removed the watch if its directory was removed.
                let _ = inotify.rm_watch(*wd);
            }
        }
    }

    /// Watches the device `name` in `directory`. Returns false if the directory does not exist yet.
    pub fn follow_device(&mut self, directory: &Path, name: &OsStr) -> Result<bool> {
        // No `IN_CLOSE_WRITE`: in /dev it is reported each time that a process closes /dev/null.
        let names = Names::One(name.to_owned());
        self.device = directory.join(name);
        let is_there =
            self.follow_here(directory, EventKind::Device, names, AddWatchFlags::empty())?;
        self.follow_inode();
        self.log_polling();
        Ok(is_there)
    }

    /// Watches the current inode of the device. The watch on the directory is added first, so that a new inode is
    /// reported.
    fn follow_inode(&mut self) {
        let found = Device::find(&self.device).ok().flatten();
        let Some(device) = found.filter(|device| device.facts().is_kvm()) else {
            return;
        };
        match self.add(device.fd(), AddWatchFlags::IN_ATTRIB) {
            Ok(means) => self.keep(means, EventKind::Device, None, false),
            // No read permission for the device, or no watch left: the watch on the directory can report it too,
            // along with all other devices there.
            Err(_) => {
                let directory = open(
                    directory_of(&self.device),
                    OFlag::O_PATH | OFlag::O_DIRECTORY,
                );
                let events = AddWatchFlags::IN_ATTRIB | CREATED_OR_REMOVED;
                let _ = directory.and_then(|directory| self.add(&directory, events));
            }
        }
    }

    /// Replaces the watch on the device's inode, because the device may have been recreated.
    fn follow_inode_again(&mut self) {
        let (kept, before) = std::mem::take(&mut self.watched)
            .into_iter()
            .partition(|watched| watched.names.is_some());
        self.watched = kept;
        self.follow_inode();
        let before: Vec<_> = before;
        self.unwatch(&before);
    }

    /// Watches the file `path`, as this process sees it. Returns false if its directory does not exist yet.
    pub fn follow_file(&mut self, path: &Path) -> Result<bool> {
        let events = AddWatchFlags::IN_CLOSE_WRITE;
        self.follow_here(
            directory_of(path),
            EventKind::Files,
            Names::last_of(path),
            events,
        )
    }

    fn follow_here(
        &mut self,
        directory: &Path,
        kind: EventKind,
        names: Names,
        mut events: AddWatchFlags,
    ) -> Result<bool> {
        let (mut at, mut names, mut is_parent) = (directory, names, false);
        loop {
            let call = || format!("inotify_add_watch({})", at.display());
            match open(at, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Err(Errno::ENOENT | Errno::ENOTDIR) if at != directory_of(at) => {
                    (names, is_parent) = (Names::last_of(at), true);
                    events = AddWatchFlags::empty();
                    at = directory_of(at);
                }
                fd => {
                    let means = self.means(&fd.context(call)?, events, &names, is_parent, call)?;
                    self.keep(means, kind, Some(names), is_parent);
                    return Ok(!is_parent);
                }
            }
        }
    }

    /// Watches the files with these names in the directory `name` below `root`, or its nearest existing parent until
    /// the directory exists.
    pub fn follow_files(&mut self, root: &Root, name: &str, names: Names) -> Result<()> {
        let (mut at, mut names, mut is_parent) = (name, names, false);
        let mut events = AddWatchFlags::IN_CLOSE_WRITE;
        let fd = loop {
            match root.find_directory(at)? {
                Some(fd) => break fd,
                None if at == "." => return Ok(()),
                None => {
                    let (directory, last) = at.rsplit_once('/').unwrap_or((".", at));
                    (at, names, is_parent) = (directory, Names::One(last.into()), true);
                    events = AddWatchFlags::empty();
                }
            }
        };
        let call = || format!("inotify_add_watch({})", root.join(at).display());
        let means = self.means(&fd, events, &names, is_parent, call)?;
        self.keep(means, EventKind::Files, Some(names), is_parent);
        Ok(())
    }

    /// Adds a watch on a directory, or records its state for polling if no watch is left.
    fn means(
        &mut self,
        directory: &OwnedFd,
        events: AddWatchFlags,
        names: &Names,
        is_parent: bool,
        call: impl Fn() -> String,
    ) -> Result<Means> {
        match self.add(directory, events | CREATED_OR_REMOVED) {
            Err(errno) if is_exhausted(errno) => {
                if self.inotify.is_some() {
                    self.exhausted = Some(exhausted(call(), errno));
                }
                Ok(Means::Polling(state_of(directory, names, is_parent)))
            }
            done => done.context(call),
        }
    }

    fn add(&self, fd: impl AsFd, events: AddWatchFlags) -> nix::Result<Means> {
        let inotify = self.inotify.as_ref().ok_or(Errno::EMFILE)?;
        // Watch the file that was opened, even if its path now leads to another one.
        let path = syscalls::proc_path(fd);
        // An inode has only one watch per instance: extend its events instead of replacing them.
        let events = events | AddWatchFlags::from_bits_retain(libc::IN_MASK_ADD);
        retry(|| inotify.add_watch(path.as_c_str(), events)).map(Means::Watch)
    }

    fn keep(&mut self, means: Means, kind: EventKind, names: Option<Names>, is_parent: bool) {
        let entry = Watched {
            means,
            kind,
            names,
            is_parent,
        };
        if !self.watched.contains(&entry) {
            self.watched.push(entry);
        }
    }
}

/// The parent directory of `path`; for `/`, `/` itself.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if directory.as_os_str().is_empty() => Path::new("."),
        Some(directory) => directory,
        None => path,
    }
}

const CREATED_OR_REMOVED: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);
