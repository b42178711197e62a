//! The plan: its steps, or the reason why there are none.

use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::{Gid, Uid};

use super::qemu_identity::{Identity, IdentityError};
use super::target_gid::Resolution;
use crate::codes::{Cause, Warning};
use crate::config::PodRoot;
use crate::formats::accounts::edit;
use crate::formats::posix_acl::Acl;
use crate::sys::Inode;

#[derive(Debug)]
pub struct Plan {
    /// Every candidate for the GID; the first is the target.
    pub resolution: Resolution,
    pub outcome: Outcome,
    /// The QEMU identity after the steps; `None` for a refusal and a node without KVM.
    pub identity: Option<Identity>,
    /// The QEMU identity before the steps; without one, the reason if it was looked up.
    pub identity_now: Result<Identity, Option<IdentityError>>,
    pub warnings: Vec<Warning>,
    /// The present GID of the pod's group, if a step changes it.
    pub renumbered: Option<Gid>,
    /// File and line where qemu.conf denies /dev/kvm to every guest (`cgroup_device_acl`).
    pub excluded_by_device_acl: Option<String>,
    /// The name of the group (`--group`).
    pub group: String,
    /// Why `watch` keeps a GID on the device that is not the node's.
    pub kept_because: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The steps in their order; empty if nothing needs to change.
    Act(Vec<Step>),
    /// A failed safety check.
    Refuse(Refusal),
    NoKvm(NoKvm),
}

/// No KVM on this node.
#[derive(Debug, PartialEq, Eq)]
pub struct NoKvm {
    pub cause: Cause,
    pub text: String,
    pub advice: String,
    /// With `--missing skip`, the step that writes `--group-file-out`: the pod mounts it anyway.
    pub steps: Vec<Step>,
}

/// A failed safety check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, and what to do next.
    pub text: String,
    /// The cause in the report's proof, if the device is the reason.
    pub cause: Option<Cause>,
}

/// A change to one file, or to one property of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write the pod's group file.
    GroupFile(GroupStep),
    /// Write the rule for the node's udev.
    UdevRule(RuleStep),
    /// Set the device's owner and group.
    Owner {
        from: (Uid, Gid),
        to: (Uid, Gid),
    },
    Mode {
        from: u16,
        to: u16,
    },
    Acl {
        from: Acl,
        to: Acl,
    },
}

/// Creates or updates this program's rules file on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleStep {
    pub root: PathBuf,
    /// Owner, group and mode that an existing file sets (`0:108 0660`), for the report.
    pub from: Option<String>,
    pub content: Vec<u8>,
}

/// Writes a group file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStep {
    pub file: GroupFile,
    pub content: Vec<u8>,
    /// The changed lines, for the report.
    pub changes: Vec<edit::Change>,
}

/// A group file as it was when the plan was made. A file that differs when it is written is not overwritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupFile {
    /// etc/group of the pod root.
    InPlace {
        root: PodRoot,
        inode: Option<Inode>,
        base: Arc<Vec<u8>>,
    },
    /// The file of `--group-file-out`.
    Out {
        path: PathBuf,
        /// The content, if it was a regular file of root's.
        base: Option<Vec<u8>>,
        /// Whether to write in place, because another container may have mounted this inode.
        keep_inode: bool,
    },
}
