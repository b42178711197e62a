//! The state of the device that comparisons read, while the rules of an event are evaluated.

use std::collections::{BTreeMap, BTreeSet};

use super::key::{Key, Op, is_fixed_property};
use super::lines::LINE_MAX;
use super::location::Location;
use super::pair::Pair;
use super::value::is_open;

/// Why something is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doubt {
    pub(super) why: String,
    /// Whether the reason is an uncertain `GOTO`.
    pub(super) of_goto: bool,
}

impl<T: Into<String>> From<T> for Doubt {
    fn from(why: T) -> Self {
        Self {
            why: why.into(),
            of_goto: false,
        }
    }
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tristate {
    Yes,
    No,
    Unknown(Doubt),
}

impl From<bool> for Tristate {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// A value, or why it is unknown.
type Value = Result<Vec<u8>, Doubt>;

/// The properties that rules compare. The kvm device has no parent device and no driver.
pub(super) struct Device {
    action: &'static [u8],
    properties: BTreeMap<Vec<u8>, Value>,
    /// Why every other property may have been set as well.
    tainted: Option<Doubt>,
    tags: Result<BTreeSet<Vec<u8>>, Doubt>,
    /// Whether a rule may have set a SYMLINK.
    linked: bool,
    /// The output of the last PROGRAM.
    result: Value,
}

const DEVPATH: &[u8] = b"/devices/virtual/misc/kvm";
const KERNEL: &[u8] = b"kvm";
const SUBSYSTEM: &[u8] = b"misc";
const ACTIONS: [&[u8]; 2] = [b"add", b"change"];

/// Whether a comparison is false at every event, and is evaluated before pairs with side effects.
pub(super) fn never(pair: &Pair<'_>) -> bool {
    pair.op.is_match()
        && match pair.key {
            Key::Action => !ACTIONS.iter().any(|action| pair.holds(action)),
            _ => of_any_event(pair) == Some(Tristate::No),
        }
}

/// The result of a comparison that is the same at every event; `None` for other comparisons.
fn of_any_event(pair: &Pair<'_>) -> Option<Tristate> {
    Some(match pair.key {
        Key::Devpath => pair.holds(DEVPATH).into(),
        Key::Kernel | Key::Kernels => pair.holds(KERNEL).into(),
        Key::Subsystem | Key::Subsystems => pair.holds(SUBSYSTEM).into(),
        Key::Name | Key::Driver | Key::Drivers => pair.holds(b"").into(),
        Key::Attr | Key::Attrs => attribute(pair),
        _ => return None,
    })
}

impl Device {
    /// The device as in the kernel's uevent.
    pub(super) fn new(action: &'static [u8]) -> Self {
        let known: [(&str, &[u8]); 6] = [
            ("ACTION", action),
            ("DEVNAME", b"/dev/kvm"),
            ("DEVPATH", DEVPATH),
            ("MAJOR", b"10"),
            ("MINOR", b"232"),
            ("SUBSYSTEM", SUBSYSTEM),
        ];
        let unknown = [
            "CURRENT_TAGS",
            "DEVLINKS",
            "SEQNUM",
            "SYNTH_UUID",
            "TAGS",
            "USEC_INITIALIZED",
        ];
        let known = known.map(|(key, value)| (key.into(), Ok(value.to_vec())));
        let not_known = |key| -> Value { Err(format!("ENV{{{key}}} is unknown").into()) };
        let unknown = unknown.map(|key| (key.into(), not_known(key)));
        Self {
            action,
            properties: known.into_iter().chain(unknown).collect(),
            tainted: None,
            tags: Ok(BTreeSet::new()),
            linked: false,
            result: Ok(Vec::new()),
        }
    }

    pub(super) fn compare(&self, pair: &Pair<'_>) -> Tristate {
        if let Some(result) = of_any_event(pair) {
            return result;
        }
        match pair.key {
            Key::Action => pair.holds(self.action).into(),
            Key::Symlink if self.linked => {
                Tristate::Unknown("it compares SYMLINK, which an earlier rule may have set".into())
            }
            Key::Symlink => pair.holds_for_list(std::iter::empty()).into(),
            Key::Env => holds(&self.property(&pair.attr), pair),
            Key::Tag | Key::Tags => match &self.tags {
                Ok(tags) => pair.holds_for_list(tags.iter().map(Vec::as_slice)).into(),
                Err(why) => Tristate::Unknown(why.clone()),
            },
            Key::Result => holds(&self.result, pair),
            Key::Program => Tristate::Unknown("it runs a PROGRAM".into()),
            // A property of the parent device; kvm has none.
            Key::Import if *pair.attr == *b"parent" => (pair.op == Op::NoMatch).into(),
            Key::Import => Tristate::Unknown(format!("it depends on {}", import(pair)).into()),
            // CONST, SYSCTL, TEST: only udevd on the node can evaluate them.
            key => Tristate::Unknown(format!("it depends on {}", key.name()).into()),
        }
    }

    /// Applies the side effects of a comparison that udevd may have evaluated, whatever its result.
    pub(super) fn apply_side_effects(&mut self, pair: &Pair<'_>, at: Location<'_>) {
        match (pair.key, &*pair.attr) {
            (Key::Program, _) => {
                self.result = Err(format!("RESULT depends on the PROGRAM in {at}").into())
            }
            (Key::Import, b"db" | b"cmdline") => {
                let why = format!("a property depends on {} in {at}", import(pair));
                self.properties.insert(pair.value.to_vec(), Err(why.into()));
            }
            (Key::Import, b"file" | b"program" | b"builtin") => {
                let why = format!("properties may depend on {} in {at}", import(pair));
                // `property` returns `tainted` for every property that is removed here.
                self.properties.retain(|key, _| is_fixed_property(key));
                self.tainted = Some(why.into());
            }
            _ => {}
        }
    }

    /// `ENV{key}=…`; `doubt` is why udevd may not execute it.
    pub(super) fn set_property(&mut self, op: Op, key: &[u8], value: &[u8], doubt: Option<&Doubt>) {
        if op == Op::Add && value.is_empty() {
            return;
        }
        let before = self.property(key);
        let new = match (doubt, is_open(value), before) {
            (Some(doubt), ..) => Err(doubt.clone()),
            (None, true, _) => {
                let key = String::from_utf8_lossy(key);
                Err(format!("ENV{{{key}}} was set to a value with a substitution").into())
            }
            (None, false, before) if op == Op::Add => {
                before.and_then(|before| lengthened(key, before, value))
            }
            (None, false, _) => Ok(value.to_vec()),
        };
        self.properties.insert(key.to_vec(), new);
    }

    /// `TAG+=…`
    pub(super) fn set_tag(&mut self, op: Op, tag: &[u8], doubt: Option<&Doubt>) {
        let open = || is_open(tag).then(|| "TAG was set to a value with a substitution".into());
        if let Some(doubt) = doubt.cloned().or_else(open) {
            self.tags = Err(doubt);
            return;
        }
        if matches!(op, Op::Assign | Op::Final) {
            self.tags = Ok(BTreeSet::new());
        }
        // At a device's first event, a removed tag still counts until it is in the udev database
        // (observed with 252).
        let tag = tag.to_vec();
        let had = self.tags.as_ref().is_ok_and(|tags| tags.contains(&tag));
        if op == Op::Remove && had {
            let why = "after TAG-=, the tags depend on the udev database";
            self.tags = Err(why.into());
        }
        let valid = !tag.iter().any(|byte| matches!(byte, b':' | b' '));
        if let (Ok(tags), true) = (&mut self.tags, op != Op::Remove && valid && !had) {
            self.tags = with(std::mem::take(tags), tag);
        }
    }

    /// `SYMLINK+=…`
    pub(super) fn set_link(&mut self) {
        self.linked = true;
    }

    fn property(&self, key: &[u8]) -> Value {
        match (self.properties.get(key), &self.tainted) {
            (Some(value), _) => value.clone(),
            (None, Some(why)) => Err(why.clone()),
            (None, None) => Ok(Vec::new()),
        }
    }
}

/// Adds a tag. Comparisons check every tag, so their total size is limited to more than any device needs.
fn with(mut tags: BTreeSet<Vec<u8>>, tag: Vec<u8>) -> Result<BTreeSet<Vec<u8>>, Doubt> {
    /// The total size of all tags, each with a separator, in bytes.
    const MOST: usize = 1024;
    tags.insert(tag);
    if tags.iter().map(|tag| tag.len() + 1).sum::<usize>() > MOST {
        return Err("there are too many TAGs".into());
    }
    Ok(tags)
}

/// The value of a property after `+=`. One that exceeds the length of a line becomes unknown.
fn lengthened(key: &[u8], mut before: Vec<u8>, value: &[u8]) -> Value {
    if before.len() + value.len() >= LINE_MAX {
        let key = String::from_utf8_lossy(key);
        return Err(format!("ENV{{{key}}} is too long").into());
    }
    if !before.is_empty() {
        before.push(b' ');
    }
    before.extend_from_slice(value);
    Ok(before)
}

fn holds(value: &Value, pair: &Pair<'_>) -> Tristate {
    match value {
        Ok(value) => pair.holds(value).into(),
        Err(why) => Tristate::Unknown(why.clone()),
    }
}

fn import(pair: &Pair<'_>) -> String {
    format!("IMPORT{{{}}}", pair.attr.escape_ascii())
}

/// `ATTR{name}`: a comparison with a missing file is always false, even with `!=`.
fn attribute(pair: &Pair<'_>) -> Tristate {
    let elsewhere = |byte: &u8| matches!(byte, b'/' | b'[' | b'$' | b'%');
    match &*pair.attr {
        b"dev" => pair.holds(b"10:232").into(),
        b"subsystem" => pair.holds(SUBSYSTEM).into(),
        b"uevent" | b"power" => Tristate::Unknown("it depends on ATTR".into()),
        name if name.iter().any(elsewhere) => Tristate::Unknown("it depends on ATTR".into()),
        _ => Tristate::No,
    }
}
