//! Errors that end a run, with advice for the next step.
#![forbid(unsafe_code)]

use std::fmt;

use nix::errno::Errno;

use crate::sys::SyscallError;
use crate::verdict::Verdict;

#[derive(Debug)]
pub enum Error {
    /// An invalid flag, environment variable or configuration value. Nothing was changed.
    Usage(String),
    /// A safety check failed after the run had started, before any change.
    Refused(String),
    Syscall {
        error: SyscallError,
        on: Object,
    },
    /// Another process repeatedly changes the same files or the device.
    Contended(String),
}

/// The object of a system call, which selects the advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    Device,
    /// The group file below the pod root.
    GroupFile,
    /// The file of `--group-file-out`.
    GroupFileOut,
    /// The rule of `--persist` on the node.
    UdevRule,
    /// The binary that `install` copies into a volume.
    Binary,
    Other,
}

pub type Result<T> = std::result::Result<T, Error>;

impl From<SyscallError> for Error {
    fn from(error: SyscallError) -> Self {
        Self::Syscall {
            error,
            on: Object::Other,
        }
    }
}

impl Error {
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Usage(_) => Verdict::Usage,
            Self::Refused(_) => Verdict::Refused,
            Self::Syscall { .. } | Self::Contended(_) => Verdict::Failed,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Refused(text) | Self::Contended(text) => f.write_str(text),
            Self::Syscall { error, on } => {
                let option = match on {
                    Object::UdevRule => "--persist: ",
                    _ => "",
                };
                write!(f, "{option}{error}")?;
                match advice(*on, error) {
                    Some(advice) => write!(f, "; {advice}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for Error {}

const LOCKED: &str =
    "another process holds the lock on that file; find it with `lslocks`, then repeat the command";
const CHANGED: &str = "check whether another process is changing it";
const ROOT: &str = "run this step as root";
const DIRECTORY: &str = "a directory exists where the file belongs (the kubelet creates one for a missing subPath); \
                         remove it from the volume, or delete the pod";

fn advice(on: Object, error: &SyscallError) -> Option<&'static str> {
    let errno = error.errno;
    Some(match on {
        Object::Other => return error.advice(),
        Object::Device => of_device(errno),
        Object::GroupFile => of_group_file(errno),
        Object::GroupFileOut => of_group_file_out(errno),
        Object::UdevRule => of_udev_rule(errno),
        Object::Binary => of_binary(errno),
    })
}

fn of_device(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS => "mount the node's /dev writable in this container",
        Errno::EPERM | Errno::EACCES => "run this step as root with CAP_CHOWN (privileged: true)",
        Errno::EINVAL => {
            "this user namespace does not map that GID; run the pod without hostUsers: false"
        }
        _ => "check `dmesg` on the node",
    }
}

fn of_group_file(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS => {
            "the file or its file system is mounted read-only: in an earlier step, write to a volume \
             with --group-file-out and mount that file over etc/group in the libvirt container, as \
             helm-patch/kustomize does; if it is already set up this way, delete the pod so that the \
             init step runs again"
        }
        Errno::EPERM | Errno::EACCES => ROOT,
        Errno::ENOSPC | Errno::EDQUOT => "free up space in that file system",
        Errno::EWOULDBLOCK => LOCKED,
        _ => CHANGED,
    }
}

fn of_group_file_out(errno: Errno) -> &'static str {
    match errno {
        Errno::EINVAL => "use the path of a file",
        Errno::ENAMETOOLONG => "use a shorter file name",
        Errno::EISDIR => DIRECTORY,
        Errno::ENOENT | Errno::ENOTDIR => "mount the volume there before this step",
        Errno::EMLINK => {
            "the mounted file has more than one hard link; mount a file with a single link"
        }
        Errno::EROFS => "mount the volume writable in this step",
        Errno::EPERM | Errno::EACCES => ROOT,
        Errno::ENOSPC | Errno::EDQUOT => "free up space in that volume",
        Errno::EWOULDBLOCK => LOCKED,
        _ => CHANGED,
    }
}

fn of_udev_rule(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS => "mount the node's /etc/udev/rules.d writable in this container",
        Errno::EPERM | Errno::EACCES => ROOT,
        Errno::ELOOP | Errno::EINVAL => "remove that file: it is not a regular file",
        Errno::ENOSPC | Errno::EDQUOT => "free up space in that file system",
        Errno::EWOULDBLOCK => LOCKED,
        _ => CHANGED,
    }
}

fn of_binary(errno: Errno) -> &'static str {
    match errno {
        Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST => DIRECTORY,
        Errno::EBUSY => "that file is a mount point; install into the volume itself",
        Errno::EROFS => "mount the volume writable in this step",
        Errno::EPERM | Errno::EACCES => {
            "run this step as root; if it already is, check with `lsattr` for an immutable file (chattr +i)"
        }
        Errno::ENOSPC | Errno::EDQUOT => "free up space in that volume",
        Errno::EWOULDBLOCK => LOCKED,
        _ => CHANGED,
    }
}
