//! Waiting for something to happen to the device, to the files that decide about it, or for a signal,
//! without polling.
//!
//! One inotify watch on a folder sees what happens to every name in it, also when the name is made
//! anew; one on a file would end with its inode. Changes of owner, mode and ACL come as `IN_ATTRIB`,
//! also those that another mount namespace made of the same file system, and those that changed
//! nothing (drivers/base/devtmpfs.c makes and removes nodes as any process would).
//!
//! A folder that is not there is waited for in the nearest one that is. What is mounted over a folder
//! is no event for inotify, but the kernel tells of every change of this mount namespace by
//! `/proc/self/mountinfo` (proc_pid_mountinfo(5), `POLLPRI`).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::root::Root;
use super::{Named, Result, open, raw, retry};

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// The device.
    Device,
    /// A file that decides what the device shall be.
    Files,
}

/// Which names in a folder are of interest.
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
pub struct News {
    /// Something happened to the device.
    pub device: bool,
    /// Something happened to a file that decides about it.
    pub files: bool,
    /// A folder came, went or moved, or mounts changed: what is followed is to be followed anew.
    pub folders: bool,
    /// SIGHUP came.
    pub hangup: bool,
}

impl News {
    fn add(&mut self, topic: Topic) {
        match topic {
            Topic::Device => self.device = true,
            Topic::Files => self.files = true,
        }
    }

    /// Whether anything happened at all.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// A folder that is watched for some names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watched {
    wd: WatchDescriptor,
    topic: Topic,
    names: Names,
    /// Whether the name is that of a folder on the way to the one that is meant.
    way: bool,
}

/// Folders that are watched, and perhaps SIGHUP, mounts and a process.
#[derive(Debug)]
pub struct Watcher {
    inotify: Inotify,
    signals: Option<SignalFd>,
    mounts: Option<File>,
    process: Option<(u32, OwnedFd)>,
    watched: Vec<Watched>,
}

impl Watcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// What inotify_init1(2) answers: `EMFILE` where the user has too many.
    pub fn new() -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .named(|| "inotify_init1()".into())?;
        Ok(Self {
            inotify,
            signals: None,
            mounts: None,
            process: None,
            watched: Vec::new(),
        })
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
        self.signals = Some(signals.named(|| "signalfd(SIGHUP)".into())?);
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

    /// Watches just what `follow` follows, and nothing of before. The news is what is watched in
    /// another folder than before.
    pub fn follow_anew(&mut self, follow: impl FnOnce(&mut Self)) -> News {
        let before = std::mem::take(&mut self.watched);
        follow(self);
        let mut news = News::default();
        let moved = |these: &[Watched], those: &[Watched], news: &mut News| {
            for watched in these.iter().filter(|watched| !those.contains(watched)) {
                news.add(watched.topic);
            }
        };
        moved(&self.watched, &before, &mut news);
        moved(&before, &self.watched, &mut news);
        for Watched { wd, .. } in before {
            if !self.watched.iter().any(|watched| watched.wd == wd) {
                // It may be gone already.
                let _ = self.inotify.rm_watch(wd);
            }
        }
        news
    }

    /// Watches `name` in `folder`, once more if it is watched already; false where there is no such
    /// folder yet.
    ///
    /// # Errors
    /// What open(2) and inotify_add_watch(2) answer.
    pub fn follow_device(&mut self, folder: &Path, name: &OsStr) -> Result<bool> {
        // No `IN_CLOSE_WRITE`: somebody closes /dev/null all the time.
        let names = Names::One(name.to_owned());
        self.follow_here(folder, Topic::Device, names, AddWatchFlags::IN_ATTRIB)
    }

    /// Watches the file `path` of this process' own file system.
    ///
    /// # Errors
    /// As [`Watcher::follow_device`].
    pub fn follow_file(&mut self, path: &Path) -> Result<bool> {
        let events = AddWatchFlags::IN_CLOSE_WRITE;
        self.follow_here(folder_of(path), Topic::Files, Names::last_of(path), events)
    }

    fn follow_here(
        &mut self,
        folder: &Path,
        topic: Topic,
        names: Names,
        mut events: AddWatchFlags,
    ) -> Result<bool> {
        let (mut at, mut names, mut way) = (folder, names, false);
        loop {
            let call = || format!("inotify_add_watch({})", at.display());
            match open(at, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Err(Errno::ENOENT | Errno::ENOTDIR) if at != folder_of(at) => {
                    (names, way) = (Names::last_of(at), true);
                    events = AddWatchFlags::empty();
                    at = folder_of(at);
                }
                fd => {
                    let wd = self.add(&fd.named(call)?, events).named(call)?;
                    self.keep(wd, topic, names, way);
                    return Ok(!way);
                }
            }
        }
    }

    /// Watches the files of some names in the folder `name` below `root`, or the way to it as long
    /// as there is no such folder.
    ///
    /// # Errors
    /// What openat2(2) and inotify_add_watch(2) answer.
    pub fn follow_files(&mut self, root: &Root, name: &str, names: Names) -> Result<()> {
        let (mut at, mut names, mut way) = (name, names, false);
        let mut events = AddWatchFlags::IN_CLOSE_WRITE;
        let fd = loop {
            match root.find_folder(at)? {
                Some(fd) => break fd,
                None if at == "." => return Ok(()),
                None => {
                    let (folder, last) = at.rsplit_once('/').unwrap_or((".", at));
                    (at, names, way) = (folder, Names::One(last.into()), true);
                    events = AddWatchFlags::empty();
                }
            }
        };
        let call = || format!("inotify_add_watch({})", root.join(at).display());
        let wd = self.add(&fd, events).named(call)?;
        self.keep(wd, Topic::Files, names, way);
        Ok(())
    }

    fn add(&self, fd: impl AsFd, events: AddWatchFlags) -> nix::Result<WatchDescriptor> {
        // The folder that was opened, whatever its path leads to by now.
        let path = raw::proc_path(fd);
        // A folder has one watch, whatever is of interest in it.
        let add = AddWatchFlags::from_bits_retain(libc::IN_MASK_ADD);
        retry(|| {
            self.inotify
                .add_watch(path.as_c_str(), events | MADE_OR_GONE | add)
        })
    }

    fn keep(&mut self, wd: WatchDescriptor, topic: Topic, names: Names, way: bool) {
        let entry = Watched {
            wd,
            topic,
            names,
            way,
        };
        if !self.watched.contains(&entry) {
            self.watched.push(entry);
        }
    }

    /// Waits until something happens, `until` at most, or for ever.
    ///
    /// # Errors
    /// What poll(2) and read(2) answer.
    pub fn wait(&mut self, until: Option<Instant>) -> Result<News> {
        loop {
            let mounts = self.poll(until, true)?;
            let mut news = self.read()?;
            news.folders |= mounts;
            if news.any() || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(news);
            }
        }
    }

    /// Waits for SIGHUP alone, `until` at most: what else happens is not even looked at before.
    ///
    /// # Errors
    /// As [`Watcher::wait`].
    pub fn rest(&mut self, until: Instant) -> Result<News> {
        loop {
            self.poll(Some(until), false)?;
            let hangup = self.hangup()?;
            if hangup || Instant::now() >= until {
                let mut news = self.read()?;
                news.hangup |= hangup;
                return Ok(news);
            }
        }
    }

    /// Whether mounts changed: the kernel says so only once.
    fn poll(&self, until: Option<Instant>, all: bool) -> Result<bool> {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(until) => millis(until.saturating_duration_since(Instant::now())),
        };
        let signals = self.signals.as_ref().map(AsFd::as_fd);
        let mut fds: Vec<_> = signals.into_iter().map(readable).collect();
        if all {
            fds.push(readable(self.inotify.as_fd()));
            fds.extend(self.process.as_ref().map(|(_, fd)| readable(fd.as_fd())));
            let mounts = self.mounts.as_ref().map(AsFd::as_fd);
            fds.extend(mounts.map(|fd| PollFd::new(fd, PollFlags::POLLPRI)));
        }
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(false),
            Err(errno) => return Err(errno).named(|| "poll(inotify, signalfd)".into()),
        }
        let told = |fd: &PollFd<'_>| {
            fd.revents()
                .is_some_and(|got| got.contains(PollFlags::POLLPRI))
        };
        Ok(fds.iter().any(told))
    }

    fn read(&mut self) -> Result<News> {
        let mut news = News::default();
        loop {
            let events = match self.inotify.read_events() {
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                events => events.named(|| "read(inotify)".into())?,
            };
            for event in events {
                let overflow = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                let gone = event.mask.contains(AddWatchFlags::IN_IGNORED);
                for watched in &self.watched {
                    // What has no name is about the folder itself.
                    let own = event.name.is_none();
                    let meant = match &event.name {
                        Some(name) => watched.names.has(name),
                        None => event.mask.intersects(OF_THE_FOLDER),
                    };
                    if overflow || watched.wd == event.wd && meant {
                        news.add(watched.topic);
                        news.folders |= own || watched.way;
                    }
                }
                if gone {
                    self.watched.retain(|watched| watched.wd != event.wd);
                }
            }
        }
        news.hangup = self.hangup()?;
        if self.process_ended() {
            self.process = None;
            news.files = true;
        }
        Ok(news)
    }

    fn hangup(&self) -> Result<bool> {
        let mut hangup = false;
        if let Some(signals) = &self.signals {
            let read = || retry(|| signals.read_signal());
            while read().named(|| "read(signalfd)".into())?.is_some() {
                hangup = true;
            }
        }
        Ok(hangup)
    }

    fn process_ended(&self) -> bool {
        let Some((_, process)) = &self.process else {
            return false;
        };
        let mut fds = [readable(process.as_fd())];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
    }
}

fn readable(fd: std::os::fd::BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

/// The folder that holds what `path` names; of a root, itself.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => path,
    }
}

const OF_THE_FOLDER: AddWatchFlags = AddWatchFlags::IN_IGNORED
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_UNMOUNT);

const MADE_OR_GONE: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// poll(2) counts whole milliseconds: rounded up, so as not to spin in the last one.
fn millis(time: Duration) -> PollTimeout {
    let millis = time.as_micros().div_ceil(1000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}
