//! The rules of one file.

use std::borrow::Cow;

use super::known::always_jumps;
use super::rule::{Place, Rule, is_idle, rule};
use super::text::Lines;
use super::{Database, Notes, Udevd, about_kvm, systemd};

/// The rules of one file, as udevd keeps them, but for those that cannot matter to kvm.
pub(super) struct File<'a> {
    pub(super) rules: Vec<Rule<'a>>,
    /// Whether `GOTO`s lead anywhere: they are linked after the last line was read.
    pub(super) linked: bool,
}

/// A `GOTO` that every event of kvm follows, as far as is known before its label is found.
struct Jump<'a> {
    to: Option<Cow<'a, [u8]>>,
    /// Whether no label was found yet: what lies before the first one is out of reach, also for
    /// whatever jumped over this `GOTO` itself.
    skips: bool,
    /// Where to go on if the label is nowhere, and the number of rules up to there.
    after: usize,
    rules: usize,
}

/// Reads the rules, and notes those about kvm that udevd drops.
pub(super) fn read<'a>(
    file: &'a str,
    lines: &'a Lines<'_>,
    node: &Udevd,
    db: &Database<'_>,
    notes: &mut Notes,
) -> File<'a> {
    let at = |line: usize| Place { file, line };
    for (number, line, why) in &lines.broken {
        if about_kvm(line) {
            notes.ignore(at(*number), why);
        }
    }
    let linked = lines.given_up.is_none();
    let mut rules: Vec<Rule<'_>> = Vec::new();
    let mut room = Vec::new();
    // Most rules of a stock file are for other devices, behind one GOTO. They are not even parsed.
    let mut jump: Option<Jump<'_>> = None;
    let mut jumps = linked;
    let mut next = 0;
    loop {
        let Some((number, line)) = lines.rules.get(next) else {
            // A GOTO to nowhere goes on with the next line.
            let Some(jump) = jump.take() else {
                break;
            };
            jumps = false;
            next = jump.after;
            rules.truncate(jump.rules);
            continue;
        };
        next += 1;
        if jump.as_ref().is_some_and(|jump| jump.skips) && is_idle(line) {
            continue;
        }
        let rule = match rule(at(*number), line, &mut room, node, db) {
            Ok(Some(rule)) => rule,
            Ok(None) => continue,
            Err(why) => {
                if about_kvm(line) {
                    notes.ignore(at(*number), &why);
                }
                continue;
            }
        };
        if rule.label.is_some() && rule.dropped.is_none() {
            jump = jump.filter(|jump| jump.to != rule.label);
            if let Some(jump) = &mut jump {
                jump.skips = false;
            }
        }
        if jumps && jump.is_none() && always_jumps(&rule) {
            jump = Some(Jump {
                to: rule.goto.clone(),
                skips: true,
                after: next,
                rules: rules.len() + 1,
            });
        }
        rules.push(rule);
    }
    if let Some(number) = lines.given_up {
        let why = "longer than 16384 bytes, which ends the reading of this file";
        notes.ignore(at(number), why);
        if !systemd::keeps_what_was_read(node) {
            for rule in &mut rules {
                let why = format!("line {number} is too long, and what is kept differs by version");
                rule.doubt.get_or_insert(why);
            }
        }
    }
    File { rules, linked }
}
