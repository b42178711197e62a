//! The inputs of a plan.

use std::path::PathBuf;

use nix::unistd::Gid;

use crate::config::{Origin, Policy};
use crate::formats::qemu_conf::QemuConf;
use crate::observe::Observation;

/// The state that `watch` keeps between runs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The last GID with which QEMU could open the device.
    pub last_good_gid: Option<Gid>,
    /// The pod root, if its group file was the node's own when the host root could last be read.
    pub pod_was_host: Option<PathBuf>,
    /// Whether the group file cannot be written and is not changed.
    pub group_file_readonly: bool,
    /// The GID that the device keeps, instead of any candidate.
    pub kept_gid: Option<Gid>,
    /// The reason, if `kept_gid` is not the node's GID.
    pub kept_because: Option<String>,
}

impl Memory {
    /// Sets in an observation without a host root whether the pod's group file is the node's own.
    pub fn complete(&self, seen: &mut Observation) {
        let was_host = self.pod_was_host.as_deref() == Some(seen.pod.root.path());
        seen.pod.is_host |= seen.host.is_none() && was_host;
    }
}

#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) seen: &'a Observation,
    pub(super) policy: &'a Policy,
    /// The state of `watch`; `None` for the other commands.
    pub(super) memory: Option<&'a Memory>,
    pub(super) conf: Option<&'a QemuConf>,
}

impl Context<'_> {
    /// The GID that `watch` keeps or an option sets, and its origin.
    pub(super) fn explicit_gid(&self) -> Option<(Gid, &Origin)> {
        let kept = self.memory.and_then(|memory| memory.kept_gid);
        let kept = kept.map(|gid| (gid, &Origin::Kept));
        let option = || self.policy.gid.as_ref().map(|(gid, origin)| (*gid, origin));
        kept.or_else(option)
    }

    /// Whether `--strict` applies. It does not while `watch` keeps a GID, which is not the node's anyway.
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

    /// Whether a group file is written: on the node itself only that of `--group-file-out`.
    pub(super) fn writes_group_file(&self) -> bool {
        let pod = &self.seen.pod;
        !self.group_file_readonly() && (!pod.is_host || pod.out_path.is_some())
    }
}
