//! What is known of the device while an event's rules are followed.

use std::collections::{BTreeMap, BTreeSet};

use super::key::{Key, Op, is_fixed_property};
use super::lines::LINE_MAX;
use super::location::Location;
use super::pair::Pair;
use super::value::is_open;

/// Why something is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Doubt {
    pub(super) why: String,
    /// Whether a `GOTO` that may not be followed is the reason.
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

/// Whether a comparison holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tristate {
    Yes,
    No,
    /// And why that is not known.
    Unknown(Doubt),
}

impl From<bool> for Tristate {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// A value, or why it is not known.
type Value = Result<Vec<u8>, Doubt>;

/// The device with all that rules compare. It has no parent device and no driver.
pub(super) struct Device {
    action: &'static [u8],
    properties: BTreeMap<Vec<u8>, Value>,
    /// Why any property may have been set.
    tainted: Option<Doubt>,
    /// Its tags, as far as they are known.
    tags: Result<BTreeSet<Vec<u8>>, Doubt>,
    /// Whether a rule may have set a link.
    linked: bool,
    /// The output of the last program.
    result: Value,
}

const DEVPATH: &[u8] = b"/devices/virtual/misc/kvm";
const KERNEL: &[u8] = b"kvm";
const SUBSYSTEM: &[u8] = b"misc";
const ACTIONS: [&[u8]; 2] = [b"add", b"change"];

/// Whether a comparison holds at no event, and is asked before anything that leaves a trace.
pub(super) fn never(pair: &Pair<'_>) -> bool {
    pair.op.is_match()
        && match pair.key {
            Key::Action => !ACTIONS.iter().any(|action| pair.holds(action)),
            _ => of_any_event(pair) == Some(Tristate::No),
        }
}

/// Whether a comparison holds that has the same answer at every event.
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
    /// As the kernel announces it.
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
        let not_known = |key| -> Value { Err(format!("ENV{{{key}}} is not known").into()) };
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

    /// Whether a comparison holds.
    pub(super) fn compare(&self, pair: &Pair<'_>) -> Tristate {
        if let Some(answer) = of_any_event(pair) {
            return answer;
        }
        match pair.key {
            Key::Action => pair.holds(self.action).into(),
            Key::Symlink if self.linked => {
                Tristate::Unknown("SYMLINK is compared, and a rule has set it".into())
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
            Key::Import => Tristate::Unknown(format!("it asks for {}", import(pair)).into()),
            // CONST, SYSCTL, TEST: only the node knows.
            key => Tristate::Unknown(format!("it asks for {}", key.name()).into()),
        }
    }

    /// What a comparison leaves behind, whatever its answer, once it may have been asked.
    pub(super) fn asked(&mut self, pair: &Pair<'_>, at: Location<'_>) {
        match (pair.key, &*pair.attr) {
            (Key::Program, _) => {
                self.result = Err(format!("RESULT is from the PROGRAM in {at}").into())
            }
            (Key::Import, b"db" | b"cmdline") => {
                let why = format!("a property is from {} in {at}", import(pair));
                self.properties.insert(pair.value.to_vec(), Err(why.into()));
            }
            (Key::Import, b"file" | b"program" | b"builtin") => {
                let why = format!("properties may be from {} in {at}", import(pair));
                // A property that is not kept is read as tainted.
                self.properties.retain(|key, _| is_fixed_property(key));
                self.tainted = Some(why.into());
            }
            _ => {}
        }
    }

    /// `ENV{key}=…`; `doubt` is why it may not happen.
    pub(super) fn set_property(&mut self, op: Op, key: &[u8], value: &[u8], doubt: Option<&Doubt>) {
        if op == Op::Add && value.is_empty() {
            return;
        }
        let before = self.property(key);
        let new = match (doubt, is_open(value), before) {
            (Some(doubt), ..) => Err(doubt.clone()),
            (None, true, _) => {
                let key = String::from_utf8_lossy(key);
                Err(format!("ENV{{{key}}} was set with a substitution").into())
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
        let open = || is_open(tag).then(|| "TAG was set with a substitution".into());
        if let Some(doubt) = doubt.cloned().or_else(open) {
            self.tags = Err(doubt);
            return;
        }
        if matches!(op, Op::Assign | Op::Final) {
            self.tags = Ok(BTreeSet::new());
        }
        // What is taken away still counts at a device's first event, as long as the udev database
        // does not know it (seen with 252).
        let tag = tag.to_vec();
        let had = self.tags.as_ref().is_ok_and(|tags| tags.contains(&tag));
        if op == Op::Remove && had {
            let why = "TAG-= leaves what the udev database says";
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

/// One tag more. A comparison looks at all of them, so that no more than any device has are followed.
fn with(mut tags: BTreeSet<Vec<u8>>, tag: Vec<u8>) -> Result<BTreeSet<Vec<u8>>, Doubt> {
    /// All tags together, each with what sets it off from the next, in bytes.
    const MOST: usize = 1024;
    tags.insert(tag);
    if tags.iter().map(|tag| tag.len() + 1).sum::<usize>() > MOST {
        return Err("there are too many TAGs".into());
    }
    Ok(tags)
}

/// What `+=` makes of a property. One that is longer than any line is not followed.
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

/// `ATTR{name}`: a comparison with a file that is not there never holds, not even `!=`.
fn attribute(pair: &Pair<'_>) -> Tristate {
    let elsewhere = |byte: &u8| matches!(byte, b'/' | b'[' | b'$' | b'%');
    match &*pair.attr {
        b"dev" => pair.holds(b"10:232").into(),
        b"subsystem" => pair.holds(SUBSYSTEM).into(),
        b"uevent" | b"power" => Tristate::Unknown("it asks for ATTR".into()),
        name if name.iter().any(elsewhere) => Tristate::Unknown("it asks for ATTR".into()),
        _ => Tristate::No,
    }
}
