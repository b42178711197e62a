//! Predicts how the next events change the device. Pure.
//!
//! A working state can break at the next event: the node's udev sets the node's GID for kvm on the device, and
//! the chart's libvirt.sh sets the pod's GID at the next container start.
#![forbid(unsafe_code)]

use nix::unistd::{Gid, Uid};

use crate::formats::udev::{Event, Outcome, Prediction};
use crate::observe::{DeviceState, Observation};
use crate::plan::is_private;

/// An event that will change the device.
#[derive(Debug, Clone)]
pub struct NextEvent {
    /// The event and its rule, for example `a udevd restart (/etc/udev/rules.d/99-kvm.rules:1)`.
    pub what: String,
    /// The device afterwards.
    pub device: DeviceState,
    /// Whether the node's udev causes it; false for the chart's libvirt.sh.
    pub by_udev: bool,
}

/// The group in the `chown` of the chart's libvirt.sh.
pub const CHARTS_GROUP: &str = "kvm";

/// All predictable events. With `unruled` they include a module reload after which the device keeps the kernel's
/// default 0:0 0600 because no rule matches it. Without `--persist` this event is not reported as drift, because
/// adding a rule is then up to the node's administrators.
pub fn next_events(seen: &Observation, unruled: bool) -> Vec<NextEvent> {
    let Some(now) = &seen.device else {
        return Vec::new();
    };
    // udev does not change the device in a container's private /dev.
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
        // kvm_uevent_notify_change (virt/kvm/kvm_main.c) sends one for each VM that is created or destroyed.
        (
            Event::Change,
            "a change event (udevadm trigger, or any guest start or stop)",
            false,
        ),
    ];
    let mut next: Vec<_> = events
        .into_iter()
        .filter_map(|(event, what, fresh)| {
            let outcome = udev?.of(event).outcome()?;
            let what = format!("{what} ({})", outcome.rule);
            Some(NextEvent {
                what,
                device: after(now, outcome, fresh),
                by_udev: true,
            })
        })
        .collect();
    if let Some(Prediction::Untouched) = udev.map(|udev| &udev.add).filter(|_| unruled) {
        next.push(NextEvent {
            what: "a module reload or reboot (no udev rule matches it)".to_owned(),
            device: fresh_device(now),
            by_udev: true,
        });
    }
    next.extend(libvirt_sh(seen, now));
    next
}

/// The device after an event, starting from a `fresh` one as the kernel creates it or from its present state.
fn after(now: &DeviceState, outcome: &Outcome, fresh: bool) -> DeviceState {
    let mut device = if fresh {
        fresh_device(now)
    } else {
        now.clone()
    };
    device.facts.uid = outcome.uid.unwrap_or(device.facts.uid);
    device.facts.gid = outcome.gid.unwrap_or(device.facts.gid);
    if let Some(mode) = outcome.mode {
        set_mode(&mut device, mode);
    }
    device
}

/// The device as the kernel creates it in devtmpfs: 0:0 0600.
fn fresh_device(now: &DeviceState) -> DeviceState {
    let mut device = now.clone();
    device.facts.uid = Uid::from_raw(0);
    device.facts.gid = Gid::from_raw(0);
    device.facts.mode = 0o600;
    device.acl = None;
    device
}

/// The chart's libvirt.sh runs `chmod 660 /dev/kvm; chown root:kvm /dev/kvm` in the pod at each container
/// start, regardless of `--group`. If the pod has no group kvm, chown(1) fails and only the mode changes.
fn libvirt_sh(seen: &Observation, now: &DeviceState) -> Option<NextEvent> {
    if seen.pod.is_host {
        return None;
    }
    let mut device = now.clone();
    set_mode(&mut device, 0o660);
    if let Some(gid) = seen.pod.gid(CHARTS_GROUP) {
        device.facts.uid = Uid::from_raw(0);
        device.facts.gid = gid;
    }
    Some(NextEvent {
        what: "the next start of the chart's libvirt.sh".to_owned(),
        device,
        by_udev: false,
    })
}

/// Sets the mode as chmod(2) does: with an ACL, the group bits become its mask entry.
fn set_mode(device: &mut DeviceState, mode: u16) {
    device.facts.mode = mode;
    device.acl = device.acl.take().map(|acl| acl.with_mode(mode));
}
