//! What `check` says beyond the verdict: things that will surprise later. They are warnings
//! with a fixed code and never change the exit code.

use crate::codes::{Warning, WarningCode};
use crate::config::Policy;
use crate::formats::accounts::group;
use crate::observe::daemons::StaleDaemons;
use crate::observe::{GROUP_FILE, Host, Observation};
use crate::plan::qemu_identity::Identity;
use crate::sys::processes::Process;
use crate::text::join_first;

/// Everything odd about what was seen. What cannot be looked at is not reported as fine, it is just
/// not reported: no verdict rests on it.
pub fn warnings(
    seen: &Observation,
    policy: &Policy,
    identity: Option<&Identity>,
    stale: &StaleDaemons,
) -> Vec<Warning> {
    let mut found = Vec::new();
    found.extend(open_to_others(seen));
    found.extend(other_members(seen, policy, identity));
    found.extend(stale_libvirtd(seen, stale));
    found.extend(stale_udevd(stale));
    found.extend(seen.host.as_ref().and_then(not_shown));
    found
}

/// Places that the node may use and that a partial view leaves out. Hardly any node has udev rules or
/// groups there, so that the forecast is made without them; whoever looks is told.
fn not_shown(host: &Host) -> Option<Warning> {
    if host.not_shown.is_empty() {
        return None;
    }
    let places: Vec<_> = host
        .not_shown
        .iter()
        .map(|name| format!("/{name}"))
        .collect();
    let text = format!(
        "{} shows parts of the node only: udev rules and groups in {} are not seen and would count; \
         where the node has any, mount it there as well",
        host.root.display(),
        places.join(", ")
    );
    Some(Warning::new(WarningCode::UdevUnclear, text))
}

fn open_to_others(seen: &Observation) -> Option<Warning> {
    let facts = seen
        .device
        .as_ref()
        .filter(|node| node.facts.is_kvm())?
        .facts;
    if facts.mode & 0o006 == 0 {
        return None;
    }
    let path = seen.device_path.display();
    let text = format!(
        "{path} is {:04o}: everybody on the node may open it",
        facts.mode
    );
    Some(Warning::new(WarningCode::OpenToOthers, text))
}

/// Who else gains KVM by the group.
fn other_members(
    seen: &Observation,
    policy: &Policy,
    identity: Option<&Identity>,
) -> Option<Warning> {
    /// How many are named.
    const NAMED: usize = 5;
    let file = seen.pod.effective_group()?;
    let found = group::by_name(file, policy.group.as_bytes())?;
    // Without an identity the QEMU user itself would be among the others.
    let qemu = identity?.user.as_deref();
    let others = found.members().filter(|name| Some(*name) != qemu);
    let others = others.map(|name| String::from_utf8_lossy(name).into_owned());
    let others = join_first(others, NAMED, ", ");
    if others.is_empty() {
        return None;
    }
    let text = format!(
        "beside the QEMU user the pod's group {} has the members {others}: they may open KVM, too",
        policy.group
    );
    Some(Warning::new(WarningCode::OtherMembers, text))
}

/// libvirtd resolves the configured group once, when it starts; memberships at each guest start.
fn stale_libvirtd(seen: &Observation, stale: &StaleDaemons) -> Option<Warning> {
    let Process { pid, name, .. } = stale.libvirtd.as_ref()?;
    let text = format!(
        "{name} (pid {pid}) started before {} changed: it may give QEMU the group's old number \
         until it is restarted; memberships count at once",
        seen.pod.root.join(GROUP_FILE).display()
    );
    Some(Warning::new(WarningCode::LibvirtdStale, text))
}

fn stale_udevd(stale: &StaleDaemons) -> Option<Warning> {
    let pid = stale.udevd?;
    let text = format!(
        "udevd (pid {pid}) looked its groups up before the node's group or passwd file changed: if a \
         number changed there, it applies the old one until it is restarted (systemctl restart \
         systemd-udevd)"
    );
    Some(Warning::new(WarningCode::UdevdStale, text))
}
