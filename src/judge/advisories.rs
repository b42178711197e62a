//! Advisory warnings that only `check` reports. They have fixed codes and never change the exit code.

use crate::codes::{Warning, WarningCode};
use crate::config::Policy;
use crate::formats::accounts::group;
use crate::observe::daemons::StaleDaemons;
use crate::observe::{GROUP_FILE, Host, Observation};
use crate::plan::qemu_identity::Identity;
use crate::sys::processes::Process;
use crate::text::join_first;

/// Collects all advisories. Facts that cannot be read are skipped, because no verdict depends on them.
pub fn warnings(
    seen: &Observation,
    policy: &Policy,
    identity: Option<&Identity>,
    stale: &StaleDaemons,
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    warnings.extend(open_to_others(seen));
    warnings.extend(other_members(seen, policy, identity));
    warnings.extend(stale_libvirtd(seen, stale));
    warnings.extend(stale_udevd(stale));
    warnings.extend(seen.host.as_ref().and_then(not_shown));
    warnings
}

/// Directories that a partial mount of the node leaves out. Hardly any node has udev rules or groups there,
/// so the prediction is made without them.
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
        "{} contains only parts of the node's file system: udev rules and groups in {} cannot be read \
         and were ignored; if the node has any there, mount these directories as well",
        host.root.display(),
        places.join(", ")
    );
    Some(Warning::new(WarningCode::UdevUnclear, text))
}

fn open_to_others(seen: &Observation) -> Option<Warning> {
    let facts = seen
        .device
        .as_ref()
        .filter(|device| device.facts.is_kvm())?
        .facts;
    if facts.mode & 0o006 == 0 {
        return None;
    }
    let path = seen.device_path.display();
    let text = format!(
        "{path} has mode {:04o}: every user on the node can open it",
        facts.mode
    );
    Some(Warning::new(WarningCode::OpenToOthers, text))
}

/// Members of the pod's group other than the QEMU user.
fn other_members(
    seen: &Observation,
    policy: &Policy,
    identity: Option<&Identity>,
) -> Option<Warning> {
    const NAMED: usize = 5;
    let file = seen.pod.effective_group()?;
    let entry = group::by_name(file, policy.group.as_bytes())?;
    // Without an identity the QEMU user itself would be listed.
    let qemu = identity?.user.as_deref();
    let others = entry
        .members()
        .filter(|name| Some(*name) != qemu)
        .map(|name| String::from_utf8_lossy(name).into_owned());
    let others = join_first(others, NAMED, ", ");
    if others.is_empty() {
        return None;
    }
    let text = format!(
        "the pod's group {} has other members besides the QEMU user: {others}; they can open KVM too",
        policy.group
    );
    Some(Warning::new(WarningCode::OtherMembers, text))
}

/// libvirtd resolves the configured group once, when it starts, and memberships at each guest start.
fn stale_libvirtd(seen: &Observation, stale: &StaleDaemons) -> Option<Warning> {
    let Process { pid, name, .. } = stale.libvirtd.as_ref()?;
    let text = format!(
        "{name} (pid {pid}) started before {} changed: until it is restarted it may start QEMU with \
         the group's old GID; membership changes take effect at the next guest start",
        seen.pod.root.join(GROUP_FILE).display()
    );
    Some(Warning::new(WarningCode::LibvirtdStale, text))
}

fn stale_udevd(stale: &StaleDaemons) -> Option<Warning> {
    let pid = stale.udevd?;
    let text = format!(
        "udevd (pid {pid}) cached its group lookups before the node's group or passwd file changed: \
         if a UID or GID changed, run `systemctl restart systemd-udevd`; until then udevd applies the \
         old one"
    );
    Some(Warning::new(WarningCode::UdevdStale, text))
}
