//! The lock that keeps other processes from changing files in a directory while a run does.
//!
//! It is taken on a file that root alone may open. A lock on the directory itself, flock(2), anybody who can
//! read it could hold for ever.

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

/// How often a lock that is taken is asked for again.
const LOCK_POLL: Duration = Duration::from_millis(5);
/// A wait that is over before that is not told.
const UNTOLD: Duration = Duration::from_millis(200);

/// The file whose lock keeps other processes from changing files in the same directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockFile {
    /// The one of lckpwdf(3), which useradd, groupmod and their like take.
    Passwords,
    /// This program's own, which is there only while it is held.
    Own,
}

impl LockFile {
    /// Its name in the directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passwords => ".pwd.lock",
            Self::Own => ".libvirt-kvm-init.lock",
        }
    }
}

impl LockedDir {
    /// Takes the lock, waiting up to `longest` for another process. A file that anybody but root may open is
    /// no lock, as each who reads it could hold it for ever: it is replaced. None is held where the
    /// directory is read-only, which leaves files that are mounted there to be written.
    ///
    /// # Errors
    /// `EWOULDBLOCK` when the wait was in vain; what the calls answer.
    pub fn lock(&mut self, file: LockFile, longest: Duration) -> Result<()> {
        let start = Instant::now();
        let path = self.path.join(file.name());
        let call = || format!("fcntl({}, F_OFD_SETLK)", path.display());
        let mut is_told = false;
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
            if !is_told && waited > UNTOLD && longest == LOCK_WAIT {
                let seconds = longest.as_secs();
                log::info!("waits up to {seconds} s for the lock on {}", path.display());
                is_told = true;
            }
            sleep(LOCK_POLL);
        }
    }

    /// The file to be locked, opened; made where there is none. Nothing where it comes and goes too fast.
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
            // One without any name was let go in this moment.
            if found.stat.st_nlink != 0 {
                self.put_aside(name, &found)?;
            }
        }
        Ok(None)
    }

    /// Whether `name` is this open file.
    fn is_at(&self, name: &str, fd: &OwnedFd) -> Result<bool> {
        let stat = fstat(fd).context(|| self.call("fstat", name))?;
        Ok(self.inode_at(name)? == Some(inode(&stat)))
    }

    /// Takes away what must not stand at `name`. A directory that is not empty stays under a name that
    /// nothing asks for.
    ///
    /// # Errors
    /// `EISDIR` for a directory of root's, which is left where it is; what the calls answer.
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
            // Another process has put a file of its own there in this moment.
            let (from, to) = (CString::new(aside.as_str()), CString::new(name));
            let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
            let back = || syscalls::rename_anew(self.fd.as_fd(), &from, &to);
            return retry(back).context(call);
        }
        let flags = match is_directory {
            true => UnlinkatFlags::RemoveDir,
            false => UnlinkatFlags::NoRemoveDir,
        };
        if let Err(errno) = retry(|| unlinkat(&self.fd, aside.as_str(), flags)) {
            log::warn!(
                "{}, which UID {} has put there, is called {aside} now: it could not be removed ({errno})",
                path.display(),
                found.stat.st_uid
            );
        }
        Ok(())
    }
}

/// Locks the whole file for this open file alone, if no other process holds a lock on it (`F_OFD_SETLK`).
/// fcntl(2)'s locks of other processes count, those of flock(2) do not.
fn write_lock(fd: &OwnedFd) -> nix::Result<()> {
    let all = record(libc::F_WRLCK, 0, 0)?;
    retry(|| fcntl(fd, FcntlArg::F_OFD_SETLK(&all))).map(drop)
}

/// A lock of this kind (`F_WRLCK` …) on `length` bytes from `start` on; to the end of the file for a length
/// of 0.
///
/// # Errors
/// None for the kinds that there are.
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
