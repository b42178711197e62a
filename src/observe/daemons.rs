//! The daemons that act on what was seen, and which of them started before it changed.

use super::libvirtd;
use super::{GROUP_FILE, Observation};
use crate::observe::udev_files;
use crate::sys::processes::{Process, named};
use crate::sys::root::Root;

/// The daemons of root's that are of interest: those that start QEMU, and udevd.
pub fn daemons() -> Vec<Process> {
    let [a, b, c, d] = libvirtd::NAMES;
    named(&[a, b, c, d, udev_files::UDEVD])
}

/// Daemons that looked groups up before the files changed.
#[derive(Debug)]
pub struct StaleDaemons {
    /// A libvirtd that reads the pod's group file.
    pub libvirtd: Option<Process>,
    /// The process ID of the node's udevd.
    pub udevd: Option<u32>,
}

impl StaleDaemons {
    /// Looks for them among `daemons`. What cannot be looked at is not reported: no verdict rests on it.
    pub fn find(seen: &Observation, daemons: &[Process]) -> Self {
        let host = seen.host.as_ref();
        Self {
            libvirtd: stale_libvirtd(seen, daemons),
            udevd: host.and_then(|host| udev_files::stale(&host.root, daemons).ok()?),
        }
    }
}

/// The libvirtd in question reads this very file, by whatever root: two mount namespaces may share a root
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
        let its = Root::open(&process.root_path()).ok();
        its.and_then(|its| its.inode(GROUP_FILE).ok()?) == Some(file)
    };
    let process = libvirtds.find(reads_it)?;
    let changed = root.stat(GROUP_FILE).ok()??.st_mtime;
    (changed > process.started).then(|| process.clone())
}
