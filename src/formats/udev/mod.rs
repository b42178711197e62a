//! Predicts from the node's udev rules what its systemd-udevd will do to /dev/kvm.
//!
//! Rules are parsed and evaluated as udevd does it, including which lines it drops. If the result
//! depends on something outside the rules (a program's output, a file, the udev database), it is
//! [`Prediction::Unclear`], with the rule and the reason. All of this was compared with the
//! systemd-udevd of Debian 12 (252.39); the module of [`version_of`] lists what differs in other
//! versions.
//!
//! There are three events. When udevd *starts*, only rules with `OPTIONS+="static_node=…"` count,
//! whatever they compare. An *add* event (loading the module, boot, `udevadm trigger --action=add`)
//! and a *change* event (`udevadm trigger` without options) evaluate all rules. An event never resets
//! what an earlier one set, so each prediction is for a new 0:0 0600 device.
//!
//! Not evaluated: `resolve_names` in udev.conf, properties set by `udevadm control --property`,
//! and the ACL that logind's `uaccess` sets for a user who logs in at the console.
//!
//! ```text
//! precedence -> file -> lines -> rule -> pair (key, value)     parse the files that count
//!                                  |
//!                               accept <- version, names       drop what the node's udevd drops
//!                                  |
//!              evaluate <- device (pattern, glob), assign      follow the rules at each event
//!                                  |
//!                              prediction
//! ```
#![forbid(unsafe_code)]

mod accept;
mod assign;
mod device;
mod evaluate;
mod file;
mod glob;
mod key;
mod lines;
mod location;
pub mod own_rule;
mod pair;
mod pattern;
mod precedence;
mod prediction;
mod rule;
mod value;
mod version;

pub use accept::Database;
pub use evaluate::predict;
pub use file::RuleFile;
pub use precedence::{Candidate, RULE_DIRECTORIES, select};
pub use prediction::{Diagnostic, Event, Outcome, Prediction, Predictions};
pub use version::{Udevd, login_defs, version_of};

#[cfg(test)]
mod tests;
