//! A rules file as rules.

use std::borrow::Cow;

use super::lines::{Line, Lines};
use super::location::Location;

/// A rules file that udevd reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFile {
    /// Its path on the node.
    pub path: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// What a line of a rules file is.
pub(super) enum Entry<'a, T> {
    Rule(T),
    /// A line with the device's name in it that udevd drops, and why.
    Dropped(Location<'a>, String),
    /// A line that is too long: udevd reads no further.
    TooLong(Location<'a>),
}

impl RuleFile {
    /// Its name without the directory.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Its rules, as `read` reads them: nothing for one that does not matter, an error is why udevd drops it.
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

/// Whether a line has the device's name in it: only of such lines is reported that udevd drops them.
fn about_kvm(line: &[u8]) -> bool {
    line.windows(3).any(|word| word == b"kvm")
}
