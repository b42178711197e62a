//! What the node's systemd-udevd will do to /dev/kvm, worked out from its rules.
//!
//! A rule is read and followed as udevd does it, down to what it drops; where that depends on
//! something that is not in the rules (a program's output, a file, the udev database), the answer
//! is [`Forecast::Unclear`] and says which rule. All of it was compared with the systemd-udevd of
//! Debian 12 (252.39); [`version_of`]'s module says what is different elsewhere.
//!
//! Three things happen to a node. When udevd *starts*, only rules with `OPTIONS+="static_node=…"`
//! count, and nothing that they compare. An *add* event (the module is loaded, boot, `udevadm
//! trigger --action=add`) and a *change* event (a bare `udevadm trigger`) go through all rules. An
//! event never resets what an earlier one gave, so each forecast is for a fresh 0:0 0600 node.
//!
//! Not looked at: `resolve_names` in udev.conf, properties given by `udevadm control --property`,
//! and the ACL that logind's `uaccess` gives to someone who logs in at the console.
#![forbid(unsafe_code)]

mod file;
mod given;
mod glob;
mod key;
mod known;
pub mod own;
mod pair;
mod pattern;
mod rule;
mod select;
mod systemd;
mod text;
mod value;
mod walk;

use nix::unistd::{Gid, Uid};

use file::{Kept, MOST_HELD, read};
use rule::Place;

pub use select::{FOLDERS, Found, select};
pub use systemd::{login_defs, version_of};

/// A rules file that udevd reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFile {
    /// Its path on the node.
    pub path: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// What can happen to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// udevd starts.
    Start,
    /// The device appears, or is said to.
    Add,
    /// The device is said to have changed.
    Change,
}

/// What is known of the node's systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udevd {
    /// Its version, if that could be found.
    pub version: Option<u32>,
    /// The largest UID of the system's range.
    pub system_uid_max: u32,
    /// The largest GID of the system's range.
    pub system_gid_max: u32,
}

impl Default for Udevd {
    fn default() -> Self {
        Self {
            version: None,
            system_uid_max: 999,
            system_gid_max: 999,
        }
    }
}

/// Whom the node knows by name.
#[derive(Clone, Copy)]
pub struct Database<'a> {
    /// The number of a group.
    pub group: &'a dyn Fn(&str) -> Option<Gid>,
    /// The number of a user.
    pub user: &'a dyn Fn(&str) -> Option<Uid>,
    /// Whether all of the node's names are seen: then one that has no number is unknown to its udevd,
    /// too.
    pub complete: bool,
}

/// What a fresh 0:0 0600 node becomes. What no rule gives is none, and stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The owner.
    pub uid: Option<Uid>,
    /// The group.
    pub gid: Option<Gid>,
    /// The mode; 0660 where a rule gives a group other than 0 and none gives a mode.
    pub mode: Option<u16>,
    /// File and line that gave the group; without one, the mode; without that, the owner. The line
    /// is the last one of a continued rule, as in udevd's own messages.
    pub rule: String,
    /// File and line that gave the owner.
    pub owner_rule: Option<String>,
    /// File and line that gave the mode.
    pub mode_rule: Option<String>,
}

/// What an event does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Forecast {
    /// No rule gives anything.
    #[default]
    Untouched,
    /// The node becomes this.
    Becomes(Outcome),
    /// That cannot be told from the rules alone; [`Prediction::unclear`] says which.
    Unclear,
}

impl Forecast {
    /// What the node becomes, where a rule says so and that is clear.
    pub fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Becomes(outcome) => Some(outcome),
            Self::Untouched | Self::Unclear => None,
        }
    }
}

/// A rule and what is odd about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// File and line.
    pub rule: String,
    /// Why.
    pub why: String,
}

/// What will happen; by default nothing, as without any rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prediction {
    /// When udevd starts.
    pub start: Forecast,
    /// At an add event.
    pub add: Forecast,
    /// At a change event.
    pub change: Forecast,
    /// Rules about the device, or parts of them, that this udevd leaves out.
    pub ignored: Vec<Remark>,
    /// Rules that bear on the device and cannot be followed. A rule that runs a program afterwards is
    /// among them, though what the rules themselves give is clear.
    pub unclear: Vec<Remark>,
}

impl Prediction {
    /// The forecast for one event.
    pub fn of(&self, event: Event) -> &Forecast {
        match event {
            Event::Start => &self.start,
            Event::Add => &self.add,
            Event::Change => &self.change,
        }
    }

    /// Takes back all forecasts, because of rules that are not seen.
    pub fn doubt(&mut self, unseen: &[Remark]) {
        if unseen.is_empty() {
            return;
        }
        self.start = Forecast::Unclear;
        self.add = Forecast::Unclear;
        self.change = Forecast::Unclear;
        self.unclear.extend_from_slice(unseen);
    }
}

/// Works out what the events will do, from the files that udevd reads, in its order ([`select()`]). Where
/// there are more rules than this program has room for, nothing is clear.
pub fn predict(files: &[&RuleFile], node: &Udevd, db: &Database<'_>) -> Prediction {
    let mut notes = Notes::default();
    let kept = Kept::new();
    let mut read_files = Vec::new();
    for file in files {
        read_files.push(read(file, &kept, node, db, &mut notes));
        if notes.held > MOST_HELD {
            return too_many(&file.path, notes);
        }
    }
    let files = read_files;
    let start = walk::start(&files, &mut notes);
    let add = walk::event(&files, b"add", &mut notes);
    let change = walk::event(&files, b"change", &mut notes);
    Prediction {
        start,
        add,
        change,
        ignored: notes.ignored,
        unclear: notes.unclear,
    }
}

/// The forecast where not all rules were read.
fn too_many(last: &str, notes: Notes) -> Prediction {
    let why =
        "the node has more rules that could matter to kvm than are followed (12 MiB of memory)";
    let (rule, why) = (last.to_owned(), why.to_owned());
    let unclear = vec![Remark { rule, why }];
    Prediction {
        start: Forecast::Unclear,
        add: Forecast::Unclear,
        change: Forecast::Unclear,
        ignored: notes.ignored,
        unclear,
    }
}

/// Whether a line has the device's name in it: only of such ones is said that udevd drops them.
fn about_kvm(line: &[u8]) -> bool {
    line.windows(3).any(|word| word == b"kvm")
}

/// How many rules are named for each reason to name one. No node has more, and one line each is said.
const MOST: usize = 100;

/// What is said besides the forecasts, each once.
#[derive(Default)]
struct Notes {
    /// How much memory the rules take that were read, in bytes.
    held: usize,
    ignored: Vec<Remark>,
    unclear: Vec<Remark>,
}

impl Notes {
    fn ignore(&mut self, rule: Place<'_>, why: &str) {
        push(&mut self.ignored, rule, why);
    }

    fn unclear(&mut self, rule: Place<'_>, why: &str) {
        push(&mut self.unclear, rule, why);
    }
}

fn push(list: &mut Vec<Remark>, rule: Place<'_>, why: &str) {
    // What is said of the own rule decides what `--persist` says.
    let most = if rule.file == own::PATH {
        2 * MOST
    } else {
        MOST
    };
    if list.len() >= most {
        return;
    }
    let (rule, why) = (rule.to_string(), why.to_owned());
    let remark = Remark { rule, why };
    if !list.contains(&remark) {
        list.push(remark);
    }
}

#[cfg(test)]
mod tests;
