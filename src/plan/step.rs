//! What a plan holds: steps, or why there are none.

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

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// Every number that was considered; the first is the target.
    pub resolution: Resolution,
    /// How it goes on.
    pub outcome: Outcome,
    /// The QEMU identity once the steps are done; unknown where nothing is to be done.
    pub identity: Option<Identity>,
    /// The QEMU identity now; why there is none, where that is known.
    pub identity_now: Result<Identity, Option<IdentityError>>,
    /// What is odd.
    pub warnings: Vec<Warning>,
    /// The number that the pod's group has now and is to lose.
    pub renumbered: Option<Gid>,
    /// Where qemu.conf keeps /dev/kvm from every guest, whatever its owner and mode: file and line.
    pub excluded_by_device_acl: Option<String>,
    /// The group that is to own the device.
    pub group: String,
    /// Why the device keeps a GID that is not the node's (`watch`).
    pub kept_because: Option<String>,
}

/// How it goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// These steps, in this order; none where all is right already.
    Act(Vec<Step>),
    /// A safety rule says no.
    Refuse(Refusal),
    /// No KVM on this node.
    NoKvm(NoKvm),
}

/// No KVM on this node.
#[derive(Debug, PartialEq, Eq)]
pub struct NoKvm {
    /// Why.
    pub cause: Cause,
    /// What was seen.
    pub text: String,
    /// What to do.
    pub advice: String,
    /// What must be left for the pod nevertheless, where a missing KVM is accepted.
    pub steps: Vec<Step>,
}

/// A safety rule that said no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why, with what to do next.
    pub text: String,
    /// The proof's cause, where the device is it.
    pub cause: Option<Cause>,
}

/// One thing to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The pod's group file.
    GroupFile(GroupStep),
    /// The rule of the node's udev.
    UdevRule(RuleStep),
    /// The device's owner and group.
    Owner {
        /// What it is.
        from: (Uid, Gid),
        /// What it is to be.
        to: (Uid, Gid),
    },
    /// The device's mode.
    Mode {
        /// What it is.
        from: u16,
        /// What it is to be.
        to: u16,
    },
    /// The device's ACL.
    Acl {
        /// What it is.
        from: Acl,
        /// What it is to be.
        to: Acl,
    },
}

/// The rules file that the node gets, or gets again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleStep {
    /// Where the node's root is seen.
    pub root: PathBuf,
    /// What the file gives now: owner, group and mode; nothing where there is none.
    pub from: Option<String>,
    /// What it is to hold.
    pub content: Vec<u8>,
}

/// How the pod's group file is brought in line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStep {
    /// Where it is written.
    pub file: GroupFile,
    /// What it is to hold.
    pub content: Vec<u8>,
    /// What differs.
    pub changes: Vec<edit::Change>,
}

/// A group file, and what was seen of it: what differs by the time it is written is not written over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupFile {
    /// The pod root's own.
    InPlace {
        /// The pod root.
        root: PodRoot,
        /// Which file it was.
        inode: Option<Inode>,
        /// What it held.
        base: Arc<Vec<u8>>,
    },
    /// That of `--group-file-out`.
    Out {
        /// Its path.
        path: PathBuf,
        /// What stood there; nothing where that was no regular file of root's.
        base: Option<Vec<u8>>,
        /// Whether another container may hold its inode, which then stays.
        keep_inode: bool,
    },
}
