//! What is known of the device while an event's rules are followed.

use std::collections::{BTreeMap, BTreeSet};

use super::key::Key;
use super::pair::{Op, Pair};
use super::pattern::Pattern;
use super::rule::{Place, Rule, Token};
use super::value::is_open;

/// Whether a comparison holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    /// And why that is not known.
    Unknown(String),
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// A value, or why it is not known.
type Value = Result<Vec<u8>, String>;

/// The device with all that rules compare. It has no parent device and no driver.
pub(super) struct Device {
    action: &'static [u8],
    properties: BTreeMap<Vec<u8>, Value>,
    /// Why any property may have been set.
    tainted: Option<String>,
    /// What is on it, as far as that is known.
    tags: Result<BTreeSet<Vec<u8>>, String>,
    /// Whether a rule may have given it a link.
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
    let Some(key) = pair.key.filter(|_| pair.op.is_match()) else {
        return false;
    };
    let holds = |value: &[u8]| Pattern::new(pair).holds(value);
    match key {
        Key::Subsystem | Key::Subsystems => !holds(SUBSYSTEM),
        Key::Kernel | Key::Kernels => !holds(KERNEL),
        Key::Action => !ACTIONS.into_iter().any(holds),
        Key::Devpath => !holds(DEVPATH),
        Key::Driver | Key::Drivers => !holds(b""),
        Key::Attr | Key::Attrs => {
            let name = pair.attr.unwrap_or_default();
            attribute(name, &Pattern::new(pair)) == Answer::No
        }
        _ => false,
    }
}

/// Whether every event of kvm that comes to this rule follows its `GOTO`, if that leads anywhere.
pub(super) fn always_jumps(rule: &Rule<'_>) -> bool {
    let holds = |token: &Token<'_>| match token {
        Token::Action(pattern) => ACTIONS.iter().all(|action| pattern.holds(action)),
        Token::Devpath(pattern) => pattern.holds(DEVPATH),
        Token::Kernel(pattern) => pattern.holds(KERNEL),
        Token::Subsystem(pattern) => pattern.holds(SUBSYSTEM),
        _ => false,
    };
    let taken = rule.dropped.is_none() && rule.doubt.is_none();
    rule.goto.is_some() && taken && rule.tokens.iter().all(holds)
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
        let unknown = unknown.map(|key| (key.into(), Err(format!("ENV{{{key}}} is not known"))));
        Self {
            action,
            properties: known.into_iter().chain(unknown).collect(),
            tainted: None,
            tags: Ok(BTreeSet::new()),
            linked: false,
            result: Ok(Vec::new()),
        }
    }

    /// Whether a comparison holds; nothing for a token that sets something.
    pub(super) fn compare(&self, token: &Token<'_>) -> Option<Answer> {
        Some(match token {
            Token::Action(pattern) => pattern.holds(self.action).into(),
            Token::Devpath(pattern) => pattern.holds(DEVPATH).into(),
            Token::Kernel(pattern) => pattern.holds(KERNEL).into(),
            Token::Subsystem(pattern) => pattern.holds(SUBSYSTEM).into(),
            Token::Name(pattern) | Token::Driver(pattern) => pattern.holds(b"").into(),
            Token::Devlink(_) if self.linked => {
                Answer::Unknown("SYMLINK is compared, and a rule has set it".to_owned())
            }
            Token::Devlink(pattern) => pattern.holds_for_list(std::iter::empty()).into(),
            Token::Env(key, pattern) => holds(&self.property(key), pattern),
            Token::Tag(pattern) => match &self.tags {
                Ok(tags) => pattern
                    .holds_for_list(tags.iter().map(Vec::as_slice))
                    .into(),
                Err(why) => Answer::Unknown(why.clone()),
            },
            Token::Attr(name, pattern) => attribute(name, pattern),
            Token::Elsewhere(what) => Answer::Unknown(format!("it asks for {what}")),
            Token::Program => Answer::Unknown("it runs a PROGRAM".to_owned()),
            Token::Import(what, _) => Answer::Unknown(format!("it asks for {what}")),
            Token::ImportParent(op) => (*op == Op::NoMatch).into(),
            Token::Result(pattern) => holds(&self.result, pattern),
            Token::Owner(..)
            | Token::Group(..)
            | Token::Mode(..)
            | Token::AddTag(..)
            | Token::StaticNode(_)
            | Token::SetEnv(..)
            | Token::AddLink
            | Token::Run(..) => return None,
        })
    }

    /// What a comparison leaves behind, whatever its answer, once it may have been asked.
    pub(super) fn asked(&mut self, token: &Token<'_>, at: Place<'_>) {
        match token {
            Token::Program => self.result = Err(format!("RESULT is from the PROGRAM in {at}")),
            Token::Import(what, Some(key)) => {
                let why = format!("a property is from {what} in {at}");
                self.properties.insert(key.to_vec(), Err(why));
            }
            Token::Import(what, None) => {
                let why = format!("properties may be from {what} in {at}");
                // What is not kept is read as tainted.
                let fixed = super::systemd::is_fixed_property;
                self.properties.retain(|key, _| fixed(key));
                self.tainted = Some(why);
            }
            _ => {}
        }
    }

    /// `ENV{key}=…`; `doubt` is why it may not happen.
    pub(super) fn set_property(&mut self, op: Op, key: &[u8], value: &[u8], doubt: Option<&str>) {
        if op == Op::Add && value.is_empty() {
            return;
        }
        let before = self.property(key);
        let new = match (doubt, is_open(value), before) {
            (Some(why), ..) => Err(why.to_owned()),
            (None, true, _) => {
                let key = String::from_utf8_lossy(key);
                Err(format!("ENV{{{key}}} was set with a substitution"))
            }
            (None, false, before) if op == Op::Add => {
                before.and_then(|before| lengthened(key, before, value))
            }
            (None, false, _) => Ok(value.to_vec()),
        };
        self.properties.insert(key.to_vec(), new);
    }

    /// `TAG+=…`
    pub(super) fn set_tag(&mut self, op: Op, tag: &[u8], doubt: Option<&str>) {
        let open = is_open(tag).then_some("TAG was set with a substitution");
        if let Some(why) = doubt.or(open) {
            self.tags = Err(why.to_owned());
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
            self.tags = Err(why.to_owned());
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
fn with(mut tags: BTreeSet<Vec<u8>>, tag: Vec<u8>) -> Result<BTreeSet<Vec<u8>>, String> {
    /// All tags together, each with what sets it off from the next, in bytes.
    const MOST: usize = 1024;
    tags.insert(tag);
    if tags.iter().map(|tag| tag.len() + 1).sum::<usize>() > MOST {
        return Err("there are too many TAGs".to_owned());
    }
    Ok(tags)
}

/// What `+=` makes of a property. One that is longer than any line is not followed.
fn lengthened(key: &[u8], mut before: Vec<u8>, value: &[u8]) -> Value {
    if before.len() + value.len() >= super::text::LINE_MAX {
        let key = String::from_utf8_lossy(key);
        return Err(format!("ENV{{{key}}} is too long"));
    }
    if !before.is_empty() {
        before.push(b' ');
    }
    before.extend_from_slice(value);
    Ok(before)
}

fn holds(value: &Value, pattern: &Pattern<'_>) -> Answer {
    match value {
        Ok(value) => pattern.holds(value).into(),
        Err(why) => Answer::Unknown(why.clone()),
    }
}

/// `ATTR{name}`: a comparison with a file that is not there never holds, not even `!=`.
fn attribute(name: &[u8], pattern: &Pattern<'_>) -> Answer {
    let elsewhere = |byte: &u8| matches!(byte, b'/' | b'[' | b'$' | b'%');
    match name {
        b"dev" => pattern.holds(b"10:232").into(),
        b"subsystem" => pattern.holds(SUBSYSTEM).into(),
        b"uevent" | b"power" => Answer::Unknown("it asks for ATTR".to_owned()),
        name if name.iter().any(elsewhere) => Answer::Unknown("it asks for ATTR".to_owned()),
        _ => Answer::No,
    }
}
