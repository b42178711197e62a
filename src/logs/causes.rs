//! From the words of a message to a cause and what to do about it. Pure.
#![forbid(unsafe_code)]

use nix::errno::Errno;

use crate::codes::Cause;

/// Which of the messages it is. The later in this list, the nearer to what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// libvirt: the emulator has no accelerator `kvm`, or no virt type of that name, or no emulator
    /// has it.
    NoAccel,
    /// libvirt: `Domain requires KVM, but it is not available`
    Requires,
    /// QEMU: `failed to initialize kvm`, the last line of every one of its failures.
    Initialize,
    /// QEMU: `Could not access KVM kernel module`
    Access,
    /// QEMU: `ioctl(KVM_CREATE_VM) failed`
    CreateVm,
    /// QEMU: `kvm version too old`
    TooOld,
    /// QEMU: `kvm version not supported`
    NotSupported,
}

impl Form {
    /// One bit each, for sets.
    pub fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// How strerror(3) says each errno that was seen or can come; a text before one that it begins.
const TEXTS: [(&str, Errno); 16] = [
    ("Permission denied", Errno::EACCES),
    ("Operation not permitted", Errno::EPERM),
    ("No such file or directory", Errno::ENOENT),
    ("No such device or address", Errno::ENXIO),
    ("No such device", Errno::ENODEV),
    ("Device or resource busy", Errno::EBUSY),
    ("Is a directory", Errno::EISDIR),
    ("Not a directory", Errno::ENOTDIR),
    ("Inappropriate ioctl for device", Errno::ENOTTY),
    ("Too many levels of symbolic links", Errno::ELOOP),
    ("Invalid argument", Errno::EINVAL),
    ("Cannot allocate memory", Errno::ENOMEM),
    ("Operation not supported", Errno::EOPNOTSUPP),
    ("Function not implemented", Errno::ENOSYS),
    ("Too many open files", Errno::EMFILE),
    ("Input/output error", Errno::EIO),
];

/// The errno that the text after a message names: `: Permission denied`, `: 16 Device or …`.
pub fn errno_in(after: &[u8]) -> Option<Errno> {
    let text = after.strip_prefix(b": ")?;
    let number = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = match &text[number..] {
        [b' ', rest @ ..] if number > 0 => rest,
        _ => text,
    };
    let named = TEXTS
        .iter()
        .find(|(name, _)| text.starts_with(name.as_bytes()));
    named.map(|(_, errno)| *errno)
}

/// The cause that a message stands for.
pub fn cause(form: Form, errno: Option<Errno>) -> Cause {
    match (form, errno) {
        (Form::NoAccel | Form::Requires, _) => Cause::Missing,
        (Form::NotSupported, _) | (Form::TooOld, Some(Errno::EINVAL)) => Cause::ApiVersion,
        (Form::TooOld, _) => Cause::NotKvm,
        (Form::CreateVm, Some(Errno::EBUSY)) => Cause::Busy,
        (Form::CreateVm, _) | (_, None) => Cause::Unknown,
        (_, Some(errno)) => match errno {
            Errno::EACCES => Cause::Ownership,
            Errno::EPERM => Cause::DeviceCgroup,
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => Cause::Missing,
            Errno::ENODEV | Errno::ENXIO => Cause::NoDriver,
            Errno::EBUSY => Cause::Busy,
            Errno::EISDIR | Errno::ENOTTY => Cause::NotKvm,
            _ => Cause::Unknown,
        },
    }
}

/// The errno's name, or a word where the message has none.
pub fn result(form: Form, errno: Option<Errno>) -> String {
    match (form, errno) {
        (_, Some(errno)) => format!("{errno:?}"),
        (Form::NoAccel | Form::Requires, None) => "none".to_owned(),
        (Form::TooOld | Form::NotSupported, None) => "mismatch".to_owned(),
        (_, None) => "unknown".to_owned(),
    }
}

/// What to do about it.
pub fn advice(form: Form, errno: Option<Errno>) -> &'static str {
    match (form, cause(form, errno)) {
        (_, Cause::Ownership) => {
            "owner, group, mode or ACL of /dev/kvm, a nodev mount or a security module denied it \
             to the QEMU user: `libvirt-kvm-init apply` in the libvirt pod of that node mends it, \
             or names what it cannot"
        }
        (_, Cause::DeviceCgroup) => {
            "the cgroup's device filter denied it: keep /dev/kvm in cgroup_device_acl of qemu.conf, \
             and run the libvirt pod with privileged: true"
        }
        (Form::Requires | Form::NoAccel, _) => {
            "libvirt found no usable /dev/kvm on that node: `modprobe kvm_intel` or `modprobe \
             kvm_amd`, enable VT-x or AMD-V in the firmware, and mount the node's /dev into the \
             libvirt pod"
        }
        (_, Cause::Missing) => {
            "QEMU saw no /dev/kvm: load kvm_intel or kvm_amd on that node, mount its /dev into the \
             libvirt pod, and keep /dev/kvm in cgroup_device_acl of qemu.conf"
        }
        (_, Cause::NoDriver) => {
            "no KVM driver answered: on that node run `modprobe kvm_intel` or `modprobe kvm_amd`, \
             and see `dmesg | grep -i kvm`"
        }
        (_, Cause::Busy) => {
            "another hypervisor held the processor's virtualisation (VirtualBox, VMware, Xen): \
             stop it"
        }
        (_, Cause::NotKvm) => {
            "something else stood in place of /dev/kvm: remove it, then `modprobe -r` and \
             `modprobe` kvm_intel or kvm_amd, which makes the node again"
        }
        (_, Cause::ApiVersion) => "the kernel's KVM is not of the API version that QEMU wants (12)",
        (Form::CreateVm, _) if matches!(errno, Some(Errno::ENODEV | Errno::EOPNOTSUPP)) => {
            "virtualisation is disabled in the firmware (BIOS): enable VT-x or AMD-V"
        }
        (Form::CreateVm, _) => {
            "KVM made no virtual machine: see `dmesg | grep -i kvm` on that node"
        }
        _ => "run `libvirt-kvm-init check` in the libvirt pod of that node, and see the log itself",
    }
}
