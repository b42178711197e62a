//! The GIDs that the node's udev events set on the device, and warnings about the node's rules.

use nix::unistd::Gid;

use crate::codes::{Warning, WarningCode};
use crate::config::is_id;
use crate::formats::udev::{Event, Predictions};

pub const EVENTS: [(Event, &str); 3] = [
    (Event::Start, "when udevd starts"),
    (Event::Add, "at an add event"),
    (Event::Change, "at a change event"),
];

/// The GIDs other than the target that events of the node set on the device.
pub fn other_gids(udev: Option<&Predictions>, target: Gid) -> Vec<Gid> {
    let mut gids = Vec::new();
    for (event, _) in EVENTS {
        let outcome = udev.and_then(|udev| udev.of(event).outcome());
        let gid = outcome.and_then(|outcome| outcome.gid);
        if let Some(gid) = gid.filter(|gid| is_id(gid.as_raw()) && *gid != target)
            && !gids.contains(&gid)
        {
            gids.push(gid);
        }
    }
    gids
}

/// Whether an event of the node sets the device's GID to 0, which is never valid for KVM.
pub fn sets_root_group(udev: Option<&Predictions>) -> bool {
    let gid_after = |event: Event| udev.and_then(|udev| udev.of(event).outcome()?.gid);
    let root = Some(Gid::from_raw(0));
    EVENTS.iter().any(|(event, _)| gid_after(*event) == root)
}

/// Warnings about rules that udevd ignores, rules whose effect is unknown, and events that set different GIDs.
pub fn warnings(udev: Option<&Predictions>, target: Option<Gid>) -> Vec<Warning> {
    let Some(udev) = udev else {
        return Vec::new();
    };
    let diagnostics = |code, problem: &str, list: &[crate::formats::udev::Diagnostic]| {
        let warning = |diagnostic: &crate::formats::udev::Diagnostic| {
            Warning::new(
                code,
                format!(
                    "the node's {} {problem}: {}",
                    diagnostic.rule, diagnostic.why
                ),
            )
        };
        list.iter().map(warning).collect::<Vec<_>>()
    };
    let mut warnings = diagnostics(
        WarningCode::UdevIgnored,
        "is ignored by udevd",
        &udev.ignored,
    );
    warnings.extend(diagnostics(
        WarningCode::UdevUnclear,
        "has an unknown effect on the device",
        &udev.unclear,
    ));
    if let Some(target) = target
        && !other_gids(Some(udev), target).is_empty()
    {
        let gids = EVENTS.iter().filter_map(|(event, when)| {
            let outcome = udev.of(*event).outcome()?;
            Some(format!("{} {when} ({})", outcome.gid?, outcome.rule))
        });
        let gids: Vec<_> = gids.collect();
        let text = format!(
            "the node's udev sets different GIDs on the device: {}; the QEMU user is added to a group for \
             each of them, except a guarded one; run `libvirt-kvm-init apply --persist` to write a rule \
             that sets the same GID at every event",
            gids.join(", ")
        );
        warnings.push(Warning::new(WarningCode::UdevEventsDiffer, text));
    }
    warnings
}
