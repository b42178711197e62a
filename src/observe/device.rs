//! What is seen of the device: what stands at its path, what guards it, and whether a driver answers.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::error::Result;
use crate::formats::posix_acl::Acl;
use crate::sys::device::{Device, DeviceStat};
use crate::sys::{proc, progress};

/// A device node and what guards it.
#[derive(Debug, Clone)]
pub struct DeviceState {
    /// Kind, numbers, owner, mode.
    pub facts: DeviceStat,
    /// Its ACL.
    pub acl: Option<Acl>,
    /// Whether it is on a `nodev` mount.
    pub nodev: bool,
    /// Whether its owner or group may be one that this user namespace does not map, and shows as
    /// 65534.
    pub unmapped: bool,
}

/// Whether anything answers behind 10:232.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `/proc/misc` lists it.
    Present,
    /// `/proc/misc` does not list it, and nothing contradicts.
    Absent,
    /// Nothing could be learned.
    Unknown,
}

pub(super) fn node(device: &Device) -> Result<DeviceState> {
    let facts = device.facts();
    if !facts.is_kvm() {
        // Of what is not the device, only its kind is of interest.
        return Ok(DeviceState {
            facts,
            acl: None,
            nodev: false,
            unmapped: false,
        });
    }
    /// What the kernel shows for an ID without a mapping (/proc/sys/kernel/overflowuid).
    const OVERFLOW: u32 = 65534;
    let shows_overflow = facts.uid.as_raw() == OVERFLOW || facts.gid.as_raw() == OVERFLOW;
    Ok(DeviceState {
        facts,
        acl: device.acl()?,
        nodev: device.on_nodev_mount()?,
        unmapped: shows_overflow && in_user_namespace(),
    })
}

/// Whether some IDs are not mapped here (user_namespaces(7)).
fn in_user_namespace() -> bool {
    let map = proc::text("/proc/self/uid_map").unwrap_or_default();
    let mut words = map.split_whitespace();
    words.next() != Some("0") || words.next() != Some("0") || words.next() != Some("4294967295")
}

/// `/proc/misc` lists 232 if and only if a KVM driver is registered (drivers/char/misc.c). Where it
/// does not, an open decides: on some architectures that is what loads the module.
pub(super) fn driver(device: Option<&Device>) -> Driver {
    let listed = proc::text("/proc/misc").map(|list| {
        list.lines()
            .any(|line| line.split_whitespace().eq(["232", "kvm"]))
    });
    if listed == Some(true) {
        return Driver::Present;
    }
    let Some(device) = device.filter(|device| device.facts().is_kvm()) else {
        return listed.map_or(Driver::Unknown, |_| Driver::Absent);
    };
    match device.try_open() {
        Ok(()) => Driver::Present,
        Err(error) if is_no_driver(error.errno) => Driver::Absent,
        Err(_) => listed.map_or(Driver::Unknown, |_| Driver::Absent),
    }
}

/// What open(2) answers when nothing is registered for a device's numbers.
pub fn is_no_driver(errno: Errno) -> bool {
    matches!(errno, Errno::ENODEV | Errno::ENXIO)
}

/// The directories above `device`, outermost first, for a reason why it cannot be reached: those that
/// its path names, and those that the links in it lead through.
pub fn directories_above(device: &Path) -> Vec<(PathBuf, DeviceState)> {
    let named = std::path::absolute(device).unwrap_or_default();
    let Some(named) = named.parent() else {
        return Vec::new();
    };
    progress::at(&[named.as_os_str()]);
    let real = named.canonicalize().unwrap_or_default();
    let mut paths: Vec<&Path> = named.ancestors().collect();
    paths.reverse();
    let mut more: Vec<&Path> = real.ancestors().collect();
    more.reverse();
    more.retain(|path| !paths.contains(path));
    let node = |path: &Path| {
        let device = Device::find(path).ok()??;
        // A link has no rights of its own.
        if device.facts().kind != SFlag::S_IFDIR {
            return None;
        }
        let node = DeviceState {
            facts: device.facts(),
            acl: device.acl().ok()?,
            nodev: false,
            unmapped: false,
        };
        Some((path.to_owned(), node))
    };
    paths.into_iter().chain(more).filter_map(node).collect()
}
