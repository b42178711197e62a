//! Following the rules of all files through one event.

use std::collections::{BTreeMap, BTreeSet};

use super::accept::{AcceptedRule, Assignment, Database};
use super::assign::{DeviceState, Permissions};
use super::device::{Device, Doubt, Tristate, never};
use super::file::{Entry, RuleFile};
use super::key::{Key, Op};
use super::location::Location;
use super::pair::Pair;
use super::prediction::{Diagnostic, MOST, Notes, Prediction, Predictions};
use super::rule::Rule;
use super::value::is_open;
use super::version::Udevd;

/// How much memory the rules of all files may take that matter to kvm: those of a node are thousands at most,
/// and this is room for some ten thousand. A rule takes up to twenty times the memory of its text.
const MOST_HELD: usize = 12 << 20;

/// The rules of a file, as udevd keeps them, but for those that cannot matter to kvm.
type Rules<'a> = Vec<AcceptedRule<'a>>;

/// Works out what the events will do, from the files that udevd reads, in its order
/// ([`select()`](super::select)). Where there are more rules than this program has room for, nothing is
/// clear.
pub fn predict(files: &[&RuleFile], udevd: &Udevd, db: &Database<'_>) -> Predictions {
    let mut notes = Notes::default();
    let mut held = 0;
    let mut all = Vec::new();
    for file in files {
        let rules = read(file, &mut held, udevd, db, &mut notes);
        if held > MOST_HELD {
            let why = "the node has more rules that could matter to kvm than are followed (12 MiB of memory)";
            let (rule, why) = (file.path.clone(), why.to_owned());
            let mut prediction = Predictions {
                ignored: notes.ignored,
                ..Predictions::default()
            };
            prediction.doubt(&[Diagnostic { rule, why }]);
            return prediction;
        }
        all.push(rules);
    }
    Predictions {
        start: start(&all, &mut notes),
        add: event(&all, b"add", &mut notes),
        change: event(&all, b"change", &mut notes),
        ignored: notes.ignored,
        unclear: notes.unclear,
    }
}

/// Reads a file's rules as far as there is room for them, and notes those about kvm that udevd drops.
fn read<'a>(
    file: &'a RuleFile,
    held: &mut usize,
    udevd: &Udevd,
    db: &Database<'_>,
    notes: &mut Notes,
) -> Rules<'a> {
    let mut rules = Vec::new();
    let mut linked = true;
    let accept = |at, line: &_| {
        let rule = Rule::read(at, line, never)?;
        rule.map(|rule| AcceptedRule::new(rule, udevd, db))
            .transpose()
    };
    for entry in file.entries(accept) {
        match entry {
            Entry::Rule(rule) => {
                *held += rule.size();
                rules.push(rule);
            }
            Entry::Dropped(at, why) => notes.ignore(at, &why),
            Entry::TooLong(at) => {
                // `GOTO`s are linked after the last line was read.
                linked = false;
                let why = "longer than 16384 bytes, which ends the reading of this file";
                notes.ignore(at, why);
                if !udevd.keeps_what_was_read() {
                    let why = "is too long, and what is kept differs by version";
                    let why = format!("line {} {why}", at.line);
                    for rule in &mut rules {
                        rule.doubt(&why);
                    }
                }
            }
        }
        if *held > MOST_HELD {
            break;
        }
    }
    if linked {
        link(&mut rules);
    }
    rules
}

/// Finds where each `GOTO` leads: to the next label of its name.
fn link(rules: &mut Rules<'_>) {
    let mut labels = BTreeMap::new();
    for (place, rule) in rules.iter_mut().enumerate().rev() {
        rule.target = rule
            .goto
            .as_ref()
            .and_then(|goto| labels.get(goto).copied());
        if let (Some(label), None) = (&rule.label, &rule.dropped) {
            labels.insert(label.clone(), place);
        }
    }
}

/// When udevd starts: each rule with a `static_node` is applied to that device at once, whatever it
/// compares and wherever a `GOTO` leads.
fn start(files: &[Rules<'_>], notes: &mut Notes) -> Prediction {
    let mut device = DeviceState::default();
    for rule in files.iter().flatten().filter(|rule| rule.is_static) {
        if is_dropped(rule, notes) {
            continue;
        }
        let doubt = rule.doubt.as_deref();
        let mut new = Permissions::default();
        // Only plain values count here, and of several the last, `:=` or not.
        for assignment in &rule.assignments {
            if let Assignment::Permission(field, _, value) = assignment
                && !value.late
            {
                new.assign((*field, Op::Assign), value, rule.at, doubt, notes);
            }
        }
        device.apply(new);
    }
    device.prediction(Vec::new(), notes)
}

/// An event: all rules, in order.
fn event(files: &[Rules<'_>], action: &'static [u8], notes: &mut Notes) -> Prediction {
    let mut run = Run {
        device: Device::new(action),
        new: Permissions::default(),
        nameless: false,
        ends: Vec::new(),
        programs: Vec::new(),
        programs_fixed: false,
    };
    for rules in files {
        run.file(rules, notes);
    }
    for (rule, why) in run.programs {
        notes.unclear(rule, &why);
    }
    let mut device = DeviceState::default();
    device.apply(run.new);
    device.prediction(run.ends, notes)
}

/// An event on its way through the rules.
struct Run<'a> {
    device: Device,
    new: Permissions<'a>,
    /// Whether there may be a tag without a name.
    nameless: bool,
    /// Rules that may end the event before anything is applied, and why.
    ends: Vec<(Location<'a>, String)>,
    /// Rules that run a program after the event, and what is reported of them.
    programs: Vec<(Location<'a>, String)>,
    programs_fixed: bool,
}

impl<'a> Run<'a> {
    /// Follows the rules of a file on every way that a `GOTO` may lead.
    fn file(&mut self, rules: &[AcceptedRule<'a>], notes: &mut Notes) {
        // Where the event may be, and why it may not be at the first of these places: it is at one of them.
        let mut ways = BTreeSet::from([0]);
        let mut reason: Option<Doubt> = None;
        while let Some(at) = ways.pop_first() {
            let Some(rule) = rules.get(at) else {
                continue;
            };
            if ways.is_empty() {
                reason = None;
            }
            let own = rule.doubt.clone().map(Doubt::from);
            let applies = self.rule(rule, reason.clone(), own, notes);
            match (rule.target, applies) {
                (Some(to), Some(None)) => _ = ways.insert(to),
                (Some(to), Some(Some(doubt))) => {
                    ways.extend([at + 1, to]);
                    // The first reason is enough where one jump leads over another.
                    reason.get_or_insert_with(|| jumped(rule.at, doubt));
                }
                (None, _) | (_, None) => _ = ways.insert(at + 1),
            }
        }
    }

    /// Nothing where the rule does not apply, otherwise why that is not certain. `reached` is why the event may
    /// not come to the rule at all, `own` why it is not known what the rule says.
    fn rule(
        &mut self,
        rule: &AcceptedRule<'a>,
        reached: Option<Doubt>,
        mut own: Option<Doubt>,
        notes: &mut Notes,
    ) -> Option<Option<Doubt>> {
        if !rule.has_effect() {
            return None;
        }
        for pair in &rule.comparisons {
            let answer = self.device.compare(pair);
            if rule.dropped.is_none() {
                self.device.asked(pair, rule.at);
                self.may_end(pair, rule.at);
            }
            match answer {
                Tristate::Yes => {}
                Tristate::No => return None,
                Tristate::Unknown(doubt) => _ = own.get_or_insert(doubt),
            }
        }
        if is_dropped(rule, notes) {
            return None;
        }
        let doubt = reached.as_ref().or(own.as_ref());
        for assignment in &rule.assignments {
            self.assign(assignment, rule.at, doubt, notes);
        }
        Some(own)
    }

    /// Two things are errors to udevd, seen with 252, and then all that the event assigned is lost: a kernel
    /// parameter without a name, and properties that are asked for once a tag without a name was set.
    fn may_end(&mut self, pair: &Pair<'_>, at: Location<'a>) {
        let why = match (pair.key, &*pair.attr) {
            (Key::Import, b"cmdline") if pair.value.is_empty() => {
                "an IMPORT{cmdline} without a name ends the event"
            }
            (Key::Env | Key::Program, _) | (Key::Import, b"program") if self.nameless => {
                "it asks for properties, and an empty TAG makes that end the event"
            }
            _ => return,
        };
        if self.ends.len() < MOST {
            self.ends.push((at, why.to_owned()));
        }
    }

    fn assign(
        &mut self,
        assignment: &Assignment<'_>,
        at: Location<'a>,
        doubt: Option<&Doubt>,
        notes: &mut Notes,
    ) {
        match assignment {
            Assignment::Permission(field, op, value) => {
                let why = doubt.map(|doubt| doubt.why.as_str());
                self.new.assign((*field, *op), value, at, why, notes);
            }
            Assignment::Env(op, key, value) => self.device.set_property(*op, key, value, doubt),
            Assignment::Tag(op, tag) => {
                // One with a substitution is usually only set where there is something to fill in, as
                // systemd's own TAG+="$env{ID_SEAT}" is.
                let open =
                    doubt.is_none() && is_open(tag) && matches!(tag.first(), Some(b'$' | b'%'));
                self.nameless |= *op != Op::Remove && (tag.is_empty() || open);
                self.device.set_tag(*op, tag, doubt);
            }
            Assignment::Symlink => self.device.set_link(),
            Assignment::Run(op, command) if !self.programs_fixed => {
                self.programs_fixed = *op == Op::Final && doubt.is_none();
                if *op != Op::Add && doubt.is_none() {
                    self.programs.clear();
                }
                let command = String::from_utf8_lossy(command);
                // Stock rules run things for other devices behind conditions that cannot be told.
                if doubt.is_none() || command.contains("kvm") {
                    let why = format!("it runs '{command}' afterwards, which may change the node");
                    self.programs.push((at, why));
                }
            }
            Assignment::Run(..) => {}
        }
    }
}

/// Why a rule may be jumped over by the `GOTO` in the rule `at`, which may not be followed because of `doubt`.
fn jumped(at: Location<'_>, doubt: Doubt) -> Doubt {
    // What another GOTO leaves open may be what this one asks for, and so on through all of the file.
    if doubt.of_goto {
        return doubt;
    }
    Doubt {
        why: format!("the GOTO in {at} may jump over it: {}", doubt.why),
        of_goto: true,
    }
}

/// Whether udevd drops the rule, which then is noted.
fn is_dropped(rule: &AcceptedRule<'_>, notes: &mut Notes) -> bool {
    if let Some(why) = &rule.dropped {
        notes.ignore(rule.at, why);
    }
    rule.dropped.is_some()
}
