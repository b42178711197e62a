//! The lock that keeps other processes from changing files in a directory during the run.
//!
//! The lock is taken on a file that only root can open. flock(2) on the directory itself would be open to every user
//! who can read the directory, and such a user could hold it indefinitely.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat, renameat};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::new::temporary;
use super::{FileHandle, LOCK_WAIT, LockedDir, TRIES};
use crate::sys::handle::inode;
use crate::sys::{Context, Result, progress, retry, syscalls};

/// Interval at which a lock that another process holds is requested again.
const LOCK_POLL: Duration = Duration::from_millis(5);
/// Shorter waits for the lock are not logged.
const LOGGED_AFTER: Duration = Duration::from_millis(200);

/// The file on which the lock of its directory is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockFile {
    /// The lock file of lckpwdf(3), used by useradd, groupmod and similar tools.
    Passwords,
    /// This program's lock file, which exists only while the lock is held.
    Own,
}

impl LockFile {
    pub fn name(self) -> &'static str {
        match self {
            Self::Passwords => ".pwd.lock",
            Self::Own => ".libvirt-kvm-init.lock",
        }
    }
}

impl LockedDir {
    /// Takes the lock, waiting up to `longest` for another process to release it. A lock file that users other than
    /// root can open is replaced, because such a user could hold the lock indefinitely. In a read-only directory no
    /// lock is taken: there only files that are mounted over its entries can be written.
    ///
    /// # Errors
    /// `EWOULDBLOCK` if another process still holds the lock after `longest`.
    pub fn lock(&mut self, file: LockFile, longest: Duration) -> Result<()> {
        let start = Instant::now();
        let path = self.path.join(file.name());
        let call = || format!("fcntl({}, F_OFD_SETLK)", path.display());
        let mut is_logged = false;
        loop {
            let opened = match self.lock_file(file.name()) {
                Err(error) if error.errno == Errno::EROFS => return Ok(()),
                opened => opened?,
            };
            if let Some(fd) = opened {
                match write_lock(&fd) {
                    Ok(()) if self.is_at(file.name(), &fd)? => {
                        progress::locked(&fd, true);
                        self.lock = Some((fd, file));
                        return Ok(());
                    }
                    Ok(()) | Err(Errno::EWOULDBLOCK | Errno::EACCES) => {}
                    Err(errno) => return Err(errno).context(call),
                }
            }
            let waited = start.elapsed();
            if waited >= longest {
                let call = || format!("{} for {} s", call(), waited.as_secs());
                return Err(Errno::EWOULDBLOCK).context(call);
            }
            if !is_logged && waited > LOGGED_AFTER && longest == LOCK_WAIT {
                let seconds = longest.as_secs();
                log::info!(
                    "waiting up to {seconds} s for the lock on {}",
                    path.display()
                );
                is_logged = true;
            }
            sleep(LOCK_POLL);
        }
    }

    /// Opens the lock file, and creates it if it does not exist. `None` if other processes kept replacing it.
    fn lock_file(&self, name: &str) -> Result<Option<OwnedFd>> {
        let create = OFlag::O_RDWR
            | OFlag::O_CREAT
            | OFlag::O_EXCL
            | OFlag::O_NOFOLLOW
            | OFlag::O_CLOEXEC
            | OFlag::O_NONBLOCK;
        for _ in 0..TRIES {
            let Some(found) = self.find(name)? else {
                let mode = Mode::S_IRUSR | Mode::S_IWUSR;
                match retry(|| openat(&self.fd, name, create, mode)) {
                    Err(Errno::EEXIST) => continue,
                    made => return made.context(|| self.call("open", name)).map(Some),
                }
            };
            let is_roots_alone = found.rights().2 & 0o077 == 0;
            if found.is_roots_file() && is_roots_alone {
                let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
                let opened = found.open(flags).context(|| self.call("open", name))?;
                return Ok(Some(opened.into()));
            }
            // A file without links was released and removed by its holder just now.
            if found.stat.st_nlink != 0 {
                self.put_aside(name, &found)?;
            }
        }
        Ok(None)
    }

    /// Whether `name` still leads to this open file.
    fn is_at(&self, name: &str, fd: &OwnedFd) -> Result<bool> {
        let stat = fstat(fd).context(|| self.call("fstat", name))?;
        Ok(self.inode_at(name)? == Some(inode(&stat)))
    }

    /// Removes the file or directory `found` at `name`, where this program needs a regular file. A directory that is
    /// not empty is renamed to an unused name.
    ///
    /// # Errors
    /// `EISDIR` for a directory owned by root, which is left in place.
    pub(in crate::sys) fn put_aside(&self, name: &str, found: &FileHandle) -> Result<()> {
        let path = self.path.join(name);
        let is_directory = found.kind() == SFlag::S_IFDIR;
        if is_directory && !found.is_foreign() {
            return Err(Errno::EISDIR).context(|| format!("rename(…, {})", path.display()));
        }
        let aside = temporary(name).context(|| "getrandom()".to_owned())?;
        let call = || format!("rename({}, {aside})", path.display());
        match retry(|| renameat(&self.fd, name, &self.fd, aside.as_str())) {
            Err(Errno::ENOENT) => return Ok(()),
            done => done.context(call)?,
        }
        if self.inode_at(&aside)? != Some(found.inode()) {
            // Another process replaced `name` before the rename: put its file back.
            let (from, to) = (CString::new(aside.as_str()), CString::new(name));
            let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
            let back = || syscalls::rename_noreplace(self.fd.as_fd(), &from, &to);
            return retry(back).context(call);
        }
        let flags = match is_directory {
            true => UnlinkatFlags::RemoveDir,
            false => UnlinkatFlags::NoRemoveDir,
        };
        if let Err(errno) = retry(|| unlinkat(&self.fd, aside.as_str(), flags)) {
            log::warn!(
                "{} (owned by UID {}) could not be removed ({errno}); it was renamed to {aside}",
                path.display(),
                found.stat.st_uid
            );
        }
        Ok(())
    }
}

/// Takes a write lock on the whole file for this open file description (`F_OFD_SETLK`). It conflicts with the
/// fcntl(2) locks of other processes, and not with those of flock(2).
fn write_lock(fd: &OwnedFd) -> nix::Result<()> {
    let all = record(libc::F_WRLCK, 0, 0)?;
    retry(|| fcntl(fd, FcntlArg::F_OFD_SETLK(&all))).map(drop)
}

/// A lock of this kind (`F_RDLCK`, `F_WRLCK`, `F_UNLCK`) on `length` bytes from `start` on; a length of 0 extends to
/// the end of the file.
pub(in crate::sys) fn record(
    kind: libc::c_int,
    start: i64,
    length: i64,
) -> nix::Result<libc::flock> {
    let short = |number: libc::c_int| libc::c_short::try_from(number).map_err(|_| Errno::EINVAL);
    Ok(libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: start,
        l_len: length,
        l_pid: 0,
    })
}
