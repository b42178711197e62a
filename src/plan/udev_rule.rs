//! `--persist`: plans the rule with which the node's udev sets the target GID and mode at every event.
//!
//! It is written only if udev would otherwise set something else. A rule that another one overrides, or that the node's
//! udevd ignores, would not help and is refused.

use nix::unistd::Gid;

use super::context::Context;
use super::safety::is_private;
use super::udev_events::EVENTS;
use super::{Refusal, RuleStep};
use crate::formats::udev::own_rule::{self, OwnRule};
use crate::formats::udev::{Event, Outcome, Prediction, Predictions};
use crate::observe::Host;
use crate::observe::udev_files::{Existing, RuleDirectory};

#[derive(Debug)]
pub struct Planned {
    pub step: RuleStep,
    /// The predicted effect of the node's events on the device once the rule is written.
    pub after: Predictions,
}

/// The group and mode that the device must have after every event; its owner must be 0.
#[derive(Debug, Clone, Copy)]
struct Want {
    gid: Gid,
    /// The exact mode; without one, at least 0660.
    exact: Option<u16>,
}

/// The rule to write, if `--persist` is set and udev would undo the state without it.
///
/// # Errors
/// A refusal if the node's file system cannot be read, the rule cannot be written, or it would have no effect.
pub fn planned(context: &Context<'_>, target: Gid) -> Result<Option<Planned>, Refusal> {
    let Context { seen, policy, .. } = context;
    let no = |text: String| Refusal {
        text: format!("--persist: {text}"),
        cause: None,
    };
    // udev sets the node's device, not that of a container's private /dev.
    if !policy.persist || is_private(seen) {
        return Ok(None);
    }
    let Some(host) = &seen.host else {
        let text = "cannot write the node's udev rule, because this container cannot read the node's \
                    file system: mount it at /mnt/host-rootfs, or set --host-root";
        return Err(no(text.to_owned()));
    };
    let want = Want {
        gid: target,
        exact: policy.mode,
    };
    if want.undone_by(&host.udev).is_none() {
        return Ok(None);
    }
    let own_rule = OwnRule {
        gid: target,
        mode: policy.mode.unwrap_or_else(|| usual_mode(host)),
    };
    let file = own_rule.file();
    let after = host.with_own(&file);
    if let Some((event, when)) = want.undone_by(&after) {
        return Err(no(why_not(host, own_rule, &after, event, when, &want)));
    }
    let from = free_slot(host).map_err(no)?;
    let step = RuleStep {
        root: host.root.clone(),
        from,
        content: file.content,
    };
    Ok(Some(Planned { step, after }))
}

impl Want {
    /// The first event after which the device differs from this, or may differ.
    fn undone_by(&self, udev: &Predictions) -> Option<(Event, &'static str)> {
        EVENTS
            .into_iter()
            .find(|(event, _)| !self.holds(*event, udev.of(*event)))
    }

    fn holds(&self, event: Event, prediction: &Prediction) -> bool {
        match prediction {
            Prediction::Unclear => false,
            // devtmpfs creates the device as 0:0 0600 before the add event.
            Prediction::Untouched => event != Event::Add,
            Prediction::Becomes(outcome) => {
                let (uid, gid, mode) = self.left_by(event, outcome);
                uid == 0 && gid == self.gid.as_raw() && self.accepts(mode)
            }
        }
    }

    fn accepts(&self, mode: u16) -> bool {
        match self.exact {
            Some(exact) => mode == exact,
            None => mode & 0o660 == 0o660,
        }
    }

    /// Owner, group and mode after an event. Before an add event the device is new (0:0 0600), before any other event
    /// it already has the wanted group and mode.
    fn left_by(&self, event: Event, outcome: &Outcome) -> (u32, u32, u16) {
        let (gid, mode) = match event {
            Event::Add => (0, 0o600),
            Event::Start | Event::Change => (self.gid.as_raw(), self.exact.unwrap_or(0o660)),
        };
        (
            outcome.uid.map_or(0, |uid| uid.as_raw()),
            outcome.gid.map_or(gid, |gid| gid.as_raw()),
            outcome.mode.unwrap_or(mode),
        )
    }
}

/// The mode of the rule without `--mode`: 0660, and the bits that the node's rules set for others. The device's current
/// mode is not used, because the chart's libvirt.sh sets 0660 regardless of the node.
fn usual_mode(host: &Host) -> u16 {
    let rules = host.others.as_ref().unwrap_or(&host.udev);
    let mode = rules.add.outcome().and_then(|outcome| outcome.mode);
    (mode.unwrap_or_default() & 0o666) | 0o660
}

/// Why the rule would have no effect, and what to do.
fn why_not(
    host: &Host,
    own_rule: OwnRule,
    after: &Predictions,
    event: Event,
    when: &str,
    want: &Want,
) -> String {
    let is_own = |rule: &str| rule.starts_with(own_rule::PATH);
    let max = host.udevd.system_gid_max;
    let next_step =
        format!("change the GID of the node's group to one from 1 to {max}, or set one with --gid");
    if after
        .ignored
        .iter()
        .any(|diagnostic| is_own(&diagnostic.rule))
    {
        let version = host.udevd.version.map(|version| format!(" {version}"));
        return format!(
            "the node's systemd{} ignores every rule with GID {}, because it is outside the range of \
             system GIDs: {next_step}",
            version.unwrap_or_default(),
            own_rule.gid
        );
    }
    if after
        .unclear
        .iter()
        .any(|diagnostic| is_own(&diagnostic.rule))
        && own_rule.gid.as_raw() > max
    {
        return format!(
            "cannot determine the node's systemd version, and versions 258 and 259 ignore every rule \
             with GID {}: mount the node's usr/lib as well, or {next_step}",
            own_rule.gid
        );
    }
    match after.of(event) {
        Prediction::Becomes(outcome) => {
            let by = overridden_by(own_rule, event, outcome, want);
            format!(
                "the rule would be overridden, because {when} the node's {by}; change that rule, or move it to a \
                 file whose name sorts before {} and replace its := with =",
                own_rule::NAME
            )
        }
        Prediction::Untouched | Prediction::Unclear => {
            let first = after.unclear.first();
            let first = first.map(|diagnostic| format!("{}: {}", diagnostic.rule, diagnostic.why));
            format!(
                "the rule may be overridden, because the effect of the node's rules {when} is unknown \
                 ({}); change that rule on the node",
                first.as_deref().unwrap_or("unknown rule")
            )
        }
    }
}

/// The node's rule that overrides the written one, and the owner, group and mode that it sets.
fn overridden_by(own_rule: OwnRule, event: Event, outcome: &Outcome, want: &Want) -> String {
    let (uid, gid, mode) = want.left_by(event, outcome);
    let by = if gid != own_rule.gid.as_raw() {
        Some(&outcome.rule)
    } else if uid != 0 {
        outcome.owner_rule.as_ref()
    } else {
        outcome.mode_rule.as_ref()
    };
    let by = by.map_or("rules", String::as_str);
    format!("{by} would still set the device to {uid}:{gid} {mode:04o}")
}

/// Checks that the rule file can be written, and returns what an existing one sets.
fn free_slot(host: &Host) -> Result<Option<String>, String> {
    let Some(slot) = &host.slot else {
        return Ok(None);
    };
    let directory = host.root.join(own_rule::DIRECTORY);
    let directory = directory.display();
    match (slot.directory, &slot.existing) {
        (RuleDirectory::ReadOnly, _) => Err(format!(
            "cannot write {}, because {directory} is read-only here: mount the node's /{}, and nothing \
             else, writable there, or run the command on the node",
            own_rule::PATH,
            own_rule::DIRECTORY
        )),
        (RuleDirectory::Missing, _) => Err(format!(
            "neither {directory} nor its parent directory exists, so no udevd would read a rule there: if \
             the node has udev, create the directory on the node (`mkdir -p /{}`)",
            own_rule::DIRECTORY
        )),
        (RuleDirectory::Writable, Existing::Other(what)) => Err(format!(
            "{directory}/{} is {what}, and is not overwritten: remove it and run the command again",
            own_rule::NAME
        )),
        (RuleDirectory::Writable, Existing::Nothing) => Ok(None),
        (RuleDirectory::Writable, Existing::Own(content)) => Ok(Some(match OwnRule::of(content) {
            Some(OwnRule { gid, mode }) => format!("0:{gid} {mode:04o}"),
            None => "other content".to_owned(),
        })),
    }
}
