//! Finds the running libvirtd and udevd, and reports those that looked up groups before the files changed.

use super::libvirtd;
use super::{GROUP_FILE, Observation};
use crate::observe::udev_files;
use crate::sys::processes::{Process, named};
use crate::sys::root::Root;

/// The processes of root that start QEMU, and udevd.
pub fn daemons() -> Vec<Process> {
    let [a, b, c, d] = libvirtd::NAMES;
    named(&[a, b, c, d, udev_files::UDEVD])
}

/// Daemons that looked up groups before the files changed.
#[derive(Debug)]
pub struct StaleDaemons {
    /// The libvirtd that reads the pod's group file.
    pub libvirtd: Option<Process>,
    /// The process ID of the node's udevd.
    pub udevd: Option<u32>,
}

impl StaleDaemons {
    /// Searches `daemons`. Skips daemons that cannot be inspected, because no verdict depends on them.
    pub fn find(seen: &Observation, daemons: &[Process]) -> Self {
        let host = seen.host.as_ref();
        Self {
            libvirtd: stale_libvirtd(seen, daemons),
            udevd: host.and_then(|host| udev_files::stale(&host.root, daemons).ok()?),
        }
    }
}

/// Finds the libvirtd by the inode of the group file that it reads: two mount namespaces can share a root
/// directory, and a file in a volume has several paths.
fn stale_libvirtd(seen: &Observation, daemons: &[Process]) -> Option<Process> {
    let mut libvirtds = daemons
        .iter()
        .filter(|process| libvirtd::is_named(process))
        .peekable();
    libvirtds.peek()?;
    let root = seen.pod.root.open().ok()?;
    let file = root.inode(GROUP_FILE).ok()??;
    let reads_it = |process: &&Process| {
        let other = Root::open(&process.root_path()).ok();
        other.and_then(|other| other.inode(GROUP_FILE).ok()?) == Some(file)
    };
    let process = libvirtds.find(reads_it)?;
    let changed = root.stat(GROUP_FILE).ok()??.st_mtime;
    (changed > process.started).then(|| process.clone())
}
