//! A stream of any length through buffers of fixed size.
//!
//! A block is searched together with what stands before and after it, so that each message is seen
//! whole, with its line, by the block that its anchor lies in. That is why the blocks of a large
//! file can be read and searched by two threads, each on its own; lines are told in their order all
//! the same. Neither thread waits for the other: on a busy machine that would cost more than the
//! second processor gains.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use super::causes::Form;
use super::patterns::{Anchors, REACH};

/// How much is read at once.
const BLOCK: usize = 2 << 20;
/// How much before a message is in view: a QEMU command line, a domain's XML.
const BEHIND: usize = 48 << 10;
/// How much of a line before its message is looked at, and how much after it.
const LINE_BEFORE: usize = 16 << 10;
const LINE_AFTER: usize = 4 << 10;
/// How much after a block is in view: a message that begins at its end, and that one's line.
const AHEAD: usize = REACH + LINE_AFTER;
/// Threads that read one file. The copying takes twice as long as the search, and from two on it is
/// the memory that limits.
const THREADS: usize = 2;
/// Files from this size on are read by several threads.
pub const LARGE: u64 = 8 << 20;

/// A message, and where it stands.
#[derive(Debug)]
pub struct Found<'a> {
    /// The line, or the part around the message where it is very long.
    pub line: &'a [u8],
    /// Where in `line` the message's anchor is, its form, and where it ends.
    pub message: (usize, Form, usize),
    /// What stands before the line, back to the last one that was told, or as far as is in view.
    pub before: &'a [u8],
    /// Whether `before` reaches back to that line, or to the start.
    pub whole: bool,
}

/// Searches streams, one after the other.
#[derive(Debug, Default)]
pub struct Scanner {
    /// The last stream's buffer.
    spare: Vec<u8>,
    anchors: Anchors,
}

/// A buffer: what stands before the block, the block from [`BEHIND`] on, what stands after it.
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    /// What is filled.
    start: usize,
    end: usize,
    /// Where in the stream the block begins.
    at: u64,
    /// Whether nothing follows.
    ended: bool,
}

impl Block {
    /// The first block of a stream, to be filled.
    fn first(mut bytes: Vec<u8>) -> Self {
        bytes.resize(BEHIND + BLOCK + AHEAD, 0);
        // No message may begin with what another stream left there.
        bytes[..BEHIND].fill(0);
        Self {
            bytes,
            start: BEHIND,
            end: BEHIND,
            at: 0,
            ended: false,
        }
    }

    /// Makes it the next block. Its beginning is there already.
    fn slide(&mut self) {
        self.bytes.copy_within(BLOCK.., 0);
        self.start = self.start.saturating_sub(BLOCK);
        self.end -= BLOCK;
        self.at += BLOCK as u64;
    }

    /// Makes it that block of a file, to be filled.
    fn aim(&mut self, number: u64) {
        let bytes = std::mem::take(&mut self.bytes);
        *self = Self::first(bytes);
        if number > 0 {
            self.at = number * BLOCK as u64;
            (self.start, self.end) = (0, 0);
        }
    }

    /// Fills the buffer, or as much of it as there is to read: then it says how that ended. `read`
    /// is told where in the stream it shall read.
    fn fill(
        &mut self,
        mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    ) -> Option<io::Result<()>> {
        while self.end < self.bytes.len() {
            let place = self.place(self.end);
            let ended = match read(&mut self.bytes[self.end..], place) {
                Ok(0) => Ok(()),
                Ok(got) => {
                    self.end += got;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            self.ended = true;
            return Some(ended);
        }
        None
    }

    /// What is filled, and the end of the block in it: anchors before that are its own.
    fn text(&self) -> (&[u8], usize) {
        let end = if self.ended { self.end } else { BEHIND + BLOCK };
        (&self.bytes[..self.end], end)
    }

    /// How long the block is, without what is only in view.
    fn len(&self) -> u64 {
        self.text().1.saturating_sub(BEHIND) as u64
    }

    /// Where in the stream a byte of the buffer is.
    fn place(&self, index: usize) -> u64 {
        (self.at + index as u64).saturating_sub(BEHIND as u64)
    }

    /// Where in the buffer a byte of the stream is, or would be.
    fn index(&self, place: u64) -> usize {
        let index = (place + BEHIND as u64).saturating_sub(self.at);
        usize::try_from(index).unwrap_or(usize::MAX)
    }
}

/// What became of one block of a file.
struct Sifted {
    number: u64,
    thread: usize,
    len: u64,
    last: Option<io::Result<()>>,
    /// The block, where it holds a message, and where the anchors of the first and of the last are.
    block: Option<(Block, (usize, usize))>,
}

impl Scanner {
    /// Reads `input` to its end and calls `found` for each line with a message. `read` is called
    /// told how long each block was.
    ///
    /// # Errors
    /// What reading answers. What was found before that was told.
    pub fn scan(
        &mut self,
        mut input: impl Read,
        mut found: impl FnMut(Found<'_>),
        mut read: impl FnMut(u64),
    ) -> io::Result<()> {
        let mut block = Block::first(std::mem::take(&mut self.spare));
        let mut told = 0;
        loop {
            let last = block.fill(|bytes, _| input.read(bytes));
            let end = block.text().1;
            told = search(&self.anchors, &block, BEHIND, end, told, &mut found);
            read(block.len());
            if let Some(last) = last {
                self.spare = block.bytes;
                return last;
            }
            block.slide();
        }
    }

    /// As [`scan`](Self::scan), for a large file, from its beginning to what is its end when that
    /// is read.
    ///
    /// # Errors
    /// Likewise.
    pub fn scan_file(
        &mut self,
        file: &File,
        mut found: impl FnMut(Found<'_>),
        mut read: impl FnMut(u64),
    ) -> io::Result<()> {
        let (anchors, next) = (&self.anchors, &AtomicU64::new(0));
        let done = thread::scope(|scope| {
            let (send, sifted) = mpsc::channel();
            let mut threads: Vec<Sender<Block>> = Vec::new();
            for thread in 0..THREADS {
                let (give, blocks) = mpsc::channel();
                let send = send.clone();
                let work = move || sift(file, anchors, next, thread, &blocks, &send);
                if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
                // One to read while the lines of the other are told.
                for _ in 0..2 {
                    let _ = give.send(Block::first(Vec::new()));
                }
                threads.push(give);
            }
            drop(send);
            if threads.is_empty() {
                return None;
            }
            let (mut early, mut number, mut told) = (BTreeMap::new(), 0, 0);
            loop {
                let Some(Sifted {
                    thread,
                    len,
                    last,
                    block,
                    ..
                }) = early.remove(&number)
                else {
                    match sifted.recv() {
                        Ok(one) => early.insert(one.number, one),
                        Err(_) => return Some(Err(io::Error::other("a reading thread ended"))),
                    };
                    continue;
                };
                if let Some((block, (first, last))) = block {
                    told = search(anchors, &block, first, last + 1, told, &mut found);
                    if let Some(thread) = threads.get(thread) {
                        let _ = thread.send(block);
                    }
                }
                read(len);
                if last.is_some() {
                    // The threads end with the block that they have: nobody takes it.
                    return last;
                }
                number += 1;
            }
        });
        match done {
            Some(done) => done,
            // This process may start no thread.
            None => {
                let mut file = file;
                file.rewind()?;
                self.scan(file, found, read)
            }
        }
    }
}

/// Reads blocks of a file until it ends, or nobody takes them any more. Which one comes next is
/// settled when there is a buffer for it, so that the block that is waited for always has one.
fn sift(
    file: &File,
    anchors: &Anchors,
    next: &AtomicU64,
    thread: usize,
    blocks: &Receiver<Block>,
    send: &Sender<Sifted>,
) {
    let mut quiet = None;
    while let Some(mut block) = quiet.take().or_else(|| blocks.recv().ok()) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        block.aim(number);
        let last = block.fill(|bytes, place| file.read_at(bytes, place));
        let (ended, len) = (last.is_some(), block.len());
        let (text, end) = block.text();
        let mut search = anchors.search(text, BEHIND, end);
        let (mut from, mut places) = (BEHIND, None);
        while let Some((at, ..)) = search.next(from) {
            from = at + 1;
            places = Some(places.map_or((at, at), |(first, _)| (first, at)));
        }
        let block = match places {
            Some(places) => Some((block, places)),
            None => {
                quiet = Some(block);
                None
            }
        };
        let sifted = Sifted {
            number,
            thread,
            len,
            last,
            block,
        };
        if send.send(sifted).is_err() || ended {
            return;
        }
    }
}

/// Tells the lines of a block with a message whose anchor is at `from` or after it, and before
/// `end`. `told` is the end, in the stream, of the last line that was told, and so is what comes
/// back.
fn search(
    anchors: &Anchors,
    block: &Block,
    from: usize,
    end: usize,
    told: u64,
    found: &mut impl FnMut(Found<'_>),
) -> u64 {
    let (text, _) = block.text();
    let mut told = told;
    let mut from = from.max(block.index(told));
    let mut search = anchors.search(text, from, end);
    while let Some((at, form, after)) = search.next(from) {
        let limit = text.len().min(after + LINE_AFTER);
        let line_end = memchr::memchr(b'\n', &text[after..limit]).map_or(limit, |end| after + end);
        let view = block.start.max(at - BEHIND);
        let whole = told >= block.place(view);
        let view = view.max(block.index(told));
        let earliest = view.max(at - LINE_BEFORE);
        let start =
            memchr::memrchr(b'\n', &text[earliest..at]).map_or(earliest, |end| earliest + end + 1);
        found(Found {
            line: &text[start..line_end],
            message: (at - start, form, after - start),
            before: &text[view..start],
            whole,
        });
        (from, told) = (line_end, block.place(line_end));
    }
    told
}
