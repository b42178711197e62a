//! What the node's systemd-udevd will do to /dev/kvm, worked out from its rules.
//!
//! A rule is read and followed as udevd does it, down to what it drops; where that depends on
//! something that is not in the rules (a program's output, a file, the udev database), the answer
//! is [`Prediction::Unclear`] and says which rule. All of it was compared with the systemd-udevd of
//! Debian 12 (252.39); [`version_of`]'s module says what is different elsewhere.
//!
//! Three things happen to a device. When udevd *starts*, only rules with `OPTIONS+="static_node=…"`
//! count, and nothing that they compare. An *add* event (the module is loaded, boot, `udevadm
//! trigger --action=add`) and a *change* event (a bare `udevadm trigger`) go through all rules. An
//! event never resets what an earlier one set, so each forecast is for a fresh 0:0 0600 device.
//!
//! Not looked at: `resolve_names` in udev.conf, properties set by `udevadm control --property`,
//! and the ACL that logind's `uaccess` sets for a user who logs in at the console.
//!
//! ```text
//! precedence -> file -> lines -> rule -> pair (key, value)     which files, and what is in them
//!                                  |
//!                               accept <- version, names       what this node's udevd makes of a rule
//!                                  |
//!              evaluate <- device (pattern, glob), assign      what an event does
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
