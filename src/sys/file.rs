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
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::output::is_trusted;
use super::root::{is_mounted, kind, read_regular};
use super::{Inode, Named, Result, progress, raw, retry};

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
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    lock: Option<(OwnedFd, LockFile)>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some((fd, _)) = &self.lock {
            progress::locked(fd.as_fd(), false);
        }
        // Whoever waits for it sees that it is gone once it has the lock, and begins anew.
        if let Some((_, file @ LockFile::Own)) = self.lock {
            let _ = unlinkat(&self.fd, file.name(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// What stands at a name: found without being opened, and not through a link.
#[derive(Debug)]
pub struct Found {
    fd: OwnedFd,
    stat: FileStat,
}

impl Found {
    /// The kind of file.
    pub fn kind(&self) -> SFlag {
        kind(&self.stat)
    }

    /// Device and inode number.
    pub fn inode(&self) -> Inode {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// Whether it belongs to another user than root or the one that runs this.
    pub fn is_foreign(&self) -> bool {
        !is_trusted(self.stat.st_uid)
    }

    /// Whether it is a regular file that nobody but root has a hold on by its owner or another name.
    pub fn is_roots_file(&self) -> bool {
        self.kind() == SFlag::S_IFREG && self.stat.st_nlink == 1 && !self.is_foreign()
    }

    /// Owner, group and permission bits.
    pub fn rights(&self) -> (u32, u32, u32) {
        let stat = &self.stat;
        (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777)
    }

    /// The descriptor and what was found out about it.
    pub(super) fn parts(&self) -> (&OwnedFd, &FileStat) {
        (&self.fd, &self.stat)
    }
}

/// Whose owner, mode and extended attributes a new file gets.
#[derive(Debug, Clone, Copy)]
pub enum Rights {
    /// Those of the file that it replaces.
    Kept,
    /// Owner 0:0 and this mode.
    Root(u16),
}

impl Folder {
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
        let stat = fstat(&self.fd).named(|| format!("fstat({})", self.path.display()))?;
        Ok(stat.st_mode & 0o022 != 0)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn inode_at(&self, name: &str) -> Result<Option<Inode>> {
        match retry(|| fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => {
                Err(errno).named(|| format!("fstatat({})", self.path.join(name).display()))
            }
        }
    }

    /// The content of the regular file that was found at `name`.
    ///
    /// # Errors
    /// `ELOOP` for a link, `EINVAL` for anything else that is no regular file.
    pub fn read(&self, name: &str, found: &Found) -> Result<Vec<u8>> {
        let call = || format!("read({})", self.path.join(name).display());
        if found.kind() == SFlag::S_IFLNK {
            return Err(Errno::ELOOP).named(call);
        }
        read_regular(found.fd.as_fd(), &found.stat).named(call)
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
        found: Option<&Found>,
        base: Option<&[u8]>,
        content: &[u8],
        rights: Rights,
    ) -> Result<()> {
        match found {
            Some(found) if self.is_mounted(name, found)? => {
                self.write_in_place(name, found, base, content, rights)
            }
            _ => {
                let new = self.write_new(name, found, rights, |file| file.write_all(content))?;
                self.put_in_place(name, found, new)
            }
        }
    }

    /// As [`Folder::replace`], with what `fill` writes, and never in place. When the file has its name it is
    /// no longer open for writing: nobody could start a program that is (`ETXTBSY`).
    ///
    /// # Errors
    /// As there, and `EBUSY` where `name` is a mount point.
    pub(super) fn replace_by_rename(
        &self,
        name: &str,
        found: Option<&Found>,
        rights: Rights,
        fill: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<()> {
        if let Some(found) = found
            && self.is_mounted(name, found)?
        {
            let call = || format!("rename(…, {})", self.path.join(name).display());
            return Err(Errno::EBUSY).named(call);
        }
        let new = self.write_new(name, found, rights, fill)?;
        self.put_in_place(name, found, new)
    }

    /// Whether a rename would meet a mount, as seen through the descriptor of this directory: which mounts
    /// that shows depends on the namespace that it was opened in, not on the one of this process.
    fn is_mounted(&self, name: &str, found: &Found) -> Result<bool> {
        let call = || format!("statx({})", self.path.join(name).display());
        let known = retry(|| raw::is_mount_root(found.fd.as_fd())).named(call)?;
        Ok(known.unwrap_or_else(|| is_mounted(self.fd.as_fd(), name)))
    }

    /// As [`Folder::replace`], but a regular file that stands there stays the same inode: another container may
    /// have it mounted, and would never see a new one. One that another user than root may hold open for
    /// writing, or has another name for, is replaced all the same.
    ///
    /// # Errors
    /// As [`Folder::replace`], and `EMLINK` for a mount point with other names.
    pub fn overwrite(
        &self,
        name: &str,
        found: Option<&Found>,
        base: Option<&[u8]>,
        content: &[u8],
        rights: Rights,
    ) -> Result<()> {
        match found {
            Some(found) if found.is_roots_file() && only_roots(&found.stat) => {
                self.write_in_place(name, found, base, content, rights)
            }
            _ => self.replace(name, found, base, content, rights),
        }
    }

    /// What `name` is, unopened and not through a link.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn find(&self, name: &str) -> Result<Option<Found>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        progress::at(&[self.path.as_os_str().as_encoded_bytes(), name.as_bytes()]);
        let call = || format!("open({}, O_PATH)", self.path.join(name).display());
        match retry(|| openat(&self.fd, name, flags, Mode::empty())) {
            Ok(fd) => {
                let stat = fstat(&fd).named(call)?;
                Ok(Some(Found { fd, stat }))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).named(call),
        }
    }

    /// Takes `name` away, if it is there.
    #[cfg(feature = "watch")]
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match retry(|| unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)) {
            Err(Errno::ENOENT) => Ok(()),
            done => done.named(|| format!("unlinkat({})", self.path.join(name).display())),
        }
    }
}

/// What a file answers that another process wrote into at the same time: to be looked at again.
pub const CHANGED: Errno = Errno::ESTALE;

/// Whether only root can have opened it for writing.
fn only_roots(stat: &FileStat) -> bool {
    stat.st_uid == 0 && stat.st_mode & 0o022 == 0
}

/// The errno of an error of the standard library's.
pub(super) fn errno_of(error: std::io::Error) -> Errno {
    match error.raw_os_error() {
        Some(raw) => Errno::from_raw(raw),
        // write(2) that wrote nothing.
        None => Errno::ENOSPC,
    }
}
