//! The predicted effect of udev events on the device, and the diagnostics about rules.

use nix::unistd::{Gid, Uid};

use super::location::Location;
use super::own_rule;

/// An event for which udevd applies rules to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// udevd starts.
    Start,
    /// The device appears, or an `add` event is triggered.
    Add,
    /// A `change` event is triggered.
    Change,
}

/// Owner, group and mode that a new 0:0 0600 device gets. Fields that no rule sets are `None` and stay unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub uid: Option<Uid>,
    pub gid: Option<Gid>,
    /// 0660 if a rule sets a group other than 0 and none sets a mode.
    pub mode: Option<u16>,
    /// File and line of the rule that set the group, or else the mode, or else the owner. For a continued
    /// rule it is the last line, as in udevd's own messages.
    pub rule: String,
    /// File and line that set the owner.
    pub owner_rule: Option<String>,
    /// File and line that set the mode.
    pub mode_rule: Option<String>,
}

/// The effect of an event on the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Prediction {
    /// No rule sets owner, group or mode.
    #[default]
    Untouched,
    /// The device gets these values.
    Becomes(Outcome),
    /// The result depends on more than the rules; [`Predictions::unclear`] lists the rules in question.
    Unclear,
}

impl Prediction {
    /// The predicted values, if a rule sets any and they are certain.
    pub fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Becomes(outcome) => Some(outcome),
            Self::Untouched | Self::Unclear => None,
        }
    }
}

/// A rule that udevd ignores or whose effect is unclear, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// File and line, or a path.
    pub rule: String,
    pub why: String,
}

/// The effect of all three events. The default is that of a node without rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Predictions {
    pub start: Prediction,
    pub add: Prediction,
    pub change: Prediction,
    /// Rules about the device, or parts of them, that this udevd ignores.
    pub ignored: Vec<Diagnostic>,
    /// Rules whose effect on the device cannot be predicted. This includes rules that run a program after the
    /// event, even if the values that the rules set are certain.
    pub unclear: Vec<Diagnostic>,
}

impl Predictions {
    /// The prediction for one event.
    pub fn of(&self, event: Event) -> &Prediction {
        match event {
            Event::Start => &self.start,
            Event::Add => &self.add,
            Event::Change => &self.change,
        }
    }

    /// Makes all predictions unclear, because of rules that cannot be read.
    pub fn doubt(&mut self, unseen: &[Diagnostic]) {
        if unseen.is_empty() {
            return;
        }
        self.start = Prediction::Unclear;
        self.add = Prediction::Unclear;
        self.change = Prediction::Unclear;
        self.unclear.extend_from_slice(unseen);
    }
}

/// Maximum number of rules in each list of diagnostics; each rule is one line of the report.
pub(super) const MOST: usize = 100;

/// Collects the diagnostics, each once.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) ignored: Vec<Diagnostic>,
    pub(super) unclear: Vec<Diagnostic>,
}

impl Notes {
    pub(super) fn ignore(&mut self, rule: Location<'_>, why: &str) {
        push(&mut self.ignored, rule, why);
    }

    pub(super) fn unclear(&mut self, rule: Location<'_>, why: &str) {
        push(&mut self.unclear, rule, why);
    }
}

fn push(list: &mut Vec<Diagnostic>, rule: Location<'_>, why: &str) {
    // `--persist` depends on the diagnostics about its own rule, so other rules leave room for them.
    let most = match rule.file == own_rule::PATH {
        true => 2 * MOST,
        false => MOST,
    };
    if list.len() >= most {
        return;
    }
    let (rule, why) = (rule.to_string(), why.to_owned());
    let diagnostic = Diagnostic { rule, why };
    if !list.contains(&diagnostic) {
        list.push(diagnostic);
    }
}
