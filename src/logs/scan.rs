//! A stream of any length through a buffer of fixed size.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read};

use super::causes::Form;
use super::patterns::{Anchors, REACH};

/// How much is read at once.
const BLOCK: usize = 1 << 20;
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
#[derive(Debug, Default)]
pub struct Scanner {
    /// The last stream's buffer.
    spare: Vec<u8>,
    anchors: Anchors,
}

/// A buffer with its fill: from `start` what is left of the block before, from [`BEHIND`] its own.
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// `None` where more follows.
    last: Option<io::Result<()>>,
}

impl Block {
    /// Fills the buffer, or as much of it as there is to read.
    fn fill(mut bytes: Vec<u8>, input: &mut impl Read) -> Self {
        bytes.resize(BEHIND + BLOCK, 0);
        let mut end = BEHIND;
        let last = loop {
            match input.read(&mut bytes[end..]) {
                Ok(0) if end < bytes.len() => break Some(Ok(())),
                Ok(got) => end += got,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Some(Err(error)),
            }
            if end == bytes.len() {
                break None;
            }
        };
        let start = BEHIND;
        Self {
            bytes,
            start,
            end,
            last,
        }
    }
}

/// Where the search stands in a block.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Anchors before this have been looked at.
    from: usize,
    /// The end of the last line that was told.
    told: usize,
    /// Whether nothing between that and here is out of sight.
    whole: bool,
}

impl Scanner {
    /// Reads `input` to its end and calls `found` for each line with a message. `read` is called
    /// after each block.
    ///
    /// # Errors
    /// What reading answers. What was found before that was told.
    pub fn scan(
        &mut self,
        mut input: impl Read,
        mut found: impl FnMut(Found<'_>),
        mut read: impl FnMut(),
    ) -> io::Result<()> {
        let mut block = Block::fill(std::mem::take(&mut self.spare), &mut input);
        // No message may begin with what another stream left there.
        block.bytes[..BEHIND].fill(0);
        let mut place = Place {
            from: BEHIND,
            told: BEHIND,
            whole: true,
        };
        loop {
            place = self.search(&block, place, &mut found);
            read();
            if let Some(last) = block.last {
                self.spare = block.bytes;
                return last;
            }
            // Every block but the last is full: its end is the next one's beginning.
            block.bytes.copy_within(BLOCK.., 0);
            let start = block.start.saturating_sub(BLOCK);
            block = Block {
                start,
                ..Block::fill(block.bytes, &mut input)
            };
            place.from = place.from.saturating_sub(BLOCK);
            place.whole &= place.told >= BLOCK;
            place.told = place.told.saturating_sub(BLOCK);
        }
    }

    fn search(
        &self,
        block: &Block,
        Place {
            mut from,
            mut told,
            mut whole,
        }: Place,
        found: &mut impl FnMut(Found<'_>),
    ) -> Place {
        let (text, ended) = (&block.bytes[..block.end], block.last.is_some());
        // An anchor near the end may belong to a message that has not been read yet.
        let end = if ended {
            text.len()
        } else {
            text.len() - REACH
        };
        let mut search = self.anchors.search(text, from, end);
        while let Some((at, form, after)) = search.next(from) {
            let limit = text.len().min(after + LINE_AFTER);
            let newline = memchr::memchr(b'\n', &text[after..limit]).map(|end| after + end);
            if newline.is_none() && limit == text.len() && !ended {
                return Place {
                    from: at,
                    told,
                    whole,
                };
            }
            let line_end = newline.unwrap_or(limit);
            let earliest = told.max(at.saturating_sub(LINE_BEFORE)).max(block.start);
            let start = memchr::memrchr(b'\n', &text[earliest..at])
                .map_or(earliest, |end| earliest + end + 1);
            found(Found {
                line: &text[start..line_end],
                message: (at - start, form, after - start),
                before: &text[told.max(block.start)..start],
                whole,
            });
            (from, told, whole) = (line_end, line_end, true);
        }
        let from = from.max(end);
        Place { from, told, whole }
    }
}
