//! Why QEMU cannot open KVM: from what the child saw and what guards the device to one cause and
//! one line of advice. Pure.
//!
//! The kernel asks discretionary access control first, then the cgroup's device filter, then the
//! security module (fs/namei.c, `inode_permission`). The first two tell `EACCES` from `EPERM`; the
//! third, and a `nodev` mount, which is asked about before all of them (`may_open`), answer `EACCES`
//! too, and show only as the difference to what owner, mode and ACL would allow.
#![forbid(unsafe_code)]

use nix::errno::Errno;

use super::access::{AccessContext, Directory, allows, class, closed_directory};
use super::probe::ProbeResult;
use super::{Advice, ProofResult};
use crate::codes::Cause;
use crate::formats::posix_acl::Acl;
use crate::observe::{DeviceState, is_no_driver};
use crate::plan::qemu_identity::Identity;
use crate::sys::kvm::API_VERSION;
use crate::text::join_first;

/// What the child's answer means.
pub fn diagnose(answer: ProbeResult, context: &AccessContext<'_>) -> ProofResult {
    let failed = |errno: Errno, (cause, advice): (Cause, Advice)| ProofResult::Failed {
        errno,
        cause,
        advice,
    };
    let mismatch = |cause, api_version, advice: &str| ProofResult::Mismatch {
        cause,
        api_version,
        advice: Advice::new(advice),
    };
    let path = context.path.display();
    match answer {
        ProbeResult::Ok(version) => ProofResult::Ok(version),
        ProbeResult::OtherInode => mismatch(
            Cause::Unknown,
            None,
            "the device was replaced while it was being proven: run again, with --settle 30s \
             where a module is being reloaded",
        ),
        ProbeResult::OtherVersion(version) => mismatch(
            Cause::ApiVersion,
            Some(version),
            &format!("the kernel's KVM has API version {version}, QEMU wants {API_VERSION}"),
        ),
        ProbeResult::NotDropped(step, errno) => not_dropped(step, errno, context.identity),
        ProbeResult::Stat(errno) | ProbeResult::Open(errno) => {
            failed(errno, open_failed(errno, context))
        }
        ProbeResult::Version(errno) => {
            let advice = format!("{path} opens but does not answer as KVM does");
            failed(errno, (Cause::NotKvm, Advice::new(advice)))
        }
        ProbeResult::CreateVm(errno) => {
            let (cause, advice) = create_vm_failed(errno);
            failed(errno, (cause, Advice::new(advice)))
        }
        ProbeResult::TimedOut => ProofResult::undone(
            "the proof's child did not answer within 5 s: see whether root stops it (kill -STOP, a \
             debugger, a frozen cgroup) or the kernel hangs (`dmesg`), then run again",
        ),
        ProbeResult::Killed => ProofResult::undone(
            "the proof's child was killed before it answered, and so was a second one: see `dmesg` for \
             the kernel's memory killer, then run again",
        ),
    }
}

fn not_dropped(step: u8, errno: Errno, identity: &Identity) -> ProofResult {
    let call = match step {
        1 => format!("setfsgid({})", identity.gid),
        2 => format!("setgroups({} groups)", identity.groups.len()),
        3 => format!("setfsuid({})", identity.uid),
        4 => "capset(nothing)".to_owned(),
        _ => {
            return ProofResult::undone(format!(
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
    match ProbeResult::NotDropped(step, errno).is_undone() {
        true => ProofResult::undone(advice),
        false => ProofResult::not_done(Some(Cause::Unknown), Some(Advice::new(advice))),
    }
}

fn open_failed(errno: Errno, context: &AccessContext<'_>) -> (Cause, Advice) {
    let path = context.path.display();
    let (cause, advice) = match errno {
        Errno::EACCES => return denied(context),
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
    };
    (cause, Advice::new(advice))
}

const BUSY: &str = "another hypervisor holds the processor's virtualisation (VirtualBox, VMware, \
                    Xen): stop it";

/// How many groups a line names.
const GROUPS: usize = 16;

/// `EACCES` has five reasons; the first that the facts bear out is it.
fn denied(context: &AccessContext<'_>) -> (Cause, Advice) {
    let path = context.path.display();
    let device = context.device;
    if let Some(closed) = closed_directory(context.directories, context.identity) {
        return (
            Cause::Ownership,
            does_not_let_pass(closed, context.identity),
        );
    }
    if device.nodev {
        let advice = format!(
            "{path} is on a mount with the option nodev, where no device opens: mount the node's \
             /dev without it"
        );
        return (Cause::Nodev, Advice::new(advice));
    }
    if allows(device, context.identity) {
        let advice = format!(
            "owner, mode and ACL of {path} allow it, so a security module denies it: see `dmesg` and \
             `ausearch -m avc` for SELinux or AppArmor on the node"
        );
        return (Cause::SecurityModule, Advice::new(advice));
    }
    let plain = DeviceState {
        acl: None,
        ..device.clone()
    };
    match &device.acl {
        Some(acl) if allows(&plain, context.identity) => (Cause::Acl, denied_by_acl(context, acl)),
        _ => (Cause::Ownership, denied_by_owner_and_mode(context)),
    }
}

fn does_not_let_pass((directory, state): &Directory, identity: &Identity) -> Advice {
    let directory = directory.display();
    let way_out = match class(state, identity) {
        Some(class) => format!("chmod {class}+x {directory}"),
        None => format!("setfacl -m u:{}:x {directory}", identity.uid),
    };
    Advice::new(format!(
        "the directory {directory} ({}:{} {:04o}) does not let {} pass: {way_out}",
        state.facts.uid,
        state.facts.gid,
        state.facts.mode,
        identity.label()
    ))
}

fn denied_by_acl(context: &AccessContext<'_>, acl: &Acl) -> Advice {
    let path = context.path.display();
    let identity = context.identity;
    let without = DeviceState {
        acl: Some(acl.without_user(identity.uid)),
        ..context.device.clone()
    };
    let way_out = if allows(&without, identity) {
        format!("`setfacl -x u:{} {path}` removes that entry", identity.uid)
    } else {
        let mode = context.device.facts.mode;
        format!("`setfacl -b {path} && chmod {mode:04o} {path}` leaves the plain mode")
    };
    Advice::new(format!(
        "its ACL ({acl}) denies {}: {way_out}",
        identity.label()
    ))
}

fn denied_by_owner_and_mode(context: &AccessContext<'_>) -> Advice {
    let facts = &context.device.facts;
    let groups = context.identity.groups.iter().map(ToString::to_string);
    let text = format!(
        "{} is {}:{} {:04o}, and {} with the groups {} may not read and write it",
        context.path.display(),
        facts.uid,
        facts.gid,
        facts.mode,
        context.identity.label(),
        join_first(groups, GROUPS, " ")
    );
    match &context.remedy {
        Some(remedy) => Advice::new(format!("{text}; {remedy}")),
        None => Advice {
            text,
            by_apply: true,
        },
    }
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
