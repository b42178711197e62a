//! Replaces one small file so that readers always see a complete file, the old one or the new one.
//!
//! The new file has no name until it is complete (`O_TMPFILE`), and is then renamed over the old one. rename(2) fails
//! over a mount point (`EBUSY`), and silently detaches a mount of another mount namespace. In both cases the content
//! is written in place, after its space has been allocated.
//!
//! One descriptor (`O_PATH|O_NOFOLLOW`) is used to inspect, read and write a file. Only the rename looks the name up
//! again.

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

/// Maximum time to wait for a lock that another process holds.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Attempts to create a file under a random name, or to open a lock file that other processes replace.
const TRIES: usize = 16;

/// An open directory in which files are replaced, and its lock if one is held: a write lock of the open file
/// description (`F_OFD_SETLK`), which the kernel releases when the descriptor is closed or the process ends.
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
        // A process that waits for this lock gets it on the removed file, notices that, and starts again.
        if let Some((_, file @ LockFile::Own)) = self.lock {
            let _ = unlinkat(&self.fd, file.name(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Owner, mode and extended attributes of a new file.
#[derive(Debug, Clone, Copy)]
pub enum OwnerAndMode {
    /// Copied from the file that it replaces.
    Kept,
    /// Owner 0:0, this mode, no extended attributes.
    Root(u16),
}

impl LockedDir {
    /// An open directory, not locked yet. `path` is only used in messages.
    pub fn new(fd: OwnedFd, path: PathBuf) -> Self {
        let lock = None;
        Self { fd, path, lock }
    }

    /// Whether the group or others can write to the directory, and so replace files in it.
    pub(super) fn is_shared(&self) -> Result<bool> {
        let stat = fstat(&self.fd).context(|| format!("fstat({})", self.path.display()))?;
        Ok(stat.st_mode & 0o022 != 0)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

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

    /// The content of `found`, the regular file at `name`.
    ///
    /// # Errors
    /// `ELOOP` for a link, `EINVAL` for any other file that is not regular.
    pub fn read(&self, name: &str, found: &FileHandle) -> Result<Vec<u8>> {
        let read = match found.kind() {
            SFlag::S_IFLNK => Err(Errno::ELOOP),
            _ => found.read(),
        };
        read.context(|| self.call("read", name))
    }

    /// Replaces the file `found` at `name` by one with `content`: by rename, or in place if `name` is a mount point.
    /// `base` is the old content from which the new one was made.
    ///
    /// # Errors
    /// `EISDIR` if `name` is a directory owned by root, `EXDEV` if another process replaced the file during the run,
    /// [`CHANGED`] if it wrote to the file.
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
            _ => self.write_new(name, found, rights, |file| file.write_all(content)),
        }
    }

    /// As [`LockedDir::replace`], with the content that `fill` writes, and never in place. The file is closed for
    /// writing before it gets its name, because a program that is open for writing cannot be started (`ETXTBSY`).
    ///
    /// # Errors
    /// As [`LockedDir::replace`], and `EBUSY` if `name` is a mount point.
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
        self.write_new(name, found, rights, fill)
    }

    /// Whether `name` is a mount point, over which no file can be renamed.
    fn is_mounted(&self, name: &str, found: &FileHandle) -> Result<bool> {
        let known = found.is_mounted(&self.fd, name);
        known.context(|| self.call("statx", name))
    }

    /// As [`LockedDir::replace`], but an existing regular file keeps its inode: another container may have it mounted,
    /// and would never see a new inode. A file with further hard links, or that a user other than root may have open
    /// for writing, is replaced nevertheless.
    ///
    /// # Errors
    /// As [`LockedDir::replace`], and `EMLINK` for a mount point with more than one hard link.
    pub fn overwrite(
        &self,
        name: &str,
        found: Option<&FileHandle>,
        base: Option<&[u8]>,
        content: &[u8],
        rights: OwnerAndMode,
    ) -> Result<()> {
        match found {
            // Only root can have this file open for writing.
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

    /// A handle of the file `name`, which is not opened; a link is not followed. `None` if it does not exist.
    pub fn find(&self, name: &str) -> Result<Option<FileHandle>> {
        progress::at(&[self.path.as_ref(), name.as_ref()]);
        match FileHandle::at(&self.fd, name) {
            Err(Errno::ENOENT) => Ok(None),
            found => found.map(Some),
        }
        .context(|| format!("open({}, O_PATH)", self.path.join(name).display()))
    }

    /// Removes the file `name`, if it exists.
    #[cfg(feature = "watch")]
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match retry(|| unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)) {
            Err(Errno::ENOENT) => Ok(()),
            done => done.context(|| self.call("unlinkat", name)),
        }
    }
}

/// The errno for a file that another process wrote to during the run: read it again and plan again.
pub const CHANGED: Errno = Errno::ESTALE;
