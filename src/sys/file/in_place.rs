//! Overwrites a file that must keep its inode, because it is a mount point or another container has it mounted.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use super::new::set_owner_and_mode;
use super::{CHANGED, FileHandle, LockedDir, OwnerAndMode};
use crate::sys::handle::MAX_FILE;
use crate::sys::{Context, Result};

impl LockedDir {
    /// Overwrites the file `found`. For a longer content, space is first allocated by appending newlines, which
    /// parsers ignore; a shorter content is padded with newlines, and the file is then truncated. Every state in
    /// between parses as the old or the new file. The content changes in a single write, which starts at the first
    /// difference. A kill cannot interrupt that write within a page: the kernel checks for fatal signals only between
    /// pages (mm/filemap.c, `generic_perform_write`).
    ///
    /// In a read-only directory no lock is held, so the content must be `base` before the write and `content` after
    /// it ([`CHANGED`]).
    pub(super) fn write_in_place(
        &self,
        name: &str,
        found: &FileHandle,
        base: Option<&[u8]>,
        content: &[u8],
        rights: OwnerAndMode,
    ) -> Result<()> {
        let call = |what: &str| self.call(what, name);
        let changed = || Err(CHANGED).context(|| call("write"));
        if found.kind() != SFlag::S_IFREG {
            return Err(Errno::EINVAL).context(|| call("open"));
        }
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        let file = found.open(flags).context(|| call("open"))?;
        let old = file.metadata().context(|| call("fstat"))?;
        if let OwnerAndMode::Root(mode) = rights {
            // The change would be visible through the file's other hard links.
            if old.nlink() != 1 {
                return Err(Errno::EMLINK).context(|| call("open"));
            }
            set_owner_and_mode(&file, 0, 0, mode.into()).context(|| call("fchown, fchmod"))?;
        }
        let (old, new) = (old.len(), content.len() as u64);
        if old > MAX_FILE {
            return Err(Errno::EFBIG).context(|| call("read"));
        }
        let current = read_at_most(&file, old + 1).context(|| call("read"))?;
        if base.is_some_and(|base| base != current) {
            return changed();
        }
        let mut padded = content.to_vec();
        if new > old {
            let space = vec![b'\n'; usize::try_from(new - old).unwrap_or(0)];
            let spaced = file.write_all_at(&space, old);
            if spaced.is_err() {
                let _ = file.set_len(old);
            }
            spaced.context(|| call("write"))?;
        } else {
            padded.resize(usize::try_from(old).unwrap_or(padded.len()), b'\n');
        }
        let both = padded.iter().zip(&current);
        let same = both.take_while(|(a, b)| a == b).count();
        let written = file.write_all_at(&padded[same..], same as u64);
        written.context(|| call("write"))?;
        if new < old {
            file.set_len(new).context(|| call("ftruncate"))?;
        }
        file.sync_all().context(|| call("fsync"))?;
        match read_at_most(&file, new + 1).context(|| call("read"))? == content {
            true => Ok(()),
            false => changed(),
        }
    }
}

/// Reads from the start of the file, regardless of its current offset.
fn read_at_most(mut file: &File, length: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.rewind()?;
    file.take(length).read_to_end(&mut content)?;
    Ok(content)
}
