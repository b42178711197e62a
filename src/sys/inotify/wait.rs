//! Waits for the events of a [`Watcher`] and reads them.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::AddWatchFlags;

use super::{EventKind, Events, Watcher};
use crate::sys::progress::Wait;
use crate::sys::{Context, Result, retry};

impl Watcher {
    /// Waits for events, until the time `until` if there is one.
    pub fn wait(&mut self, until: Option<Instant>) -> Result<Events> {
        let due = self.is_polling().then(|| Instant::now() + self.every);
        let until = [until, due].into_iter().flatten().min();
        loop {
            let woken = self.poll(until, true)?;
            if (woken.events || woken.mounts)
                && let Some(next) = self.pace.take(Instant::now())
            {
                self.hold(until.map_or(next, |until| until.min(next)))?;
            }
            let mut happened = self.read()?;
            happened.directories |= woken.mounts;
            let now = Instant::now();
            happened.polled = due.is_some_and(|due| now >= due);
            if happened.any() || until.is_some_and(|until| now >= until) {
                return Ok(happened);
            }
        }
    }

    /// Resets the rate limit, because the last events led to a change.
    pub fn was_needed(&mut self) {
        self.pace.renew();
    }

    /// Lets events accumulate until this time, or until SIGHUP is received.
    fn hold(&self, until: Instant) -> Result<()> {
        while Instant::now() < until && !self.poll(Some(until), false)?.signals {}
        Ok(())
    }

    /// Waits only for SIGHUP, until `until` at the latest, and then returns all events of that time.
    pub fn rest(&mut self, until: Instant) -> Result<Events> {
        loop {
            self.poll(Some(until), false)?;
            let hangup = self.hangup()?;
            if hangup || Instant::now() >= until {
                let mut happened = self.read()?;
                happened.hangup |= hangup;
                return Ok(happened);
            }
        }
    }

    /// Waits for SIGHUP or, with `all`, for any event. The kernel reports a change of the mounts only once.
    fn poll(&self, until: Option<Instant>, all: bool) -> Result<Woken> {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(until) => millis(until.saturating_duration_since(Instant::now())),
        };
        let signals = self.signals.as_ref().map(AsFd::as_fd);
        let events = self.inotify.as_ref().filter(|_| all).map(AsFd::as_fd);
        let mounts = self.mounts.as_ref().filter(|_| all).map(AsFd::as_fd);
        let process = self.process.as_ref().filter(|_| all);
        let mut fds: Vec<_> = [signals, events]
            .into_iter()
            .flatten()
            .map(readable)
            .collect();
        fds.extend(mounts.map(|fd| PollFd::new(fd, PollFlags::POLLPRI)));
        fds.extend(process.map(|(_, fd)| readable(fd.as_fd())));
        let waits = Wait::begin();
        let polled = poll(&mut fds, timeout);
        drop(waits);
        match polled {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Woken::default()),
            Err(errno) => return Err(errno).context(|| "poll(inotify, signalfd)".into()),
        }
        let mut results = fds.iter().map(|fd| fd.any() == Some(true));
        let mut is_ready = |polled: bool| polled && results.next() == Some(true);
        Ok(Woken {
            signals: is_ready(signals.is_some()),
            events: is_ready(events.is_some()),
            mounts: is_ready(mounts.is_some()),
        })
    }

    fn read(&mut self) -> Result<Events> {
        let mut happened = Events::default();
        let (mut maybe_recreated, mut count) = (false, 0);
        for _ in 0..READS {
            let Some(inotify) = &self.inotify else {
                break;
            };
            let events = match inotify.read_events() {
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                events => events.context(|| "read(inotify)".into())?,
            };
            for event in events {
                count += 1;
                let overflow = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                let removed = event.mask.contains(AddWatchFlags::IN_IGNORED);
                for watched in &self.watched {
                    let is_directory = watched.names.is_some();
                    let matches =
                        watched.is(event.wd) && watched.matches(event.name.as_ref(), event.mask);
                    if overflow || matches {
                        happened.add(watched.kind);
                        happened.directories |=
                            is_directory && event.name.is_none() || watched.is_parent;
                        maybe_recreated |= watched.kind == EventKind::Device && is_directory;
                    }
                }
                if removed {
                    self.watched.retain(|watched| !watched.is(event.wd));
                }
            }
        }
        self.pace.charge(count);
        // Watch the new inode before the caller inspects the device, so that no later change is missed.
        if maybe_recreated {
            self.follow_inode_again();
        }
        happened.hangup = self.hangup()?;
        if self.process_ended() {
            self.process = None;
            happened.files = true;
        }
        Ok(happened)
    }

    fn hangup(&self) -> Result<bool> {
        let mut hangup = false;
        if let Some(signals) = &self.signals {
            let read = || retry(|| signals.read_signal());
            while read().context(|| "read(signalfd)".into())?.is_some() {
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

/// The descriptors that poll(2) reported as ready.
#[derive(Debug, Clone, Copy, Default)]
struct Woken {
    signals: bool,
    events: bool,
    mounts: bool,
}

/// Most reads of 4 KiB in one call: enough for a full queue (fs.inotify.max_queued_events, 16384) and as many events
/// again. Events that are added during the reads stay for the next call.
const READS: usize = 256;

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

/// A timeout for poll(2) in whole milliseconds, rounded up so that the caller does not spin in the last one.
fn millis(time: Duration) -> PollTimeout {
    let millis = time.as_micros().div_ceil(1000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}
