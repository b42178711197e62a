//! Checks whether the observed device is the one that the running libvirtd uses.

use crate::config::{Libvirtd, Sources};
use crate::sys::device::{Device, DeviceStat};

/// Why a proof may not apply to the running libvirtd.
#[derive(Debug)]
pub enum Doubt {
    /// Its container has another device, or the device is on a `nodev` mount there.
    OtherDevice(OtherDevice),
    /// No libvirtd runs with the node's device. The process ID is that of one with a private /dev, if any.
    NoLibvirtd(Option<u32>),
    /// The reason why the libvirtd is ambiguous or cannot be inspected.
    Unclear(String),
}

/// The inspected device, and the different one in libvirtd's container.
#[derive(Debug)]
pub struct OtherDevice {
    /// The inspected device.
    pub here: DeviceStat,
    /// The file at the same path below the pod root, if it is a KVM device.
    pub there: Option<DeviceStat>,
    /// Whether only the file below the pod root is on a `nodev` mount.
    pub is_nodev: bool,
}

pub(super) fn doubt(sources: &Sources, device: Option<&Device>) -> Option<Doubt> {
    match &sources.libvirtd {
        Libvirtd::Own => None,
        Libvirtd::Container => other_device(device?, sources).map(Doubt::OtherDevice),
        Libvirtd::Missing(other) => Some(Doubt::NoLibvirtd(*other)),
        Libvirtd::Unclear(text) => Some(Doubt::Unclear(text.clone())),
    }
}

/// The device in the pod root, if it differs from the inspected one. `None` also if the pod root cannot be
/// read.
fn other_device(device: &Device, sources: &Sources) -> Option<OtherDevice> {
    let here = device.facts();
    let root = sources.pod_root.open().ok()?;
    let name = sources.device.to_string_lossy();
    let there = root.stat(&name).ok()?.map(DeviceStat::from);
    let is_nodev =
        root.is_nodev(&name).unwrap_or(false) && !device.on_nodev_mount().unwrap_or(false);
    let is_same = there.is_some_and(|there| there.inode == here.inode);
    if !here.is_kvm() || is_same && !is_nodev {
        return None;
    }
    Some(OtherDevice {
        here,
        there: there.filter(DeviceStat::is_kvm),
        is_nodev,
    })
}
