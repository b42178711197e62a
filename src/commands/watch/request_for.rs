//! Adapts the configured request to the libvirtd that was found.

use crate::config::{self, PodRoot, Sources, is_id};
use crate::observe::GROUP_FILE;
use crate::observe::host_root::{self, HostRoot};
use crate::observe::libvirtd::Target;
use crate::pipeline::Request;
use crate::plan::Memory;
use crate::sys::device::Device;
use crate::sys::progress;

/// The request for this check: `asked` with the pod root of the libvirtd that was found. Sets in `memory`
/// whether the group file must stay unchanged, and which GID the device keeps in that case.
pub(super) fn request_for(asked: &Request, target: &Target, memory: &mut Memory) -> Request {
    let mut request = asked.clone();
    match target {
        Target::Own => {}
        Target::Container(libvirtd) => match libvirtd.root.again() {
            Ok(root) => request = request.with_root(PodRoot::of_process(root)),
            Err(error) => {
                log::warn!("{error}");
                memory.group_file_readonly = true;
            }
        },
        // An image may contain only this program, without a group file: then the node's files are used until a
        // libvirtd runs.
        Target::Node | Target::None | Target::OtherDevice(_) | Target::Ambiguous(_) => {
            let sources = &request.sources;
            let is_own = !matches!(target, Target::Node) && has_group_file(sources);
            if !is_own && let Ok(HostRoot::At(host)) = host_root::find(sources.host_root.as_deref())
            {
                request = request.with_root(PodRoot::at(host.path().to_owned()));
            }
            if matches!(target, Target::Ambiguous(_)) {
                keep_gid(asked, memory);
            }
        }
    }
    request.sources.libvirtd = match target {
        Target::Own | Target::Node => config::Libvirtd::Own,
        Target::Container(_) => config::Libvirtd::Container,
        Target::OtherDevice(libvirtd) => config::Libvirtd::Missing(Some(libvirtd.pid)),
        Target::None => config::Libvirtd::Missing(None),
        Target::Ambiguous(text) => config::Libvirtd::Unclear(text.clone()),
    };
    request.sources.host_root_optional = memory.last_good_gid.is_some();
    request
}

fn has_group_file(sources: &Sources) -> bool {
    let path = sources.pod_root.join(GROUP_FILE);
    progress::at(&[path.as_ref()]);
    path.exists()
}

/// Keeps the device's current GID, unless `--gid` is set: it is unclear which group file counts, so none is
/// edited.
fn keep_gid(asked: &Request, memory: &mut Memory) {
    memory.group_file_readonly = true;
    let now = || {
        let facts = Device::find(&asked.sources.device).ok()??.facts();
        let is_usable = facts.is_kvm() && is_id(facts.gid.as_raw());
        is_usable.then_some(facts.gid)
    };
    if asked.policy.gid.is_none() {
        memory.kept_gid = memory.last_good_gid.or_else(now);
    }
}
