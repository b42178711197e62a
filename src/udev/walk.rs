//! Following the rules of all files through one event.

use std::collections::BTreeMap;

use super::file::File;
use super::given::{Assign, Gifts, Given, Node};
use super::known::{Answer, Device};
use super::pair::Op;
use super::rule::{Place, Rule, Token};
use super::value::{Bits, Who, is_open};
use super::{Forecast, MOST, Notes};

/// When udevd starts: each rule with a `static_node` gives what it says to that node at once,
/// whatever it compares and wherever a `GOTO` leads.
pub(super) fn start(files: &[File<'_>], notes: &mut Notes) -> Forecast {
    let mut node = Node::default();
    for rule in files.iter().flat_map(|file| &file.rules) {
        let is_named = rule.tokens.contains(&Token::StaticNode(true));
        if !is_named || is_dropped(rule, notes) {
            continue;
        }
        let doubt = rule.doubt.as_deref();
        let mut gifts = Gifts::default();
        for token in &rule.tokens {
            // Only plain values count here, and of several the last, `:=` or not.
            match token {
                Token::Owner(_, who @ (Who::Id(_) | Who::Unknown(_) | Who::Unseen)) => {
                    let new = who_is(who, rule, notes);
                    gifts.uid.assign(Op::Assign, new, rule.at, doubt);
                }
                Token::Group(_, who @ (Who::Id(_) | Who::Unknown(_) | Who::Unseen)) => {
                    let new = who_is(who, rule, notes);
                    gifts.gid.assign(Op::Assign, new, rule.at, doubt);
                }
                Token::Mode(_, Bits::Octal(bits)) => {
                    let new = Assign::Set(*bits);
                    gifts.mode.assign(Op::Assign, new, rule.at, doubt);
                }
                _ => {}
            }
        }
        node.give(gifts);
    }
    node.forecast(notes)
}

/// An event: all rules, in order.
pub(super) fn event(files: &[File<'_>], action: &'static [u8], notes: &mut Notes) -> Forecast {
    let mut walk = Walk {
        device: Device::new(action),
        gifts: Gifts::default(),
        nameless: false,
        ends: Vec::new(),
        runs: Vec::new(),
        runs_fixed: false,
    };
    for file in files {
        walk.file(file, notes);
    }
    for (rule, why) in walk.runs {
        notes.unclear(rule, &why);
    }
    let mut node = Node::default();
    node.give(walk.gifts);
    node.may_get_nothing(walk.ends);
    node.forecast(notes)
}

struct Walk<'a> {
    device: Device,
    gifts: Gifts<'a>,
    /// Whether there may be a tag without a name.
    nameless: bool,
    /// Rules that may end the event before anything is given, and why.
    ends: Vec<(Place<'a>, String)>,
    /// Rules that run a program after the event, and what is to be said of them.
    runs: Vec<(Place<'a>, String)>,
    runs_fixed: bool,
}

impl<'a> Walk<'a> {
    fn file(&mut self, file: &File<'a>, notes: &mut Notes) {
        let mut at = 0;
        // Up to where rules may have been jumped over, and by which.
        let mut skipped: Option<(usize, String)> = None;
        let mut labels = None;
        while let Some(rule) = file.rules.get(at) {
            if skipped.as_ref().is_some_and(|(to, _)| *to <= at) {
                skipped = None;
            }
            let doubt = skipped.as_ref().map(|(_, why)| why.clone());
            at += 1;
            let Some(doubt) = self.rule(rule, doubt.or(rule.doubt.clone()), notes) else {
                continue;
            };
            let target = rule.goto.as_ref().filter(|_| file.linked).and_then(|goto| {
                let places = labels.get_or_insert_with(|| places(file)).get(&**goto)?;
                places
                    .get(places.partition_point(|place| *place < at))
                    .copied()
            });
            match (target, doubt) {
                (None, _) => {}
                (Some(to), None) => at = to,
                (Some(to), Some(why)) => {
                    // The first reason is enough where one jump leads over another.
                    let (before, why) = skipped.unwrap_or_else(|| (0, jumped(rule.at, why)));
                    skipped = Some((to.max(before), why));
                }
            }
        }
    }

    /// Nothing where the rule does not apply, otherwise why that is not certain.
    fn rule(
        &mut self,
        rule: &Rule<'a>,
        mut doubt: Option<String>,
        notes: &mut Notes,
    ) -> Option<Option<String>> {
        if !has_effect(rule) {
            return None;
        }
        for token in &rule.tokens {
            let Some(answer) = self.device.compare(token) else {
                continue;
            };
            if rule.dropped.is_none() {
                self.device.asked(token, rule.at);
                self.may_end(token, rule);
            }
            match answer {
                Answer::Yes => {}
                Answer::No => return None,
                Answer::Unknown(why) => {
                    doubt.get_or_insert(why);
                }
            }
        }
        if is_dropped(rule, notes) {
            return None;
        }
        for token in &rule.tokens {
            self.set(token, rule, doubt.as_deref(), notes);
        }
        Some(doubt)
    }

    /// Two things are errors to udevd, seen with 252, and then all that the event gave is lost: a kernel
    /// parameter without a name, and properties that are asked for once a tag without a name was given.
    fn may_end(&mut self, token: &Token<'_>, rule: &Rule<'a>) {
        let why = match token {
            Token::Import("IMPORT{cmdline}", Some(key)) if key.is_empty() => {
                "an IMPORT{cmdline} without a name ends the event"
            }
            Token::Env(..) | Token::Program | Token::Import("IMPORT{program}", _)
                if self.nameless =>
            {
                "it asks for properties, and an empty TAG makes that end the event"
            }
            _ => return,
        };
        if self.ends.len() < MOST {
            self.ends.push((rule.at, why.to_owned()));
        }
    }

    fn set(&mut self, token: &Token<'_>, rule: &Rule<'a>, doubt: Option<&str>, notes: &mut Notes) {
        match token {
            Token::Owner(op, who) => assign(&mut self.gifts.uid, *op, who, rule, doubt, notes),
            Token::Group(op, who) => assign(&mut self.gifts.gid, *op, who, rule, doubt, notes),
            Token::Mode(op, bits) => {
                let new = match bits {
                    Bits::Octal(bits) => Assign::Set(*bits),
                    Bits::Open => Assign::Open,
                    Bits::Broken(text) => {
                        notes.ignore(rule.at, &format!("MODE=\"{text}\" is no mode"));
                        Assign::Keep
                    }
                };
                self.gifts.mode.assign(*op, new, rule.at, doubt);
            }
            Token::SetEnv(op, key, value) => self.device.set_property(*op, key, value, doubt),
            Token::AddTag(op, tag) => {
                // One that is filled in is usually only given where there is something to fill in, as
                // systemd's own TAG+="$env{ID_SEAT}" is.
                let open =
                    doubt.is_none() && is_open(tag) && matches!(tag.first(), Some(b'$' | b'%'));
                self.nameless |= *op != Op::Remove && (tag.is_empty() || open);
                self.device.set_tag(*op, tag, doubt);
            }
            Token::AddLink => self.device.set_link(),
            Token::Run(op, command) if !self.runs_fixed => {
                self.runs_fixed = *op == Op::Final && doubt.is_none();
                if *op != Op::Add && doubt.is_none() {
                    self.runs.clear();
                }
                let command = String::from_utf8_lossy(command);
                // Stock rules run things for other devices behind conditions that cannot be told.
                if doubt.is_some() && !command.contains("kvm") {
                    return;
                }
                let why = format!("it runs '{command}' afterwards, which may change the node");
                self.runs.push((rule.at, why));
            }
            _ => {}
        }
    }
}

/// Why a rule may be jumped over by the `GOTO` in the rule `at`, which may not be followed because of `why`.
fn jumped(at: Place<'_>, why: String) -> String {
    const MAY: &str = "may jump over it";
    // What another GOTO leaves open may be what this one asks for, and so on through all of the file.
    if why.contains(MAY) {
        return why;
    }
    format!("the GOTO in {at} {MAY}: {why}")
}

/// Where in a file each label stands.
fn places<'f>(file: &'f File<'_>) -> BTreeMap<&'f [u8], Vec<usize>> {
    let mut found: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
    for (place, rule) in file.rules.iter().enumerate() {
        if let (Some(label), None) = (&rule.label, &rule.dropped) {
            found.entry(label).or_default().push(place);
        }
    }
    found
}

fn assign<'a, Id: Copy>(
    given: &mut Given<'a, Id>,
    op: Op,
    who: &Who<Id>,
    rule: &Rule<'a>,
    doubt: Option<&str>,
    notes: &mut Notes,
) {
    given.assign(op, who_is(who, rule, notes), rule.at, doubt);
}

fn who_is<Id: Copy>(who: &Who<Id>, rule: &Rule<'_>, notes: &mut Notes) -> Assign<Id> {
    match who {
        Who::Id(id) | Who::Late(id) => Assign::Set(*id),
        Who::Open => Assign::Open,
        // The rule is in doubt already.
        Who::Unseen => Assign::Unset,
        Who::Unknown(name) | Who::UnknownLate(name) => {
            notes.ignore(
                rule.at,
                &format!("the node does not know the name '{name}'"),
            );
            match who {
                Who::Unknown(_) => Assign::Unset,
                _ => Assign::Keep,
            }
        }
    }
}

/// Whether udevd drops the rule, which then is noted.
fn is_dropped(rule: &Rule<'_>, notes: &mut Notes) -> bool {
    if let Some(why) = &rule.dropped {
        notes.ignore(rule.at, why);
    }
    rule.dropped.is_some()
}

/// udevd does not even ask what a rule compares that could do nothing.
fn has_effect(rule: &Rule<'_>) -> bool {
    rule.goto.is_some() || rule.does_something()
}
