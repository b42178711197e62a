//! Why a run ends early, and what to do next.
#![forbid(unsafe_code)]

use std::fmt;

use nix::errno::Errno;

use crate::sys::SyscallError;
use crate::verdict::Verdict;

/// What ended a run.
#[derive(Debug)]
pub enum Error {
    /// A flag, variable or configuration file is wrong. Nothing was changed.
    Usage(String),
    /// A safety rule said no when the work had begun, before anything was changed.
    Refused(String),
    /// A system call failed.
    Syscall {
        /// The call with its arguments, and what came back.
        error: SyscallError,
        /// What was worked on.
        on: Object,
    },
    /// Another process changes what is to be changed, again and again.
    Contended(String),
}

/// What a system call was about. It decides what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// The device.
    Device,
    /// The pod root's group file.
    GroupFile,
    /// The file of `--group-file-out`.
    GroupFileOut,
    /// The node's udev rule.
    UdevRule,
    /// The binary that `install` puts into a volume.
    Binary,
    /// Anything else.
    Other,
}

/// What a function that may end a run returns.
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
    /// The verdict on a run that it ended.
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
    "another process holds the lock on that file: find it with `lslocks`, then run again";
const CHANGED: &str = "see whether another process changes it";
const ROOT: &str = "run this step as root";

/// What to do next.
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
            "this user namespace does not map that number: run without hostUsers: false"
        }
        _ => "see `dmesg` on the node",
    }
}

fn of_group_file(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS => {
            "the root file system, or what is mounted over that file, is read-only: in a step \
             before, give --group-file-out with a file in a volume, and mount that file read-only \
             over etc/group in the libvirt container, as helm-patch/kustomize does; where that is \
             so already, delete the pod: its step runs again"
        }
        Errno::EPERM | Errno::EACCES => ROOT,
        Errno::ENOSPC | Errno::EDQUOT => "make space in that file system",
        Errno::EWOULDBLOCK => LOCKED,
        _ => CHANGED,
    }
}

fn of_group_file_out(errno: Errno) -> &'static str {
    match errno {
        Errno::EINVAL | Errno::ENAMETOOLONG => "give the path of a file, with a shorter name",
        Errno::EISDIR => {
            "a directory stands where the file belongs, as the kubelet makes one for a subPath \
             that did not exist: remove it from the volume, or delete the pod"
        }
        Errno::ENOENT | Errno::ENOTDIR => "mount the volume there first",
        Errno::EMLINK => "the mounted file has other names (hard links): mount one that has none",
        Errno::EROFS => "mount the volume writable in this step",
        Errno::EPERM | Errno::EACCES => ROOT,
        Errno::ENOSPC | Errno::EDQUOT => "make space in that volume",
        Errno::EWOULDBLOCK => LOCKED,
        _ => CHANGED,
    }
}

fn of_udev_rule(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS => "mount the node's /etc/udev/rules.d writable in this container",
        Errno::EPERM | Errno::EACCES => ROOT,
        Errno::ELOOP | Errno::EINVAL => "what stands there is no file: remove it",
        Errno::ENOSPC | Errno::EDQUOT => "make space in that file system",
        Errno::EWOULDBLOCK => LOCKED,
        _ => CHANGED,
    }
}

fn of_binary(errno: Errno) -> &'static str {
    match errno {
        Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST => {
            "a directory stands where the file belongs, as the kubelet makes one for a subPath that \
             did not exist: remove it from the volume, or delete the pod"
        }
        Errno::EBUSY => "that file is a mount point: install into the volume itself",
        Errno::EROFS => "mount the volume writable in this step",
        Errno::EPERM | Errno::EACCES => {
            "run this step as root; where it is, see `lsattr` for what may not be changed (chattr +i)"
        }
        Errno::ENOSPC | Errno::EDQUOT => "make space in that volume",
        Errno::EWOULDBLOCK => LOCKED,
        _ => CHANGED,
    }
}
