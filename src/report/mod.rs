//! The report from which all outputs are generated: the table, JSON, the lines for monitors, the closing line and
//! the exit code. The JSON schema is stable: fields may be added but are never renamed.
#![forbid(unsafe_code)]

pub mod build;
pub mod changes;
pub mod monitors;
pub mod table;

use serde::{Deserialize, Serialize};

use crate::codes::{Action, Cause, Permission, ProofWord, Source, Warning};
use crate::judge::Judgement;
use crate::text::{escape_control, json_line};
use crate::verdict::Verdict;

/// The version of the JSON schema.
pub const SCHEMA: u32 = 1;

/// Everything that a run found, changed and proved. Sections that the run did not reach are null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Version of the JSON schema: 1.
    pub schema: u32,
    /// Result of the run: `ok`, `drift`, `usage`, `refused`, `failed`, `unproven` or `absent`.
    pub verdict: Verdict,
    /// Exit code of the process; 0 instead of 6 for the verdict `absent` with `--missing skip`.
    pub exit_code: u8,
    /// Reason for the verdict, and the next step unless `proof.advice` contains it.
    pub summary: String,
    /// GID and mode that the device should have; null if no GID could be determined.
    pub target: Option<Target>,
    /// GIDs that were considered, highest precedence first.
    pub candidates: Vec<Candidate>,
    /// File at the path of the device (`--device`) as libvirtd sees it; null if it was not inspected.
    pub device: Option<Device>,
    /// The node; null if its file system cannot be read from this container.
    pub host: Option<Host>,
    /// The pod's root directory and group file; null if they were not read.
    pub pod: Option<Pod>,
    /// User and groups with which libvirt starts QEMU; null if they could not be determined.
    pub qemu: Option<Qemu>,
    /// Changes that were made, or that `apply` would make.
    pub changes: Vec<Change>,
    /// Result of opening the device as QEMU.
    pub proof: Proof,
    /// Warnings; they do not change the verdict.
    pub warnings: Vec<Warning>,
}

/// GID and mode that the device should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// GID that the device and the pod's group should have.
    pub gid: u32,
    /// Octal mode that the device should have; null if there is no KVM device.
    pub mode: Option<String>,
    /// Kind of source of the target GID.
    pub source: Source,
    /// Origin of the target GID: file and line, option or path.
    pub at: String,
}

/// A GID that was considered as the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// GID that was considered as the target.
    pub gid: u32,
    /// Kind of source of this GID.
    pub source: Source,
    /// Origin of this GID: file and line, option or path.
    pub at: String,
}

/// The file at the path of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path of the device.
    pub path: String,
    /// File type, for example `character-device`; `missing` if there is no file at the path.
    pub kind: String,
    /// Device major number, 10 for KVM; null if the file is not a device.
    pub major: Option<u64>,
    /// Device minor number, 232 for KVM; null if the file is not a device.
    pub minor: Option<u64>,
    /// UID of the device's owner; null if the file is not a device.
    pub uid: Option<u32>,
    /// GID of the device; null if the file is not a device.
    pub gid: Option<u32>,
    /// Octal mode of the device; null if the file is not a device.
    pub mode: Option<String>,
    /// POSIX ACL of the device in short text form; null if it has none.
    pub acl: Option<String>,
    /// Whether the device is the same inode as the node's /dev/kvm; null if the node's device cannot be read.
    pub same_inode_as_host: Option<bool>,
    /// Name of the device's GID in the node's group database; null if it has none.
    pub group_on_host: Option<String>,
    /// Name of the device's GID in the pod's group file; null if it has none.
    pub group_in_pod: Option<String>,
}

/// The node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Directory at which the node's root file system is mounted.
    pub root: String,
    /// The node's /dev/kvm; null if the host root contains none.
    pub device: Option<HostDevice>,
    /// GID of the group (`--group`) in the node's group database; null if it has no such group.
    pub kvm_gid: Option<u32>,
    /// Owner and mode that the node's udev rules assign at each event; null if the rules were not read.
    pub udev: Option<Udev>,
}

/// The node's /dev/kvm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDevice {
    /// UID of the owner of the node's device.
    pub uid: u32,
    /// GID of the node's device.
    pub gid: u32,
    /// Octal mode of the node's device.
    pub mode: String,
}

/// What the node's udev rules assign to a new device, which the kernel creates as 0:0 0600.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Udev {
    /// Result of a udevd start; null if no rule applies or the result cannot be predicted.
    pub start: Option<UdevEvent>,
    /// Result of an add event (boot, or loading of the KVM module); null if no rule applies or the result cannot be
    /// predicted.
    pub add: Option<UdevEvent>,
    /// Result of a change event (`udevadm trigger`, or a guest start or stop); null if no rule applies or the result
    /// cannot be predicted.
    pub change: Option<UdevEvent>,
    /// Rules about the device that the node's udevd ignores, each as file and line.
    pub ignored: Vec<String>,
}

/// What the rules assign at one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdevEvent {
    /// GID that the event sets on the device; null if no rule sets a group.
    pub gid: Option<u32>,
    /// Octal mode that the event sets on the device; null if no rule sets a mode.
    pub mode: Option<String>,
    /// File and line of the rule that decides.
    pub rule: String,
}

/// The pod's root directory and group file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Path of the pod's root directory (`--root`).
    pub root: String,
    /// Name of the group that should own the device (`--group`).
    pub group: String,
    /// GID of the group (`--group`) in the pod's group file; null if the file has no such group.
    pub kvm_gid: Option<u32>,
    /// Path of the group file that libvirtd reads: the file of `--group-file-out`, or etc/group in the pod root.
    pub group_file: String,
}

/// User and groups with which libvirt starts QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// User name: the first one in the pod's passwd file with this UID; null if the UID has no name.
    pub user: Option<String>,
    /// UID of QEMU.
    pub uid: u32,
    /// Primary GID of QEMU.
    pub gid: u32,
    /// GIDs of QEMU's supplementary groups.
    pub groups: Vec<u32>,
    /// Whether the node has no QEMU user, so that the proof used UID 65534 with the target GID instead.
    pub stand_in: bool,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            action, from, to, ..
        } = self;
        match from {
            Some(from) => write!(f, "{} {from} -> {to}", action.word()),
            None => write!(f, "{} {to}", action.word()),
        }
    }
}

/// A change that was made, or that `apply` would make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Kind of change.
    pub action: Action,
    /// Value before the change; null if there was none.
    pub from: Option<String>,
    /// Value after the change.
    pub to: String,
    /// Whether the change was made; false in `check` and `--dry-run`.
    pub applied: bool,
}

impl From<Judgement> for Report {
    /// The report on a run that ended before anything was inspected.
    fn from(judgement: Judgement) -> Self {
        Self::new(judgement.verdict, judgement.summary)
    }
}

/// Result of opening the device as QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// `ok`, `off`, `none` (the device was not opened), `mismatch` (another device or API version), or the
    /// name of the errno.
    pub result: ProofWord,
    /// Why QEMU cannot open KVM; null if it can, or if that was not tested.
    pub cause: Option<Cause>,
    /// Whether owner, group, mode and ACL allow QEMU to open the device, `allowed` or `denied`; null if that could
    /// not be determined.
    pub computed: Option<Permission>,
    /// API version that KVM reported; null if it was not read.
    pub api_version: Option<i32>,
    /// Details of the cause, and the next step unless `summary` contains it (always so for `drift`); null if
    /// there is nothing to add.
    pub advice: Option<String>,
}

impl Proof {
    fn none(cause: Option<Cause>, advice: Option<String>) -> Self {
        Self {
            result: ProofWord::None,
            cause,
            computed: None,
            api_version: None,
            advice,
        }
    }
}

impl Report {
    /// A report that contains only a verdict and a summary.
    pub fn new(verdict: Verdict, summary: impl Into<String>) -> Self {
        Self {
            schema: SCHEMA,
            verdict,
            exit_code: verdict.code(),
            summary: summary.into(),
            target: None,
            candidates: Vec::new(),
            device: None,
            host: None,
            pod: None,
            qemu: None,
            changes: Vec::new(),
            proof: Proof::none(None, None),
            warnings: Vec::new(),
        }
    }

    /// One line of JSON and a newline. It does not fail in practice, because all keys are strings and all numbers
    /// finite.
    pub fn to_json(&self) -> serde_json::Result<String> {
        json_line(self)
    }

    /// The last line of a run that did not end with `ok`: the reason and the next step.
    pub fn closing_line(&self) -> String {
        let (word, summary) = (self.verdict.word(), &self.summary);
        let details = match &self.proof.advice {
            None => String::new(),
            Some(reason) if self.advice_is_reason() => format!(". Reason: {reason}"),
            Some(advice) => format!("; {advice}"),
        };
        escape_control(&format!("libvirt-kvm-init: {word}: {summary}{details}"))
    }

    /// Whether `proof.advice` holds only the reason. For drift `summary` already names the command.
    fn advice_is_reason(&self) -> bool {
        self.verdict == Verdict::Drift
    }
}
