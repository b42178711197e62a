//! Reads files of `/proc`, which the kernel generates at each read.

use std::fs::File;
use std::io::Read;

use nix::fcntl::OFlag;

use super::open;

/// Initial buffer size. Most of these files fit, so that one read(2) returns the content and a second one the end.
const PAGE: usize = 4096;
/// Size limit. The largest of these files, `/proc/stat`, grows with the processors and interrupts of the machine.
const MAX: u64 = 8 << 20;

/// The text of the file at `path`, or `None` if it cannot be read.
pub fn text(path: &str) -> Option<String> {
    let file = File::from(open(path, OFlag::O_RDONLY).ok()?);
    let mut content = Vec::with_capacity(PAGE);
    file.take(MAX).read_to_end(&mut content).ok()?;
    Some(String::from_utf8_lossy(&content).into_owned())
}
