//! What owner, group, mode and ACL let a QEMU identity do, whatever open(2) says. Pure.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::codes::Permission;
use crate::formats::posix_acl::{FilePermissions, READ_WRITE, permits};
use crate::observe::DeviceState;
use crate::plan::qemu_identity::Identity;
use crate::sys::device::DeviceStat;

/// A directory on the way to the device.
pub type Directory = (PathBuf, DeviceState);

/// Who opens what, and on which way.
#[derive(Debug)]
pub struct AccessContext<'a> {
    /// The device's path.
    pub path: &'a Path,
    /// The device as it is now.
    pub device: &'a DeviceState,
    /// The directories on the way to it, outermost first.
    pub directories: &'a [Directory],
    /// Who opens it.
    pub identity: &'a Identity,
    /// What gives the QEMU user the device where owner, group and mode deny it; nothing where `apply` does.
    pub remedy: Option<String>,
}

/// Searching a directory needs `x`.
const SEARCH: u16 = 0o1;

/// Whether owner, mode and ACL of a device let QEMU read and write.
pub fn allows(device: &DeviceState, identity: &Identity) -> bool {
    // Root keeps its capabilities, and CAP_DAC_OVERRIDE asks nobody.
    identity.uid.is_root() || permits(&permissions(device), &identity.who(), READ_WRITE)
}

impl AccessContext<'_> {
    /// Whether QEMU as root gets to the device by `CAP_DAC_OVERRIDE` alone.
    pub fn needs_dac_override(&self) -> bool {
        let who = self.identity.who();
        let passes = |(_, directory): &Directory| permits(&permissions(directory), &who, SEARCH);
        let reads_and_writes = permits(&permissions(self.device), &who, READ_WRITE);
        self.identity.uid.is_root() && !(reads_and_writes && self.directories.iter().all(passes))
    }

    /// What owner, group, mode and ACL of the device and of the directories above it say; nothing where this
    /// user namespace hides whose the device is.
    pub fn permission(&self) -> Option<Permission> {
        if !self.device.facts.is_kvm() || self.device.unmapped {
            return None;
        }
        let passes = closed_directory(self.directories, self.identity).is_none();
        match passes && allows(self.device, self.identity) {
            true => Some(Permission::Allowed),
            false => Some(Permission::Denied),
        }
    }
}

/// The first directory that does not let QEMU pass.
pub fn closed_directory<'a>(
    directories: &'a [Directory],
    identity: &Identity,
) -> Option<&'a Directory> {
    let who = identity.who();
    let mut directories = directories.iter().filter(|_| !identity.uid.is_root());
    directories.find(|(_, directory)| !permits(&permissions(directory), &who, SEARCH))
}

/// chmod(1)'s letter for the class of permission bits that counts for QEMU; none where an ACL counts.
pub fn class(directory: &DeviceState, identity: &Identity) -> Option<char> {
    let bits = |mode| DeviceState {
        facts: DeviceStat {
            mode,
            ..directory.facts
        },
        acl: None,
        ..*directory
    };
    let classes = [('u', 0o100), ('g', 0o010), ('o', 0o001)];
    let mut classes = classes.into_iter().filter(|_| directory.acl.is_none());
    let counts =
        |&(_, mode): &(char, u16)| permits(&permissions(&bits(mode)), &identity.who(), SEARCH);
    classes.find(counts).map(|(class, _)| class)
}

fn permissions(device: &DeviceState) -> FilePermissions<'_> {
    FilePermissions {
        uid: device.facts.uid,
        gid: device.facts.gid,
        mode: device.facts.mode,
        acl: device.acl.as_ref(),
    }
}
