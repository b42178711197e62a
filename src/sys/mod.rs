//! The only callers of system calls that look at or change the machine.
//!
//! Everything here works on descriptors that were opened without following a link and checked
//! before use. `syscalls` is the one file of the crate that may contain `unsafe`.
//!
//! The modules here use each other only downwards, in this order: `supervise`; `events`, `settle`; `self_exe`,
//! `output_file`, `output_dir`; `file`; `root`, `device`; `handle`, `kvm`; `progress`; `syscalls`. None uses
//! what observes, decides or reports.

#[cfg(feature = "watch")]
pub mod claim;
pub mod device;
pub mod file;
pub(crate) mod handle;
pub mod identity;
pub mod inotify;
pub mod kvm;
pub mod output_dir;
pub mod output_file;
mod pace;
pub mod privileges;
pub mod proc;
pub mod processes;
pub mod progress;
pub mod root;
pub mod self_exe;
pub mod settle;
pub(crate) mod signals;
pub mod supervise;
pub(crate) mod syscalls;

#[cfg(feature = "watch")]
pub use signals::end_well_on_request;
pub use signals::{become_program, end_on_request};

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

/// A system call that failed: what was called, on what, and what came back.
#[derive(Debug)]
pub struct SyscallError {
    /// The call with its arguments, as strace would show it.
    pub call: String,
    /// What the kernel answered.
    pub errno: Errno,
    /// What to do next, where the caller knows more about that than the errno tells.
    hint: Option<&'static str>,
}

impl SyscallError {
    /// `call` failed with `errno`.
    pub fn new(call: String, errno: Errno) -> Self {
        let hint = None;
        Self { call, errno, hint }
    }

    /// The same, with what to do next.
    pub(crate) fn hint(self, hint: Option<&'static str>) -> Self {
        Self { hint, ..self }
    }

    /// What to do next, where the call or the errno tells.
    pub fn advice(&self) -> Option<&'static str> {
        self.hint.or_else(|| match self.errno {
            Errno::EACCES | Errno::EPERM => Some("run it as root (privileged: true)"),
            Errno::ENOENT if !std::path::Path::new("/proc/self").exists() => Some("mount /proc"),
            Errno::EMFILE => Some("raise the limit of open files (ulimit -n)"),
            Errno::ENFILE => Some("raise fs.file-max on the node (sysctl)"),
            Errno::ENOMEM => Some("give this container more memory"),
            Errno::ENOSYS => Some("it needs Linux 5.6 or newer"),
            Errno::EINVAL | Errno::EISDIR => Some("expected a regular file there"),
            Errno::EFBIG => Some("expected at most 8 MiB there"),
            Errno::ELOOP => Some("a link there leads in a circle or out of its root"),
            _ => None,
        })
    }
}

impl fmt::Display for SyscallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} ({})", self.call, self.errno, self.errno.desc())
    }
}

impl std::error::Error for SyscallError {}

/// How much of many files is read altogether: a hundred times what a node has of rules, or of records.
pub(crate) struct ReadBudget(usize);

impl ReadBudget {
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
        let left = left.context(|| format!("read({}, and those before it)", name().display()));
        let hint = Some("expected at most 8 MiB of such files on the node");
        self.0 = left.map_err(|error| error.hint(hint))?;
        Ok(())
    }
}

/// Device and inode number: which file it is, by whatever path (inode(7)).
pub type Inode = (u64, u64);

/// What every function of this directory returns.
pub type Result<T> = std::result::Result<T, SyscallError>;

/// Names the call that an error came from.
pub(crate) trait Context<T> {
    /// `call` is only built when there is something to report.
    fn context(self, call: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| SyscallError::new(call(), errno))
    }
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(errno_of).context(call)
    }
}

/// The errno of an error of the standard library's.
pub(crate) fn errno_of(error: io::Error) -> Errno {
    match (error.raw_os_error(), error.kind()) {
        (Some(raw), _) => Errno::from_raw(raw),
        (None, io::ErrorKind::OutOfMemory) => Errno::ENOMEM,
        // write(2) that wrote nothing.
        (None, _) => Errno::ENOSPC,
    }
}

/// open(2) with `O_CLOEXEC`, by openat(2): musl's open() asks for that flag by a second call.
pub(crate) fn open<P: ?Sized + NixPath>(path: &P, flags: OFlag) -> nix::Result<OwnedFd> {
    // A file that is opened once more by its descriptor was shown by its own path.
    let _ = path.with_nix_path(|path| match path.to_bytes() {
        path if path.starts_with(b"/proc/self/fd/") => {}
        path => progress::at(&[OsStr::from_bytes(path)]),
    });
    open_in(AT_FDCWD, path, flags)
}

/// The same for a path that begins in `directory`. The caller shows which one that is ([`progress::at`]).
pub(crate) fn open_in<P: ?Sized + NixPath>(
    directory: impl AsFd,
    path: &P,
    flags: OFlag,
) -> nix::Result<OwnedFd> {
    progress::step();
    let flags = flags | OFlag::O_CLOEXEC;
    retry(|| openat(directory.as_fd(), path, flags, Mode::empty()))
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
