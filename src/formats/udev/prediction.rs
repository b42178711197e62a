//! What events will do to the device, and what is reported besides.

use nix::unistd::{Gid, Uid};

use super::location::Location;
use super::own_rule;

/// What can happen to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// udevd starts.
    Start,
    /// The device appears, or an event is sent as if it did.
    Add,
    /// An event is sent as if the device had changed.
    Change,
}

/// What a fresh 0:0 0600 device becomes. What no rule sets is none, and stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The owner.
    pub uid: Option<Uid>,
    /// The group.
    pub gid: Option<Gid>,
    /// The mode; 0660 where a rule sets a group other than 0 and none sets a mode.
    pub mode: Option<u16>,
    /// File and line that set the group; without one, the mode; without that, the owner. The line is the
    /// last one of a continued rule, as in udevd's own messages.
    pub rule: String,
    /// File and line that set the owner.
    pub owner_rule: Option<String>,
    /// File and line that set the mode.
    pub mode_rule: Option<String>,
}

/// What an event does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Prediction {
    /// No rule sets anything.
    #[default]
    Untouched,
    /// The device becomes this.
    Becomes(Outcome),
    /// The rules alone do not decide it; [`Predictions::unclear`] says which.
    Unclear,
}

impl Prediction {
    /// What the device becomes, where a rule sets that and it is clear.
    pub fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Becomes(outcome) => Some(outcome),
            Self::Untouched | Self::Unclear => None,
        }
    }
}

/// A rule and what is odd about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// File and line.
    pub rule: String,
    /// Why.
    pub why: String,
}

/// What will happen; by default nothing, as without any rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Predictions {
    /// When udevd starts.
    pub start: Prediction,
    /// At an add event.
    pub add: Prediction,
    /// At a change event.
    pub change: Prediction,
    /// Rules about the device, or parts of them, that this udevd leaves out.
    pub ignored: Vec<Diagnostic>,
    /// Rules that bear on the device and cannot be followed. A rule that runs a program afterwards is
    /// among them, though what the rules themselves set is clear.
    pub unclear: Vec<Diagnostic>,
}

impl Predictions {
    /// The forecast for one event.
    pub fn of(&self, event: Event) -> &Prediction {
        match event {
            Event::Start => &self.start,
            Event::Add => &self.add,
            Event::Change => &self.change,
        }
    }

    /// Takes back all forecasts, because of rules that are not seen.
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

/// How many rules are named for each reason to name one. No node has more, and one line each is reported.
pub(super) const MOST: usize = 100;

/// What is reported besides the forecasts, each once.
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
    // `--persist` decides by what is reported of the own rule, so that others leave room for it.
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
