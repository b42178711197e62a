//! File and line of a rule, for messages.

use std::fmt;

/// File and line of a rule; for a continued rule the last line, as in udevd's own messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location<'a> {
    pub(super) file: &'a str,
    pub(super) line: usize,
}

impl fmt::Display for Location<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.file, self.line)
    }
}
