//! The fixed code words of the report. Programs and alerts depend on them, so none is ever renamed.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Defines an enum with a fixed word for each variant, for JSON and text.
macro_rules! words {
    ($(#[$about:meta])* pub enum $name:ident { $($(#[$means:meta])+ $value:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$means])+ #[serde(rename = $word)] $value,)+
        }

        impl $name {
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$value),+];

            /// The word in JSON and text.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)+
                }
            }
        }
    };
}

words! {
    /// Kinds of change.
    pub enum Action {
        /// Change the GID of the pod's group.
        SetGroupGid = "set-group-gid",
        /// Add a group to the pod.
        AddGroup = "add-group",
        /// Make the QEMU user a member of a group.
        AddMember = "add-member",
        /// Set owner and group of the device.
        SetDeviceOwner = "set-device-owner",
        /// Set the permission bits of the device.
        SetDeviceMode = "set-device-mode",
        /// Set the ACL of the device, including its permission bits.
        SetDeviceAcl = "set-device-acl",
        /// Write the file of `--group-file-out` without changing a group.
        WriteGroupFile = "write-group-file",
        /// Write the udev rule on the node.
        WriteUdevRule = "write-udev-rule",
    }
}

words! {
    /// Why QEMU cannot open KVM.
    pub enum Cause {
        /// Owner, group or mode deny access.
        Ownership = "ownership",
        /// The POSIX ACL denies access.
        Acl = "acl",
        /// The device filter of the cgroup denies access.
        DeviceCgroup = "device-cgroup",
        /// The file system of the device is mounted with `nodev`.
        Nodev = "nodev",
        /// A security module (such as SELinux or AppArmor) denies access; all other checks allow it.
        SecurityModule = "security-module",
        /// No KVM driver is registered.
        NoDriver = "no-driver",
        /// The device does not exist.
        Missing = "missing",
        /// The path is not the KVM device (character device 10:232).
        NotKvm = "not-kvm",
        /// Another hypervisor is using hardware virtualization.
        Busy = "busy",
        /// KVM has another API version than the one that QEMU requires (12).
        ApiVersion = "api-version",
        /// None of the other causes.
        Unknown = "unknown",
    }
}

words! {
    /// Kinds of warning. Alerts depend on these words.
    pub enum WarningCode {
        /// A source sets GID 0 or 4294967295, which is never used for KVM.
        CandidateSkipped = "candidate-skipped",
        /// The GID also belongs to another group in the pod: its members gain KVM access, and QEMU gains the access of that
        /// group.
        Collision = "collision",
        /// `--gid`, the node's udev and the node's group database have different GIDs.
        Disagreement = "disagreement",
        /// The pod's group file contains the group twice; the first line is used.
        DuplicateGroup = "duplicate-group",
        /// The node's udev sets the device to a GID that grants more than KVM access (disk, docker, shadow and others,
        /// by the group's name on the node or in the pod), or the target is such a GID and there is no device: QEMU is
        /// not made a member of that group.
        GuardedGroup = "guarded-group",
        /// The node's file system is not visible in this container.
        HostRootUnknown = "host-root-unknown",
        /// The node has no QEMU user, so the proof used UID 65534 and GID 65534 with the target GID.
        LimitedProof = "limited-proof",
        /// Primary groups or running QEMU processes still use the old GID.
        OldGidInUse = "old-gid-in-use",
        /// This container's /dev is not the node's (`check`, `exec`, or with `--device`).
        PrivateDevice = "private-device",
        /// A running libvirtd looked up its group before the group file changed (`check`).
        LibvirtdStale = "libvirtd-stale",
        /// A libvirtd runs on this node and its root cannot be inspected (`check`, `watch`), or several run (`watch`):
        /// the result does not apply to its files.
        LibvirtdUnseen = "libvirtd-unseen",
        /// libvirtd may use a name service cache (nscd) instead of the pod's group file.
        NscdSocket = "nscd-socket",
        /// Every user can open the device (`check`).
        OpenToOthers = "open-to-others",
        /// The group has members besides the QEMU user (`check`).
        OtherMembers = "other-members",
        /// The node's udev sets different groups at different events.
        UdevEventsDiffer = "udev-events-differ",
        /// The node's udevd ignores a rule for the device.
        UdevIgnored = "udev-ignored",
        /// The result of a rule for the device cannot be computed, or a part of the node that may contain such a rule
        /// cannot be read.
        UdevUnclear = "udev-unclear",
        /// The rule of an earlier `--persist` sets another GID than the node would use without it.
        UdevRuleOutdated = "udev-rule-outdated",
        /// A safety check refused the rule of `--persist`; `watch` maintains the device without it.
        UdevRuleRefused = "udev-rule-refused",
        /// The running udevd uses GIDs or UIDs from before the node's files changed (`check`).
        UdevdStale = "udevd-stale",
        /// The device's owner is not mapped in this user namespace.
        UnmappedOwner = "unmapped-owner",
        /// The proof was turned off (`--proof off`).
        Unproven = "unproven",
        /// The device was still changing when the limit of `--settle` was reached.
        Unsettled = "unsettled",
    }
}

/// A fact that does not affect the verdict but may need attention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The kind of warning.
    pub code: WarningCode,
    /// The description of the warning.
    pub text: String,
}

impl Warning {
    pub fn new(code: WarningCode, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { code, text }
    }
}

/// The access that owner, group, mode and ACL grant to QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// QEMU has read and write permission for the device, and search permission for the directories above it.
    Allowed,
    /// QEMU lacks one of these permissions.
    Denied,
}

/// Source of a candidate for the target GID, highest precedence first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// `--gid`, its environment variable or its configuration key.
    Flag,
    /// The group that the node's udev sets at an add event.
    Udev,
    /// The node's group database.
    HostGroup,
    /// `watch`: the last GID that worked, used while the node's files cannot be read.
    Kept,
    /// The current group of the device.
    Device,
    /// The pod's group file.
    PodGroup,
}

/// Result of the proof, as in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ProofWord {
    /// The device could be opened and KVM responded.
    Ok,
    /// The proof was turned off (`--proof off`).
    Off,
    /// The device was not opened.
    None,
    /// The opened device or its API version is not the expected one.
    Mismatch,
    /// Opening the device failed with the errno of this name.
    Errno(String),
}

impl ProofWord {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Ok => "ok",
            Self::Off => "off",
            Self::None => "none",
            Self::Mismatch => "mismatch",
            Self::Errno(name) => name,
        }
    }
}

impl From<String> for ProofWord {
    fn from(word: String) -> Self {
        match word.as_str() {
            "ok" => Self::Ok,
            "off" => Self::Off,
            "none" => Self::None,
            "mismatch" => Self::Mismatch,
            _ => Self::Errno(word),
        }
    }
}

impl From<ProofWord> for String {
    fn from(word: ProofWord) -> Self {
        word.as_str().to_owned()
    }
}
