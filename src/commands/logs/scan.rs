//! Searches a stream of any length through buffers of fixed size.
//!
//! A block is searched together with the text before and after it, so that each message is seen
//! whole, with its line, in the block that contains its anchor.
//!
//! A large file is read by two threads: first both look for blocks that contain a message, then
//! those few are read again, in order. That takes two thirds of the time of one thread.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::patterns::{LONGEST, Message, Searcher};

/// How much is read at once, in bytes: what the processor's cache holds until it is searched.
const BLOCK: usize = 256 << 10;
/// How much before a message is in view: a QEMU command line, a domain's XML.
const BEHIND: usize = 48 << 10;
/// How much of a line before its message is looked at, and how much after it.
const LINE_BEFORE: usize = 16 << 10;
const LINE_AFTER: usize = 4 << 10;
/// How much after a block is in view: a message that begins at its end, and that one's line.
const AHEAD: usize = LONGEST + LINE_AFTER;
/// Files from this size on are read by two threads.
pub const LARGE: u64 = 8 << 20;
/// How much of a file two threads read before its messages are reported: little enough that the page
/// cache still has the blocks that are read again, much enough that the wait for the slower thread,
/// which is long on a busy machine, does not count.
const ROUND: usize = 1 << 30;

/// A line with a message.
#[derive(Debug)]
pub struct Match<'a> {
    /// The line, or the part around the message where it is very long.
    pub line: &'a [u8],
    /// Where in `line` the message is.
    pub message: Message,
    /// The text before the line, back to the last line with a message, or as far as is in view.
    pub before: &'a [u8],
    /// Whether `before` reaches back to that line, or to the start of the stream.
    pub whole: bool,
}

/// A part of a stream: a block, with the text before and after it.
#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    /// How many bytes are filled.
    filled: usize,
    /// Where in the stream the first byte is.
    offset: u64,
    /// Where in the buffer the block begins.
    begin: usize,
    /// How the stream ended, once it did.
    end: Option<io::Result<()>>,
}

impl Block {
    /// Makes it the block at `place` of another stream, to be filled, with at most `behind` bytes
    /// before it.
    fn seek(&mut self, place: u64, behind: usize) {
        self.bytes.resize(BEHIND + BLOCK + AHEAD, 0);
        self.begin = usize::try_from(place).map_or(behind, |place| place.min(behind));
        self.offset = place - self.begin as u64;
        (self.filled, self.end) = (0, None);
    }

    /// Makes it the next block of the same stream. Its beginning is in the buffer already.
    fn advance(&mut self) {
        let from = self.begin + BLOCK - BEHIND;
        self.bytes.copy_within(from..self.filled, 0);
        self.filled -= from;
        self.offset += from as u64;
        self.begin = BEHIND;
    }

    /// Fills the buffer, or as much of it as there is to read. `read` gets the place in the stream
    /// to read from.
    fn fill(&mut self, mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>) {
        let size = self.begin + BLOCK + AHEAD;
        while self.end.is_none() && self.filled < size {
            let place = self.offset + self.filled as u64;
            match read(&mut self.bytes[self.filled..size], place) {
                Ok(0) => self.end = Some(Ok(())),
                Ok(got) => self.filled += got,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.end = Some(Err(error)),
            }
        }
    }

    /// All that is filled.
    fn text(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Where in the buffer the block is.
    fn range(&self) -> Range<usize> {
        let end = self.filled.min(self.begin + BLOCK);
        self.begin..end.max(self.begin)
    }

    /// How the stream ended, if this is its last block.
    fn done(&mut self) -> Option<io::Result<()>> {
        let is_last = self.filled <= self.begin + BLOCK;
        is_last.then(|| self.end.take()).flatten()
    }
}

/// Searches streams, one after the other.
#[derive(Debug, Default)]
pub struct Scanner {
    block: Block,
    searcher: Searcher,
}

impl Scanner {
    /// Reads `input` to its end and calls `found` for each line with a message.
    ///
    /// # Errors
    /// Those of reading. What was read before that was searched.
    pub fn scan(
        &mut self,
        mut input: impl Read,
        mut found: impl FnMut(Match<'_>),
    ) -> io::Result<()> {
        let mut reported = 0;
        self.block.seek(0, BEHIND);
        loop {
            self.block.fill(|bytes, _| input.read(bytes));
            reported = self.report(reported, &mut found);
            if let Some(done) = self.block.done() {
                return done;
            }
            self.block.advance();
        }
    }

    /// As [`scan`](Self::scan), for the first `size` bytes of a large file. `read` is called
    /// with the lengths of what was read.
    ///
    /// # Errors
    /// Likewise.
    pub fn scan_file(
        &mut self,
        file: &File,
        size: u64,
        mut found: impl FnMut(Match<'_>),
        mut read: impl FnMut(u64),
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
                // Where this process may start no thread, this one looks at all blocks.
                let other = thread::Builder::new().spawn_scoped(scope, other).ok();
                let own = sift(&mut self.block, &mut || {
                    read(len.swap(0, Ordering::Relaxed))
                });
                let other = other.and_then(|other| other.join().ok());
                [own, other.unwrap_or_default()].concat()
            });
            read(len.into_inner());
            places.sort_unstable();
            for place in places {
                read(0);
                self.block.seek(place, BEHIND);
                self.block.fill(|bytes, at| file.read_at(bytes, at));
                reported = self.report(reported, &mut found);
                if let Some(Err(error)) = self.block.done() {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Reports the lines with a message whose anchor is in the block. `reported` is the end, in the
    /// stream, of the last line that was reported; the new one is returned.
    fn report(&self, mut reported: u64, found: &mut impl FnMut(Match<'_>)) -> u64 {
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
            found(Match {
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

/// Takes the blocks of a file from `next` to `end`, calls `read` with the length of each, and returns
/// where those are that contain a message or could not be read.
fn sift(
    file: &File,
    searcher: &Searcher,
    block: &mut Block,
    (next, end): (&AtomicU64, u64),
    mut read: impl FnMut(u64),
) -> Vec<u64> {
    let mut places = Vec::new();
    loop {
        let place = next.fetch_add(BLOCK as u64, Ordering::Relaxed);
        if place >= end {
            return places;
        }
        block.seek(place, LONGEST);
        block.fill(|bytes, at| file.read_at(bytes, at));
        read(block.range().len() as u64);
        let found = searcher.messages(block.text(), block.range()).next();
        if found.is_some() || matches!(block.done(), Some(Err(_))) {
            places.push(place);
        }
    }
}
