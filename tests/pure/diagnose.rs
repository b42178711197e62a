//! From what the proof's child saw to one cause. What a machine can be brought to show, the kvm
//! tier shows; these are the rules themselves, with the causes that no test machine has.

use std::path::{Path, PathBuf};

use libvirt_kvm_init::acl::Acl;
use libvirt_kvm_init::diagnose::{Scene, diagnose};
use libvirt_kvm_init::observe::Node;
use libvirt_kvm_init::prove::Sight;
use libvirt_kvm_init::qemu::Identity;
use libvirt_kvm_init::report::{Cause, Proof};
use libvirt_kvm_init::sys::device::Facts;
use nix::errno::Errno;
use nix::sys::stat::SFlag;
use nix::unistd::{Gid, Uid};

fn node(uid: u32, gid: u32, mode: u16) -> Node {
    Node {
        facts: Facts {
            kind: SFlag::S_IFCHR,
            major: 10,
            minor: 232,
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            mode,
            inode: (1, 1),
            ctime: (0, 0),
        },
        acl: None,
        nodev: false,
        unmapped: false,
    }
}

fn nova() -> Identity {
    Identity {
        user: Some(b"nova".to_vec()),
        uid: Uid::from_raw(42424),
        gid: Gid::from_raw(108),
        groups: vec![Gid::from_raw(42424), Gid::from_raw(108)],
        stand_in: false,
    }
}

fn seen(sight: Sight, node: &Node, folders: &[(PathBuf, Node)]) -> Proof {
    diagnose(
        sight,
        &Scene {
            device: Path::new("/dev/kvm"),
            node,
            folders,
            identity: &nova(),
            remedy: "",
        },
    )
}

#[test]
fn each_answer_has_its_cause() {
    let good = node(0, 108, 0o660);
    // what the child saw => result, cause, a word of the advice
    let table = [
        (Sight::OtherInode, "mismatch", Cause::Unknown, "--settle"),
        (Sight::OtherVersion(13), "mismatch", Cause::ApiVersion, "13"),
        (
            Sight::NotDropped(3, Errno::EPERM),
            "none",
            Cause::Unknown,
            "CAP_SETUID",
        ),
        (
            Sight::NotDropped(5, Errno::EBADE),
            "none",
            Cause::Unknown,
            "credentials",
        ),
        (
            Sight::Stat(Errno::ENOENT),
            "ENOENT",
            Cause::Missing,
            "--settle",
        ),
        (
            Sight::Open(Errno::EPERM),
            "EPERM",
            Cause::DeviceCgroup,
            "privileged",
        ),
        (
            Sight::Open(Errno::ENODEV),
            "ENODEV",
            Cause::NoDriver,
            "modprobe",
        ),
        (
            Sight::Open(Errno::ENXIO),
            "ENXIO",
            Cause::NoDriver,
            "modprobe",
        ),
        (
            Sight::Open(Errno::EBUSY),
            "EBUSY",
            Cause::Busy,
            "hypervisor",
        ),
        (Sight::Open(Errno::EIO), "EIO", Cause::Unknown, "EIO"),
        (
            Sight::Version(Errno::ENOTTY),
            "ENOTTY",
            Cause::NotKvm,
            "answer",
        ),
        (
            Sight::CreateVm(Errno::EBUSY),
            "EBUSY",
            Cause::Busy,
            "hypervisor",
        ),
        (
            Sight::CreateVm(Errno::ENODEV),
            "ENODEV",
            Cause::Unknown,
            "firmware",
        ),
        (
            Sight::NotDropped(2, Errno::ENOMEM),
            "none",
            Cause::Unknown,
            "setgroups",
        ),
        (Sight::TimedOut, "none", Cause::Unknown, "5 s"),
        (Sight::Killed, "none", Cause::Unknown, "killed"),
    ];
    for (sight, result, cause, word) in table {
        let proof = seen(sight, &good, &[]);
        assert_eq!(
            (proof.result.as_str(), proof.cause),
            (result, Some(cause)),
            "{sight:?}"
        );
        let advice = proof.advice.unwrap();
        assert!(advice.contains(word), "{sight:?}: {advice}");
    }
    let proof = seen(Sight::Ok(12), &good, &[]);
    assert_eq!(
        (proof.result.as_str(), proof.cause, proof.api_version),
        ("ok", None, Some(12))
    );
}

#[test]
fn a_denial_is_told_apart_by_what_should_have_allowed_it() {
    let denied = Sight::Open(Errno::EACCES);
    let cause = |node: &Node, folders: &[(PathBuf, Node)]| seen(denied, node, folders).cause;
    let good = node(0, 108, 0o660);
    assert_eq!(cause(&node(0, 424, 0o660), &[]), Some(Cause::Ownership));
    assert_eq!(cause(&node(0, 108, 0o640), &[]), Some(Cause::Ownership));
    assert_eq!(cause(&good, &[]), Some(Cause::SecurityModule));
    let nodev = Node {
        nodev: true,
        ..good.clone()
    };
    assert_eq!(cause(&nodev, &[]), Some(Cause::Nodev));
    // user::rw-,group::---,mask::rw-,other::---
    let bytes = [
        &[2, 0, 0, 0][..],
        &[1, 0, 6, 0, 255, 255, 255, 255],
        &[4, 0, 0, 0, 255, 255, 255, 255],
        &[16, 0, 6, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ];
    let acl = Node {
        acl: Acl::parse(&bytes.concat()),
        ..good.clone()
    };
    assert!(acl.acl.is_some());
    assert_eq!(cause(&acl, &[]), Some(Cause::Acl));
    // Without the ACL it would be denied too: then the ACL is not what is wrong.
    let both = Node {
        acl: acl.acl.clone(),
        ..node(0, 424, 0o660)
    };
    assert_eq!(cause(&both, &[]), Some(Cause::Ownership));
    let mut folder = node(0, 0, 0o700);
    folder.facts.kind = SFlag::S_IFDIR;
    let proof = seen(denied, &good, &[(PathBuf::from("/dev"), folder)]);
    assert_eq!(proof.cause, Some(Cause::Ownership));
    assert!(proof.advice.unwrap().contains("/dev (0:0 0700)"));
}

/// A termination message holds 4096 bytes, and 2048 of the log.
#[test]
fn advice_stays_short_however_many_groups_there_are() {
    let mut nova = nova();
    nova.groups = (1_000_000..1_070_000).map(Gid::from_raw).collect();
    let scene = Scene {
        device: Path::new("/dev/kvm"),
        node: &node(0, 7, 0o660),
        folders: &[],
        identity: &nova,
        remedy: "",
    };
    let advice = diagnose(Sight::Open(Errno::EACCES), &scene).advice.unwrap();
    assert!(advice.len() < 300, "{advice}");
    assert!(advice.contains("1000015 and 69984 more"), "{advice}");
}

/// What is tried once more, and then a failure: nothing that the kernel has answered about the device, and
/// nothing that this container lacks.
#[test]
fn only_a_proof_that_failed_by_itself_is_undone() {
    let undone = [
        Sight::TimedOut,
        Sight::Killed,
        Sight::NotDropped(5, Errno::EBADE),
        Sight::NotDropped(4, Errno::EBADE),
        Sight::NotDropped(2, Errno::ENOMEM),
        Sight::NotDropped(3, Errno::EAGAIN),
    ];
    let done = [
        Sight::Ok(12),
        Sight::OtherInode,
        Sight::OtherVersion(13),
        Sight::NotDropped(2, Errno::EPERM),
        Sight::NotDropped(3, Errno::EINVAL),
        Sight::Stat(Errno::EACCES),
        Sight::Open(Errno::EPERM),
        Sight::Version(Errno::ENOTTY),
        Sight::CreateVm(Errno::EBUSY),
    ];
    assert!(undone.into_iter().all(Sight::is_undone));
    assert!(!done.into_iter().any(Sight::is_undone));
}
