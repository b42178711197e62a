//! Maps messages to causes and advice. Pure.
//!
//! To add a cause, add a row to `OPEN_ERRORS` if an errno of open(2) implies it, else an arm to
//! [`Outcome::of`].
#![forbid(unsafe_code)]

use nix::errno::Errno;

use super::patterns::Form;
use crate::codes::Cause;

/// The errnos with which opening the device can fail: the text by strerror(3), the errno and the cause. The
/// first text that a message begins with counts, so a longer text comes before its own prefix.
const OPEN_ERRORS: [(&str, Errno, Cause); 16] = [
    ("Permission denied", Errno::EACCES, Cause::Ownership),
    ("Operation not permitted", Errno::EPERM, Cause::DeviceCgroup),
    ("No such file or directory", Errno::ENOENT, Cause::Missing),
    ("No such device or address", Errno::ENXIO, Cause::NoDriver),
    ("No such device", Errno::ENODEV, Cause::NoDriver),
    ("Device or resource busy", Errno::EBUSY, Cause::Busy),
    ("Is a directory", Errno::EISDIR, Cause::NotKvm),
    ("Not a directory", Errno::ENOTDIR, Cause::Missing),
    (
        "Inappropriate ioctl for device",
        Errno::ENOTTY,
        Cause::NotKvm,
    ),
    (
        "Too many levels of symbolic links",
        Errno::ELOOP,
        Cause::Missing,
    ),
    ("Invalid argument", Errno::EINVAL, Cause::Unknown),
    ("Cannot allocate memory", Errno::ENOMEM, Cause::Unknown),
    ("Operation not supported", Errno::EOPNOTSUPP, Cause::Unknown),
    ("Function not implemented", Errno::ENOSYS, Cause::Unknown),
    ("Too many open files", Errno::EMFILE, Cause::Unknown),
    ("Input/output error", Errno::EIO, Cause::Unknown),
];

/// The errno in the text after a message, such as `: Permission denied` or `: 16 Device or …`.
pub fn errno_in(after: &[u8]) -> Option<Errno> {
    let text = after.strip_prefix(b": ")?;
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let name = match &text[digits..] {
        [b' ', rest @ ..] if digits > 0 => rest,
        _ => text,
    };
    let mut rows = OPEN_ERRORS.iter();
    let row = rows.find(|(text, ..)| name.starts_with(text.as_bytes()));
    row.map(|(_, errno, _)| *errno)
}

/// How a failure is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub cause: Cause,
    /// The errno's name; for a message without an errno `mismatch`, `none` or `unknown`.
    pub result: String,
    pub advice: &'static str,
}

impl Outcome {
    pub fn of(form: Form, errno: Option<Errno>) -> Self {
        let (cause, without_errno, advice) = match (form, errno) {
            (Form::NoAccel | Form::Requires, _) => (Cause::Missing, "none", LIBVIRT_FOUND_NONE),
            (Form::NotSupported, _) | (Form::TooOld, Some(Errno::EINVAL)) => {
                (Cause::ApiVersion, "mismatch", advice(Cause::ApiVersion))
            }
            (Form::TooOld, _) => (Cause::NotKvm, "mismatch", advice(Cause::NotKvm)),
            (Form::CreateVm, Some(Errno::EBUSY)) => (Cause::Busy, "", advice(Cause::Busy)),
            (Form::CreateVm, Some(Errno::ENODEV | Errno::EOPNOTSUPP)) => {
                (Cause::Unknown, "", DISABLED_IN_FIRMWARE)
            }
            (Form::CreateVm, _) => (Cause::Unknown, "unknown", NO_VIRTUAL_MACHINE),
            (Form::Access | Form::Initialize, errno) => {
                let row = OPEN_ERRORS.iter().find(|(_, of, _)| Some(*of) == errno);
                let cause = row.map_or(Cause::Unknown, |(.., cause)| *cause);
                (cause, "unknown", advice(cause))
            }
        };
        let result = errno.map_or_else(|| without_errno.to_owned(), |errno| format!("{errno:?}"));
        Self {
            cause,
            result,
            advice,
        }
    }
}

const LIBVIRT_FOUND_NONE: &str = "libvirt found no usable /dev/kvm: on that node run `modprobe \
     kvm_intel` or `modprobe kvm_amd`, enable VT-x or AMD-V in the firmware, and mount the node's \
     /dev into the libvirt pod";
const DISABLED_IN_FIRMWARE: &str =
    "virtualization is disabled in the firmware (BIOS): enable VT-x or AMD-V";
const NO_VIRTUAL_MACHINE: &str =
    "KVM could not create a virtual machine: check `dmesg | grep -i kvm` on that node";

/// The advice for causes that do not depend on the message.
fn advice(cause: Cause) -> &'static str {
    match cause {
        Cause::Ownership => {
            "the owner, group, mode or ACL of /dev/kvm, a nodev mount or a security module denied \
             access to the QEMU user: run `libvirt-kvm-init apply` in the libvirt pod of that node \
             to repair it, or to see what it cannot repair"
        }
        Cause::DeviceCgroup => {
            "the device cgroup denied access: list /dev/kvm in cgroup_device_acl of qemu.conf, and \
             run the libvirt pod with privileged: true"
        }
        Cause::Missing => {
            "QEMU found no /dev/kvm: load kvm_intel or kvm_amd on that node, mount its /dev into \
             the libvirt pod, and list /dev/kvm in cgroup_device_acl of qemu.conf"
        }
        Cause::NoDriver => {
            "no KVM driver is registered for /dev/kvm: on that node run `modprobe kvm_intel` or \
             `modprobe kvm_amd`, and check `dmesg | grep -i kvm`"
        }
        Cause::Busy => {
            "another hypervisor (VirtualBox, VMware, Xen) was using hardware virtualization: stop it"
        }
        Cause::NotKvm => {
            "/dev/kvm was not the KVM device: remove it, then run `modprobe -r` and `modprobe` for \
             kvm_intel or kvm_amd, which recreates it"
        }
        Cause::ApiVersion => "the kernel's KVM does not have the API version that QEMU needs (12)",
        _ => "run `libvirt-kvm-init check` in the libvirt pod of that node, and read the log",
    }
}
