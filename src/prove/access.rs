//! Computes what owner, group, mode and ACL allow a QEMU identity, independent of open(2). Pure.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::codes::Permission;
use crate::formats::posix_acl::{FilePermissions, READ_WRITE, permits};
use crate::observe::DeviceState;
use crate::plan::qemu_identity::Identity;
use crate::sys::device::DeviceStat;

/// A directory on the path to the device, with its owner, mode and ACL.
pub type Directory = (PathBuf, DeviceState);

/// The facts that decide whether a QEMU identity can open the device.
#[derive(Debug)]
pub struct AccessContext<'a> {
    pub path: &'a Path,
    pub device: &'a DeviceState,
    /// The directories on the path to the device, outermost first.
    pub directories: &'a [Directory],
    pub identity: &'a Identity,
    /// The next step if owner, group and mode deny access and `apply` does not repair that.
    pub remedy: Option<String>,
}

/// The `x` bit, which path resolution requires of a directory.
const SEARCH: u16 = 0o1;

/// Whether owner, mode and ACL of a device allow QEMU to read and write it.
pub fn allows(device: &DeviceState, identity: &Identity) -> bool {
    // libvirt leaves CAP_DAC_OVERRIDE to a QEMU that runs as root, which bypasses the permission check.
    identity.uid.is_root() || permits(&permissions(device), &identity.who(), READ_WRITE)
}

impl AccessContext<'_> {
    /// Whether QEMU as root can open the device only because of `CAP_DAC_OVERRIDE`.
    pub fn needs_dac_override(&self) -> bool {
        let who = self.identity.who();
        let passes = |(_, directory): &Directory| permits(&permissions(directory), &who, SEARCH);
        let reads_and_writes = permits(&permissions(self.device), &who, READ_WRITE);
        self.identity.uid.is_root() && !(reads_and_writes && self.directories.iter().all(passes))
    }

    /// Whether owner, group, mode and ACL of the device and of the directories above it allow QEMU access;
    /// `None` if the device's owner is not mapped in this user namespace.
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

/// The first directory that QEMU has no search permission for.
pub fn closed_directory<'a>(
    directories: &'a [Directory],
    identity: &Identity,
) -> Option<&'a Directory> {
    let who = identity.who();
    let mut directories = directories.iter().filter(|_| !identity.uid.is_root());
    directories.find(|(_, directory)| !permits(&permissions(directory), &who, SEARCH))
}

/// chmod(1)'s letter for the class of permission bits that applies to QEMU; `None` if an ACL applies.
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
    let applies =
        |&(_, mode): &(char, u16)| permits(&permissions(&bits(mode)), &identity.who(), SEARCH);
    classes.find(applies).map(|(class, _)| class)
}

fn permissions(device: &DeviceState) -> FilePermissions<'_> {
    FilePermissions {
        uid: device.facts.uid,
        gid: device.facts.gid,
        mode: device.facts.mode,
        acl: device.acl.as_ref(),
    }
}
