//! Determines one cause and one line of advice from the child's result and from the device's owner, mode, ACL
//! and mount options. Pure.
//!
//! The kernel checks discretionary access control first, then the cgroup's device filter, then the security
//! module (fs/namei.c, `inode_permission`). The first returns `EACCES`, the second `EPERM`. A security module
//! returns `EACCES` too, as does a `nodev` mount, which is checked before all of them (`may_open`). These two are
//! recognised only because owner, mode and ACL would have allowed the open.
#![forbid(unsafe_code)]

use nix::errno::Errno;

use super::access::{AccessContext, Directory, allows, class, closed_directory};
use super::probe::ProbeResult;
use super::{Advice, NextStep, ProofResult};
use crate::codes::Cause;
use crate::formats::posix_acl::Acl;
use crate::observe::{DeviceState, is_no_driver};
use crate::plan::qemu_identity::Identity;
use crate::sys::kvm::API_VERSION;
use crate::text::join_first;

/// Converts the child's result into a proof result with cause and advice.
pub fn diagnose(result: ProbeResult, context: &AccessContext<'_>) -> ProofResult {
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
    match result {
        ProbeResult::Ok(version) => ProofResult::Ok(version),
        ProbeResult::OtherInode => mismatch(
            Cause::Unknown,
            None,
            "the device was replaced during the proof; run again, with --settle 30s if a module is being \
             reloaded",
        ),
        ProbeResult::OtherVersion(version) => mismatch(
            Cause::ApiVersion,
            Some(version),
            &format!("the kernel's KVM has API version {version}, but QEMU requires {API_VERSION}"),
        ),
        ProbeResult::NotDropped(step, errno) => not_dropped(step, errno, context.identity),
        ProbeResult::Stat(errno) | ProbeResult::Open(errno) => {
            failed(errno, open_failed(errno, context))
        }
        ProbeResult::Version(errno) => {
            let advice = format!(
                "{path} opens, but KVM_GET_API_VERSION failed: {errno:?} ({}); check in the node's \
                 /proc/misc which driver has minor number 232",
                errno.desc()
            );
            failed(errno, (Cause::NotKvm, Advice::new(advice)))
        }
        ProbeResult::CreateVm(errno) => {
            let (cause, advice) = create_vm_failed(errno);
            failed(errno, (cause, Advice::new(advice)))
        }
        ProbeResult::TimedOut => ProofResult::undone(
            "the proof's child process did not respond within 5 s; check whether root stopped it (kill \
             -STOP, a debugger, a frozen cgroup) or the kernel hangs (`dmesg`), then run again",
        ),
        ProbeResult::Killed => ProofResult::undone(
            "the proof's child process was killed twice before it reported a result; check `dmesg` for \
             an out-of-memory kill, then run again",
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
            return ProofResult::undone(
                "the kernel did not set QEMU's credentials for the proof, so nothing was opened; check \
                 which security module or seccomp filter prevents it (`dmesg`), then run again",
            );
        }
    };
    /// `NGROUPS_MAX` (include/uapi/linux/limits.h)
    const MOST: usize = 65_536;
    let next_step = match errno {
        Errno::EINVAL if identity.groups.len() > MOST => {
            "the kernel accepts at most 65536 groups, so QEMU will not start either; remove the QEMU \
             user from some groups"
        }
        Errno::EINVAL if identity.groups.iter().any(|gid| gid.as_raw() == u32::MAX) => {
            "a line of etc/group lists the QEMU user under the invalid GID 4294967295, so QEMU will not \
             start either; remove that line"
        }
        Errno::EINVAL => {
            "the ID is not mapped in this user namespace; run the pod without hostUsers: false"
        }
        Errno::EPERM => "run it as root with CAP_SETUID and CAP_SETGID (privileged: true)",
        _ => "check `dmesg`, then run again",
    };
    let advice = format!(
        "{call} failed: {errno:?} ({}), so nothing was opened; {next_step}",
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
            let advice = "the cgroup's device filter denies this container access, which says nothing \
                          about the node; run this step with privileged: true (a systemd unit with \
                          DeviceAllow=/dev/kvm rw)";
            (Cause::DeviceCgroup, advice.to_owned())
        }
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => {
            let advice = format!(
                "{path} disappeared during the proof; run again, with --settle 30s if a module is being \
                 reloaded"
            );
            (Cause::Missing, advice)
        }
        errno if is_no_driver(errno) => {
            let advice = "no KVM driver is loaded; run `modprobe kvm_intel` or `modprobe kvm_amd` on \
                          the node and check `dmesg | grep -i kvm`";
            (Cause::NoDriver, advice.to_owned())
        }
        Errno::EBUSY => (Cause::Busy, BUSY.to_owned()),
        Errno::EISDIR => (Cause::NotKvm, format!("{path} is a directory; remove it")),
        _ => {
            let advice = format!(
                "open({path}, O_RDWR) failed: {errno:?} ({}); check `dmesg` on the node",
                errno.desc()
            );
            (Cause::Unknown, advice)
        }
    };
    (cause, Advice::new(advice))
}

const BUSY: &str =
    "another hypervisor (VirtualBox, VMware, Xen) is using hardware virtualization; stop it";

/// Maximum number of groups that a message lists.
const GROUPS: usize = 16;

/// `EACCES` has five possible causes; the first one that the facts confirm is reported.
fn denied(context: &AccessContext<'_>) -> (Cause, Advice) {
    let path = context.path.display();
    let device = context.device;
    if let Some(closed) = closed_directory(context.directories, context.identity) {
        return (
            Cause::Ownership,
            denied_by_directory(closed, context.identity),
        );
    }
    if device.nodev {
        let advice = format!(
            "{path} is on a mount with the option nodev, which disables all devices; mount the node's \
             /dev without it"
        );
        return (Cause::Nodev, Advice::new(advice));
    }
    if allows(device, context.identity) {
        let advice = format!(
            "owner, mode and ACL of {path} allow access, so a security module (SELinux, AppArmor) denies \
             it; check `dmesg` and `ausearch -m avc` on the node"
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

fn denied_by_directory((directory, state): &Directory, identity: &Identity) -> Advice {
    let directory = directory.display();
    let command = match class(state, identity) {
        Some(class) => format!("chmod {class}+x {directory}"),
        None => format!("setfacl -m u:{}:x {directory}", identity.uid),
    };
    Advice {
        reason: format!(
            "QEMU has no search permission for the directory {directory} ({}:{} {:04o})",
            state.facts.uid, state.facts.gid, state.facts.mode
        ),
        next_step: NextStep::Other(format!("run `{command}`")),
    }
}

fn denied_by_acl(context: &AccessContext<'_>, acl: &Acl) -> Advice {
    let path = context.path.display();
    let identity = context.identity;
    let without = DeviceState {
        acl: Some(acl.without_user(identity.uid)),
        ..context.device.clone()
    };
    let next_step = if allows(&without, identity) {
        format!(
            "run `setfacl -x u:{} {path}` to remove that entry",
            identity.uid
        )
    } else {
        let mode = context.device.facts.mode;
        format!("run `setfacl -b {path} && chmod {mode:04o} {path}` to remove the ACL")
    };
    Advice {
        reason: format!("the ACL of {path} ({acl}) denies QEMU access"),
        next_step: NextStep::Other(next_step),
    }
}

fn denied_by_owner_and_mode(context: &AccessContext<'_>) -> Advice {
    let facts = &context.device.facts;
    let groups = context.identity.groups.iter().map(ToString::to_string);
    let reason = format!(
        "{} is {}:{} {:04o}, and QEMU with the groups {} has no read and write permission for it",
        context.path.display(),
        facts.uid,
        facts.gid,
        facts.mode,
        join_first(groups, GROUPS, ", ")
    );
    let next_step = match &context.remedy {
        Some(remedy) => NextStep::Other(remedy.clone()),
        None => NextStep::Apply,
    };
    Advice { reason, next_step }
}

fn create_vm_failed(errno: Errno) -> (Cause, String) {
    match errno {
        Errno::EBUSY => (Cause::Busy, BUSY.to_owned()),
        errno if is_no_driver(errno) => {
            let advice = "virtualization is disabled in the firmware (BIOS); enable VT-x or AMD-V";
            (Cause::Unknown, advice.to_owned())
        }
        _ => {
            let advice = format!(
                "KVM_CREATE_VM failed: {errno:?} ({}); check `dmesg` on the node",
                errno.desc()
            );
            (Cause::Unknown, advice)
        }
    }
}
