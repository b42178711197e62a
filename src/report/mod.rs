//! The one report that every output is made from: the table, JSON, the closing line and the exit
//! code. Its JSON form (`schema: 1`) is a contract: fields are added, never renamed.
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

/// The version of the JSON form.
pub const SCHEMA: u32 = 1;

/// Everything that a run found, changed and proved. A part is null where the run did not get to
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The version of this form: 1.
    pub schema: u32,
    /// What the run came to.
    pub verdict: Verdict,
    /// The process' exit code; differs from the verdict's own for `absent` with `--missing skip`.
    pub exit_code: u8,
    /// One sentence that says why, with what to do next.
    pub summary: String,
    /// What device and pod shall have.
    pub target: Option<Target>,
    /// The numbers that were considered, strongest first.
    pub candidates: Vec<Candidate>,
    /// The device as libvirtd sees it.
    pub device: Option<Device>,
    /// The node, where it can be seen.
    pub host: Option<Host>,
    /// The pod root.
    pub pod: Option<Pod>,
    /// Whom libvirt will start QEMU as.
    pub qemu: Option<Qemu>,
    /// What was changed, or would be.
    pub changes: Vec<Change>,
    /// Whether QEMU can open KVM.
    pub proof: Proof,
    /// What is odd and does not decide the verdict.
    pub warnings: Vec<Warning>,
}

/// What device and pod shall have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The one GID.
    pub gid: u32,
    /// The mode, octal, once the device is as it shall be; null without a device.
    pub mode: Option<String>,
    /// Where the number comes from.
    pub source: Source,
    /// File and line, flag or path.
    pub at: String,
}

/// A number that was considered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The number.
    pub gid: u32,
    /// Where it comes from.
    pub source: Source,
    /// File and line, flag or path.
    pub at: String,
}

/// What stands at the device's path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The path.
    pub path: String,
    /// The kind of file, or `missing`.
    pub kind: String,
    /// Major number; null for what is no device.
    pub major: Option<u64>,
    /// Minor number; null for what is no device.
    pub minor: Option<u64>,
    /// Owner; null for what is no device.
    pub uid: Option<u32>,
    /// Group; null for what is no device.
    pub gid: Option<u32>,
    /// Mode, octal; null for what is no device.
    pub mode: Option<String>,
    /// The ACL in its short text form; null for none.
    pub acl: Option<String>,
    /// Whether it is the very node that the host root shows; null where that shows none.
    pub same_inode_as_host: Option<bool>,
    /// What the node calls the group, if it has a name for it.
    pub group_on_host: Option<String>,
    /// What the pod calls the group, if it has a name for it.
    pub group_in_pod: Option<String>,
}

/// The node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Where its root is seen.
    pub root: String,
    /// Its dev/kvm, if the host root shows one.
    pub device: Option<HostDevice>,
    /// The group's number in its database.
    pub kvm_gid: Option<u32>,
    /// What its udev will do; null where that was not looked at.
    pub udev: Option<Udev>,
}

/// The node's own view of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDevice {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode, octal.
    pub mode: String,
}

/// As udev would leave a fresh 0:0 0600 node; null where no rule speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Udev {
    /// When udevd starts.
    pub start: Option<UdevEvent>,
    /// When the module is loaded, or at boot.
    pub add: Option<UdevEvent>,
    /// At a bare trigger.
    pub change: Option<UdevEvent>,
    /// Rules that this udevd ignores.
    pub ignored: Vec<String>,
}

/// What one event gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdevEvent {
    /// The group.
    pub gid: Option<u32>,
    /// The mode, octal.
    pub mode: Option<String>,
    /// File and line.
    pub rule: String,
}

/// The pod root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Where it is.
    pub root: String,
    /// The name of the group that shall own the device.
    pub group: String,
    /// The group's number in its group file.
    pub kvm_gid: Option<u32>,
    /// The group file that libvirtd will read.
    pub group_file: String,
}

/// Whom libvirt will start QEMU as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// The first passwd name with the uid; null for a uid without a name.
    pub user: Option<String>,
    /// The uid.
    pub uid: u32,
    /// The gid.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
    /// Whether the node has no QEMU user and nobody stood in for it.
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

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its kind.
    pub action: Action,
    /// What was there; null for nothing.
    pub from: Option<String>,
    /// What is there now, or would be.
    pub to: String,
    /// Whether it was made.
    pub applied: bool,
}

impl From<Judgement> for Report {
    /// The report on a run that saw nothing.
    fn from(judgement: Judgement) -> Self {
        Self::new(judgement.verdict, judgement.summary)
    }
}

/// Whether QEMU can open KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// `ok`, `off`, `none` (nobody asked, or the proof could not be done), `mismatch`, or the errno's name.
    pub result: ProofWord,
    /// Why not; null where it can, and where nobody asked.
    pub cause: Option<Cause>,
    /// What the permissions say by themselves; null where they cannot be told.
    pub computed: Option<Permission>,
    /// What KVM answered.
    pub api_version: Option<i32>,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Proof {
    /// Nothing was opened.
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
    /// A report with nothing in it yet.
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

    /// One line of JSON and a newline.
    ///
    /// # Errors
    /// None that can happen: every key is a string and every number finite.
    pub fn to_json(&self) -> serde_json::Result<String> {
        json_line(self)
    }

    /// The last line of a run that did not end well: why, and what to do.
    pub fn closing_line(&self) -> String {
        let word = self.verdict.word();
        let advice = self.proof.advice.as_ref();
        let advice = advice.map_or_else(String::new, |advice| format!("; {advice}"));
        escape_control(&format!(
            "libvirt-kvm-init: {word}: {}{advice}",
            self.summary
        ))
    }
}
