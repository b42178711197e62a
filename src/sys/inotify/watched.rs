//! One thing that is followed: by a watch, or by looking again and again.

use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::inotify::{AddWatchFlags, WatchDescriptor};
use nix::sys::stat::{FileStat, fstat, fstatat};

use super::{EventKind, Names};
use crate::sys::SyscallError;
use crate::sys::handle::{MAX_NAMES, names_below};

/// How a directory is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// By a watch.
    Watch(WatchDescriptor),
    /// By looking again and again: what was seen last.
    Polling(u64),
}

/// A directory that is watched for some names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) means: Means,
    pub(super) kind: EventKind,
    /// `None` for a watch on the device's own inode.
    pub(super) names: Option<Names>,
    /// Whether the name is that of a directory on the way to the one that is meant.
    pub(super) way: bool,
}

impl Watched {
    pub(super) fn is(&self, wd: WatchDescriptor) -> bool {
        self.means == Means::Watch(wd)
    }

    /// Whether an event of this watch is about what is followed.
    pub(super) fn means(&self, name: Option<&OsString>, mask: AddWatchFlags) -> bool {
        match (name, &self.names) {
            (Some(name), Some(names)) => names.has(name),
            (None, None) => true,
            // What has no name is about the directory itself.
            (None, Some(_)) => mask.intersects(OF_THE_FOLDER),
            (Some(_), None) => false,
        }
    }
}

const OF_THE_FOLDER: AddWatchFlags = AddWatchFlags::IN_IGNORED
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_UNMOUNT);

/// Whether an errno of inotify's says that something scarce is used up.
pub(super) fn is_lack(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC | Errno::ENOMEM
    )
}

/// What fstat(2) and fstatat(2) answer for the names in a directory that are followed, as one number.
pub(super) fn seen_in(directory: &OwnedFd, names: &Names, way: bool) -> u64 {
    let mut seen = DefaultHasher::new();
    let id = |stat: FileStat| (stat.st_dev, stat.st_ino);
    fstat(directory).ok().map(id).hash(&mut seen);
    let mut look = |name: &OsStr| {
        let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok();
        name.hash(&mut seen);
        stat.map(id).hash(&mut seen);
        // Of a directory on the way, what is made in it does not count.
        if let Some(stat) = stat.filter(|_| !way) {
            (stat.st_ctime, stat.st_ctime_nsec).hash(&mut seen);
            (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size).hash(&mut seen);
        }
    };
    match names {
        Names::One(name) => look(name),
        Names::EndIn(_) => {
            let found = names_below(directory, MAX_NAMES).unwrap_or_default();
            let found = found.iter().filter(|name| names.has(name));
            found.for_each(|name| look(name));
        }
    }
    seen.finish()
}

/// Why something has no watch, with what to do about it.
pub(super) fn lack(call: String, errno: Errno) -> SyscallError {
    SyscallError::new(call, errno).hint(match errno {
        Errno::EMFILE | Errno::ENFILE => {
            Some("raise fs.inotify.max_user_instances on the node (sysctl)")
        }
        Errno::ENOSPC => Some("raise fs.inotify.max_user_watches on the node (sysctl)"),
        _ => None,
    })
}
