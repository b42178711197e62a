//! Evaluates the rules of all files for each event.

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

/// Memory limit, in bytes, for all rules that could affect kvm. It is enough for about 10,000 rules; a node has a few
/// thousand at most. A rule takes up to twenty times the memory of its text.
const MOST_HELD: usize = 12 << 20;

/// The rules of a file that udevd accepts, without those that cannot affect kvm.
type Rules<'a> = Vec<AcceptedRule<'a>>;

/// Predicts the effect of each event from the files that udevd reads, in udevd's order
/// ([`select()`](super::select)). If the rules exceed the memory limit, all predictions are unclear.
pub fn predict(files: &[&RuleFile], udevd: &Udevd, db: &Database<'_>) -> Predictions {
    let mut notes = Notes::default();
    let mut held = 0;
    let mut all = Vec::new();
    for file in files {
        let rules = read(file, &mut held, udevd, db, &mut notes);
        if held > MOST_HELD {
            let why = "the rules that could affect kvm exceed the limit of this program (12 MiB of memory)";
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

/// Parses a file's rules up to the memory limit, and reports rules for kvm that udevd drops.
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
                // udevd resolves `GOTO`s only after it has read the last line.
                linked = false;
                let why =
                    "it is longer than 16384 bytes, and udevd does not read the rest of the file";
                notes.ignore(at, why);
                if !udevd.keeps_what_was_read() {
                    let why = "is too long; whether udevd keeps the rules before it depends on the systemd version";
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

/// Resolves each `GOTO` to the next rule whose `LABEL` has that name.
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

/// The start of udevd: it applies each rule with a `static_node` to that device directly, and ignores
/// comparisons and `GOTO`s.
fn start(files: &[Rules<'_>], notes: &mut Notes) -> Prediction {
    let mut device = DeviceState::default();
    for rule in files.iter().flatten().filter(|rule| rule.is_static) {
        if is_dropped(rule, notes) {
            continue;
        }
        let doubt = rule.doubt.as_deref();
        let mut new = Permissions::default();
        // Only values that are known when udevd parses the rules count here. The last one wins, even after `:=`.
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

/// An add or change event: evaluates all rules, in order.
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

/// The state of an event while its rules are evaluated.
struct Run<'a> {
    device: Device,
    new: Permissions<'a>,
    /// Whether a rule may have set a tag with an empty name.
    nameless: bool,
    /// Rules that may abort the event before anything is applied, with the reason.
    ends: Vec<(Location<'a>, String)>,
    /// Rules that run a program after the event, with the text to report.
    programs: Vec<(Location<'a>, String)>,
    /// Whether `RUN:=` has ended the list.
    programs_fixed: bool,
}

impl<'a> Run<'a> {
    /// Evaluates the rules of a file on every path that its `GOTO`s may take.
    fn file(&mut self, rules: &[AcceptedRule<'a>], notes: &mut Notes) {
        // Rules that udevd may evaluate next; it evaluates exactly one of them. `reason` is why it may not be the
        // first.
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
                    // If several jumps overlap, the first reason is enough.
                    reason.get_or_insert_with(|| jumped(rule.at, doubt));
                }
                (None, _) | (_, None) => _ = ways.insert(at + 1),
            }
        }
    }

    /// Applies a rule. Returns `None` if it does not match, `Some(None)` if it certainly does, and otherwise the
    /// reason for doubt. `skipped`: why the event may not reach the rule; `own`: why the effect of the rule itself is
    /// unclear.
    fn rule(
        &mut self,
        rule: &AcceptedRule<'a>,
        skipped: Option<Doubt>,
        mut own: Option<Doubt>,
        notes: &mut Notes,
    ) -> Option<Option<Doubt>> {
        if !rule.has_effect() {
            return None;
        }
        for pair in &rule.comparisons {
            let answer = self.device.compare(pair);
            if rule.dropped.is_none() {
                self.device.apply_side_effects(pair, rule.at);
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
        let doubt = skipped.as_ref().or(own.as_ref());
        for assignment in &rule.assignments {
            self.assign(assignment, rule.at, doubt, notes);
        }
        Some(own)
    }

    /// Records rules that make udevd abort the event and discard all its assignments (observed with systemd 252): the
    /// import of a kernel parameter without a name, and reading properties after a tag with an empty name was set.
    fn may_end(&mut self, pair: &Pair<'_>, at: Location<'a>) {
        let why = match (pair.key, &*pair.attr) {
            (Key::Import, b"cmdline") if pair.value.is_empty() => {
                "an IMPORT{cmdline} without a name makes udevd abort the event"
            }
            (Key::Env | Key::Program, _) | (Key::Import, b"program") if self.nameless => {
                "it reads properties after an empty TAG was set, which makes udevd abort the event"
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
                // A tag with a substitution may be empty. Rules usually test for that first, as systemd does before
                // TAG+="$env{ID_SEAT}", and such a rule has a doubt here. So only a rule without doubt counts.
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
                // Stock rules run programs for other devices, after comparisons that cannot be evaluated here.
                if doubt.is_none() || command.contains("kvm") {
                    let why =
                        format!("it runs '{command}' after the event, which may change the device");
                    self.programs.push((at, why));
                }
            }
            Assignment::Run(..) => {}
        }
    }
}

/// Why the `GOTO` in the rule `at` may skip a rule, given that `doubt` makes the jump uncertain.
fn jumped(at: Location<'_>, doubt: Doubt) -> Doubt {
    // A doubt can already come from another GOTO. Nesting would lengthen the text with every GOTO of the file.
    if doubt.of_goto {
        return doubt;
    }
    Doubt {
        why: format!("the GOTO in {at} may skip it: {}", doubt.why),
        of_goto: true,
    }
}

/// Whether udevd drops the rule; if so, records that.
fn is_dropped(rule: &AcceptedRule<'_>, notes: &mut Notes) -> bool {
    if let Some(why) = &rule.dropped {
        notes.ignore(rule.at, why);
    }
    rule.dropped.is_some()
}
