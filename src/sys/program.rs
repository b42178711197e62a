//! The file of the program that runs, and copies of it.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag, fstat};

use super::file::{Folder, Found, Rights, errno_of};
use super::root::{READ, kind};
use super::{Named, Result, open, raw};

/// The program that runs: the kernel keeps the inode that was started, whatever stands at its path now.
const SELF: &str = "/proc/self/exe";
/// Who may do what with a copy.
const MODE: u16 = 0o755;
/// How much is compared at once.
const CHUNK: usize = 64 << 10;

/// The file of this program, open for reading.
#[derive(Debug)]
pub struct Program {
    file: File,
    size: i64,
}

impl Program {
    /// Opens the file that this process was started from.
    ///
    /// # Errors
    /// What the calls answer: `ENOENT` without /proc, `EACCES` for a file that may only be executed,
    /// `EINVAL` for what is no regular file.
    pub fn running() -> Result<Self> {
        let call = || format!("open({SELF})");
        let fd = open(SELF, READ).named(call)?;
        let stat = fstat(&fd).named(call)?;
        if kind(&stat) != SFlag::S_IFREG {
            return Err(Errno::EINVAL).named(call);
        }
        let (file, size) = (fd.into(), stat.st_size);
        Ok(Self { file, size })
    }

    /// Whether `found` is a copy as [`Program::copy`] makes it: a regular file with no other name, owned by
    /// root, 0755, with these bytes.
    ///
    /// # Errors
    /// What the calls answer for a file that could be one.
    pub fn is(&self, name: &str, found: Option<&Found>) -> Result<bool> {
        let Some((fd, stat)) = found.map(Found::parts) else {
            return Ok(false);
        };
        if !self.may_be(stat) {
            return Ok(false);
        }
        let call = || format!("read({name})");
        let path = raw::proc_path(fd);
        let found = File::from(open(path.as_c_str(), READ).named(call)?);
        self.same_bytes(found).named(call)
    }

    fn may_be(&self, stat: &FileStat) -> bool {
        kind(stat) == SFlag::S_IFREG
            && (stat.st_uid, stat.st_gid, stat.st_nlink) == (0, 0, 1)
            && stat.st_mode & 0o7777 == u32::from(MODE)
            && stat.st_size == self.size
    }

    fn same_bytes(&self, mut found: File) -> nix::Result<bool> {
        let (mut theirs, mut ours) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut at = 0;
        loop {
            let got = match found.read(&mut theirs) {
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(errno_of(error)),
            };
            let (theirs, ours) = (&theirs[..got], &mut ours[..got]);
            match self.file.read_exact_at(ours, at) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
                done => done.map_err(errno_of)?,
            }
            if got == 0 {
                return Ok(i64::try_from(at) == Ok(self.size));
            }
            if theirs != ours {
                return Ok(false);
            }
            at += got as u64;
        }
    }

    /// Puts a copy at `name`, where `found` stands, owned by root, 0755: by rename, so that at every moment
    /// there is what was there or the whole copy, and whoever runs the old one goes on with it.
    ///
    /// # Errors
    /// As [`Folder::replace`]; `EBUSY` where `name` is a mount point.
    pub fn copy(&mut self, folder: &Folder, name: &str, found: Option<&Found>) -> Result<()> {
        let from = &mut self.file;
        folder.replace_by_rename(name, found, Rights::Root(MODE), |to| {
            from.rewind()?;
            // The kernel does the copying where both file systems let it.
            std::io::copy(from, to).map(drop)
        })
    }
}
