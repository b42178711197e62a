//! Waiting for something to happen to the device, to the files that decide about it, or for a signal,
//! without polling.
//!
//! One inotify watch on a directory sees every name in it appear and go, also when the name is made
//! again; one on a file would end with its inode. Changes of owner, mode and ACL come as `IN_ATTRIB`,
//! also those that another mount namespace made of the same file system, and those that changed
//! nothing (drivers/base/devtmpfs.c makes and removes nodes as any process would). They are asked for
//! by a second watch, on the device's own inode: a watch on /dev would report them for every device
//! there, and any user may touch /dev/null in a loop. A wake-up that leads to nothing costs one of a
//! limited number (`Pace`).
//!
//! inotify instances and watches are limited for each user, and a container without any capability can
//! use up those of root. What has no watch is polled: [`Watcher::wait`] returns now and then, and
//! [`Watcher::follow_again`] compares what it sees in a directory with what it saw there before.
//!
//! A directory that is not there is waited for in the nearest one that is. What is mounted over a directory
//! is no event for inotify, but the kernel tells of every change of this mount namespace by
//! `/proc/self/mountinfo` (proc_pid_mountinfo(5), `POLLPRI`).

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
use watched::{Means, Watched, is_lack, lack, seen_in};

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The device.
    Device,
    /// A file that decides what the device is to be.
    Files,
}

/// Which names in a directory are of interest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// This one.
    One(OsString),
    /// Those that end so.
    EndIn(&'static str),
}

impl Names {
    /// The last part of a path.
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

/// What happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// Something happened to the device.
    pub device: bool,
    /// Something happened to a file that decides about it.
    pub files: bool,
    /// A directory came, went or moved, or mounts changed: what is followed is to be followed again.
    pub directories: bool,
    /// SIGHUP came.
    pub hangup: bool,
    /// It is time to look at what has no watch: [`Watcher::follow_again`] does.
    pub polled: bool,
}

impl Events {
    fn add(&mut self, kind: EventKind) {
        match kind {
            EventKind::Device => self.device = true,
            EventKind::Files => self.files = true,
        }
    }

    /// Whether anything happened at all.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// Directories that are watched, and perhaps SIGHUP, mounts and a process.
#[derive(Debug)]
pub struct Watcher {
    /// Nothing where the user has no instance left.
    inotify: Option<Inotify>,
    signals: Option<SignalFd>,
    mounts: Option<File>,
    process: Option<(u32, OwnedFd)>,
    watched: Vec<Watched>,
    device: PathBuf,
    /// How often what has no watch is looked at.
    every: Duration,
    pace: Pace,
    /// Why something has no watch.
    lack: Option<SyscallError>,
    /// Whether this one has logged that it polls, and not yet that it has stopped.
    polls: bool,
}

/// Whether it was logged that something is polled: once in a run is enough.
static LOGGED: AtomicBool = AtomicBool::new(false);

impl Watcher {
    /// Watches nothing yet. What can have no watch will be looked at each time that `every` is over.
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
            lack: None,
            polls: false,
        };
        watcher.use_events();
        watcher
    }

    /// Asks for an inotify instance where there was none left before. What is polled until now gets a
    /// watch by the next [`Watcher::follow_again`].
    pub fn use_events(&mut self) {
        if self.inotify.is_none() {
            let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
            match Inotify::init(flags) {
                Ok(inotify) => self.inotify = Some(inotify),
                Err(errno) => self.lack = Some(lack("inotify_init1()".to_owned(), errno)),
            }
        }
    }

    /// Whether something is polled, as it has no watch.
    fn is_polling(&self) -> bool {
        let polled = |watched: &Watched| matches!(watched.means, Means::Polling(_));
        self.inotify.is_none() || self.watched.iter().any(polled)
    }

    fn log_polling(&mut self) {
        let polls = self.is_polling();
        if polls && !LOGGED.swap(true, Ordering::Relaxed) {
            self.polls = true;
            let lack = self.lack.as_ref();
            let why = lack.map(ToString::to_string).unwrap_or_default();
            let advice = lack.and_then(SyscallError::advice);
            let advice = advice.map(|advice| format!("; {advice}"));
            log::warn!(
                "polling every {:?}, because inotify has nothing left for this user: {why}{}",
                self.every,
                advice.unwrap_or_default()
            );
        } else if !polls && std::mem::take(&mut self.polls) {
            log::info!("inotify has room again: nothing is polled any more");
        }
    }

    /// From here on SIGHUP does not end the process, but is kept for [`Watcher::wait`].
    ///
    /// # Errors
    /// What sigprocmask(2) and signalfd(2) answer.
    pub fn follow_hangup(&mut self) -> Result<()> {
        let mut hangup = SigSet::empty();
        hangup.add(Signal::SIGHUP);
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = hangup.thread_block();
        let signals = signals.and_then(|()| SignalFd::with_flags(&hangup, flags));
        self.signals = Some(signals.context(|| "signalfd(SIGHUP)".into())?);
        Ok(())
    }

    /// Tells of changes of the mounts, where /proc is there to tell.
    pub fn follow_mounts(&mut self) {
        self.mounts = File::open("/proc/self/mountinfo").ok();
    }

    /// Tells, as of a file, when this process ends, instead of the one that was followed before.
    pub fn follow_process(&mut self, process: Option<(u32, &OwnedFd)>) {
        if self.process.as_ref().map(|(pid, _)| *pid) != process.map(|(pid, _)| pid) {
            let same = |(pid, fd): (u32, &OwnedFd)| Some((pid, fd.try_clone().ok()?));
            self.process = process.and_then(same);
        }
    }

    /// Watches just what `follow` follows, and nothing of before. The happened is what is watched in
    /// another directory than before.
    pub fn follow_again(&mut self, follow: impl FnOnce(&mut Self)) -> Events {
        let before = std::mem::take(&mut self.watched);
        follow(self);
        let mut happened = Events::default();
        let moved = |these: &[Watched], those: &[Watched], happened: &mut Events| {
            for watched in these.iter().filter(|watched| !those.contains(watched)) {
                happened.add(watched.kind);
            }
        };
        moved(&self.watched, &before, &mut happened);
        moved(&before, &self.watched, &mut happened);
        self.unwatch(&before);
        self.log_polling();
        happened
    }

    /// Ends those of these watches that are not needed any more.
    fn unwatch(&self, these: &[Watched]) {
        for Watched { means, .. } in these {
            let needed = self.watched.iter().any(|watched| watched.means == *means);
            if let (Means::Watch(wd), Some(inotify), false) = (means, &self.inotify, needed) {
                // It may be gone already.
                let _ = inotify.rm_watch(*wd);
            }
        }
    }

    /// Watches `name` in `directory`, once more if it is watched already; false where there is no such
    /// directory yet.
    ///
    /// # Errors
    /// What open(2) and inotify_add_watch(2) answer.
    pub fn follow_device(&mut self, directory: &Path, name: &OsStr) -> Result<bool> {
        // No `IN_CLOSE_WRITE`: other processes close /dev/null all the time.
        let names = Names::One(name.to_owned());
        self.device = directory.join(name);
        let is_there =
            self.follow_here(directory, EventKind::Device, names, AddWatchFlags::empty())?;
        self.follow_node();
        self.log_polling();
        Ok(is_there)
    }

    /// Watches the inode that is the device now. The directory's watch comes first and tells of
    /// another one.
    fn follow_node(&mut self) {
        let found = Device::find(&self.device).ok().flatten();
        let Some(node) = found.filter(|node| node.facts().is_kvm()) else {
            return;
        };
        match self.add(node.fd(), AddWatchFlags::IN_ATTRIB) {
            Ok(means) => self.keep(means, EventKind::Device, None, false),
            // A device that this process may not read, or no watch left: the directory's tells of
            // it too, and of all others there.
            Err(_) => {
                let directory = open(
                    directory_of(&self.device),
                    OFlag::O_PATH | OFlag::O_DIRECTORY,
                );
                let events = AddWatchFlags::IN_ATTRIB | MADE_OR_GONE;
                let _ = directory.and_then(|directory| self.add(&directory, events));
            }
        }
    }

    /// The same, where the device's name may lead to another inode than before.
    fn follow_node_again(&mut self) {
        let (kept, before) = std::mem::take(&mut self.watched)
            .into_iter()
            .partition(|watched| watched.names.is_some());
        self.watched = kept;
        self.follow_node();
        let before: Vec<_> = before;
        self.unwatch(&before);
    }

    /// Watches the file `path` of this process' own file system.
    ///
    /// # Errors
    /// As [`Watcher::follow_device`].
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
        let (mut at, mut names, mut way) = (directory, names, false);
        loop {
            let call = || format!("inotify_add_watch({})", at.display());
            match open(at, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Err(Errno::ENOENT | Errno::ENOTDIR) if at != directory_of(at) => {
                    (names, way) = (Names::last_of(at), true);
                    events = AddWatchFlags::empty();
                    at = directory_of(at);
                }
                fd => {
                    let means = self.means(&fd.context(call)?, events, &names, way, call)?;
                    self.keep(means, kind, Some(names), way);
                    return Ok(!way);
                }
            }
        }
    }

    /// Watches the files of some names in the directory `name` below `root`, or the way to it as long
    /// as there is no such directory.
    ///
    /// # Errors
    /// What openat2(2) and inotify_add_watch(2) answer.
    pub fn follow_files(&mut self, root: &Root, name: &str, names: Names) -> Result<()> {
        let (mut at, mut names, mut way) = (name, names, false);
        let mut events = AddWatchFlags::IN_CLOSE_WRITE;
        let fd = loop {
            match root.find_directory(at)? {
                Some(fd) => break fd,
                None if at == "." => return Ok(()),
                None => {
                    let (directory, last) = at.rsplit_once('/').unwrap_or((".", at));
                    (at, names, way) = (directory, Names::One(last.into()), true);
                    events = AddWatchFlags::empty();
                }
            }
        };
        let call = || format!("inotify_add_watch({})", root.join(at).display());
        let means = self.means(&fd, events, &names, way, call)?;
        self.keep(means, EventKind::Files, Some(names), way);
        Ok(())
    }

    /// Watches a directory, or looks at it where there is no watch left.
    fn means(
        &mut self,
        directory: &OwnedFd,
        events: AddWatchFlags,
        names: &Names,
        way: bool,
        call: impl Fn() -> String,
    ) -> Result<Means> {
        match self.add(directory, events | MADE_OR_GONE) {
            Err(errno) if is_lack(errno) => {
                if self.inotify.is_some() {
                    self.lack = Some(lack(call(), errno));
                }
                Ok(Means::Polling(seen_in(directory, names, way)))
            }
            done => done.context(call),
        }
    }

    fn add(&self, fd: impl AsFd, events: AddWatchFlags) -> nix::Result<Means> {
        let inotify = self.inotify.as_ref().ok_or(Errno::EMFILE)?;
        // The file that was opened, whatever its path leads to by now.
        let path = syscalls::proc_path(fd);
        // It has one watch, whatever is of interest in it.
        let events = events | AddWatchFlags::from_bits_retain(libc::IN_MASK_ADD);
        retry(|| inotify.add_watch(path.as_c_str(), events)).map(Means::Watch)
    }

    fn keep(&mut self, means: Means, kind: EventKind, names: Option<Names>, way: bool) {
        let entry = Watched {
            means,
            kind,
            names,
            way,
        };
        if !self.watched.contains(&entry) {
            self.watched.push(entry);
        }
    }
}

/// The directory that holds what `path` names; of a root, itself.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if directory.as_os_str().is_empty() => Path::new("."),
        Some(directory) => directory,
        None => path,
    }
}

const MADE_OR_GONE: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);
