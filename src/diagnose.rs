//! Why QEMU cannot open KVM: from what the child saw and what guards the device to one cause and
//! one line of advice. Pure.
//!
//! The kernel asks discretionary access control first, then the cgroup's device filter, then the
//! security module (fs/namei.c, `inode_permission`). The first two tell `EACCES` from `EPERM`; the
//! third, and a `nodev` mount, which is asked about before all of them (`may_open`), answer `EACCES`
//! too, and show only as the difference to what owner, mode and ACL would allow.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::acl::{Guard, READ_WRITE, permits};
use crate::observe::{Node, is_no_driver};
use crate::prove::Sight;
use crate::qemu::Identity;
use crate::report::{Cause, Permission, Proof, some_of_many};
use crate::sys::device::Facts;
use crate::sys::kvm::API_VERSION;

/// What the judgement rests on.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The device's path.
    pub device: &'a Path,
    /// The device as it is now.
    pub node: &'a Node,
    /// The folders on the way to it, outermost first.
    pub folders: &'a [(PathBuf, Node)],
    /// Who tried.
    pub identity: &'a Identity,
    /// What to do where owner, group and mode deny it.
    pub remedy: &'a str,
}

/// Searching a folder needs `x`.
const SEARCH: u16 = 0o1;

/// Whether owner, mode and ACL of a node let QEMU read and write.
pub fn allows(node: &Node, identity: &Identity) -> bool {
    // Root keeps its capabilities, and CAP_DAC_OVERRIDE asks nobody.
    identity.uid.is_root() || permits(&guard(node), &identity.who(), READ_WRITE)
}

/// Whether QEMU as root gets to the device by `CAP_DAC_OVERRIDE` alone.
pub fn needs_override(scene: &Scene<'_>) -> bool {
    let who = scene.identity.who();
    let passes = |(_, folder): &(PathBuf, Node)| permits(&guard(folder), &who, SEARCH);
    scene.identity.uid.is_root()
        && !(permits(&guard(scene.node), &who, READ_WRITE) && scene.folders.iter().all(passes))
}

/// The first folder on the way to the device that does not let QEMU pass.
pub fn closed_folder<'a>(scene: &Scene<'a>) -> Option<&'a (PathBuf, Node)> {
    let who = scene.identity.who();
    let mut folders = scene.folders.iter();
    folders
        .find(|(_, folder)| !scene.identity.uid.is_root() && !permits(&guard(folder), &who, SEARCH))
}

/// chmod(1)'s letter for the class of permission bits that counts for QEMU; none where an ACL counts.
fn class(node: &Node, identity: &Identity) -> Option<char> {
    let bits = |mode| Node {
        facts: Facts { mode, ..node.facts },
        acl: None,
        ..*node
    };
    let classes = [('u', 0o100), ('g', 0o010), ('o', 0o001)];
    let mut classes = classes.into_iter().filter(|_| node.acl.is_none());
    let counts = |&(_, mode): &(char, u16)| permits(&guard(&bits(mode)), &identity.who(), SEARCH);
    classes.find(counts).map(|(class, _)| class)
}

fn guard(node: &Node) -> Guard<'_> {
    Guard {
        uid: node.facts.uid,
        gid: node.facts.gid,
        mode: node.facts.mode,
        acl: node.acl.as_ref(),
    }
}

/// What owner, group, mode and ACL of the device and of the folders above it say, whatever open(2)
/// does; nothing where this user namespace hides whose it is.
pub fn computed(scene: &Scene<'_>) -> Option<Permission> {
    let known = scene.node.facts.is_kvm() && !scene.node.unmapped;
    known.then(
        || match allows(scene.node, scene.identity) && closed_folder(scene).is_none() {
            true => Permission::Allowed,
            false => Permission::Denied,
        },
    )
}

/// Turns what the child saw into the report's proof.
pub fn diagnose(sight: Sight, scene: &Scene<'_>) -> Proof {
    Proof {
        computed: computed(scene),
        ..judged(sight, scene)
    }
}

fn judged(sight: Sight, scene: &Scene<'_>) -> Proof {
    let failed = |errno: Errno, (cause, advice): (Cause, String)| Proof {
        result: format!("{errno:?}"),
        cause: Some(cause),
        computed: None,
        api_version: None,
        advice: Some(advice),
        undone: false,
    };
    let mismatch = |cause, api_version, advice: &str| Proof {
        result: "mismatch".to_owned(),
        cause: Some(cause),
        computed: None,
        api_version,
        advice: Some(advice.to_owned()),
        undone: false,
    };
    let path = scene.device.display();
    match sight {
        Sight::Ok(version) => Proof {
            result: "ok".to_owned(),
            cause: None,
            computed: None,
            api_version: Some(version),
            advice: None,
            undone: false,
        },
        Sight::OtherInode => mismatch(
            Cause::Unknown,
            None,
            "the device was replaced while it was being proven: run again, with --settle 30s \
             where a module is being reloaded",
        ),
        Sight::OtherVersion(version) => mismatch(
            Cause::ApiVersion,
            Some(version),
            &format!("the kernel's KVM has API version {version}, QEMU wants {API_VERSION}"),
        ),
        Sight::NotDropped(step, errno) => not_dropped(step, errno, scene.identity),
        Sight::Stat(errno) | Sight::Open(errno) => failed(errno, open_failed(errno, scene)),
        Sight::Version(errno) => {
            let advice = format!("{path} opens but does not answer as KVM does");
            failed(errno, (Cause::NotKvm, advice))
        }
        Sight::CreateVm(errno) => failed(errno, create_vm_failed(errno)),
        Sight::TimedOut => Proof::undone(
            "the proof's child did not answer within 5 s: see whether root stops it (kill -STOP, a \
             debugger, a frozen cgroup) or the kernel hangs (`dmesg`), then run again",
        ),
        Sight::Killed => Proof::undone(
            "the proof's child was killed before it answered, and so was a second one: see `dmesg` for \
             the kernel's memory killer, then run again",
        ),
    }
}

fn not_dropped(step: u8, errno: Errno, identity: &Identity) -> Proof {
    let call = match step {
        1 => format!("setfsgid({})", identity.gid),
        2 => format!("setgroups({} groups)", identity.groups.len()),
        3 => format!("setfsuid({})", identity.uid),
        4 => "capset(nothing)".to_owned(),
        _ => {
            return Proof::undone(&format!(
                "the kernel did not give the proof the credentials of {}: nothing was opened; see which \
                 security module or filter prevents it (`dmesg`), then run again",
                identity.label()
            ));
        }
    };
    /// `NGROUPS_MAX` (include/uapi/linux/limits.h)
    const MOST: usize = 65_536;
    let way_out = match errno {
        Errno::EINVAL if identity.groups.len() > MOST => {
            "the kernel takes at most 65536 groups, so QEMU will not start either"
        }
        Errno::EINVAL if identity.groups.iter().any(|gid| gid.as_raw() == u32::MAX) => {
            "a line of etc/group lists the QEMU user under 4294967295, which is no group, so QEMU \
             will not start either: remove that line"
        }
        Errno::EINVAL => {
            "this user namespace does not map that number: run it without hostUsers: false"
        }
        Errno::EPERM => "run it as root with CAP_SETUID and CAP_SETGID (privileged: true)",
        _ => "see `dmesg`, then run again",
    };
    let advice = format!(
        "{call} gave {errno:?} ({}), so nothing was opened: {way_out}",
        errno.desc()
    );
    match Sight::NotDropped(step, errno).is_undone() {
        true => Proof::undone(&advice),
        false => Proof::none(Some(Cause::Unknown), Some(advice)),
    }
}

fn open_failed(errno: Errno, scene: &Scene<'_>) -> (Cause, String) {
    let path = scene.device.display();
    match errno {
        Errno::EACCES => denied(scene),
        Errno::EPERM => {
            let advice = "the cgroup's device filter denies it to this container, which says \
                          nothing of the node: run this step with privileged: true (a systemd unit with \
                          DeviceAllow=/dev/kvm rw)";
            (Cause::DeviceCgroup, advice.to_owned())
        }
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => {
            let advice = format!(
                "{path} went away: run again, with --settle 30s where a module is being reloaded"
            );
            (Cause::Missing, advice)
        }
        errno if is_no_driver(errno) => {
            let advice = "no KVM driver answers: on the node run `modprobe kvm_intel` or \
                          `modprobe kvm_amd`, and see `dmesg | grep -i kvm`";
            (Cause::NoDriver, advice.to_owned())
        }
        Errno::EBUSY => (Cause::Busy, BUSY.to_owned()),
        Errno::EISDIR => (Cause::NotKvm, format!("{path} is a directory: remove it")),
        _ => {
            let advice = format!("open({path}, O_RDWR) gave {errno:?}: {}", errno.desc());
            (Cause::Unknown, advice)
        }
    }
}

const BUSY: &str = "another hypervisor holds the processor's virtualisation (VirtualBox, VMware, \
                    Xen): stop it";

/// How many groups a line names.
const GROUPS: usize = 16;

/// `EACCES` has four reasons; the first that the facts bear out is it.
fn denied(scene: &Scene<'_>) -> (Cause, String) {
    let path = scene.device.display();
    let identity = scene.identity;
    let facts = &scene.node.facts;
    if let Some((folder, node)) = closed_folder(scene) {
        let folder = folder.display();
        let way_out = match class(node, identity) {
            Some(class) => format!("chmod {class}+x {folder}"),
            None => format!("setfacl -m u:{}:x {folder}", identity.uid),
        };
        let advice = format!(
            "the folder {folder} ({}:{} {:04o}) does not let {} pass: {way_out}",
            node.facts.uid,
            node.facts.gid,
            node.facts.mode,
            identity.label()
        );
        return (Cause::Ownership, advice);
    }
    if scene.node.nodev {
        let advice = format!(
            "{path} is on a mount with the option nodev, where no device opens: mount the node's \
             /dev without it"
        );
        return (Cause::Nodev, advice);
    }
    if !allows(scene.node, identity) {
        let plain = Node {
            acl: None,
            ..scene.node.clone()
        };
        if let Some(acl) = scene.node.acl.as_ref().filter(|_| allows(&plain, identity)) {
            let without = Node {
                acl: Some(acl.without_user(identity.uid)),
                ..scene.node.clone()
            };
            let way_out = if allows(&without, identity) {
                format!("`setfacl -x u:{} {path}` removes that entry", identity.uid)
            } else {
                let mode = facts.mode;
                format!("`setfacl -b {path} && chmod {mode:04o} {path}` leaves the plain mode")
            };
            let advice = format!("its ACL ({acl}) denies {}: {way_out}", identity.label());
            return (Cause::Acl, advice);
        }
        let groups = identity.groups.iter().map(ToString::to_string);
        let advice = format!(
            "{path} is {}:{} {:04o}, and {} with the groups {} may not read and write it; {}",
            facts.uid,
            facts.gid,
            facts.mode,
            identity.label(),
            some_of_many(groups, GROUPS, " "),
            scene.remedy
        );
        return (Cause::Ownership, advice);
    }
    let advice = format!(
        "owner, mode and ACL of {path} allow it, so a security module denies it: see `dmesg` and \
         `ausearch -m avc` for SELinux or AppArmor on the node"
    );
    (Cause::SecurityModule, advice)
}

fn create_vm_failed(errno: Errno) -> (Cause, String) {
    match errno {
        Errno::EBUSY => (Cause::Busy, BUSY.to_owned()),
        errno if is_no_driver(errno) => {
            let advice = "virtualisation is disabled in the firmware (BIOS): enable VT-x or AMD-V";
            (Cause::Unknown, advice.to_owned())
        }
        _ => {
            let advice = format!("KVM_CREATE_VM gave {errno:?} ({})", errno.desc());
            (Cause::Unknown, advice)
        }
    }
}
