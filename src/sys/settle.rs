//! Waiting for the device to appear and to hold still.
//!
//! Unloading and loading the module removes the node and makes a new one, 0600 root:root, and
//! udevd answers some time later. One inotify watch on the folder sees all of it, without polling.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Result;
use super::device::Device;
use super::events::Watcher;

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
    let mut watcher = Watcher::new()?;
    if !watcher.follow_device(folder, name)? {
        return Ok(Settled::Missing);
    }
    let mut moved = false;
    loop {
        let there = Device::find(device)?.is_some_and(|found| found.facts().is_kvm());
        let left = end.saturating_duration_since(Instant::now());
        let patience = if there { left.min(QUIET) } else { left };
        let quiet_needed = if there { QUIET } else { Duration::MAX };
        if !watcher.wait(Some(Instant::now() + patience))?.any() {
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
