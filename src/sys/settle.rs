//! Waiting for the device to appear and to hold still.
//!
//! Unloading and loading the module removes the node and makes a new one, 0600 root:root, and
//! udevd answers some time later. One inotify watch on the folder sees all of it, without polling.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::device::Device;
use super::{Named, Result};

/// How long nothing may happen to the device before it counts as settled.
pub const QUIET: Duration = Duration::from_millis(500);

/// How the wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The device is there and held still.
    Still,
    /// The device is there, and it was still being changed when the time was over.
    Moving,
    /// The device did not appear.
    Missing,
}

/// Waits up to `longest` for `device` to be a KVM node that held still for [`QUIET`].
///
/// # Errors
/// What inotify and poll answer, but for a folder that does not exist: that is `Missing` at once.
pub fn wait(device: &Path, longest: Duration) -> Result<Settled> {
    let end = Instant::now() + longest;
    let (Some(folder), Some(name)) = (device.parent(), device.file_name()) else {
        return Ok(Settled::Missing);
    };
    let here = Path::new(".");
    let folder = if folder.as_os_str().is_empty() {
        here
    } else {
        folder
    };
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .named(|| "inotify_init1()".into())?;
    let events = AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO;
    match inotify.add_watch(folder, events) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Settled::Missing),
        watched => watched.named(|| format!("inotify_add_watch({})", folder.display()))?,
    };
    let mut moved = false;
    loop {
        let there = Device::find(device)?.is_some_and(|found| found.facts().is_kvm());
        let left = end.saturating_duration_since(Instant::now());
        let patience = if there { left.min(QUIET) } else { left };
        let quiet_needed = if there { QUIET } else { Duration::MAX };
        if !touched(&inotify, name, patience)? {
            return Ok(match (there, patience >= quiet_needed) {
                (true, false) if moved => Settled::Moving,
                // Nothing happened, if only for a time that was asked to be shorter.
                (true, _) => Settled::Still,
                (false, _) => Settled::Missing,
            });
        }
        moved = true;
        if Instant::now() >= end {
            return Ok(if there {
                Settled::Moving
            } else {
                Settled::Missing
            });
        }
    }
}

/// Waits for an event on `name`; false when there was none in `patience`.
fn touched(inotify: &Inotify, name: &OsStr, patience: Duration) -> Result<bool> {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // poll(2) counts whole milliseconds: round up, so as not to spin in the last one.
        let millis = left.as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if Instant::now() >= end => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno).named(|| "poll(inotify)".into()),
        }
        let events = inotify.read_events().named(|| "read(inotify)".into())?;
        if events.iter().any(|event| match &event.name {
            Some(touched) => touched == name,
            // The queue ran over: something happened, and nobody knows to whom.
            None => true,
        }) {
            return Ok(true);
        }
    }
}
