//! What will happen to the device next, and whether QEMU can still open it then. Pure.
//!
//! A state that works can be about to end: the node's udev gives the device its own number at its
//! next event, and the chart's libvirt.sh gives it the pod's number at the next container start.
#![forbid(unsafe_code)]

use nix::unistd::{Gid, Uid};

use crate::formats::udev::{Event, Outcome, Prediction};
use crate::observe::{DeviceState, Observation};
use crate::plan::is_private;

/// Something that will happen to the device.
#[derive(Debug, Clone)]
pub struct NextEvent {
    /// What happens, with its rule: `a udevd restart (/etc/udev/rules.d/99-kvm.rules:1)`.
    pub what: String,
    /// The device afterwards.
    pub device: DeviceState,
    /// Whether the node's udev does it, and not the chart.
    pub by_udev: bool,
}

/// The group that the chart's libvirt.sh names.
pub const CHARTS_GROUP: &str = "kvm";

/// Everything that is known to come. `fresh`: also that the kernel makes the device again and no rule speaks
/// of it, which is for the node's own people to care about unless it was asked for.
pub fn next_events(seen: &Observation, fresh: bool) -> Vec<NextEvent> {
    let Some(now) = &seen.device else {
        return Vec::new();
    };
    // udev looks after the node's device, not after one that a container has for itself.
    let host = seen.host.as_ref().filter(|_| !is_private(seen));
    let udev = host.map(|host| &host.udev);
    let events = [
        (Event::Start, "a udevd restart", false),
        (Event::Add, "a module reload or reboot", true),
        (
            Event::Add,
            "an add event (udevadm trigger --action=add)",
            false,
        ),
        // virt/kvm/kvm_main.c, kvm_uevent_notify_change: one for each VM that is made or ends.
        (
            Event::Change,
            "a change event (udevadm trigger, or any guest's start or end)",
            false,
        ),
    ];
    let mut found: Vec<_> = events
        .into_iter()
        .filter_map(|(event, what, fresh)| {
            let outcome = udev?.of(event).outcome()?;
            let what = format!("{what} ({})", outcome.rule);
            let node = after(now, outcome, fresh);
            Some(NextEvent {
                what,
                device: node,
                by_udev: true,
            })
        })
        .collect();
    if let Some(Prediction::Untouched) = udev.map(|udev| &udev.add).filter(|_| fresh) {
        found.push(NextEvent {
            what: "a module reload or reboot (no udev rule speaks of it)".to_owned(),
            device: fresh_node(now),
            by_udev: true,
        });
    }
    found.extend(libvirt_sh(seen, now));
    found
}

/// The device after an event: a fresh one, as the kernel makes it (0:0 0600), or the one that is
/// there.
fn after(now: &DeviceState, outcome: &Outcome, fresh: bool) -> DeviceState {
    let mut node = if fresh { fresh_node(now) } else { now.clone() };
    node.facts.uid = outcome.uid.unwrap_or(node.facts.uid);
    node.facts.gid = outcome.gid.unwrap_or(node.facts.gid);
    if let Some(mode) = outcome.mode {
        set_mode(&mut node, mode);
    }
    node
}

/// As the kernel makes it.
fn fresh_node(now: &DeviceState) -> DeviceState {
    let mut node = now.clone();
    node.facts.uid = Uid::from_raw(0);
    node.facts.gid = Gid::from_raw(0);
    node.facts.mode = 0o600;
    node.acl = None;
    node
}

/// The chart's three lines, run in the pod at each start of its container: `chmod 660 /dev/kvm;
/// chown root:kvm /dev/kvm`. Where the pod has no such group only the first one does anything.
/// `--group` means nothing to it.
fn libvirt_sh(seen: &Observation, now: &DeviceState) -> Option<NextEvent> {
    if seen.pod.is_host {
        return None;
    }
    let mut node = now.clone();
    set_mode(&mut node, 0o660);
    if let Some(gid) = seen.pod.gid(CHARTS_GROUP) {
        node.facts.uid = Uid::from_raw(0);
        node.facts.gid = gid;
    }
    let what = "the next start of the chart's libvirt.sh".to_owned();
    Some(NextEvent {
        what,
        device: node,
        by_udev: false,
    })
}

/// chmod(2): with an ACL the mode's group bits become the mask.
fn set_mode(node: &mut DeviceState, mode: u16) {
    node.facts.mode = mode;
    node.acl = node.acl.take().map(|acl| acl.with_mode(mode));
}
