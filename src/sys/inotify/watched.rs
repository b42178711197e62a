//! One entry of a [`Watcher`](super::Watcher): a directory or device that has an inotify watch, or is polled.

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
    Watch(WatchDescriptor),
    /// By polling. The value is a hash of the last state ([`state_of`]).
    Polling(u64),
}

/// A directory that is followed for some of its names, or the inode of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) means: Means,
    pub(super) kind: EventKind,
    /// `None` for a watch on the device's own inode.
    pub(super) names: Option<Names>,
    /// Whether this is a parent of a directory that does not exist yet.
    pub(super) is_parent: bool,
}

impl Watched {
    pub(super) fn is(&self, wd: WatchDescriptor) -> bool {
        self.means == Means::Watch(wd)
    }

    /// Whether an event of this watch concerns one of the followed names.
    pub(super) fn matches(&self, name: Option<&OsString>, mask: AddWatchFlags) -> bool {
        match (name, &self.names) {
            (Some(name), Some(names)) => names.has(name),
            (None, None) => true,
            // An event without a name concerns the directory itself.
            (None, Some(_)) => mask.intersects(OF_DIRECTORY),
            (Some(_), None) => false,
        }
    }
}

const OF_DIRECTORY: AddWatchFlags = AddWatchFlags::IN_IGNORED
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_UNMOUNT);

/// Whether this errno of inotify means that a limited resource is used up.
pub(super) fn is_exhausted(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC | Errno::ENOMEM
    )
}

/// A hash of the inodes, times, owners and modes of the followed names in a directory (fstat(2), fstatat(2)).
pub(super) fn state_of(directory: &OwnedFd, names: &Names, is_parent: bool) -> u64 {
    let mut state = DefaultHasher::new();
    let id = |stat: FileStat| (stat.st_dev, stat.st_ino);
    fstat(directory).ok().map(id).hash(&mut state);
    let mut add = |name: &OsStr| {
        let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok();
        name.hash(&mut state);
        stat.map(id).hash(&mut state);
        // Of a directory on the path to a missing one only the inode counts: new entries in it change the rest.
        if let Some(stat) = stat.filter(|_| !is_parent) {
            (stat.st_ctime, stat.st_ctime_nsec).hash(&mut state);
            (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size).hash(&mut state);
        }
    };
    match names {
        Names::One(name) => add(name),
        Names::EndIn(_) => {
            let all = names_below(directory, MAX_NAMES).unwrap_or_default();
            let followed = all.iter().filter(|name| names.has(name));
            followed.for_each(|name| add(name));
        }
    }
    state.finish()
}

/// The error because of which a directory has no watch, with the advice for it.
pub(super) fn exhausted(call: String, errno: Errno) -> SyscallError {
    SyscallError::new(call, errno).hint(match errno {
        Errno::EMFILE | Errno::ENFILE => {
            Some("raise fs.inotify.max_user_instances on the node (sysctl)")
        }
        Errno::ENOSPC => Some("raise fs.inotify.max_user_watches on the node (sysctl)"),
        _ => None,
    })
}
