//! Writing into a file that a mount, or another container, holds.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;

use super::new::give;
use super::{CHANGED, Folder, Found, Rights, errno_of};
use crate::sys::root::MAX_FILE;
use crate::sys::{Named, Result, open, raw};

impl Folder {
    /// Writes over the file that a mount pins. A longer content first gets its space, as newlines
    /// at the end, which parse as nothing; a shorter one is padded with newlines and then cut. In
    /// between, every state parses as the old file or the new one. The one write that changes the
    /// content begins where it differs, and is whole even if the process is killed in it as long as
    /// it stays within a page: the kernel looks for a fatal signal only between pages
    /// (mm/filemap.c, `generic_perform_write`).
    ///
    /// Where the directory is read-only there is no lock: so what is there must be `base` before the
    /// write, and `content` after it.
    pub(super) fn write_in_place(
        &self,
        name: &str,
        found: &Found,
        base: Option<&[u8]>,
        content: &[u8],
        rights: Rights,
    ) -> Result<()> {
        let path = self.path.join(name);
        let call = |what: &str| format!("{what}({})", path.display());
        let changed = || Err(CHANGED).named(|| call("write"));
        if found.kind() != SFlag::S_IFREG {
            return Err(Errno::EINVAL).named(|| call("open"));
        }
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        let fd = open(raw::proc_path(&found.fd).as_c_str(), flags).named(|| call("open"))?;
        let file = File::from(fd);
        let old = file.metadata().map_err(errno_of).named(|| call("fstat"))?;
        if let Rights::Root(mode) = rights {
            // Its other names would see the change, and a rename cannot cut them off here.
            if old.nlink() != 1 {
                return Err(Errno::EMLINK).named(|| call("open"));
            }
            give(&file, 0, 0, mode.into()).named(|| call("fchown, fchmod"))?;
        }
        let old = old.len();
        let new = content.len() as u64;
        if old > MAX_FILE {
            return Err(Errno::EFBIG).named(|| call("read"));
        }
        let current = read_at_most(&file, old.saturating_add(1)).named(|| call("read"))?;
        if base.is_some_and(|base| base != current) {
            return changed();
        }
        let mut padded = content.to_vec();
        if new > old {
            let space = vec![b'\n'; usize::try_from(new - old).unwrap_or(0)];
            if let Err(error) = file.write_all_at(&space, old) {
                let _ = file.set_len(old);
                return Err(errno_of(error)).named(|| call("write"));
            }
        } else {
            padded.resize(usize::try_from(old).unwrap_or(padded.len()), b'\n');
        }
        let same = padded
            .iter()
            .zip(&current)
            .take_while(|(a, b)| a == b)
            .count();
        file.write_all_at(&padded[same..], same as u64)
            .map_err(errno_of)
            .named(|| call("write"))?;
        if new < old {
            file.set_len(new)
                .map_err(errno_of)
                .named(|| call("ftruncate"))?;
        }
        file.sync_all().map_err(errno_of).named(|| call("fsync"))?;
        match read_at_most(&file, new.saturating_add(1)).named(|| call("read"))? == content {
            true => Ok(()),
            false => changed(),
        }
    }
}

/// From the beginning on, wherever it was read or written last.
fn read_at_most(file: &File, length: u64) -> nix::Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let mut got = 0;
    while let Some(room) = content.get_mut(got..).filter(|room| !room.is_empty()) {
        match file.read_at(room, got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(errno_of(error)),
        }
    }
    content.truncate(got);
    Ok(content)
}
