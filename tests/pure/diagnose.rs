//! Maps the probe result of the proof's child to one cause. The kvm tier tests the causes that a test machine can
//! produce; these tests also cover those that it cannot.

use std::path::{Path, PathBuf};

use libvirt_kvm_init::codes::Cause;
use libvirt_kvm_init::formats::posix_acl::Acl;
use libvirt_kvm_init::observe::DeviceState;
use libvirt_kvm_init::plan::qemu_identity::Identity;
use libvirt_kvm_init::prove::{AccessContext, ProbeResult, ProofResult, diagnose};
use libvirt_kvm_init::sys::device::DeviceStat;
use nix::errno::Errno;
use nix::sys::stat::SFlag;
use nix::unistd::{Gid, Uid};

fn device_state(uid: u32, gid: u32, mode: u16) -> DeviceState {
    DeviceState {
        facts: DeviceStat {
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
        placeholder: false,
    }
}

fn context<'a>(
    device: &'a DeviceState,
    directories: &'a [(PathBuf, DeviceState)],
    identity: &'a Identity,
) -> AccessContext<'a> {
    AccessContext {
        path: Path::new("/dev/kvm"),
        device,
        directories,
        identity,
        remedy: None,
    }
}

fn diagnosed(
    answer: ProbeResult,
    device: &DeviceState,
    directories: &[(PathBuf, DeviceState)],
) -> ProofResult {
    diagnose(answer, &context(device, directories, &nova()))
}

#[test]
fn each_probe_result_maps_to_its_cause() {
    let good = device_state(0, 108, 0o660);
    // probe result => proof.result, cause, a word of the advice
    let table = [
        (
            ProbeResult::OtherInode,
            "mismatch",
            Cause::Unknown,
            "--settle",
        ),
        (
            ProbeResult::OtherVersion(13),
            "mismatch",
            Cause::ApiVersion,
            "13",
        ),
        (
            ProbeResult::NotDropped(3, Errno::EPERM),
            "none",
            Cause::Unknown,
            "CAP_SETUID",
        ),
        (
            ProbeResult::NotDropped(5, Errno::EBADE),
            "none",
            Cause::Unknown,
            "credentials",
        ),
        (
            ProbeResult::Stat(Errno::ENOENT),
            "ENOENT",
            Cause::Missing,
            "--settle",
        ),
        (
            ProbeResult::Open(Errno::EPERM),
            "EPERM",
            Cause::DeviceCgroup,
            "privileged",
        ),
        (
            ProbeResult::Open(Errno::ENODEV),
            "ENODEV",
            Cause::NoDriver,
            "modprobe",
        ),
        (
            ProbeResult::Open(Errno::ENXIO),
            "ENXIO",
            Cause::NoDriver,
            "modprobe",
        ),
        (
            ProbeResult::Open(Errno::EBUSY),
            "EBUSY",
            Cause::Busy,
            "hypervisor",
        ),
        (ProbeResult::Open(Errno::EIO), "EIO", Cause::Unknown, "EIO"),
        (
            ProbeResult::Version(Errno::ENOTTY),
            "ENOTTY",
            Cause::NotKvm,
            "KVM_GET_API_VERSION",
        ),
        (
            ProbeResult::CreateVm(Errno::EBUSY),
            "EBUSY",
            Cause::Busy,
            "hypervisor",
        ),
        (
            ProbeResult::CreateVm(Errno::ENODEV),
            "ENODEV",
            Cause::Unknown,
            "firmware",
        ),
        (
            ProbeResult::NotDropped(2, Errno::ENOMEM),
            "none",
            Cause::Unknown,
            "setgroups",
        ),
        (ProbeResult::TimedOut, "none", Cause::Unknown, "5 s"),
        (ProbeResult::Killed, "none", Cause::Unknown, "killed"),
    ];
    for (probe, result, cause, word) in table {
        let proof = diagnosed(probe, &good, &[]);
        assert_eq!(
            (proof.word().as_str(), proof.cause()),
            (result, Some(cause)),
            "{probe:?}"
        );
        let advice = &proof.advice().unwrap().reason;
        assert!(advice.contains(word), "{probe:?}: {advice}");
    }
    let proof = diagnosed(ProbeResult::Ok(12), &good, &[]);
    assert_eq!(
        (proof.word().as_str(), proof.cause(), proof.api_version()),
        ("ok", None, Some(12))
    );
}

#[test]
fn eacces_maps_to_ownership_acl_nodev_or_security_module() {
    let denied = ProbeResult::Open(Errno::EACCES);
    let cause = |device: &DeviceState, directories: &[(PathBuf, DeviceState)]| {
        diagnosed(denied, device, directories).cause()
    };
    let good = device_state(0, 108, 0o660);
    assert_eq!(
        cause(&device_state(0, 424, 0o660), &[]),
        Some(Cause::Ownership)
    );
    assert_eq!(
        cause(&device_state(0, 108, 0o640), &[]),
        Some(Cause::Ownership)
    );
    assert_eq!(cause(&good, &[]), Some(Cause::SecurityModule));
    let nodev = DeviceState {
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
    let acl = DeviceState {
        acl: Acl::parse(&bytes.concat()),
        ..good.clone()
    };
    assert!(acl.acl.is_some());
    assert_eq!(cause(&acl, &[]), Some(Cause::Acl));
    // Owner and mode alone already deny access, so the ACL is not the cause.
    let both = DeviceState {
        acl: acl.acl.clone(),
        ..device_state(0, 424, 0o660)
    };
    assert_eq!(cause(&both, &[]), Some(Cause::Ownership));
    let mut directory = device_state(0, 0, 0o700);
    directory.facts.kind = SFlag::S_IFDIR;
    let proof = diagnosed(denied, &good, &[(PathBuf::from("/dev"), directory)]);
    assert_eq!(proof.cause(), Some(Cause::Ownership));
    assert!(&proof.advice().unwrap().reason.contains("/dev (0:0 0700)"));
}

/// Kubernetes limits a termination message to 4096 bytes, and to 2048 bytes if it is taken from the log.
#[test]
fn advice_stays_short_with_70000_groups() {
    let mut nova = nova();
    nova.groups = (1_000_000..1_070_000).map(Gid::from_raw).collect();
    let device = device_state(0, 7, 0o660);
    let context = context(&device, &[], &nova);
    let proof = diagnose(ProbeResult::Open(Errno::EACCES), &context);
    let advice = &proof.advice().unwrap().reason;
    assert!(advice.len() < 300, "{advice}");
    assert!(advice.contains("1000015 and 69984 more"), "{advice}");
}

/// A failure of the proof itself is retried once and then reported as failed. An errno that results from the device or
/// from a missing privilege of this container is final.
#[test]
fn only_failures_of_the_proof_itself_are_retried() {
    let undone = [
        ProbeResult::TimedOut,
        ProbeResult::Killed,
        ProbeResult::NotDropped(5, Errno::EBADE),
        ProbeResult::NotDropped(4, Errno::EBADE),
        ProbeResult::NotDropped(2, Errno::ENOMEM),
        ProbeResult::NotDropped(3, Errno::EAGAIN),
    ];
    let done = [
        ProbeResult::Ok(12),
        ProbeResult::OtherInode,
        ProbeResult::OtherVersion(13),
        ProbeResult::NotDropped(2, Errno::EPERM),
        ProbeResult::NotDropped(3, Errno::EINVAL),
        ProbeResult::Stat(Errno::EACCES),
        ProbeResult::Open(Errno::EPERM),
        ProbeResult::Version(Errno::ENOTTY),
        ProbeResult::CreateVm(Errno::EBUSY),
    ];
    assert!(undone.into_iter().all(ProbeResult::is_undone));
    assert!(!done.into_iter().any(ProbeResult::is_undone));
}
