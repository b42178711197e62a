//! The report's fixed lists of words, which programs and alerts key on: none is renamed. Every stage uses them.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The kinds of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The pod's group gets another number.
    SetGroupGid,
    /// The pod gets the group.
    AddGroup,
    /// The QEMU user becomes a member.
    AddMember,
    /// Owner and group of the device.
    SetDeviceOwner,
    /// The device's permission bits.
    SetDeviceMode,
    /// The device's ACL, and with it the permission bits.
    SetDeviceAcl,
    /// The file of `--group-file-out`, where no line of its groups changes.
    WriteGroupFile,
    /// The node's udev rule.
    WriteUdevRule,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::SetGroupGid,
        Self::AddGroup,
        Self::AddMember,
        Self::SetDeviceOwner,
        Self::SetDeviceMode,
        Self::SetDeviceAcl,
        Self::WriteGroupFile,
        Self::WriteUdevRule,
    ];

    /// The word, as JSON has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::SetGroupGid => "set-group-gid",
            Self::AddGroup => "add-group",
            Self::AddMember => "add-member",
            Self::SetDeviceOwner => "set-device-owner",
            Self::SetDeviceMode => "set-device-mode",
            Self::SetDeviceAcl => "set-device-acl",
            Self::WriteGroupFile => "write-group-file",
            Self::WriteUdevRule => "write-udev-rule",
        }
    }
}

/// Why QEMU cannot open KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Owner, group or mode do not let it.
    Ownership,
    /// The POSIX ACL does not let it.
    Acl,
    /// The cgroup's device filter does not let it.
    DeviceCgroup,
    /// The mount ignores devices.
    Nodev,
    /// Everything else allows it, so a security module does not.
    SecurityModule,
    /// No KVM driver is registered.
    NoDriver,
    /// There is no node.
    Missing,
    /// Something else stands in its place.
    NotKvm,
    /// Another hypervisor holds the processor.
    Busy,
    /// The API version is not the one that QEMU wants.
    ApiVersion,
    /// None of these.
    Unknown,
}

impl Cause {
    /// The word, as JSON has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ownership => "ownership",
            Self::Acl => "acl",
            Self::DeviceCgroup => "device-cgroup",
            Self::Nodev => "nodev",
            Self::SecurityModule => "security-module",
            Self::NoDriver => "no-driver",
            Self::Missing => "missing",
            Self::NotKvm => "not-kvm",
            Self::Busy => "busy",
            Self::ApiVersion => "api-version",
            Self::Unknown => "unknown",
        }
    }
}

/// The fixed list of warnings: alerts key on these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WarningCode {
    /// A source gave 0 or 4294967295.
    CandidateSkipped,
    /// The number is also another group of the pod, which gains KVM as QEMU gains what it may.
    Collision,
    /// `--gid`, the node's udev and its group database differ.
    Disagreement,
    /// The pod has the group twice; the first line counts.
    DuplicateGroup,
    /// The node's udev gives the device a GID that means more than KVM (disk, docker, shadow and others, by
    /// the node's name or by the pod's), or the target is one where there is no device: QEMU is not made a
    /// member of that group.
    GuardedGroup,
    /// This container does not see the node's file system.
    HostRootUnknown,
    /// The node has no QEMU user; proven for nobody with the group.
    LimitedProof,
    /// Primary groups or running QEMUs still carry the old number.
    OldGidInUse,
    /// This container's /dev is not the node's (`check`, `exec`, or with `--device`).
    PrivateDevice,
    /// A running libvirtd resolved its group before the group file changed (`check`).
    LibvirtdStale,
    /// A libvirtd runs on this node, and its root may not be looked at (`check`, `watch`), or there are
    /// several (`watch`): what was found does not hold for its files.
    LibvirtdUnseen,
    /// A name service cache may answer libvirtd instead of the pod's group file.
    NscdSocket,
    /// Everybody may open the device (`check`).
    OpenToOthers,
    /// Others than the QEMU user are members of the group (`check`).
    OtherMembers,
    /// The node's udev gives different groups at different events.
    UdevEventsDiffer,
    /// A rule about the device that the node's udevd ignores.
    UdevIgnored,
    /// A rule about the device whose outcome cannot be told from the rules, or a part of the node that may
    /// have such a rule and is not seen.
    UdevUnclear,
    /// The rule of an earlier `--persist` gives another number than the node would have without it.
    UdevRuleOutdated,
    /// The rule of `--persist` may not be written, and `watch` keeps the device without it.
    UdevRuleRefused,
    /// The running udevd applies numbers from before the node's files changed (`check`).
    UdevdStale,
    /// The device's owner is not mapped in this user namespace.
    UnmappedOwner,
    /// The proof was turned off.
    Unproven,
    /// The device was still being changed when `--settle` was over.
    Unsettled,
}

impl WarningCode {
    /// The word, as JSON has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::CandidateSkipped => "candidate-skipped",
            Self::Collision => "collision",
            Self::Disagreement => "disagreement",
            Self::DuplicateGroup => "duplicate-group",
            Self::GuardedGroup => "guarded-group",
            Self::HostRootUnknown => "host-root-unknown",
            Self::LimitedProof => "limited-proof",
            Self::OldGidInUse => "old-gid-in-use",
            Self::PrivateDevice => "private-device",
            Self::LibvirtdStale => "libvirtd-stale",
            Self::LibvirtdUnseen => "libvirtd-unseen",
            Self::NscdSocket => "nscd-socket",
            Self::OpenToOthers => "open-to-others",
            Self::OtherMembers => "other-members",
            Self::UdevEventsDiffer => "udev-events-differ",
            Self::UdevIgnored => "udev-ignored",
            Self::UdevUnclear => "udev-unclear",
            Self::UdevRuleOutdated => "udev-rule-outdated",
            Self::UdevRuleRefused => "udev-rule-refused",
            Self::UdevdStale => "udevd-stale",
            Self::UnmappedOwner => "unmapped-owner",
            Self::Unproven => "unproven",
            Self::Unsettled => "unsettled",
        }
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
    /// QEMU may read and write the device, and pass the folders above it.
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
