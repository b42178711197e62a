//! Waits until the device exists and has not changed for 500 ms.
//!
//! When the module is reloaded, the kernel removes the device and creates a new one with 0600 root:root, which udevd
//! changes some time later. inotify watches on the directory and the device report all of it, without polling.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Result;
use super::device::Device;
use super::inotify::Watcher;

/// Polling interval if no inotify watch is left.
const POLL: Duration = Duration::from_millis(50);
/// Time without a change after which the device counts as settled.
pub const QUIET: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The device exists and did not change.
    Still,
    /// The device exists, but was still changing at the end of the wait.
    Moving,
    /// The device does not exist.
    Missing,
}

/// Waits up to `longest` until `device` is a KVM device that has not changed for [`QUIET`]. If its directory does not
/// exist, `Missing` is returned at once.
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
        let exists = Device::find(device)?.is_some_and(|found| found.facts().is_kvm());
        let left = end.saturating_duration_since(Instant::now());
        let patience = if exists { left.min(QUIET) } else { left };
        let quiet_needed = if exists { QUIET } else { Duration::MAX };
        let quiet = Instant::now() + patience;
        if !changed(&mut watcher, quiet, directory, name)? {
            return Ok(match (exists, patience >= quiet_needed) {
                (true, false) if moved => Settled::Moving,
                // No change during the whole wait, even if `longest` was shorter than `QUIET`.
                (true, _) => Settled::Still,
                (false, _) => Settled::Missing,
            });
        }
        moved = true;
        if Instant::now() >= end {
            return Ok(if exists {
                Settled::Moving
            } else {
                Settled::Missing
            });
        }
    }
}

/// Waits until the device changes, or until the time `until`. Returns whether it changed.
fn changed(watcher: &mut Watcher, until: Instant, directory: &Path, name: &OsStr) -> Result<bool> {
    loop {
        let mut events = watcher.wait(Some(until))?;
        if events.directories || events.polled {
            let mut is_followed = Ok(true);
            let more = watcher.follow_again(|watcher| {
                is_followed = watcher.follow_device(directory, name);
            });
            is_followed?;
            events.device |= more.device;
        }
        if events.device || Instant::now() >= until {
            return Ok(events.device);
        }
    }
}
