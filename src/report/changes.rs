//! Converts steps to the report's changes and to log lines.
#![forbid(unsafe_code)]

use super::Change;
use crate::codes::Action;
use crate::formats::accounts::edit;
use crate::formats::udev::own_rule;
use crate::plan::{GroupFile, Step};

/// The changes that a step consists of, not yet applied.
pub fn changes(step: &Step) -> Vec<Change> {
    let change = |action, from: Option<String>, to: String| Change {
        action,
        from,
        to,
        applied: false,
    };
    match step {
        Step::GroupFile(step) => {
            let one = |line: &edit::Change| match line {
                edit::Change::SetGid { from, to } => {
                    change(Action::SetGroupGid, Some(from.to_string()), to.to_string())
                }
                edit::Change::AddGroup { gid } => change(Action::AddGroup, None, gid.to_string()),
                edit::Change::AddMember { user } => {
                    let user = String::from_utf8_lossy(user).into_owned();
                    change(Action::AddMember, None, user)
                }
            };
            let lines: Vec<_> = step.changes.iter().map(one).collect();
            match &step.file {
                GroupFile::Out { path, .. } if lines.is_empty() => {
                    let path = path.display().to_string();
                    vec![change(Action::WriteGroupFile, None, path)]
                }
                _ => lines,
            }
        }
        Step::UdevRule(step) => {
            let to = own_rule::PATH.to_owned();
            vec![change(Action::WriteUdevRule, step.from.clone(), to)]
        }
        Step::Owner { from, to } => {
            let (from, to) = (
                format!("{}:{}", from.0, from.1),
                format!("{}:{}", to.0, to.1),
            );
            vec![change(Action::SetDeviceOwner, Some(from), to)]
        }
        Step::Mode { from, to } => {
            let (from, to) = (format!("{from:04o}"), format!("{to:04o}"));
            vec![change(Action::SetDeviceMode, Some(from), to)]
        }
        Step::Acl { from, to } => {
            let (from, to) = (from.to_string(), to.to_string());
            vec![change(Action::SetDeviceAcl, Some(from), to)]
        }
    }
}

/// One line for the log.
pub fn line(step: &Step) -> String {
    let lines = changes(step).into_iter().map(|change| change.to_string());
    lines.collect::<Vec<_>>().join(", ")
}

/// A log line about the effect of a step, if its effect is delayed.
pub fn note(step: &Step) -> Option<&'static str> {
    // Before it handles an event, udevd checks whether a rules directory changed, at most once in 3 s (observed
    // with systemd 252).
    matches!(step, Step::UdevRule(_)).then_some(
        "udevd applies the rule after at most 3 s; `udevadm control --reload` is not needed",
    )
}
