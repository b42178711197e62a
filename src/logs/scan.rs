//! A stream of any length through a buffer of fixed size.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read};

use super::causes::Form;
use super::patterns::{Anchors, REACH};

/// How much is read at once: what fits the second-level cache.
const BLOCK: usize = 256 << 10;
/// How much stays in view behind the place of the search: a QEMU command line, a domain's XML.
const BEHIND: usize = 48 << 10;
/// How much of a line before its message is looked at, and how much after it.
const LINE_BEFORE: usize = 16 << 10;
const LINE_AFTER: usize = 4 << 10;

/// A message, and where it stands.
#[derive(Debug)]
pub struct Found<'a> {
    /// The line, or the part around the message where it is very long.
    pub line: &'a [u8],
    /// Where in `line` the message's anchor is, its form, and where it ends.
    pub message: (usize, Form, usize),
    /// What stands before the line, back to the last message.
    pub before: &'a [u8],
    /// Whether `before` reaches back that far, or to the start.
    pub whole: bool,
}

/// Searches streams, one after the other.
#[derive(Debug)]
pub struct Scanner {
    buffer: Vec<u8>,
    anchors: Anchors,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            buffer: vec![0; BEHIND + BLOCK],
            anchors: Anchors::default(),
        }
    }
}

impl Scanner {
    /// Reads `input` to its end and calls `found` for each line with a message. `read` is told of
    /// each block.
    ///
    /// # Errors
    /// What reading answers. What was found before that was told.
    pub fn scan(
        &mut self,
        mut input: impl Read,
        mut found: impl FnMut(Found<'_>),
        mut read: impl FnMut(usize),
    ) -> io::Result<()> {
        let (mut filled, mut from, mut told) = (0_usize, 0_usize, 0_usize);
        let (mut whole, mut ended) = (true, false);
        while !ended {
            if filled == self.buffer.len() {
                let gone = from.saturating_sub(BEHIND);
                self.buffer.copy_within(gone..filled, 0);
                filled -= gone;
                from -= gone;
                whole &= told >= gone;
                told = told.saturating_sub(gone);
            }
            match input.read(&mut self.buffer[filled..]) {
                Ok(0) => ended = true,
                Ok(got) => {
                    filled += got;
                    read(got);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let text = &self.buffer[..filled];
            // An anchor near the end may belong to a message that has not been read yet.
            let end = if ended {
                filled
            } else {
                filled.saturating_sub(REACH)
            };
            loop {
                let Some((at, form, after)) = self.anchors.next(text, from, end) else {
                    from = from.max(end);
                    break;
                };
                let limit = filled.min(after + LINE_AFTER);
                let newline = memchr::memchr(b'\n', &text[after..limit]).map(|end| after + end);
                if newline.is_none() && limit == filled && !ended {
                    from = at;
                    break;
                }
                let line_end = newline.unwrap_or(limit);
                let earliest = told.max(at.saturating_sub(LINE_BEFORE));
                let start = memchr::memrchr(b'\n', &text[earliest..at])
                    .map_or(earliest, |end| earliest + end + 1);
                found(Found {
                    line: &text[start..line_end],
                    message: (at - start, form, after - start),
                    before: &text[told..start],
                    whole,
                });
                told = line_end;
                from = line_end;
                whole = true;
            }
        }
        Ok(())
    }
}
