//! The rules of one file.

use std::borrow::Cow;

use bumpalo::Bump;

use super::known::always_jumps;
use super::rule::{Place, Rule, Token, is_idle, rule};
use super::text::{Found, Lines, given_up};
use super::{Database, Notes, RuleFile, Udevd, about_kvm, systemd};

/// Keeps the text of rules that is put together from several lines. Bytes, for there may be very many.
pub(super) type Kept = Bump;

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
    after: Lines<'a>,
    rules: usize,
}

/// How much memory the rules of all files may take that matter to kvm: those of a node are thousands at most,
/// and this is room for some ten thousand. A rule takes up to twenty times the memory of its text.
pub(super) const MOST_HELD: usize = 12 << 20;

/// Reads the rules, as far as there is room for them, and notes those about kvm that udevd drops.
pub(super) fn read<'a>(
    file: &'a RuleFile,
    kept: &'a Kept,
    node: &Udevd,
    db: &Database<'_>,
    notes: &mut Notes,
) -> File<'a> {
    let at = |line| Place {
        file: &file.path,
        line,
    };
    let given_up = given_up(&file.content);
    let linked = given_up.is_none();
    let mut rules: Vec<Rule<'_>> = Vec::new();
    let mut room = Vec::new();
    // Most rules of a stock file are for other devices, behind one GOTO. They are not even parsed.
    let mut jump: Option<Jump<'_>> = None;
    let mut jumps = linked;
    let mut lines = Lines::new(&file.content);
    loop {
        let Some((number, found)) = lines.next() else {
            // A GOTO to nowhere goes on with the next line.
            let Some(jump) = jump.take() else {
                break;
            };
            jumps = false;
            lines = jump.after;
            rules.truncate(jump.rules);
            continue;
        };
        let line = match found {
            Found::Rule(line) => line,
            Found::Broken(line, why) => {
                if about_kvm(&line) {
                    notes.ignore(at(number), why);
                }
                continue;
            }
        };
        if jump.as_ref().is_some_and(|jump| jump.skips) && is_idle(&line) {
            continue;
        }
        let line = match line {
            Cow::Borrowed(line) => line,
            Cow::Owned(line) => kept.alloc_slice_copy(&line),
        };
        let rule = match rule(at(number), line, &mut room, node, db) {
            Ok(Some(rule)) => rule,
            Ok(None) => continue,
            Err(why) => {
                if about_kvm(line) {
                    notes.ignore(at(number), &why);
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
                after: lines,
                rules: rules.len() + 1,
            });
        }
        notes.held += size_of::<Rule<'_>>() + rule.tokens.capacity() * size_of::<Token<'_>>();
        rules.push(rule);
        if notes.held > MOST_HELD {
            break;
        }
    }
    if let Some(number) = given_up {
        let why = "longer than 16384 bytes, which ends the reading of this file";
        notes.ignore(at(number), why);
        if !systemd::keeps_what_was_read(node) {
            for rule in &mut rules {
                let why = format!("line {number} is too long, and what is kept differs by version");
                rule.doubt.get_or_insert(why);
            }
        }
    }
    // What is left of most files only leads from one rule to another.
    if !rules.iter().any(Rule::does_something) {
        rules = Vec::new();
    }
    File { rules, linked }
}
