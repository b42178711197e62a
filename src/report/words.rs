//! The report's fixed lists of words, which programs and alerts key on: none is renamed.
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
pub enum Code {
    /// A source gave 0 or 4294967295.
    CandidateSkipped,
    /// The number belongs to another group in the pod.
    Collision,
    /// `--gid` and the node's group database differ.
    Disagreement,
    /// The pod has the group twice.
    DuplicateGroup,
    /// A container that does not see the node's file system.
    HostRootUnknown,
    /// Proven for nobody, since the node has no QEMU user.
    LimitedProof,
    /// Something still carries the group's old number.
    OldGidInUse,
    /// This container's /dev is not the node's.
    PrivateDevice,
    /// A running libvirtd resolved its group before the group file changed.
    LibvirtdStale,
    /// A libvirtd runs, and its root may not be looked at.
    LibvirtdUnseen,
    /// A name service cache answers libvirtd instead of the pod's files.
    NscdSocket,
    /// Everybody can open the device.
    OpenToOthers,
    /// Others than the QEMU user are members of the group.
    OtherMembers,
    /// The node's udev gives different groups at different events.
    UdevEventsDiffer,
    /// A rule about the device that the node's udevd ignores.
    UdevIgnored,
    /// A rule about the device whose outcome cannot be told.
    UdevUnclear,
    /// The node's rule of an earlier run gives another number than the node would have without it.
    UdevRuleOutdated,
    /// `watch --persist` goes on without the rule that it may not write.
    UdevRuleRefused,
    /// The running udevd applies numbers from before the node's files changed.
    UdevdStale,
    /// The device's owner is not mapped in this user namespace.
    UnmappedOwner,
    /// The proof was turned off.
    Unproven,
    /// The device was still being changed when `--settle` was over.
    Unsettled,
}

impl Code {
    /// The word, as JSON has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::CandidateSkipped => "candidate-skipped",
            Self::Collision => "collision",
            Self::Disagreement => "disagreement",
            Self::DuplicateGroup => "duplicate-group",
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
