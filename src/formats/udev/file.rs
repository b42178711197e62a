//! Splits a rules file into rules and dropped lines.

use std::borrow::Cow;

use super::lines::{Line, Lines};
use super::location::Location;

/// A rules file that udevd reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFile {
    /// The path on the node.
    pub path: String,
    pub content: Vec<u8>,
}

/// A line of a rules file.
pub(super) enum Entry<'a, T> {
    Rule(T),
    /// A line that contains `kvm` and that udevd drops, with the reason.
    Dropped(Location<'a>, String),
    /// A line that is too long: udevd does not read the rest of the file.
    TooLong(Location<'a>),
}

impl RuleFile {
    /// The file's name without its directory.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// The file's rules, parsed by `read`, which returns `None` for a rule that cannot affect kvm, and an error
    /// with the reason if udevd drops the line.
    pub(super) fn entries<'a, T>(
        &'a self,
        read: impl Fn(Location<'a>, &Cow<'a, [u8]>) -> Result<Option<T>, String>,
    ) -> impl Iterator<Item = Entry<'a, T>> {
        let entry = move |(line, text)| {
            let at = Location {
                file: &self.path,
                line,
            };
            let dropped = |line: &[u8], why| about_kvm(line).then_some(Entry::Dropped(at, why));
            match text {
                Line::Rule(line) => match read(at, &line) {
                    Ok(rule) => rule.map(Entry::Rule),
                    Err(why) => dropped(&line, why),
                },
                Line::Dropped(line, why) => dropped(&line, why.to_owned()),
                Line::TooLong => Some(Entry::TooLong(at)),
            }
        };
        Lines::new(&self.content).filter_map(entry)
    }
}

/// Whether a line contains `kvm`. Other lines that udevd drops are not reported.
fn about_kvm(line: &[u8]) -> bool {
    line.windows(3).any(|word| word == b"kvm")
}
