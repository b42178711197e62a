//! Processes a parsed rule as the node's udevd does when it reads the files: looks up names, and drops what
//! its version does not accept.

use std::borrow::Cow;

use nix::unistd::{Gid, Uid};

use super::assign::{Change, Field, Value};
use super::key::{Key, Op};
use super::location::Location;
use super::pair::Pair;
use super::rule::Rule;
use super::value::{id, is_id, is_kvm, is_open, octal};
use super::version::{Accepted, Udevd};

/// The names of the node's users and groups.
#[derive(Clone, Copy)]
pub struct Database<'a> {
    pub group: &'a dyn Fn(&str) -> Option<Gid>,
    pub user: &'a dyn Fn(&str) -> Option<Uid>,
    /// Whether all name sources of the node are readable, so that a name that is not found does not exist.
    pub complete: bool,
}

/// An assignment that can affect kvm.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Assignment<'a> {
    Permission(Field, Op, Value),
    Tag(Op, Cow<'a, [u8]>),
    Env(Op, Cow<'a, [u8]>, Cow<'a, [u8]>),
    Symlink,
    Run(Op, Cow<'a, [u8]>),
}

/// A rule after udevd has processed it.
pub(super) struct AcceptedRule<'a> {
    pub(super) at: Location<'a>,
    /// In udevd's order ([`Pair::order`]).
    pub(super) comparisons: Vec<Pair<'a>>,
    pub(super) assignments: Vec<Assignment<'a>>,
    /// Whether the rule has `static_node=kvm`.
    pub(super) is_static: bool,
    pub(super) label: Option<Cow<'a, [u8]>>,
    pub(super) goto: Option<Cow<'a, [u8]>>,
    /// The index, in its file, of the rule to which the `GOTO` jumps, if its label exists.
    pub(super) target: Option<usize>,
    /// Why udevd drops the rule although its syntax is valid.
    pub(super) dropped: Option<String>,
    /// Why it is unknown whether udevd accepts the rule.
    pub(super) doubt: Option<String>,
}

impl<'a> AcceptedRule<'a> {
    /// Processes the rule as `udevd` does.
    ///
    /// # Errors
    /// The reason, if `udevd` drops the rule because of its syntax.
    pub(super) fn new(rule: Rule<'a>, udevd: &Udevd, db: &Database<'_>) -> Result<Self, String> {
        let mut new = Self {
            at: rule.at,
            comparisons: rule.comparisons,
            assignments: Vec::with_capacity(rule.assignments.len()),
            is_static: false,
            label: rule.label,
            goto: rule.goto,
            target: None,
            dropped: None,
            doubt: None,
        };
        let mut doubt = None;
        for pair in new.comparisons.iter().chain(&rule.assignments) {
            match udevd.accepts(pair) {
                Accepted::Yes => {}
                Accepted::No(why) => return Err(format!("{}: {why}", pair.key.name())),
                Accepted::Unknown(why) => doubt = doubt.or(Some(why)),
            }
        }
        new.doubt = doubt.map(str::to_owned);
        for pair in rule.assignments {
            new.assign(pair, udevd, db);
        }
        // udevd handles the values that it determines only at the event before the known ones.
        new.assignments.sort_by_key(
            |assignment| !matches!(assignment, Assignment::Permission(.., value) if value.late),
        );
        Ok(new)
    }

    /// The memory that the rule takes, in bytes.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>()
            + self.comparisons.capacity() * size_of::<Pair<'_>>()
            + self.assignments.capacity() * size_of::<Assignment<'_>>()
    }

    /// Whether the rule does anything. udevd skips even the comparisons of a rule that does not.
    pub(super) fn has_effect(&self) -> bool {
        let has_side_effect = |pair: &Pair<'_>| matches!(pair.key, Key::Program | Key::Import);
        self.goto.is_some()
            || !self.assignments.is_empty()
            || self.comparisons.iter().any(has_side_effect)
    }

    /// Records why it is unknown whether udevd accepts the rule; keeps the first reason.
    pub(super) fn doubt(&mut self, why: &str) {
        self.doubt.get_or_insert_with(|| why.to_owned());
    }

    fn assign(&mut self, pair: Pair<'a>, udevd: &Udevd, db: &Database<'_>) {
        let Pair {
            key,
            attr,
            op,
            value,
            ..
        } = pair;
        let assignment = match key {
            Key::Owner => {
                let uid = |name: &str| (db.user)(name).map(Uid::as_raw);
                let kind = ("user", udevd.system_uid_max);
                let uid = self.id(&value, kind, uid, udevd, db.complete);
                Assignment::Permission(Field::Owner, op, uid)
            }
            Key::Group => {
                let gid = |name: &str| (db.group)(name).map(Gid::as_raw);
                let kind = ("group", udevd.system_gid_max);
                let gid = self.id(&value, kind, gid, udevd, db.complete);
                Assignment::Permission(Field::Group, op, gid)
            }
            Key::Mode => Assignment::Permission(Field::Mode, op, mode(&value)),
            Key::Tag => Assignment::Tag(op, value),
            Key::Env => Assignment::Env(op, attr, value),
            Key::Symlink => Assignment::Symlink,
            Key::Run if *attr != *b"builtin" => Assignment::Run(op, value),
            Key::Options => {
                let name = value.strip_prefix(b"static_node=");
                self.is_static |= name.is_some_and(is_kvm);
                return;
            }
            // NAME, ATTR, SYSCTL, SECLABEL: accepted, but they do not affect owner, group and mode.
            _ => return,
        };
        self.assignments.push(assignment);
    }

    /// The UID or GID of a value; `kind` is "user" or "group", with the largest ID of the system range.
    fn id(
        &mut self,
        value: &[u8],
        kind: (&str, u32),
        look_up: impl Fn(&str) -> Option<u32>,
        udevd: &Udevd,
        complete: bool,
    ) -> Value {
        let with = |change, late, note| Value { change, late, note };
        if is_open(value) {
            return with(Change::Open, true, None);
        }
        let name = String::from_utf8_lossy(value);
        // udevd treats a value that begins with `[` as a substitution, and looks it up only at the event.
        let late = value.first() == Some(&b'[');
        let known = id(value).or_else(|| match &*name {
            "root" => Some(0),
            name => look_up(name).filter(is_id),
        });
        let (what, max) = kind;
        let accepted = match known {
            _ if late => Accepted::Yes,
            Some(id) => udevd.accepts_id(id, max),
            None if complete => udevd.accepts_unknown(),
            None => Accepted::Yes,
        };
        match (accepted, known) {
            (Accepted::Yes, _) => {}
            (Accepted::No(why), Some(_)) => self.drop(|| format!("{what} {name}: {why}")),
            (Accepted::No(_), None) => {
                self.drop(|| format!("{what} '{name}' does not exist on the node"));
            }
            (Accepted::Unknown(why), _) => self.doubt(why),
        }
        match known {
            Some(id) => with(Change::Set(id), late, None),
            None if !complete => {
                self.doubt(
                    "it names a user or group that is not in the node's files that are visible here, but \
                     may be in others",
                );
                with(Change::Unset, false, None)
            }
            None => {
                let note = format!("{what} '{name}' does not exist on the node");
                let change = match late {
                    true => Change::Keep,
                    false => Change::Unset,
                };
                with(change, late, Some(note))
            }
        }
    }

    fn drop(&mut self, why: impl FnOnce() -> String) {
        self.dropped.get_or_insert_with(why);
    }
}

fn mode(value: &[u8]) -> Value {
    let (change, note) = match octal(value) {
        Some(bits) => (Change::Set(bits.into()), None),
        None if is_open(value) => (Change::Open, None),
        None => {
            let value = String::from_utf8_lossy(value);
            (
                Change::Keep,
                Some(format!("MODE=\"{value}\" is not a valid mode")),
            )
        }
    };
    let late = !matches!(change, Change::Set(_));
    Value { change, late, note }
}
