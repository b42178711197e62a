//! Inspects the device: the file at its path, its permissions, and whether a driver is registered.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::error::Result;
use crate::formats::posix_acl::Acl;
use crate::sys::device::{Device, DeviceStat};
use crate::sys::{proc, progress};

/// A file, usually the device, with its permissions.
#[derive(Debug, Clone)]
pub struct DeviceState {
    /// File type, device numbers, owner and mode.
    pub facts: DeviceStat,
    pub acl: Option<Acl>,
    /// Whether the file is on a `nodev` mount.
    pub nodev: bool,
    /// Whether the owner or group may be an ID without a mapping in this user namespace, which the
    /// kernel shows as 65534.
    pub unmapped: bool,
}

/// Whether a KVM driver is registered for 10:232.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `/proc/misc` lists it, or the device could be opened.
    Present,
    /// `/proc/misc` does not list it, and no open succeeded.
    Absent,
    /// `/proc/misc` cannot be read, and opening the device did not decide it.
    Unknown,
}

pub(super) fn inspect(device: &Device) -> Result<DeviceState> {
    let facts = device.facts();
    if !facts.is_kvm() {
        // For a file that is not the KVM device, only the type is reported.
        return Ok(DeviceState {
            facts,
            acl: None,
            nodev: false,
            unmapped: false,
        });
    }
    /// The ID that the kernel shows in place of one without a mapping (/proc/sys/kernel/overflowuid).
    const OVERFLOW: u32 = 65534;
    let shows_overflow = facts.uid.as_raw() == OVERFLOW || facts.gid.as_raw() == OVERFLOW;
    Ok(DeviceState {
        facts,
        acl: device.acl()?,
        nodev: device.on_nodev_mount()?,
        unmapped: shows_overflow && in_user_namespace(),
    })
}

/// Whether some IDs have no mapping in this user namespace (user_namespaces(7)).
fn in_user_namespace() -> bool {
    let map = proc::text("/proc/self/uid_map").unwrap_or_default();
    let mut words = map.split_whitespace();
    words.next() != Some("0") || words.next() != Some("0") || words.next() != Some("4294967295")
}

/// `/proc/misc` lists 232 if and only if a KVM driver is registered (drivers/char/misc.c). If it does
/// not, this opens the device, because on some architectures open(2) loads the module.
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

/// Whether open(2) failed because no driver is registered for the device's numbers.
pub fn is_no_driver(errno: Errno) -> bool {
    matches!(errno, Errno::ENODEV | Errno::ENXIO)
}

/// The directories above `device`, outermost first, to find one that denies access: those in its path, and
/// those on the way through its symbolic links.
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
    let state = |path: &Path| {
        let device = Device::find(path).ok()??;
        // The permissions of a symbolic link are not checked.
        if device.facts().kind != SFlag::S_IFDIR {
            return None;
        }
        let state = DeviceState {
            facts: device.facts(),
            acl: device.acl().ok()?,
            nodev: false,
            unmapped: false,
        };
        Some((path.to_owned(), state))
    };
    paths.into_iter().chain(more).filter_map(state).collect()
}
