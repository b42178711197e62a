//! `--persist`: the rule that makes the node's own udev give the device what it is to have.
//!
//! It is written only where udev would do something else, and only where it then has the last word:
//! a rule that another one outvotes, or that the node's udevd drops, would be one more voice in the
//! quarrel that it shall end.

use nix::unistd::Gid;

use super::context::Context;
use super::safety::is_private;
use super::udev_events::EVENTS;
use super::{Refusal, RuleStep};
use crate::formats::udev::own_rule::{self, OwnRule};
use crate::formats::udev::{Event, Outcome, Prediction, Predictions};
use crate::observe::Host;
use crate::observe::udev_files::{Existing, RuleDirectory};

/// A rule that is to be written.
#[derive(Debug)]
pub struct Planned {
    /// The step.
    pub step: RuleStep,
    /// What udev will do then.
    pub after: Predictions,
}

/// What every event is to leave behind: owner 0 and these.
#[derive(Debug, Clone, Copy)]
struct Want {
    gid: Gid,
    /// The exact mode; at least 0660 without one.
    exact: Option<u16>,
}

/// The rule, where `--persist` asks for one and udev would undo the state without it.
///
/// # Errors
/// The refusal: no node is seen, its directory is read-only, or the rule would not decide.
pub fn planned(context: &Context<'_>, target: Gid) -> Result<Option<Planned>, Refusal> {
    let Context { seen, policy, .. } = context;
    let no = |text: String| Refusal {
        text: format!("--persist: {text}"),
        cause: None,
    };
    // udev looks after the node's device, not after one that a container has for itself.
    if !policy.persist || is_private(seen) {
        return Ok(None);
    }
    let Some(host) = &seen.host else {
        let text = "the rule belongs on the node, and this container does not see the node's file \
                    system: mount it at /mnt/host-rootfs, or give --host-root";
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
    /// The first event that leaves the device otherwise, or may.
    fn undone_by(&self, udev: &Predictions) -> Option<(Event, &'static str)> {
        EVENTS
            .into_iter()
            .find(|(event, _)| !self.holds(*event, udev.of(*event)))
    }

    fn holds(&self, event: Event, forecast: &Prediction) -> bool {
        match forecast {
            Prediction::Unclear => false,
            // The kernel makes a node 0:0 0600, and announces it.
            Prediction::Untouched => event != Event::Add,
            Prediction::Becomes(outcome) => {
                let (uid, gid, mode) = self.left_by(event, outcome);
                uid == 0 && gid == self.gid.as_raw() && self.takes(mode)
            }
        }
    }

    fn takes(&self, mode: u16) -> bool {
        match self.exact {
            Some(exact) => mode == exact,
            None => mode & 0o660 == 0o660,
        }
    }

    /// Owner, group and mode after an event: of a fresh node at an add event, else of one that is as
    /// it shall be.
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

/// What the node's own rules give to others stays theirs. The device's present mode says nothing: the
/// chart's libvirt.sh sets 0660 whatever the node does.
fn usual_mode(host: &Host) -> u16 {
    let rules = host.others.as_ref().unwrap_or(&host.udev);
    let mode = rules.add.outcome().and_then(|outcome| outcome.mode);
    (mode.unwrap_or_default() & 0o666) | 0o660
}

/// Why the rule would not do.
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
    let range = format!("a number from 1 to {max} works");
    let name_it = "give the node's group such a number, or name one with --gid";
    if after
        .ignored
        .iter()
        .any(|diagnostic| is_own(&diagnostic.rule))
    {
        let version = host.udevd.version.map(|version| format!(" {version}"));
        return format!(
            "the node's systemd{} drops every rule with the number {}, which is outside of the \
             system's range: {range}; {name_it}",
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
            "which systemd the node has is not seen, and 258 and 259 drop every rule with the \
             number {}: mount the node's usr/lib as well, or {name_it}: {range} with all of them",
            own_rule.gid
        );
    }
    match after.of(event) {
        Prediction::Becomes(outcome) => {
            let by = outvoted(own_rule, event, outcome, want);
            format!(
                "a rule of this program would not have the last word: {when} the node's {by}; change \
                 that rule, or have it in a file whose name sorts before {} and without :=",
                own_rule::NAME
            )
        }
        Prediction::Untouched | Prediction::Unclear => {
            let first = after.unclear.first();
            let first = first.map(|diagnostic| format!("{}: {}", diagnostic.rule, diagnostic.why));
            format!(
                "what the device becomes {when} cannot be told from the node's rules, so a rule of \
                 this program may not decide it ({}); change that rule on the node",
                first.as_deref().unwrap_or("unknown")
            )
        }
    }
}

/// The rule that has the last word instead, and what it makes the device.
fn outvoted(own_rule: OwnRule, event: Event, outcome: &Outcome, want: &Want) -> String {
    let (uid, gid, mode) = want.left_by(event, outcome);
    let by = if gid != own_rule.gid.as_raw() {
        Some(&outcome.rule)
    } else if uid != 0 {
        outcome.owner_rule.as_ref()
    } else {
        outcome.mode_rule.as_ref()
    };
    let by = by.map_or("rules", String::as_str);
    format!("{by} would still make the device {uid}:{gid} {mode:04o}")
}

/// What the own file gives now, where it can be written.
fn free_slot(host: &Host) -> Result<Option<String>, String> {
    let Some(slot) = &host.slot else {
        return Ok(None);
    };
    let directory = host.root.join(own_rule::DIRECTORY);
    let directory = directory.display();
    match (slot.directory, &slot.existing) {
        (RuleDirectory::ReadOnly, _) => Err(format!(
            "{} is to be written, and {directory} is read-only here: mount the node's /{} there \
             writable, and nothing else of it; or run this on the node",
            own_rule::PATH,
            own_rule::DIRECTORY
        )),
        (RuleDirectory::Missing, _) => Err(format!(
            "{directory} does not exist, nor the directory above it, so nothing would read a rule there: \
             if the node has udev, make the directory on the node (`mkdir -p /{}`)",
            own_rule::DIRECTORY
        )),
        (RuleDirectory::Writable, Existing::Other(what)) => Err(format!(
            "{directory}/{} is {what}, and is left alone: remove it, and run this again",
            own_rule::NAME
        )),
        (RuleDirectory::Writable, Existing::Nothing) => Ok(None),
        (RuleDirectory::Writable, Existing::Own(content)) => Ok(Some(match OwnRule::of(content) {
            Some(OwnRule { gid, mode }) => format!("0:{gid} {mode:04o}"),
            None => "another text".to_owned(),
        })),
    }
}
