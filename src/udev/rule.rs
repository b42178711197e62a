//! What a line of rules means, or why udevd drops it.

use std::borrow::Cow;
use std::fmt;

use nix::unistd::{Gid, Uid};

use super::key::Key;
use super::known::never;
use super::pair::{Op, Pair, pairs};
use super::pattern::Pattern;
use super::text::{is_blank, trim};
use super::value::{Bits, Who, group, integer, mode, octal, owner};
use super::{Database, Udevd, systemd};
use memchr::arch::all::memchr::Three;

/// One part of a rule. udevd sorts them by kind, comparisons first; so does [`Token::rank`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Action(Pattern<'a>),
    Devpath(Pattern<'a>),
    Kernel(Pattern<'a>),
    Devlink(Pattern<'a>),
    Name(Pattern<'a>),
    Env(&'a [u8], Pattern<'a>),
    Tag(Pattern<'a>),
    Subsystem(Pattern<'a>),
    Driver(Pattern<'a>),
    Attr(&'a [u8], Pattern<'a>),
    /// A comparison with what only the node knows.
    Elsewhere(&'static str),
    /// Something is run, and its output or exit code counts.
    Program,
    /// Properties come from somewhere: this one, or any.
    Import(&'static str, Option<Cow<'a, [u8]>>),
    /// A property of the parent device; kvm has none.
    ImportParent(Op),
    Result(Pattern<'a>),
    Owner(Op, Who<Uid>),
    Group(Op, Who<Gid>),
    Mode(Op, Bits),
    AddTag(Op, Cow<'a, [u8]>),
    /// Whether it is kvm's.
    StaticNode(bool),
    SetEnv(Op, &'a [u8], Cow<'a, [u8]>),
    AddLink,
    Run(Op, Cow<'a, [u8]>),
}

/// File and line of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) file: &'a str,
    pub(super) line: usize,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.file, self.line)
    }
}

/// A line of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    pub(super) at: Place<'a>,
    /// Sorted.
    pub(super) tokens: Vec<Token<'a>>,
    pub(super) label: Option<Cow<'a, [u8]>>,
    pub(super) goto: Option<Cow<'a, [u8]>>,
    /// Why udevd drops the rule although it understands it.
    pub(super) dropped: Option<String>,
    /// Why it is not known whether udevd takes the rule.
    pub(super) doubt: Option<String>,
}

impl Token<'_> {
    fn rank(&self) -> u8 {
        match self {
            Self::Action(_) => 0,
            Self::Devpath(_) => 1,
            Self::Kernel(_) => 2,
            Self::Devlink(_) => 3,
            Self::Name(_) => 4,
            Self::Env(..) => 5,
            Self::Tag(_) => 6,
            Self::Subsystem(_) => 7,
            Self::Driver(_) => 8,
            Self::Attr(..) => 9,
            Self::Elsewhere(_) => 10,
            Self::Program => 11,
            Self::Import("IMPORT{file}", _) => 12,
            Self::Import("IMPORT{program}", _) => 13,
            Self::Import("IMPORT{builtin}", _) => 14,
            Self::Import("IMPORT{db}", _) => 15,
            Self::Import(..) => 16,
            Self::ImportParent(_) => 17,
            Self::Result(_) => 18,
            // What still has to be worked out at the event goes before what is known.
            Self::Owner(_, Who::Open | Who::Late(_) | Who::UnknownLate(_)) => 19,
            Self::Group(_, Who::Open | Who::Late(_) | Who::UnknownLate(_)) => 20,
            Self::Mode(_, Bits::Open | Bits::Broken(_)) => 21,
            Self::Owner(..) => 22,
            Self::Group(..) => 23,
            Self::Mode(..) => 24,
            Self::AddTag(..) => 25,
            Self::StaticNode(_) => 26,
            Self::SetEnv(..) => 27,
            Self::AddLink => 28,
            Self::Run(..) => 29,
        }
    }
}

/// Reads one line, by way of `room`: nothing where it cannot matter to kvm, and an error is why udevd drops it.
pub(super) fn rule<'a>(
    at: Place<'a>,
    line: &'a [u8],
    room: &mut Vec<Pair<'a>>,
    node: &Udevd,
    db: &Database<'_>,
) -> Result<Option<Rule<'a>>, String> {
    if pairs(line, room, |pair| never(pair) && is_idle(line))? {
        return Ok(None);
    }
    let mut rule = Rule {
        at,
        tokens: Vec::with_capacity(room.len()),
        label: None,
        goto: None,
        dropped: None,
        doubt: None,
    };
    for pair in room.drain(..) {
        let written = pair.name;
        let key = pair.key.ok_or("no key that udev knows");
        key.and_then(|key| part(&mut rule, key, pair, node, db))
            .map_err(|why| format!("{}: {why}", String::from_utf8_lossy(written)))?;
    }
    rule.tokens.sort_by_key(Token::rank);
    Ok(Some(rule))
}

/// Whether a rule that no event of kvm comes to, or that compares what never holds before anything that
/// leaves a trace, does nothing at all, so that udevd may as well have dropped it: no `GOTO` leads to it,
/// and it says nothing to a static node.
pub(super) fn is_idle(line: &[u8]) -> bool {
    // The three words by a letter of theirs that few others have.
    let mut after = 0;
    while let Some(found) = line
        .get(after..)
        .and_then(|rest| Three::new(b'k', b'B', b'P').find(rest))
    {
        let at = after + found;
        let from = |back: usize| at.checked_sub(back).and_then(|start| line.get(start..));
        let starts = |back, word| from(back).is_some_and(|text: &[u8]| text.starts_with(word));
        if starts(0, &b"kvm"[..]) || starts(2, b"LABEL") || starts(1, b"OPTIONS") {
            return false;
        }
        after = at + 1;
    }
    true
}

type Parsed = Result<(), &'static str>;

const BAD_OP: &str = "not with this operator";
const BAD_ATTR: &str = "not with this in braces";

fn part<'a>(
    rule: &mut Rule<'a>,
    key: Key,
    pair: Pair<'a>,
    node: &Udevd,
    db: &Database<'_>,
) -> Parsed {
    let is_match = pair.op.is_match();
    if pair.any_case {
        rule.doubt(systemd::takes_any_case(node)?);
        if !is_match || matches!(key, Key::Test | Key::Program | Key::Import) {
            return Err("not with the prefix 'i'");
        }
    }
    check(key, &pair)?;
    let attr = pair.attr.unwrap_or_default();
    let token = match key {
        Key::Action => Token::Action(Pattern::new(&pair)),
        Key::Devpath => Token::Devpath(Pattern::new(&pair)),
        Key::Kernel | Key::Kernels => Token::Kernel(Pattern::new(&pair)),
        Key::Subsystem | Key::Subsystems => Token::Subsystem(Pattern::new(&pair)),
        Key::Driver | Key::Drivers => Token::Driver(Pattern::new(&pair)),
        Key::Attr | Key::Attrs if is_match => Token::Attr(attr, Pattern::new(&pair)),
        Key::Tag | Key::Tags if is_match => Token::Tag(Pattern::new(&pair)),
        Key::Env if is_match => Token::Env(attr, Pattern::new(&pair)),
        Key::Symlink if is_match => Token::Devlink(Pattern::new(&pair)),
        Key::Name if is_match => Token::Name(Pattern::new(&pair)),
        Key::Result => Token::Result(Pattern::new(&pair)),
        Key::Const => {
            if attr == b"cvm" {
                rule.doubt(systemd::has_cvm(node)?);
            }
            Token::Elsewhere("CONST")
        }
        Key::Sysctl if is_match => Token::Elsewhere("SYSCTL"),
        Key::Test => Token::Elsewhere("TEST"),
        Key::Program => Token::Program,
        Key::Import => import(attr, pair, node, rule)?,
        Key::Env => Token::SetEnv(pair.op, attr, pair.value),
        Key::Tag => Token::AddTag(pair.op, pair.value),
        Key::Symlink => {
            if pair.op == Op::Remove {
                rule.doubt(systemd::removes_links(node)?);
            }
            Token::AddLink
        }
        Key::Options => match option(&pair.value)? {
            Some(name) => Token::StaticNode(is_kvm(name)),
            None => return Ok(()),
        },
        Key::Owner => Token::Owner(pair.op, owner(rule, &pair.value, node, db)),
        Key::Group => Token::Group(pair.op, group(rule, &pair.value, node, db)),
        Key::Mode => Token::Mode(pair.op, mode(&pair.value)),
        Key::Run if attr == b"builtin" => {
            builtin(&pair.value, node, rule)?;
            return Ok(());
        }
        Key::Run => Token::Run(pair.op, pair.value),
        Key::Goto => {
            rule.goto.get_or_insert(pair.value);
            return Ok(());
        }
        Key::Label => {
            rule.label = Some(pair.value);
            return Ok(());
        }
        // NAME, ATTR, SYSCTL, SECLABEL: accepted, and without effect on owner, group and mode.
        _ => return Ok(()),
    };
    rule.tokens.push(token);
    Ok(())
}

/// Which keys there are, and what goes with them.
fn check(key: Key, pair: &Pair<'_>) -> Parsed {
    let attr = pair.attr;
    let is_match = pair.op.is_match();
    let removes = pair.op == Op::Remove;
    let (attr_ok, op_ok) = match key {
        Key::Action
        | Key::Devpath
        | Key::Kernel
        | Key::Subsystem
        | Key::Driver
        | Key::Kernels
        | Key::Subsystems
        | Key::Drivers
        | Key::Tags
        | Key::Result => (attr.is_none(), is_match),
        Key::Symlink | Key::Tag => (attr.is_none(), true),
        Key::Name => {
            if !is_match && (pair.value.is_empty() || *pair.value == *b"%k") {
                return Err("such a name is refused");
            }
            (attr.is_none(), !removes)
        }
        Key::Env => {
            if !is_match && attr.is_some_and(systemd::is_fixed_property) {
                return Err("this property cannot be set");
            }
            (attr.is_some_and(|attr| !attr.is_empty()), !removes)
        }
        Key::Const => (matches!(attr, Some(b"arch" | b"virt" | b"cvm")), is_match),
        Key::Attr | Key::Sysctl => (attr.is_some_and(|attr| !attr.is_empty()), !removes),
        Key::Attrs => (attr.is_some_and(|attr| !attr.is_empty()), is_match),
        Key::Test => {
            let mode = attr.filter(|attr| !attr.is_empty());
            (mode.is_none_or(|mode| octal(mode).is_some()), is_match)
        }
        Key::Program => (attr.is_none(), !removes),
        Key::Import => (attr.is_some_and(|attr| !attr.is_empty()), !removes),
        Key::Options | Key::Owner | Key::Group | Key::Mode => {
            (attr.is_none(), !is_match && !removes)
        }
        Key::Seclabel => (
            attr.is_some_and(|attr| !attr.is_empty()),
            !is_match && !removes,
        ),
        Key::Run => (
            matches!(attr, None | Some(b"program" | b"builtin")),
            !is_match && !removes,
        ),
        Key::Goto | Key::Label => (attr.is_none(), pair.op == Op::Assign),
    };
    match (attr_ok, op_ok) {
        (false, _) => Err(BAD_ATTR),
        (_, false) => Err(BAD_OP),
        (true, true) => Ok(()),
    }
}

impl Rule<'_> {
    /// Whether it sets anything, or asks for something that leaves a trace.
    pub(super) fn does_something(&self) -> bool {
        let does = |token: &Token<'_>| {
            matches!(
                token,
                Token::Program
                    | Token::Import(..)
                    | Token::ImportParent(_)
                    | Token::Owner(..)
                    | Token::Group(..)
                    | Token::Mode(..)
                    | Token::AddTag(..)
                    | Token::SetEnv(..)
                    | Token::AddLink
                    | Token::Run(..)
            )
        };
        self.tokens.iter().any(does)
    }

    /// Notes why it is not known whether udevd takes the rule, the first reason only.
    pub(super) fn doubt(&mut self, why: Option<&str>) {
        if let Some(why) = why {
            self.doubt.get_or_insert_with(|| why.to_owned());
        }
    }
}

fn import<'a>(
    attr: &[u8],
    pair: Pair<'a>,
    node: &Udevd,
    rule: &mut Rule<'_>,
) -> Result<Token<'a>, &'static str> {
    Ok(match attr {
        b"file" => Token::Import("IMPORT{file}", None),
        b"program" => Token::Import("IMPORT{program}", None),
        b"builtin" => {
            builtin(&pair.value, node, rule)?;
            Token::Import("IMPORT{builtin}", None)
        }
        b"db" => Token::Import("IMPORT{db}", Some(pair.value)),
        b"cmdline" => Token::Import("IMPORT{cmdline}", Some(pair.value)),
        b"parent" => Token::ImportParent(pair.op),
        _ => return Err(BAD_ATTR),
    })
}

fn builtin(command: &[u8], node: &Udevd, rule: &mut Rule<'_>) -> Parsed {
    let name = trim(command).split(|byte| is_blank(*byte)).next();
    rule.doubt(systemd::has_builtin(node, name.unwrap_or_default())?);
    Ok(())
}

/// The name of the static node, of an option that has one.
fn option(value: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    if let Some(priority) = text.strip_prefix("link_priority=") {
        integer(priority).ok_or("no number for link_priority")?;
    }
    if let Some(level) = text.strip_prefix("log_level=") {
        let names = [
            "reset", "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug", "null",
        ];
        let known = names.contains(&level) || integer(level).is_some_and(|n| (0..8).contains(&n));
        known.then_some(()).ok_or("no level for log_level")?;
    }
    Ok(value.strip_prefix(b"static_node="))
}

/// Whether a static node's name below /dev leads to kvm, through no folder but /dev itself. Behind a slash
/// at its end there would have to be a folder.
fn is_kvm(name: &[u8]) -> bool {
    let mut parts = name.split(|byte| *byte == b'/');
    let last = parts.next_back();
    let mut above = false;
    let stays = parts.all(|part| match part {
        b"" | b"." => true,
        b".." => !std::mem::replace(&mut above, true),
        b"dev" => std::mem::replace(&mut above, false),
        _ => false,
    });
    last == Some(b"kvm") && stays && !above
}
