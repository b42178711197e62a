//! Opening logs: everything that will be read is opened before the first byte is, so that the
//! reading can be done by a process that may open nothing (guests have a say in what logs hold).
//!
//! In folders, links are not followed and only regular files are opened; what was named is opened
//! whatever it is.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::entries::entries;
use super::root::kind;
use super::{Inode, progress, retry};

/// More files than any node has logs; each costs a descriptor.
const MAX_FILES: usize = 100_000;
/// Deeper than any folder of logs.
const MAX_DEPTH: usize = 32;

/// A log that was opened.
#[derive(Debug)]
pub struct Log {
    /// As it was named, or found.
    pub path: PathBuf,
    /// Open for reading.
    pub file: File,
    /// Its length; 0 for what has none, as a fifo.
    pub size: u64,
    /// When it was last written, in seconds since 1970.
    pub modified: i64,
}

/// What came of the paths.
#[derive(Debug, Default)]
pub struct Logs {
    /// Every regular file, and whatever was named, in order.
    pub open: Vec<Log>,
    /// What could not be opened, and why.
    pub unreadable: Vec<(PathBuf, Errno)>,
    /// How much in the folders is neither a regular file nor a folder.
    pub skipped: u64,
    seen: BTreeSet<Inode>,
}

impl Logs {
    /// Opens `path`, or all that is below it.
    pub fn add(&mut self, path: &Path) {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        progress::at(&[path.as_os_str().as_encoded_bytes()]);
        let opened = retry(|| open(path, flags, Mode::empty()));
        match opened.and_then(|fd| Ok((fstat(&fd)?, fd))) {
            Ok((stat, fd)) if kind(&stat) == SFlag::S_IFDIR => {
                self.add_folder(path, fd, &stat, MAX_DEPTH);
            }
            Ok((stat, fd)) => self.keep(path.to_owned(), fd, &stat),
            Err(errno) => self.unreadable.push((path.to_owned(), errno)),
        }
    }

    fn keep(&mut self, path: PathBuf, fd: OwnedFd, stat: &FileStat) {
        // The same file by another path, or a folder below another that was named too.
        let is_file = kind(stat) == SFlag::S_IFREG;
        if is_file && !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        if self.open.len() >= MAX_FILES {
            self.unreadable.push((path, Errno::EMFILE));
            return;
        }
        self.open.push(Log {
            path,
            file: fd.into(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: stat.st_mtime,
        });
    }

    fn add_folder(&mut self, path: &Path, fd: OwnedFd, stat: &FileStat, depth: usize) {
        if !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        let names = match names(&fd) {
            Ok(names) => names,
            Err(errno) => return self.unreadable.push((path.to_owned(), errno)),
        };
        for name in names {
            let at = path.join(&name);
            if let Err(errno) = self.add_entry(&fd, &name, &at, depth) {
                // A log may be rotated away in the same moment.
                if errno != Errno::ENOENT {
                    self.unreadable.push((at, errno));
                }
            }
        }
    }

    fn add_entry(
        &mut self,
        folder: &OwnedFd,
        name: &OsStr,
        path: &Path,
        depth: usize,
    ) -> nix::Result<()> {
        progress::at(&[path.as_os_str().as_encoded_bytes()]);
        let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let common = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
        match kind(&stat) {
            SFlag::S_IFDIR if depth == 0 => Err(Errno::ELOOP),
            SFlag::S_IFDIR => {
                let flags = common | OFlag::O_DIRECTORY;
                let fd = retry(|| openat(folder, name, flags, Mode::empty()))?;
                let stat = fstat(&fd)?;
                self.add_folder(path, fd, &stat, depth - 1);
                Ok(())
            }
            SFlag::S_IFREG => {
                let flags = common | OFlag::O_NONBLOCK;
                let fd = retry(|| openat(folder, name, flags, Mode::empty()))?;
                let stat = fstat(&fd)?;
                if kind(&stat) == SFlag::S_IFREG {
                    self.keep(path.to_owned(), fd, &stat);
                } else {
                    self.skipped += 1;
                }
                Ok(())
            }
            _ => {
                self.skipped += 1;
                Ok(())
            }
        }
    }
}

/// The names in a folder, sorted.
fn names(folder: &OwnedFd) -> nix::Result<Vec<OsString>> {
    let mut names = Vec::new();
    entries(folder.as_fd(), |name, _| {
        if names.len() >= MAX_FILES {
            return Err(Errno::E2BIG);
        }
        names.push(name.to_owned());
        Ok(())
    })?;
    names.sort_unstable();
    Ok(names)
}

/// Lets this process have as many open files as it may at most.
pub fn raise_file_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
