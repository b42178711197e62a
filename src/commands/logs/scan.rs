//! Searches a stream of any length through buffers of fixed size.
//!
//! A block is searched together with the text before and after it, so that each message is found whole,
//! with its line, in the block that contains its anchor.
//!
//! Two threads read a large file: both first search for blocks that contain a message, then these few blocks
//! are read again in order. That takes two thirds of the time of one thread.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::patterns::{LONGEST, Message, Searcher};

/// The bytes that are read at once: few enough to stay in the processor's cache until they are searched.
const BLOCK: usize = 256 << 10;
/// The bytes kept before a message: enough for a QEMU command line or a domain's XML.
const BEHIND: usize = 48 << 10;
/// The bytes of a line that are parsed before its message, and after it.
const LINE_BEFORE: usize = 16 << 10;
const LINE_AFTER: usize = 4 << 10;
/// The bytes read after a block: enough for a message that begins at its end, and the rest of the line.
const AHEAD: usize = LONGEST + LINE_AFTER;
/// Files of at least this size are read by two threads.
pub const LARGE: u64 = 8 << 20;
/// The bytes of a file that two threads read before its messages are reported: few enough for the page cache
/// to still contain the blocks that are read again, and enough to make the wait for the slower thread
/// insignificant, which is long on a busy machine.
const ROUND: usize = 1 << 30;

/// A line with a message.
#[derive(Debug)]
pub struct Match<'a> {
    /// The line, or the part around the message if the line is very long.
    pub line: &'a [u8],
    /// The message, with its position in `line`.
    pub message: Message,
    /// The text before the line, back to the previous line with a message, or as far as the buffer reaches.
    pub before: &'a [u8],
    /// Whether `before` reaches back to that line, or to the start of the stream.
    pub whole: bool,
}

/// A buffer with a block of a stream and the text before and after it.
#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    /// The number of bytes filled.
    filled: usize,
    /// The offset of the buffer in the stream.
    offset: u64,
    /// The offset of the block in the buffer.
    begin: usize,
    /// The result of reading, once the stream has ended.
    end: Option<io::Result<()>>,
}

impl Block {
    /// Prepares the buffer for the block at offset `place` of another stream, with at most `behind` bytes
    /// before it.
    fn seek(&mut self, place: u64, behind: usize) {
        self.bytes.resize(BEHIND + BLOCK + AHEAD, 0);
        self.begin = usize::try_from(place).map_or(behind, |place| place.min(behind));
        self.offset = place - self.begin as u64;
        (self.filled, self.end) = (0, None);
    }

    /// Moves on to the next block of the same stream, whose first bytes are already in the buffer.
    fn advance(&mut self) {
        let from = self.begin + BLOCK - BEHIND;
        self.bytes.copy_within(from..self.filled, 0);
        self.filled -= from;
        self.offset += from as u64;
        self.begin = BEHIND;
    }

    /// Fills the buffer as far as the stream reaches. `read` is called with the offset in the stream to read
    /// from.
    fn fill(&mut self, mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>) {
        let size = self.begin + BLOCK + AHEAD;
        while self.end.is_none() && self.filled < size {
            let place = self.offset + self.filled as u64;
            match read(&mut self.bytes[self.filled..size], place) {
                Ok(0) => self.end = Some(Ok(())),
                Ok(len) => self.filled += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.end = Some(Err(error)),
            }
        }
    }

    /// The filled part of the buffer.
    fn text(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// The range of the block in the buffer.
    fn range(&self) -> Range<usize> {
        let end = self.filled.min(self.begin + BLOCK);
        self.begin..end.max(self.begin)
    }

    /// The result of reading, if this is the last block of the stream.
    fn done(&mut self) -> Option<io::Result<()>> {
        let is_last = self.filled <= self.begin + BLOCK;
        is_last.then(|| self.end.take()).flatten()
    }
}

/// Searches streams one after the other, with one buffer.
#[derive(Debug, Default)]
pub struct Scanner {
    block: Block,
    searcher: Searcher,
}

impl Scanner {
    /// Reads `input` to its end and calls `on_match` for each line with a message.
    ///
    /// # Errors
    /// If reading fails. `on_match` has been called for all lines before that point.
    pub fn scan(
        &mut self,
        mut input: impl Read,
        mut on_match: impl FnMut(Match<'_>),
    ) -> io::Result<()> {
        let mut reported = 0;
        self.block.seek(0, BEHIND);
        loop {
            self.block.fill(|bytes, _| input.read(bytes));
            reported = self.report(reported, &mut on_match);
            if let Some(done) = self.block.done() {
                return done;
            }
            self.block.advance();
        }
    }

    /// Searches the first `size` bytes of a large file like [`scan`](Self::scan), with two threads. `on_read`
    /// is called with the number of bytes read since its last call.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    pub fn scan_file(
        &mut self,
        file: &File,
        size: u64,
        mut on_match: impl FnMut(Match<'_>),
        mut on_read: impl FnMut(u64),
    ) -> io::Result<()> {
        let mut reported = 0;
        for start in (0..size).step_by(ROUND) {
            let (next, end) = (AtomicU64::new(start), size.min(start + ROUND as u64));
            let len = AtomicU64::new(0);
            let sift = |block: &mut Block, tick: &mut dyn FnMut()| {
                sift(file, &self.searcher, block, (&next, end), |block| {
                    len.fetch_add(block, Ordering::Relaxed);
                    tick();
                })
            };
            let mut places = thread::scope(|scope| {
                let other = || sift(&mut Block::default(), &mut || {});
                // If no thread can be started (RLIMIT_NPROC), this one searches all blocks.
                let other = thread::Builder::new().spawn_scoped(scope, other).ok();
                let own = sift(&mut self.block, &mut || {
                    on_read(len.swap(0, Ordering::Relaxed))
                });
                let other = other.and_then(|other| other.join().ok());
                [own, other.unwrap_or_default()].concat()
            });
            on_read(len.into_inner());
            places.sort_unstable();
            for place in places {
                on_read(0);
                self.block.seek(place, BEHIND);
                self.block.fill(|bytes, at| file.read_at(bytes, at));
                reported = self.report(reported, &mut on_match);
                if let Some(Err(error)) = self.block.done() {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Calls `on_match` for the lines with a message whose anchor is in the block. `reported` is the offset in
    /// the stream at which the last reported line ended; returns its new value.
    fn report(&self, mut reported: u64, on_match: &mut impl FnMut(Match<'_>)) -> u64 {
        let (block, text) = (&self.block, self.block.text());
        for message in self.searcher.messages(text, block.range()) {
            let Message { anchor, end, form } = message;
            if block.offset + (anchor as u64) < reported {
                continue;
            }
            let limit = text.len().min(end + LINE_AFTER);
            let line_end = memchr::memchr(b'\n', &text[end..limit]).map_or(limit, |at| end + at);
            let view = anchor.saturating_sub(BEHIND);
            let whole = reported >= block.offset + view as u64;
            let last = reported.saturating_sub(block.offset);
            let view = view.max(usize::try_from(last).unwrap_or(anchor));
            let earliest = view.max(anchor.saturating_sub(LINE_BEFORE));
            let start = memchr::memrchr(b'\n', &text[earliest..anchor])
                .map_or(earliest, |at| earliest + at + 1);
            let message = Message {
                anchor: anchor - start,
                end: end - start,
                form,
            };
            on_match(Match {
                line: &text[start..line_end],
                message,
                before: &text[view..start],
                whole,
            });
            reported = block.offset + line_end as u64;
        }
        reported
    }
}

/// Reads the blocks of a file from `next` to `end`, calls `on_read` with the length of each, and returns the
/// offsets of the blocks that contain a message or could not be read.
fn sift(
    file: &File,
    searcher: &Searcher,
    block: &mut Block,
    (next, end): (&AtomicU64, u64),
    mut on_read: impl FnMut(u64),
) -> Vec<u64> {
    let mut places = Vec::new();
    loop {
        let place = next.fetch_add(BLOCK as u64, Ordering::Relaxed);
        if place >= end {
            return places;
        }
        block.seek(place, LONGEST);
        block.fill(|bytes, at| file.read_at(bytes, at));
        on_read(block.range().len() as u64);
        let message = searcher.messages(block.text(), block.range()).next();
        if message.is_some() || matches!(block.done(), Some(Err(_))) {
            places.push(place);
        }
    }
}
