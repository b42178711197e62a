//! All system calls that inspect or change the machine.
//!
//! They work on descriptors that were opened without following a link and checked before use. `syscalls` is the
//! only file of the crate that may contain `unsafe`.
//!
//! The modules import each other only downwards, in this order: `supervise`; `inotify`, `settle`; `self_exe`,
//! `output_file`, `output_dir`; `file`; `root`, `device`; `handle`, `kvm`; `progress`; `syscalls`. None imports
//! the stages that observe, plan or report.

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

/// A failed system call, with its arguments and its errno.
#[derive(Debug)]
pub struct SyscallError {
    /// The call with its arguments, as strace would show it.
    pub call: String,
    pub errno: Errno,
    /// Advice that replaces the general one for the errno.
    hint: Option<&'static str>,
}

impl SyscallError {
    pub fn new(call: String, errno: Errno) -> Self {
        let hint = None;
        Self { call, errno, hint }
    }

    /// Replaces the advice that [`SyscallError::advice`] returns.
    pub(crate) fn hint(self, hint: Option<&'static str>) -> Self {
        Self { hint, ..self }
    }

    /// The next step for the operator, if the call or the errno determines it.
    pub fn advice(&self) -> Option<&'static str> {
        self.hint.or_else(|| match self.errno {
            Errno::EACCES | Errno::EPERM => Some("run as root (privileged: true)"),
            Errno::ENOENT if !std::path::Path::new("/proc/self").exists() => Some("mount /proc"),
            Errno::EMFILE => Some("raise the limit on open files (ulimit -n)"),
            Errno::ENFILE => Some("raise fs.file-max on the node (sysctl)"),
            Errno::ENOMEM => Some("raise the memory limit of this container"),
            Errno::ENOSYS => Some("Linux 5.6 or newer is required"),
            Errno::EINVAL | Errno::EISDIR => Some("the path must be a regular file"),
            Errno::EFBIG => Some("the file must not be larger than 8 MiB"),
            Errno::ELOOP => {
                Some("a symbolic link in that path loops or leaves its root: correct it")
            }
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

/// Limit on the total size of several files, 8 MiB: a hundred times the udev rules, or the user records, of a node.
pub(crate) struct ReadBudget(usize);

impl ReadBudget {
    pub(crate) fn new() -> Self {
        Self(8 << 20)
    }

    /// Subtracts the size of a file. `name` is only called for the error.
    ///
    /// # Errors
    /// `EFBIG`, with the file's name, when the budget is exceeded.
    pub(crate) fn take(&mut self, content: &[u8], name: impl FnOnce() -> PathBuf) -> Result<()> {
        let left = self.0.checked_sub(content.len()).ok_or(Errno::EFBIG);
        let left = left.context(|| format!("read({}, and the files before it)", name().display()));
        let hint = Some("these files must not be larger than 8 MiB in total");
        self.0 = left.map_err(|error| error.hint(hint))?;
        Ok(())
    }
}

/// Device and inode number, which identify a file whatever its path is (inode(7)).
pub type Inode = (u64, u64);

pub type Result<T> = std::result::Result<T, SyscallError>;

/// Adds the failed call to an errno.
pub(crate) trait Context<T> {
    /// `call` is only called for an error.
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

/// The errno of an error of the standard library.
pub(crate) fn errno_of(error: io::Error) -> Errno {
    match (error.raw_os_error(), error.kind()) {
        (Some(raw), _) => Errno::from_raw(raw),
        (None, io::ErrorKind::OutOfMemory) => Errno::ENOMEM,
        // `write_all` after a write(2) that wrote 0 bytes.
        (None, _) => Errno::ENOSPC,
    }
}

/// open(2) with `O_CLOEXEC`, by openat(2): musl's open() sets that flag with a second call.
pub(crate) fn open<P: ?Sized + NixPath>(path: &P, flags: OFlag) -> nix::Result<OwnedFd> {
    // A file that is reopened through its descriptor has already been recorded by its own path.
    let _ = path.with_nix_path(|path| match path.to_bytes() {
        path if path.starts_with(b"/proc/self/fd/") => {}
        path => progress::at(&[OsStr::from_bytes(path)]),
    });
    open_in(AT_FDCWD, path, flags)
}

/// openat(2) with `O_CLOEXEC`, for a path relative to `directory`. The caller records the whole path
/// ([`progress::at`]).
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
