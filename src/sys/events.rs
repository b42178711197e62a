//! Waiting for something to happen to the device, to the files that decide about it, or for a signal,
//! without polling.
//!
//! One inotify watch on a folder sees what happens to every name in it, also when the name is made
//! anew; one on a file would end with its inode. Changes of owner, mode and ACL come as `IN_ATTRIB`,
//! also those that another mount namespace made of the same file system, and those that changed
//! nothing (drivers/base/devtmpfs.c makes and removes nodes as any process would).

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
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

/// Folders that are watched, and perhaps SIGHUP.
#[derive(Debug)]
pub struct Watcher {
    inotify: Inotify,
    signals: Option<SignalFd>,
    watched: Vec<(WatchDescriptor, Topic, Names)>,
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

    /// Watches `name` in `folder`, once more if it is watched already; false where there is no such
    /// folder.
    ///
    /// # Errors
    /// What open(2) and inotify_add_watch(2) answer.
    pub fn follow_device(&mut self, folder: &Path, name: &OsStr) -> Result<bool> {
        let call = || format!("inotify_add_watch({})", folder.display());
        let fd = match open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
            fd => fd.named(call)?,
        };
        // No `IN_CLOSE_WRITE`: somebody closes /dev/null all the time.
        let events = AddWatchFlags::IN_ATTRIB | MADE_OR_GONE;
        let wd = self.add(&fd, events).named(call)?;
        self.keep(wd, Topic::Device, Names::One(name.to_owned()));
        Ok(true)
    }

    /// Watches the files of some names in the folder `name` below `root`; nothing where there is no
    /// such folder.
    ///
    /// # Errors
    /// What openat2(2) and inotify_add_watch(2) answer.
    pub fn follow_files(&mut self, root: &Root, name: &str, names: Names) -> Result<()> {
        let Some(fd) = root.find_folder(name)? else {
            return Ok(());
        };
        let events = AddWatchFlags::IN_CLOSE_WRITE | MADE_OR_GONE;
        let call = || format!("inotify_add_watch({})", root.join(name).display());
        let wd = self.add(&fd, events).named(call)?;
        self.keep(wd, Topic::Files, names);
        Ok(())
    }

    fn add(&self, fd: impl AsFd, events: AddWatchFlags) -> nix::Result<WatchDescriptor> {
        // The folder that was opened, whatever its path leads to by now.
        let path = raw::proc_path(fd);
        retry(|| self.inotify.add_watch(path.as_c_str(), events))
    }

    fn keep(&mut self, wd: WatchDescriptor, topic: Topic, names: Names) {
        let entry = (wd, topic, names);
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
            let timeout = match until {
                None => PollTimeout::NONE,
                Some(until) => millis(until.saturating_duration_since(Instant::now())),
            };
            let signals = self.signals.as_ref().map(AsFd::as_fd);
            let fds = [Some(self.inotify.as_fd()), signals].into_iter().flatten();
            let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).named(|| "poll(inotify, signalfd)".into()),
            }
            let news = self.read()?;
            if news.any() || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(news);
            }
        }
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
                for (wd, topic, names) in &self.watched {
                    let meant = match &event.name {
                        Some(name) => names.has(name),
                        None => gone,
                    };
                    if overflow || *wd == event.wd && meant {
                        news.add(*topic);
                    }
                }
                if gone {
                    self.watched.retain(|(wd, ..)| *wd != event.wd);
                }
            }
        }
        if let Some(signals) = &self.signals {
            let read = || retry(|| signals.read_signal());
            while read().named(|| "read(signalfd)".into())?.is_some() {
                news.hangup = true;
            }
        }
        Ok(news)
    }
}

const MADE_OR_GONE: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// poll(2) counts whole milliseconds: rounded up, so as not to spin in the last one.
fn millis(time: Duration) -> PollTimeout {
    let millis = time.as_micros().div_ceil(1000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}
