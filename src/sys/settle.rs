//! Waiting for the device to appear and to hold still.
//!
//! Unloading and loading the module removes the node and makes a new one, 0600 root:root, and
//! udevd answers some time later. inotify watches on the directory and the device see all of it, without
//! polling.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Result;
use super::device::Device;
use super::inotify::Watcher;

/// How often the device is looked at where there is no inotify watch left.
const POLL: Duration = Duration::from_millis(50);
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
/// What open(2) and poll(2) answer, but for a directory that does not exist: that is `Missing` at once.
pub fn wait(device: &Path, longest: Duration) -> Result<Settled> {
    let end = Instant::now() + longest;
    let (Some(directory), Some(name)) = (device.parent(), device.file_name()) else {
        return Ok(Settled::Missing);
    };
    let here = Path::new(".");
    let directory = if directory.as_os_str().is_empty() {
        here
    } else {
        directory
    };
    let mut watcher = Watcher::new(POLL);
    if !watcher.follow_device(directory, name)? {
        return Ok(Settled::Missing);
    }
    let mut moved = false;
    loop {
        let there = Device::find(device)?.is_some_and(|found| found.facts().is_kvm());
        let left = end.saturating_duration_since(Instant::now());
        let patience = if there { left.min(QUIET) } else { left };
        let quiet_needed = if there { QUIET } else { Duration::MAX };
        let quiet = Instant::now() + patience;
        if !changed(&mut watcher, quiet, directory, name)? {
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

/// Waits until something happens to the device, `until` at most, and returns whether it did.
fn changed(watcher: &mut Watcher, until: Instant, directory: &Path, name: &OsStr) -> Result<bool> {
    loop {
        let mut news = watcher.wait(Some(until))?;
        if news.directories || news.polled {
            let mut is_followed = Ok(true);
            let more = watcher.follow_again(|watcher| {
                is_followed = watcher.follow_device(directory, name);
            });
            is_followed?;
            news.device |= more.device;
        }
        if news.device || Instant::now() >= until {
            return Ok(news.device);
        }
    }
}
