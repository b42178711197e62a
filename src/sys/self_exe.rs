//! The executable of the running program, and copies of it.

use std::fs::File;
use std::io::{self, Read, Seek};

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use super::file::{LockedDir, OwnerAndMode};
use super::handle::{FileHandle, READ};
use super::{Context, Result, open};

/// Leads to the inode that was started, even if its path now has another file (proc_pid_exe(5)).
const SELF: &str = "/proc/self/exe";
/// The mode of a copy.
const MODE: u16 = 0o755;

/// The executable of this process, open for reading.
#[derive(Debug)]
pub struct SelfExe {
    file: File,
    size: i64,
}

impl SelfExe {
    /// Opens the executable of this process.
    ///
    /// # Errors
    /// `ENOENT` without /proc, `EACCES` for an executable without read permission, `EINVAL` if it is not a regular
    /// file.
    pub fn running() -> Result<Self> {
        let call = || format!("open({SELF})");
        let fd = open(SELF, READ).context(call)?;
        let found = FileHandle::new(fd).context(call)?;
        if found.kind() != SFlag::S_IFREG {
            return Err(Errno::EINVAL).context(call);
        }
        let (file, size) = (found.fd.into(), found.stat.st_size);
        Ok(Self { file, size })
    }

    /// Whether `found` is a copy as [`SelfExe::copy`] creates it: a regular file with a single link, owner 0:0, mode
    /// 0755 and the same content.
    pub fn is(&self, name: &str, found: Option<&FileHandle>) -> Result<bool> {
        let Some(found) = found.filter(|found| self.may_be(found)) else {
            return Ok(false);
        };
        let same = || -> io::Result<_> { Ok(whole(&found.open(READ)?)? == whole(&self.file)?) };
        same().context(|| format!("read({name})"))
    }

    fn may_be(&self, found: &FileHandle) -> bool {
        found.kind() == SFlag::S_IFREG
            && found.stat.st_nlink == 1
            && found.rights() == (0, 0, MODE.into())
            && found.stat.st_size == self.size
    }

    /// Replaces the file `found` at `name` by a copy with owner 0:0 and mode 0755. The rename is atomic, and processes
    /// that run the old file continue with it.
    ///
    /// # Errors
    /// As [`LockedDir::replace`], and `EBUSY` if `name` is a mount point.
    pub fn copy(
        &mut self,
        directory: &LockedDir,
        name: &str,
        found: Option<&FileHandle>,
    ) -> Result<()> {
        let from = &mut self.file;
        directory.replace_by_rename(name, found, OwnerAndMode::Root(MODE), |to| {
            from.rewind()?;
            // `io::copy` lets the kernel copy the data if both file systems support that (copy_file_range(2)).
            std::io::copy(from, to).map(drop)
        })
    }
}

/// Reads a whole file from its start, regardless of its current offset.
fn whole(mut file: &File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut content)?;
    Ok(content)
}
