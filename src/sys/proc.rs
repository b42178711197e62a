//! Files of `/proc`, which the kernel makes up when they are read.

use std::fs::File;
use std::io::Read;

use nix::fcntl::OFlag;

use super::open;

/// Most of these files fit: one call gets them, and one more finds their end.
const PAGE: usize = 4096;
/// No file that is read here has reason to be larger (`/proc/stat` grows with the processors and
/// interrupts of the machine).
const MAX: u64 = 8 << 20;

/// The text of the file at `path`; nothing where it cannot be read.
pub fn text(path: &str) -> Option<String> {
    let file = File::from(open(path, OFlag::O_RDONLY).ok()?);
    let mut content = Vec::with_capacity(PAGE);
    file.take(MAX).read_to_end(&mut content).ok()?;
    Some(String::from_utf8_lossy(&content).into_owned())
}
