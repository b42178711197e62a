//! Reads one log into a scanner, decompresses gzip, and shows progress.

use std::fs::File;
use std::io::{self, BufReader, Cursor, ErrorKind, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use flate2::read::MultiGzDecoder;
use nix::errno::Errno;

use super::scan::{LARGE, Match, Scanner};
use crate::sys::progress::{self, Wait};

/// The first bytes of a gzip stream. File names do not matter.
const GZIP: &[u8] = b"\x1f\x8b\x08";
/// The first bytes of unsupported compression formats.
const FOREIGN: [(&[u8], &str); 4] = [
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
];
/// The length of the longest of these.
const START: u64 = 6;

/// Reads `file` to its end and calls `on_match` for each line with a message. `size` is the file's length in
/// bytes, or 0 if unknown.
///
/// # Errors
/// If reading or decompressing fails. `on_match` has been called for all lines before that point.
pub fn scan(
    scanner: &mut Scanner,
    file: &File,
    size: u64,
    progress: &mut Progress,
    on_match: impl FnMut(Match<'_>),
) -> io::Result<()> {
    let mut start = Vec::new();
    file.take(START).read_to_end(&mut start)?;
    let is_gzip = start.starts_with(GZIP);
    let foreign = FOREIGN.iter().find(|(magic, _)| start.starts_with(magic));
    if size >= LARGE && !is_gzip && foreign.is_none() {
        return scanner.scan_file(file, size, on_match, |len| progress.add(len));
    }
    progress.add(start.len() as u64);
    if let Some((_, name)) = foreign {
        let text = format!(
            "{name} compression is not supported; decompress it and pipe it to `libvirt-kvm-init logs -`"
        );
        return Err(io::Error::other(text));
    }
    let whole = Cursor::new(start).chain(Counted { file, progress });
    if is_gzip {
        let blocks = BufReader::with_capacity(64 << 10, whole);
        return scanner.scan(MultiGzDecoder::new(blocks), on_match);
    }
    scanner.scan(whole, on_match)
}

/// The errno's name and text, or the fault in a gzip stream.
pub fn error_text(error: &io::Error) -> String {
    match (error.raw_os_error(), error.kind()) {
        (Some(raw), _) => errno_text(Errno::from_raw(raw)),
        (None, ErrorKind::UnexpectedEof) => "the gzip data is truncated".to_owned(),
        (None, ErrorKind::InvalidInput | ErrorKind::InvalidData) => {
            format!("the gzip data is corrupt ({error})")
        }
        (None, _) => error.to_string(),
    }
}

/// Formats an errno, such as `EACCES (Permission denied)`.
pub fn errno_text(errno: Errno) -> String {
    format!("{errno:?} ({})", errno.desc())
}

/// Counts the bytes that are read of a file, before decompression.
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

/// Counts the bytes read, and shows that on a terminal if reading takes longer than a second.
pub struct Progress {
    /// Bytes read so far, before decompression.
    pub bytes: u64,
    total: u64,
    is_wanted: bool,
    is_shown: bool,
    next: Instant,
}

impl Progress {
    /// `total` is the number of bytes to read, or 0 if unknown.
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

    /// Removes the progress line from the terminal.
    pub fn clear(&self) {
        if self.is_shown {
            let _waits = Wait::begin();
            let _ = write!(io::stderr(), "\r{:40}\r", "");
        }
    }
}
