//! The cause that a message stands for, and what to do about it. Pure.
//!
//! A new cause: a row of `OPEN_ERRORS` where an errno of open(2) means it, else an arm of
//! [`Outcome::of`].
#![forbid(unsafe_code)]

use nix::errno::Errno;

use super::patterns::Form;
use crate::codes::Cause;

/// An errno that opening the device can fail with: its text by strerror(3), and the cause. A text
/// that another one begins with stands after that one.
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

/// The errno in the text after a message: `: Permission denied`, `: 16 Device or …`.
pub fn errno_in(after: &[u8]) -> Option<Errno> {
    let text = after.strip_prefix(b": ")?;
    let number = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = match &text[number..] {
        [b' ', rest @ ..] if number > 0 => rest,
        _ => text,
    };
    let mut rows = OPEN_ERRORS.iter();
    let row = rows.find(|(name, ..)| text.starts_with(name.as_bytes()));
    row.map(|(_, errno, _)| *errno)
}

/// What a failure is reported as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Why QEMU could not open KVM.
    pub cause: Cause,
    /// The errno's name, or a word for a message without one.
    pub result: String,
    /// What to do about it.
    pub advice: &'static str,
}

impl Outcome {
    /// The outcome of a message of this form, with the errno that it contains.
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

const LIBVIRT_FOUND_NONE: &str = "libvirt found no usable /dev/kvm on that node: `modprobe \
     kvm_intel` or `modprobe kvm_amd`, enable VT-x or AMD-V in the firmware, and mount the node's \
     /dev into the libvirt pod";
const DISABLED_IN_FIRMWARE: &str =
    "virtualisation is disabled in the firmware (BIOS): enable VT-x or AMD-V";
const NO_VIRTUAL_MACHINE: &str =
    "KVM made no virtual machine: see `dmesg | grep -i kvm` on that node";

/// What to do about a cause, whichever message showed it.
fn advice(cause: Cause) -> &'static str {
    match cause {
        Cause::Ownership => {
            "owner, group, mode or ACL of /dev/kvm, a nodev mount or a security module denied it \
             to the QEMU user: `libvirt-kvm-init apply` in the libvirt pod of that node mends it, \
             or names what it cannot"
        }
        Cause::DeviceCgroup => {
            "the cgroup's device filter denied it: keep /dev/kvm in cgroup_device_acl of qemu.conf, \
             and run the libvirt pod with privileged: true"
        }
        Cause::Missing => {
            "QEMU saw no /dev/kvm: load kvm_intel or kvm_amd on that node, mount its /dev into the \
             libvirt pod, and keep /dev/kvm in cgroup_device_acl of qemu.conf"
        }
        Cause::NoDriver => {
            "no KVM driver answered: on that node run `modprobe kvm_intel` or `modprobe kvm_amd`, \
             and see `dmesg | grep -i kvm`"
        }
        Cause::Busy => {
            "another hypervisor held the processor's virtualisation (VirtualBox, VMware, Xen): \
             stop it"
        }
        Cause::NotKvm => {
            "something else stood in place of /dev/kvm: remove it, then `modprobe -r` and \
             `modprobe` kvm_intel or kvm_amd, which makes the node again"
        }
        Cause::ApiVersion => "the kernel's KVM is not of the API version that QEMU wants (12)",
        _ => "run `libvirt-kvm-init check` in the libvirt pod of that node, and see the log itself",
    }
}
