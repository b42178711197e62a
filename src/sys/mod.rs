//! The only callers of system calls that look at or change the machine.
//!
//! Everything here works on descriptors that were opened without following a link and checked
//! before use. `raw` is the one file of the crate that may say `unsafe`.

#[cfg(feature = "watch")]
pub mod claim;
pub mod device;
mod entries;
pub mod events;
pub mod file;
pub mod identity;
pub mod kvm;
pub mod output;
mod pace;
pub mod privileges;
pub mod proc;
pub mod processes;
pub mod program;
pub mod progress;
pub mod public;
pub(crate) mod raw;
pub mod root;
pub mod settle;
pub mod supervise;
#[cfg(feature = "logs")]
pub mod tree;

#[cfg(feature = "watch")]
pub use raw::end_well_on_request;
pub use raw::{become_program, end_on_request};

use std::fmt;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

/// A system call that failed: what was called, on what, and what came back.
#[derive(Debug)]
pub struct CallError {
    /// The call with its arguments, as strace would show it.
    pub call: String,
    /// What the kernel answered.
    pub errno: Errno,
}

impl CallError {
    /// What to do next, where the errno alone says it.
    pub fn advice(&self) -> Option<&'static str> {
        match self.errno {
            Errno::EACCES | Errno::EPERM => Some("run it as root (privileged: true)"),
            Errno::ENOENT if !std::path::Path::new("/proc/self").exists() => Some("mount /proc"),
            Errno::EMFILE | Errno::ENFILE if self.call.starts_with("inotify") => {
                Some("raise fs.inotify.max_user_instances on the node (sysctl)")
            }
            Errno::EMFILE => Some("raise the limit of open files (ulimit -n)"),
            Errno::ENFILE => Some("raise fs.file-max on the node (sysctl)"),
            Errno::ENOSPC if self.call.starts_with("inotify") => {
                Some("raise fs.inotify.max_user_watches on the node (sysctl)")
            }
            Errno::ENOMEM => Some("give this container more memory"),
            Errno::ENOSYS => Some("it needs Linux 5.6 or newer"),
            Errno::EINVAL | Errno::EISDIR => Some("expected a regular file there"),
            Errno::EFBIG if self.call.contains(BEFORE) => {
                Some("expected at most 8 MiB of such files on the node")
            }
            Errno::EFBIG => Some("expected at most 8 MiB there"),
            Errno::E2BIG if self.call.starts_with("getdents64") => {
                Some("expected at most 10,000 names in that folder")
            }
            Errno::ELOOP => Some("a link there leads in a circle or out of its root"),
            _ => None,
        }
    }
}

const BEFORE: &str = ", and those before it";

/// How much of many files is read altogether: a hundred times what a node has of rules, or of records.
pub(crate) struct Room(usize);

impl Room {
    /// 8 MiB.
    pub(crate) fn new() -> Self {
        Self(8 << 20)
    }

    /// Takes what a file has. `name` is only asked for when there is something to report.
    ///
    /// # Errors
    /// `EFBIG` where that is too much, with the file's name.
    pub(crate) fn take(&mut self, content: &[u8], name: impl FnOnce() -> PathBuf) -> Result<()> {
        let left = self.0.checked_sub(content.len()).ok_or(Errno::EFBIG);
        self.0 = left.named(|| format!("read({}{BEFORE})", name().display()))?;
        Ok(())
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} ({})", self.call, self.errno, self.errno.desc())
    }
}

impl std::error::Error for CallError {}

/// Device and inode number: which file it is, by whatever path (inode(7)).
pub type Inode = (u64, u64);

/// What every function of this folder returns.
pub type Result<T> = std::result::Result<T, CallError>;

/// Names the call that a bare errno came from.
pub(crate) trait Named<T> {
    /// `call` is only built when there is something to report.
    fn named(self, call: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Named<T> for nix::Result<T> {
    fn named(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| CallError {
            call: call(),
            errno,
        })
    }
}

/// open(2) with `O_CLOEXEC`, by openat(2): musl's open() asks for that flag by a second call.
pub(crate) fn open<P: ?Sized + NixPath>(path: &P, flags: OFlag) -> nix::Result<OwnedFd> {
    // One that is opened once more by its descriptor has been shown by its own path.
    let _ = path.with_nix_path(|path| match path.to_bytes() {
        path if path.starts_with(b"/proc/self/fd/") => progress::step(),
        path => progress::at(&[path]),
    });
    retry(|| openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::empty()))
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}
