//! Reads one log into a scanner, unpacked, and shows how far the reading got.

use std::fs::File;
use std::io::{self, BufReader, Cursor, ErrorKind, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use flate2::read::MultiGzDecoder;
use nix::errno::Errno;

use super::scan::{LARGE, Match, Scanner};
use crate::sys::progress::{self, Wait};

/// A gzip stream is known by its first bytes, not by its name.
const GZIP: &[u8] = b"\x1f\x8b\x08";
/// The first bytes of streams that are not unpacked.
const FOREIGN: [(&[u8], &str); 4] = [
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
];
/// How many bytes tell these apart.
const START: u64 = 6;

/// Reads `file` to its end and calls `found` for each line with a message. `size` is its length in
/// bytes, 0 if that is not known.
///
/// # Errors
/// Those of reading and unpacking. What was read before that was searched.
pub fn scan(
    scanner: &mut Scanner,
    file: &File,
    size: u64,
    progress: &mut Progress,
    found: impl FnMut(Match<'_>),
) -> io::Result<()> {
    let mut start = Vec::new();
    file.take(START).read_to_end(&mut start)?;
    let is_gzip = start.starts_with(GZIP);
    let foreign = FOREIGN.iter().find(|(magic, _)| start.starts_with(magic));
    if size >= LARGE && !is_gzip && foreign.is_none() {
        return scanner.scan_file(file, size, found, |len| progress.add(len));
    }
    progress.add(start.len() as u64);
    if let Some((_, name)) = foreign {
        let text = format!("packed with {name}: unpack it, and give it as -");
        return Err(io::Error::other(text));
    }
    let whole = Cursor::new(start).chain(Counted { file, progress });
    if is_gzip {
        let blocks = BufReader::with_capacity(64 << 10, whole);
        return scanner.scan(MultiGzDecoder::new(blocks), found);
    }
    scanner.scan(whole, found)
}

/// The errno's name and text, or what is wrong with a packed stream.
pub fn error_text(error: &io::Error) -> String {
    match (error.raw_os_error(), error.kind()) {
        (Some(raw), _) => errno_text(Errno::from_raw(raw)),
        (None, ErrorKind::UnexpectedEof) => "the gzip stream ends too early".to_owned(),
        (None, ErrorKind::InvalidInput | ErrorKind::InvalidData) => {
            format!("what comes is not gzip any more ({error})")
        }
        (None, _) => error.to_string(),
    }
}

/// The errno's name and text.
pub fn errno_text(errno: Errno) -> String {
    format!("{errno:?} ({})", errno.desc())
}

/// Counts what is read of a file, before it is unpacked.
struct Counted<'a> {
    file: &'a File,
    progress: &'a mut Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buffer)?;
        self.progress.add(got as u64);
        Ok(got)
    }
}

/// How far the reading got, shown on a terminal if it takes long.
pub struct Progress {
    /// How many bytes were read, as they are stored.
    pub bytes: u64,
    total: u64,
    is_wanted: bool,
    is_shown: bool,
    next: Instant,
}

impl Progress {
    /// Nothing is read yet of `total` bytes, 0 if that is not known.
    pub fn new(is_wanted: bool, total: u64) -> Self {
        Self {
            bytes: 0,
            total,
            is_wanted: is_wanted && io::stderr().is_terminal(),
            is_shown: false,
            next: Instant::now() + Duration::from_secs(1),
        }
    }

    fn add(&mut self, bytes: u64) {
        progress::step();
        self.bytes += bytes;
        if !self.is_wanted || Instant::now() < self.next {
            return;
        }
        (self.is_shown, self.next) = (true, Instant::now() + Duration::from_millis(200));
        let of = match self.total >> 20 {
            0 => String::new(),
            total => format!("of {total} "),
        };
        let _waits = Wait::begin();
        let _ = write!(io::stderr(), "\rread {} {of}MiB ", self.bytes >> 20);
    }

    /// Removes it from the terminal.
    pub fn clear(&self) {
        if self.is_shown {
            let _waits = Wait::begin();
            let _ = write!(io::stderr(), "\r{:40}\r", "");
        }
    }
}
