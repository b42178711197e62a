//! Files of `/proc`, which the kernel makes up when they are read.

use nix::fcntl::OFlag;
use nix::unistd::read;

use super::{open, retry};

/// Most of these files fit: one call gets them, and one more finds their end.
const PAGE: usize = 4096;
/// No file that is read here has reason to be larger (`/proc/stat` grows with the processors and
/// interrupts of the machine).
const MAX: usize = 8 << 20;

/// The text of the file at `path`; nothing where it cannot be read.
pub fn text(path: &str) -> Option<String> {
    let file = open(path, OFlag::O_RDONLY).ok()?;
    let mut content = vec![0; PAGE];
    let mut got = 0;
    loop {
        let more = retry(|| read(&file, content.get_mut(got..).unwrap_or_default())).ok()?;
        got += more;
        if more == 0 {
            content.truncate(got);
            return Some(String::from_utf8_lossy(&content).into_owned());
        }
        if got > MAX {
            return None;
        }
        if got == content.len() {
            content.resize(got * 2, 0);
        }
    }
}
