//! The file of the program that runs, and copies of it.

use std::fs::File;
use std::io::{self, Read, Seek};

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use super::file::{LockedDir, OwnerAndMode};
use super::handle::{FileHandle, READ};
use super::{Context, Result, open};

/// The program that runs: the kernel keeps the inode that was started, whatever stands at its path now.
const SELF: &str = "/proc/self/exe";
/// Who may do what with a copy.
const MODE: u16 = 0o755;

/// The file of this program, open for reading.
#[derive(Debug)]
pub struct SelfExe {
    file: File,
    size: i64,
}

impl SelfExe {
    /// Opens the file that this process was started from.
    ///
    /// # Errors
    /// What the calls answer: `ENOENT` without /proc, `EACCES` for a file that may only be executed,
    /// `EINVAL` for what is no regular file.
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

    /// Whether `found` is a copy as [`SelfExe::copy`] makes it: a regular file with no other name, owned by
    /// root, 0755, with these bytes.
    ///
    /// # Errors
    /// What the calls answer for a file that could be one.
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

    /// Puts a copy at `name`, where `found` stands, owned by root, 0755: by rename, so that at every moment
    /// there is what was there or the whole copy, and whoever runs the old one goes on with it.
    ///
    /// # Errors
    /// As [`LockedDir::replace`]; `EBUSY` where `name` is a mount point.
    pub fn copy(
        &mut self,
        directory: &LockedDir,
        name: &str,
        found: Option<&FileHandle>,
    ) -> Result<()> {
        let from = &mut self.file;
        directory.replace_by_rename(name, found, OwnerAndMode::Root(MODE), |to| {
            from.rewind()?;
            // The kernel does the copying where both file systems let it.
            std::io::copy(from, to).map(drop)
        })
    }
}

/// All of a file, wherever it was read last.
fn whole(mut file: &File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut content)?;
    Ok(content)
}
