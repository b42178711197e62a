//! Whether what is seen of the device is about the libvirtd that runs.

use crate::config::{Libvirtd, Sources};
use crate::sys::device::{Device, DeviceStat};

/// Why a proof may say nothing of the libvirtd that runs.
#[derive(Debug)]
pub enum Doubt {
    /// Its container shows another device, or a mount that ignores devices.
    OtherDevice(OtherDevice),
    /// None runs with the node's device; perhaps one (its process ID) with a /dev of its own.
    NoLibvirtd(Option<u32>),
    /// It cannot be told from others, or may not be looked at: why.
    Unclear(String),
}

/// A device that is not the one that was looked at.
#[derive(Debug)]
pub struct OtherDevice {
    /// The one that was looked at.
    pub here: DeviceStat,
    /// What stands at its path below the pod root, if that is a KVM device.
    pub there: Option<DeviceStat>,
    /// Whether that is on a `nodev` mount, and the one that was looked at is not.
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

/// What the pod root shows instead of the device that was looked at. What cannot be looked at is not reported
/// as odd.
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
