//! Opens logs. All files are opened before the first byte is read, so that an unprivileged process can read
//! them: guests control some of the log content.
//!
//! In directories, symbolic links are not followed and only regular files are opened. A path from the command
//! line is opened whatever its type.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::dup;

use crate::sys::root::kind;
use crate::sys::{Inode, progress, retry};

/// Maximum number of files to open, each with its own descriptor; no node has that many logs.
const MAX_FILES: usize = 100_000;
/// Maximum depth of directories to read.
const MAX_DEPTH: usize = 32;
const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NOCTTY);

#[derive(Debug)]
pub struct Log {
    pub path: PathBuf,
    pub file: File,
    /// The length in bytes; 0 for a file without a length, such as a FIFO.
    pub size: u64,
    /// The time of the last write, as a Unix timestamp.
    pub modified: i64,
}

#[derive(Debug, Default)]
pub struct Logs {
    pub open: Vec<Log>,
    pub unreadable: Vec<(PathBuf, Errno)>,
    /// The number of directory entries that are neither regular files nor directories.
    pub skipped: u64,
    seen: BTreeSet<Inode>,
}

impl Logs {
    /// Adds standard input, as a duplicate of its descriptor: std's buffered handle would copy all input once
    /// more.
    pub fn add_stdin(&mut self) {
        let path = PathBuf::from("-");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(0));
        match dup(io::stdin()) {
            Ok(fd) => self.open.push(Log {
                path,
                file: fd.into(),
                size: 0,
                modified: now,
            }),
            Err(errno) => self.unreadable.push((path, errno)),
        }
    }

    /// Opens `path`, or all files below it.
    pub fn add(&mut self, path: &Path) {
        progress::at(&[path.as_ref()]);
        let opened = retry(|| open(path, READ, Mode::empty()));
        let opened = opened.and_then(|fd| Ok((fstat(&fd)?, fd)));
        let added = opened.and_then(|(stat, fd)| self.add_opened(path, fd, &stat, MAX_DEPTH));
        if let Err(errno) = added {
            self.unreadable.push((path.to_owned(), errno));
        }
    }

    fn add_opened(
        &mut self,
        path: &Path,
        fd: OwnedFd,
        stat: &FileStat,
        depth: usize,
    ) -> nix::Result<()> {
        let kind = kind(stat);
        // The same file by another path, or a directory that is listed and is also below another one.
        let is_listed = matches!(kind, SFlag::S_IFREG | SFlag::S_IFDIR);
        if is_listed && !self.seen.insert((stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        if kind == SFlag::S_IFDIR {
            return self.add_directory(path, fd, depth);
        }
        if self.open.len() >= MAX_FILES {
            return Err(Errno::EMFILE);
        }
        self.open.push(Log {
            path: path.to_owned(),
            file: fd.into(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: stat.st_mtime,
        });
        Ok(())
    }

    fn add_directory(&mut self, path: &Path, fd: OwnedFd, depth: usize) -> nix::Result<()> {
        let mut directory = Dir::from_fd(fd)?;
        for name in names(&mut directory)? {
            let at = path.join(&name);
            match self.add_entry(&directory, &name, &at, depth) {
                // logrotate may remove a log at the same moment.
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => self.unreadable.push((at, errno)),
            }
        }
        Ok(())
    }

    fn add_entry(
        &mut self,
        directory: impl AsFd,
        name: &OsStr,
        path: &Path,
        depth: usize,
    ) -> nix::Result<()> {
        progress::at(&[path.as_ref()]);
        let expected = kind(&fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?);
        let flags = match expected {
            SFlag::S_IFDIR if depth == 0 => return Err(Errno::ELOOP),
            SFlag::S_IFDIR => OFlag::O_DIRECTORY,
            // If a FIFO has replaced it, the open must not block.
            SFlag::S_IFREG => OFlag::O_NONBLOCK,
            _ => {
                self.skipped += 1;
                return Ok(());
            }
        };
        let flags = READ | OFlag::O_NOFOLLOW | flags;
        let fd = retry(|| openat(&directory, name, flags, Mode::empty()))?;
        let stat = fstat(&fd)?;
        if kind(&stat) != expected {
            self.skipped += 1;
            return Ok(());
        }
        self.add_opened(path, fd, &stat, depth.saturating_sub(1))
    }
}

/// The names in a directory, sorted.
fn names(directory: &mut Dir) -> nix::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in directory.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if names.len() >= MAX_FILES {
            return Err(Errno::E2BIG);
        }
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Raises the limit of open files to the hard limit.
pub fn raise_file_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
