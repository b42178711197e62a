//! What a plan is made from.

use std::path::PathBuf;

use nix::unistd::Gid;

use crate::config::{Origin, Policy};
use crate::formats::qemu_conf::QemuConf;
use crate::observe::Observation;

/// What `watch` remembers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The GID with which QEMU could open the device.
    pub last_good_gid: Option<Gid>,
    /// The pod root whose group file was the node's own when the node was seen last.
    pub pod_was_host: Option<PathBuf>,
    /// Whether the group file is left as it is, for it cannot be written.
    pub group_file_readonly: bool,
    /// The GID that the device keeps, whatever else is wanted.
    pub kept_gid: Option<Gid>,
    /// Why, where that is not the node's.
    pub kept_because: Option<String>,
}

impl Memory {
    /// Adds to an observation what was seen of the node before, where the node is not seen.
    pub fn complete(&self, seen: &mut Observation) {
        let was_host = self.pod_was_host.as_deref() == Some(seen.pod.root.path());
        seen.pod.is_host |= seen.host.is_none() && was_host;
    }
}

/// What a plan is made from.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) seen: &'a Observation,
    pub(super) policy: &'a Policy,
    /// What `watch` remembers; nothing for another command.
    pub(super) memory: Option<&'a Memory>,
    pub(super) conf: Option<&'a QemuConf>,
}

impl Context<'_> {
    /// The target that was asked for, and where.
    pub(super) fn explicit_gid(&self) -> Option<(Gid, &Origin)> {
        let kept = self.memory.and_then(|memory| memory.kept_gid);
        let kept = kept.map(|gid| (gid, &Origin::Kept));
        let given = || self.policy.gid.as_ref().map(|(gid, origin)| (*gid, origin));
        kept.or_else(given)
    }

    /// Whether doubts are refusals. A GID that is kept is in doubt already.
    pub(super) fn is_strict(&self) -> bool {
        let keeps = self.memory.is_some_and(|memory| memory.kept_gid.is_some());
        self.policy.strict && !keeps
    }

    pub(super) fn last_good_gid(&self) -> Option<Gid> {
        self.memory?.last_good_gid
    }

    pub(super) fn group_file_readonly(&self) -> bool {
        self.memory.is_some_and(|memory| memory.group_file_readonly)
    }

    /// On the node itself the group file is never edited; a file of its own can be made from it.
    pub(super) fn writes_group_file(&self) -> bool {
        let pod = &self.seen.pod;
        !self.group_file_readonly() && (!pod.is_host || pod.out_path.is_some())
    }
}
