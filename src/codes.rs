//! The report's fixed lists of words, which programs and alerts key on: none is renamed. Every stage uses them.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// An enum of which each value has a word, in JSON and in text.
macro_rules! words {
    ($(#[$about:meta])* pub enum $name:ident { $($(#[$means:meta])+ $value:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$means])+ #[serde(rename = $word)] $value,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$value),+];

            /// The word, as JSON has it.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)+
                }
            }
        }
    };
}

words! {
    /// The kinds of change.
    pub enum Action {
        /// The pod's group gets another number.
        SetGroupGid = "set-group-gid",
        /// The pod gets the group.
        AddGroup = "add-group",
        /// The QEMU user becomes a member.
        AddMember = "add-member",
        /// Owner and group of the device.
        SetDeviceOwner = "set-device-owner",
        /// The device's permission bits.
        SetDeviceMode = "set-device-mode",
        /// The device's ACL, and with it the permission bits.
        SetDeviceAcl = "set-device-acl",
        /// The file of `--group-file-out`, where no line of its groups changes.
        WriteGroupFile = "write-group-file",
        /// The node's udev rule.
        WriteUdevRule = "write-udev-rule",
    }
}

words! {
    /// Why QEMU cannot open KVM.
    pub enum Cause {
        /// Owner, group or mode do not let it.
        Ownership = "ownership",
        /// The POSIX ACL does not let it.
        Acl = "acl",
        /// The cgroup's device filter does not let it.
        DeviceCgroup = "device-cgroup",
        /// The mount ignores devices.
        Nodev = "nodev",
        /// Everything else allows it, so a security module does not.
        SecurityModule = "security-module",
        /// No KVM driver is registered.
        NoDriver = "no-driver",
        /// There is no node.
        Missing = "missing",
        /// Something else stands in its place.
        NotKvm = "not-kvm",
        /// Another hypervisor holds the processor.
        Busy = "busy",
        /// The API version is not the one that QEMU wants.
        ApiVersion = "api-version",
        /// None of these.
        Unknown = "unknown",
    }
}

words! {
    /// The fixed list of warnings: alerts key on these words.
    pub enum WarningCode {
        /// A source gave 0 or 4294967295.
        CandidateSkipped = "candidate-skipped",
        /// The number is also another group of the pod, which gains KVM as QEMU gains what it may.
        Collision = "collision",
        /// `--gid`, the node's udev and its group database differ.
        Disagreement = "disagreement",
        /// The pod has the group twice; the first line counts.
        DuplicateGroup = "duplicate-group",
        /// The node's udev gives the device a GID that means more than KVM (disk, docker, shadow and others, by
        /// the node's name or by the pod's), or the target is one where there is no device: QEMU is not made a
        /// member of that group.
        GuardedGroup = "guarded-group",
        /// This container does not see the node's file system.
        HostRootUnknown = "host-root-unknown",
        /// The node has no QEMU user; proven for nobody with the group.
        LimitedProof = "limited-proof",
        /// Primary groups or running QEMUs still carry the old number.
        OldGidInUse = "old-gid-in-use",
        /// This container's /dev is not the node's (`check`, `exec`, or with `--device`).
        PrivateDevice = "private-device",
        /// A running libvirtd resolved its group before the group file changed (`check`).
        LibvirtdStale = "libvirtd-stale",
        /// A libvirtd runs on this node, and its root may not be looked at (`check`, `watch`), or there are
        /// several (`watch`): what was found does not hold for its files.
        LibvirtdUnseen = "libvirtd-unseen",
        /// A name service cache may answer libvirtd instead of the pod's group file.
        NscdSocket = "nscd-socket",
        /// Everybody may open the device (`check`).
        OpenToOthers = "open-to-others",
        /// Others than the QEMU user are members of the group (`check`).
        OtherMembers = "other-members",
        /// The node's udev gives different groups at different events.
        UdevEventsDiffer = "udev-events-differ",
        /// A rule about the device that the node's udevd ignores.
        UdevIgnored = "udev-ignored",
        /// A rule about the device whose outcome cannot be told from the rules, or a part of the node that may
        /// have such a rule and is not seen.
        UdevUnclear = "udev-unclear",
        /// The rule of an earlier `--persist` gives another number than the node would have without it.
        UdevRuleOutdated = "udev-rule-outdated",
        /// The rule of `--persist` may not be written, and `watch` keeps the device without it.
        UdevRuleRefused = "udev-rule-refused",
        /// The running udevd applies numbers from before the node's files changed (`check`).
        UdevdStale = "udevd-stale",
        /// The device's owner is not mapped in this user namespace.
        UnmappedOwner = "unmapped-owner",
        /// The proof was turned off.
        Unproven = "unproven",
        /// The device was still being changed when `--settle` was over.
        Unsettled = "unsettled",
    }
}

/// Something odd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Which.
    pub code: WarningCode,
    /// What was seen.
    pub text: String,
}

impl Warning {
    /// A warning.
    pub fn new(code: WarningCode, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { code, text }
    }
}

/// What owner, group, mode and ACL say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// QEMU may read and write the device, and pass the directories above it.
    Allowed,
    /// It may not.
    Denied,
}

/// Where a candidate comes from, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// `--gid`, its variable or its key.
    Flag,
    /// What the node's udev gives at an add event.
    Udev,
    /// The node's group database.
    HostGroup,
    /// `watch`: what worked last. A node whose files are not seen for a while has not changed its mind.
    Kept,
    /// The device's own group.
    Device,
    /// The pod's group file.
    PodGroup,
}

/// What opening the device came to, as JSON has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ProofWord {
    /// It opened and KVM answered.
    Ok,
    /// The proof was turned off.
    Off,
    /// Nothing was opened.
    None,
    /// Another device or API version than expected.
    Mismatch,
    /// The name of the errno.
    Errno(String),
}

impl ProofWord {
    /// The word, as JSON has it.
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
