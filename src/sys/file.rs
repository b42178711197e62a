//! Replacing one small file, such that at every moment it is whole: the old one or the new one.
//!
//! By rename where that is possible: the new file has no name until it is whole (`O_TMPFILE`). Over a mount
//! point it is not possible (`EBUSY`), and over one of another mount namespace it would take that mount away:
//! there the content is written in place, space first.
//!
//! One descriptor (`O_PATH|O_NOFOLLOW`) serves what is asked about a file, and what is read and written of
//! it. The rename alone looks the name up again.

mod in_place;
mod lock;
mod new;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::handle::{FileHandle, inode};
use super::{Context, Inode, Result, progress, retry};

pub use lock::LockFile;
pub(in crate::sys) use lock::record;

/// How long another run may hold the lock before this one gives up.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often a name that nobody else has is looked for.
const TRIES: usize = 16;

/// An open directory in which files are replaced, and the lock on it, if one is held: a write lock of this
/// open file (`F_OFD_SETLK`). The kernel takes it back when the descriptor is closed, however its holder
/// ends.
#[derive(Debug)]
pub struct LockedDir {
    fd: OwnedFd,
    path: PathBuf,
    lock: Option<(OwnedFd, LockFile)>,
}

impl Drop for LockedDir {
    fn drop(&mut self) {
        if let Some((fd, _)) = &self.lock {
            progress::locked(fd, false);
        }
        // Whoever waits for it sees that it is gone once it has the lock, and begins anew.
        if let Some((_, file @ LockFile::Own)) = self.lock {
            let _ = unlinkat(&self.fd, file.name(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Whose owner, mode and extended attributes a new file gets.
#[derive(Debug, Clone, Copy)]
pub enum OwnerAndMode {
    /// Those of the file that it replaces.
    Kept,
    /// Owner 0:0 and this mode.
    Root(u16),
}

impl LockedDir {
    /// `path` is for messages.
    pub fn new(fd: OwnedFd, path: PathBuf) -> Self {
        let lock = None;
        Self { fd, path, lock }
    }

    /// Whether another user than root may replace files in it.
    ///
    /// # Errors
    /// What fstat(2) answers.
    pub(super) fn is_shared(&self) -> Result<bool> {
        let stat = fstat(&self.fd).context(|| format!("fstat({})", self.path.display()))?;
        Ok(stat.st_mode & 0o022 != 0)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A call on `name`, for messages.
    fn call(&self, what: &str, name: &str) -> String {
        format!("{what}({})", self.path.join(name).display())
    }

    fn inode_at(&self, name: &str) -> Result<Option<Inode>> {
        match retry(|| fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)) {
            Err(Errno::ENOENT) => Ok(None),
            stat => stat.map(|stat| Some(inode(&stat))),
        }
        .context(|| self.call("fstatat", name))
    }

    /// The content of the regular file that was found at `name`.
    ///
    /// # Errors
    /// `ELOOP` for a link, `EINVAL` for anything else that is no regular file.
    pub fn read(&self, name: &str, found: &FileHandle) -> Result<Vec<u8>> {
        let read = match found.kind() {
            SFlag::S_IFLNK => Err(Errno::ELOOP),
            _ => found.read(),
        };
        read.context(|| self.call("read", name))
    }

    /// Makes `content` the content of `name`, where `found` stands: by rename, or in place where that is a
    /// mount point. `base` is what the new content was made from.
    ///
    /// # Errors
    /// What the calls answer: `EROFS`, `ENOSPC`, `EISDIR` for a directory of root's in its place, `EXDEV` when
    /// another process put another file there in the same moment, [`CHANGED`] when one wrote into it.
    pub fn replace(
        &self,
        name: &str,
        found: Option<&FileHandle>,
        base: Option<&[u8]>,
        content: &[u8],
        rights: OwnerAndMode,
    ) -> Result<()> {
        match found {
            Some(found) if self.is_mounted(name, found)? => {
                self.write_in_place(name, found, base, content, rights)
            }
            _ => self.write_anew(name, found, rights, |file| file.write_all(content)),
        }
    }

    /// As [`LockedDir::replace`], with what `fill` writes, and never in place. When the file has its name it is
    /// no longer open for writing: nobody could start a program that is (`ETXTBSY`).
    ///
    /// # Errors
    /// As there, and `EBUSY` where `name` is a mount point.
    pub(super) fn replace_by_rename(
        &self,
        name: &str,
        found: Option<&FileHandle>,
        rights: OwnerAndMode,
        fill: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<()> {
        if let Some(found) = found
            && self.is_mounted(name, found)?
        {
            return Err(Errno::EBUSY)
                .context(|| format!("rename(…, {})", self.path.join(name).display()));
        }
        self.write_anew(name, found, rights, fill)
    }

    /// Whether a rename would meet a mount.
    fn is_mounted(&self, name: &str, found: &FileHandle) -> Result<bool> {
        let known = found.is_mounted(&self.fd, name);
        known.context(|| self.call("statx", name))
    }

    /// As [`LockedDir::replace`], but a regular file that stands there stays the same inode: another container may
    /// have it mounted, and would never see a new one. One that another user than root may hold open for
    /// writing, or has another name for, is replaced all the same.
    ///
    /// # Errors
    /// As [`LockedDir::replace`], and `EMLINK` for a mount point with other names.
    pub fn overwrite(
        &self,
        name: &str,
        found: Option<&FileHandle>,
        base: Option<&[u8]>,
        content: &[u8],
        rights: OwnerAndMode,
    ) -> Result<()> {
        match found {
            // Only root can have opened it for writing.
            Some(found)
                if found.is_roots_file()
                    && found.stat.st_uid == 0
                    && !found.is_writable_by_others() =>
            {
                self.write_in_place(name, found, base, content, rights)
            }
            _ => self.replace(name, found, base, content, rights),
        }
    }

    /// What `name` is, unopened and not through a link.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn find(&self, name: &str) -> Result<Option<FileHandle>> {
        progress::at(&[self.path.as_ref(), name.as_ref()]);
        match FileHandle::at(&self.fd, name) {
            Err(Errno::ENOENT) => Ok(None),
            found => found.map(Some),
        }
        .context(|| format!("open({}, O_PATH)", self.path.join(name).display()))
    }

    /// Takes `name` away, if it is there.
    #[cfg(feature = "watch")]
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match retry(|| unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)) {
            Err(Errno::ENOENT) => Ok(()),
            done => done.context(|| self.call("unlinkat", name)),
        }
    }
}

/// What a file answers that another process wrote into at the same time: to be looked at again.
pub const CHANGED: Errno = Errno::ESTALE;
