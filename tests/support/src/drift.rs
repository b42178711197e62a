//! The kinds of drift, and a measurement of the time until each is repaired. Needs a `Scene` in a namespace.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{KVM, get_xattr, mknod_char, mknod_kvm, set_owner, set_xattr};

/// Longer than the interval within which `watch` counts a change as an immediate revert.
pub const PAUSE: Duration = Duration::from_millis(25);
/// The extended attribute of an ACL, and tags of its entries (linux/posix_acl.h).
const ACL: &str = "system.posix_acl_access";
const OWNING_GROUP: u8 = 4;
const MASK: u8 = 16;
const RIGHT: (u32, u32) = (0, 108);

/// A name, and a function that causes the drift and returns the time from which `watch` could repair it.
pub type Drift = (&'static str, fn() -> Instant);

fn acl(text: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in text {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Sets an ACL whose mask shows rw as group bits in the mode, while the entry of the owning group grants nothing.
fn deny_by_acl() -> Instant {
    const NONE: u32 = u32::MAX;
    let entries = [
        (1, 6, NONE),
        (2, 6, 1234),
        (4, 0, NONE),
        (16, 6, NONE),
        (32, 0, NONE),
    ];
    let at = Instant::now();
    set_xattr(kvm(), ACL, &acl(&entries)).unwrap();
    at
}

fn kvm() -> &'static Path {
    Path::new(KVM)
}

fn beside() -> &'static Path {
    Path::new("/dev/.beside")
}

/// Replaces the device by another file for a moment, and then by a device as the kernel creates it.
fn replaced_by(make: impl Fn()) -> Instant {
    make();
    fs::rename(beside(), kvm()).unwrap();
    std::thread::sleep(Duration::from_millis(3));
    mknod_kvm(beside(), 0, 0, 0o600);
    let at = Instant::now();
    fs::rename(beside(), kvm()).unwrap();
    at
}

/// All kinds of drift. /dev/canary must exist.
pub const DRIFTS: [Drift; 10] = [
    ("chown", || {
        let at = Instant::now();
        chown(KVM, Some(0), Some(424)).unwrap();
        at
    }),
    ("chmod", || {
        let at = Instant::now();
        fs::set_permissions(KVM, fs::Permissions::from_mode(0o600)).unwrap();
        at
    }),
    ("ACL set", deny_by_acl),
    ("ACL there, chmod and chown", || {
        let at = Instant::now();
        fs::set_permissions(KVM, fs::Permissions::from_mode(0o0)).unwrap();
        chown(KVM, Some(7), Some(7)).unwrap();
        at
    }),
    ("unlink and mknod", || {
        fs::remove_file(KVM).unwrap();
        let at = Instant::now();
        mknod_kvm(kvm(), 0, 0, 0o600);
        at
    }),
    ("rename over", || {
        mknod_kvm(beside(), 0, 424, 0o660);
        let at = Instant::now();
        fs::rename(beside(), kvm()).unwrap();
        at
    }),
    ("a link in its place, and back", || {
        replaced_by(|| symlink("/dev/canary", beside()).unwrap())
    }),
    ("a file in its place, and back", || {
        replaced_by(|| fs::write(beside(), "").unwrap())
    }),
    ("another device in its place, and back", || {
        replaced_by(|| mknod_char(beside(), (1, 3), 0, 0, 0o600))
    }),
    // drivers/base/devtmpfs.c: owner and mode reset, unlinked, recreated.
    ("as the kernel removes and makes it", || {
        set_owner(kvm(), 0, 0, 0);
        fs::remove_file(KVM).unwrap();
        let at = Instant::now();
        mknod_kvm(kvm(), 0, 0, 0o600);
        at
    }),
];

/// True if the QEMU user can open the device by its group: by owner and mode and, with an ACL, by the entry of the
/// owning group and the mask.
pub fn right() -> bool {
    let Ok(meta) = fs::symlink_metadata(KVM) else {
        return false;
    };
    if (meta.uid(), meta.gid()) != RIGHT || meta.mode() & 0o660 != 0o660 {
        return false;
    }
    let acl = get_xattr(kvm(), ACL).unwrap_or_default();
    let mut entries = acl.get(4..).unwrap_or_default().chunks_exact(8);
    entries.all(|entry| !matches!(entry[..2], [OWNING_GROUP | MASK, 0]) || entry[2] & 6 == 6)
}

/// Causes a drift and returns the time until it is repaired, measured by polling without a pause.
pub fn time(drift: fn() -> Instant) -> Option<Duration> {
    let at = drift();
    while !right() {
        if at.elapsed() > Duration::from_secs(60) {
            return None;
        }
        std::thread::yield_now();
    }
    Some(at.elapsed())
}
