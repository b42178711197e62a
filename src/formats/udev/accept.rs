//! What the node's udevd makes of a rule when it reads it: names are looked up, and what its version does
//! not accept is dropped.

use std::borrow::Cow;

use nix::unistd::{Gid, Uid};

use super::assign::{Change, Field, Value};
use super::key::{Key, Op};
use super::location::Location;
use super::pair::Pair;
use super::rule::Rule;
use super::value::{id, is_id, is_kvm, is_open, octal};
use super::version::{Accepted, Udevd};

/// The users and groups that the node knows by name.
#[derive(Clone, Copy)]
pub struct Database<'a> {
    /// The GID of a group.
    pub group: &'a dyn Fn(&str) -> Option<Gid>,
    /// The UID of a user.
    pub user: &'a dyn Fn(&str) -> Option<Uid>,
    /// Whether all of the node's names are seen: then one that is not found is unknown to its udevd, too.
    pub complete: bool,
}

/// What a rule sets that matters to kvm.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Assignment<'a> {
    Permission(Field, Op, Value),
    Tag(Op, Cow<'a, [u8]>),
    Env(Op, Cow<'a, [u8]>, Cow<'a, [u8]>),
    Symlink,
    Run(Op, Cow<'a, [u8]>),
}

/// A rule as udevd keeps it.
pub(super) struct AcceptedRule<'a> {
    pub(super) at: Location<'a>,
    /// Sorted.
    pub(super) comparisons: Vec<Pair<'a>>,
    pub(super) assignments: Vec<Assignment<'a>>,
    /// Whether it is for kvm as a static node.
    pub(super) is_static: bool,
    pub(super) label: Option<Cow<'a, [u8]>>,
    pub(super) goto: Option<Cow<'a, [u8]>>,
    /// The place in its file of the rule to which its `GOTO` leads, if that leads anywhere.
    pub(super) target: Option<usize>,
    /// Why udevd drops the rule although it understands it.
    pub(super) dropped: Option<String>,
    /// Why it is not known whether udevd accepts the rule.
    pub(super) doubt: Option<String>,
}

impl<'a> AcceptedRule<'a> {
    /// What `udevd` makes of the rule.
    ///
    /// # Errors
    /// Why it drops the rule, as if it were not there.
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
        // What still has to be worked out at the event goes before what is known.
        new.assignments.sort_by_key(
            |assignment| !matches!(assignment, Assignment::Permission(.., value) if value.late),
        );
        Ok(new)
    }

    /// The memory that it takes, in bytes.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>()
            + self.comparisons.capacity() * size_of::<Pair<'_>>()
            + self.assignments.capacity() * size_of::<Assignment<'_>>()
    }

    /// Whether it does anything. udevd does not even ask what other rules compare.
    pub(super) fn has_effect(&self) -> bool {
        let leaves_a_trace = |pair: &Pair<'_>| matches!(pair.key, Key::Program | Key::Import);
        self.goto.is_some()
            || !self.assignments.is_empty()
            || self.comparisons.iter().any(leaves_a_trace)
    }

    /// Notes why it is not known whether udevd accepts the rule, the first reason only.
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
            // NAME, ATTR, SYSCTL, SECLABEL: accepted, and without effect on owner, group and mode.
            _ => return,
        };
        self.assignments.push(assignment);
    }

    /// The UID or GID that a value stands for; `kind` is what it names, and the largest of the system's range.
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
        // Such a value is taken for a substitution, and looked up only at the event.
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
            (Accepted::No(_), None) => self.drop(|| format!("the node knows no {what} '{name}'")),
            (Accepted::Unknown(why), _) => self.doubt(why),
        }
        match known {
            Some(id) => with(Change::Set(id), late, None),
            None if !complete => {
                self.doubt(
                    "it names a user or group that is not in the files of the node that are seen here, \
                     and may be in others",
                );
                with(Change::Unset, false, None)
            }
            None => {
                let note = format!("the node does not know the name '{name}'");
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
            (Change::Keep, Some(format!("MODE=\"{value}\" is no mode")))
        }
    };
    let late = !matches!(change, Change::Set(_));
    Value { change, late, note }
}
