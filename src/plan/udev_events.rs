//! What the node's udev events mean for the plan: other numbers, and what is odd about its rules.

use nix::unistd::Gid;

use crate::codes::{Warning, WarningCode};
use crate::config::is_id;
use crate::formats::udev::{Event, Predictions};

pub const EVENTS: [(Event, &str); 3] = [
    (Event::Start, "when udevd starts"),
    (Event::Add, "at an add event"),
    (Event::Change, "at a change event"),
];

/// The numbers other than the target that some event of the node gives the device.
pub fn other_gids(udev: Option<&Predictions>, target: Gid) -> Vec<Gid> {
    let mut found = Vec::new();
    for (event, _) in EVENTS {
        let outcome = udev.and_then(|udev| udev.of(event).outcome());
        let gid = outcome.and_then(|outcome| outcome.gid);
        if let Some(gid) = gid.filter(|gid| is_id(gid.as_raw()) && *gid != target)
            && !found.contains(&gid)
        {
            found.push(gid);
        }
    }
    found
}

/// Whether some event of the node gives the device to root's own group, which is never a GID for KVM.
pub fn gives_to_root(udev: Option<&Predictions>) -> bool {
    let gives = |event: Event| udev.and_then(|udev| udev.of(event).outcome()?.gid);
    let root = Some(Gid::from_raw(0));
    EVENTS.iter().any(|(event, _)| gives(*event) == root)
}

/// What is odd about the node's rules, and where its events disagree.
pub fn warnings(udev: Option<&Predictions>, target: Option<Gid>) -> Vec<Warning> {
    let Some(udev) = udev else {
        return Vec::new();
    };
    let diagnostic = |code, verb: &str, list: &[crate::formats::udev::Diagnostic]| {
        let warning = |diagnostic: &crate::formats::udev::Diagnostic| {
            Warning::new(
                code,
                format!("the node's {} {verb}: {}", diagnostic.rule, diagnostic.why),
            )
        };
        list.iter().map(warning).collect::<Vec<_>>()
    };
    let mut found = diagnostic(
        WarningCode::UdevIgnored,
        "is ignored by its udevd",
        &udev.ignored,
    );
    found.extend(diagnostic(
        WarningCode::UdevUnclear,
        "cannot be followed",
        &udev.unclear,
    ));
    if let Some(target) = target
        && !other_gids(Some(udev), target).is_empty()
    {
        let says = EVENTS.iter().filter_map(|(event, when)| {
            let outcome = udev.of(*event).outcome()?;
            Some(format!("{} {when} ({})", outcome.gid?, outcome.rule))
        });
        let says: Vec<_> = says.collect();
        let text = format!(
            "the node's udev gives the device different groups: {}; the QEMU user is made a member \
             for each that it may have; `apply --persist` writes a rule that makes the node agree \
             with itself",
            says.join(", ")
        );
        found.push(Warning::new(WarningCode::UdevEventsDiffer, text));
    }
    found
}
