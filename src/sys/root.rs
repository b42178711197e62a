//! A directory seen as the root of a file system, such as the node's mounted into a pod.
//!
//! Reads below it cannot leave it: an absolute link (`etc/group -> /usr/lib/group`) resolves
//! inside, `..` stops at the top, and links of `/proc` are not followed (openat2(2),
//! `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`, Linux 5.6).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat, umask};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::fsync;

use super::handle::{FileHandle, MAX_NAMES, READ, inode, list, read_open};
use super::{Context, Inode, Result, SyscallError, errno_of, open, open_in, progress, retry};

pub(crate) use super::handle::MAX_FILE;
pub use super::handle::{is_mount_point, kind, kind_name, open_here, read_here};

/// An open directory that paths are resolved below.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

/// Which file was seen, and when it was changed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Device and inode number.
    pub inode: Inode,
    /// Moves with every change: seconds and nanoseconds.
    ctime: (i64, i64),
    size: i64,
}

impl Stamp {
    fn of(stat: &FileStat) -> Self {
        Self {
            inode: inode(stat),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
            size: stat.st_size,
        }
    }
}

impl Root {
    /// Opens the directory at `path`, following links to it.
    ///
    /// # Errors
    /// What open(2) answers: `ENOENT`, `ENOTDIR`, `EACCES`.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .context(|| format!("open({}, O_PATH|O_DIRECTORY)", path.display()))?;
        let path = path.to_owned();
        Ok(Self { fd, path })
    }

    /// Opens `name` in an open directory, links followed, also those of `/proc`. `path` is what it is called.
    ///
    /// # Errors
    /// As [`Root::open`].
    pub(super) fn open_at(directory: &OwnedFd, name: &str, path: PathBuf) -> Result<Self> {
        progress::at(&[path.as_ref()]);
        let fd = open_in(directory, name, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .context(|| format!("open({}, O_PATH|O_DIRECTORY)", path.display()))?;
        Ok(Self { fd, path })
    }

    /// The directory `name` below this one, as a root of its own; this one for an empty name.
    ///
    /// # Errors
    /// What openat2(2) answers.
    pub fn below(self, name: &Path) -> Result<Self> {
        if name.as_os_str().is_empty() {
            return Ok(self);
        }
        let shown = name.display().to_string();
        let fd = self.open_below(&shown, OFlag::O_PATH | OFlag::O_DIRECTORY);
        let fd = fd.context(|| self.call(&shown))?;
        let path = self.path.join(name);
        Ok(Self { fd, path })
    }

    /// The same directory by one more descriptor.
    ///
    /// # Errors
    /// What fcntl(2) answers: `EMFILE`.
    pub fn again(&self) -> Result<Self> {
        let fd = self.descriptor()?;
        let path = self.path.clone();
        Ok(Self { fd, path })
    }

    /// Where it is seen from here.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One more descriptor of it.
    pub(super) fn descriptor(&self) -> Result<OwnedFd> {
        let fd = retry(|| self.fd.try_clone().map_err(errno_of));
        fd.context(|| format!("dup({})", self.path.display()))
    }

    /// Device and inode number, which tell two roots apart.
    ///
    /// # Errors
    /// What fstat(2) answers.
    pub fn id(&self) -> Result<Inode> {
        progress::at(&[self.path.as_ref()]);
        let stat = fstat(&self.fd).context(|| format!("fstat({})", self.path.display()))?;
        Ok(inode(&stat))
    }

    /// `name` below this root, as a person would write it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The content of the regular file `name`, or `None` where there is none.
    ///
    /// # Errors
    /// What the calls answer; `EINVAL` for anything but a regular file, which is never opened, and
    /// `EFBIG` for more than 8 MiB.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.read_which(name)?.map(|(content, _)| content))
    }

    /// As [`Root::read`], with device and inode number of what was read.
    ///
    /// # Errors
    /// As [`Root::read`].
    pub fn read_which(&self, name: &str) -> Result<Option<(Vec<u8>, Inode)>> {
        let found = self.read_stamped(name)?;
        Ok(found.map(|(content, stamp)| (content, stamp.inode)))
    }

    /// As [`Root::read`], with what tells that it has changed.
    ///
    /// # Errors
    /// As [`Root::read`].
    pub fn read_stamped(&self, name: &str) -> Result<Option<(Vec<u8>, Stamp)>> {
        let Some(found) = self.find(name, OFlag::empty())? else {
            return Ok(None);
        };
        let content = found.read().context(|| found.describe(&self.join(name)))?;
        Ok(Some((content, Stamp::of(&found.stat))))
    }

    /// What tells that the file `name` leads to has changed; `None` where there is none.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn stamp(&self, name: &str) -> Result<Option<Stamp>> {
        let found = self.find(name, OFlag::empty())?;
        Ok(found.map(|found| Stamp::of(&found.stat)))
    }

    /// What `name` is, a link at its end not followed; `None` where there is nothing.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn stat(&self, name: &str) -> Result<Option<FileStat>> {
        let found = self.find(name, OFlag::O_NOFOLLOW)?;
        Ok(found.map(|found| found.stat))
    }

    /// Device and inode number of what `name` leads to, links followed; `None` for nothing.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn inode(&self, name: &str) -> Result<Option<Inode>> {
        let found = self.find(name, OFlag::empty())?;
        Ok(found.map(|found| found.inode()))
    }

    /// Where the link `name` leads, as it is written; `None` where there is no link.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn link(&self, name: &str) -> Result<Option<OsString>> {
        let found = self.find(name, OFlag::O_NOFOLLOW)?;
        let link = found.filter(|found| found.kind() == SFlag::S_IFLNK);
        let target = link.map(|link| retry(|| readlinkat(&link.fd, "")));
        let call = || format!("readlinkat({})", self.join(name).display());
        target.transpose().context(call)
    }

    /// Whether the directory `name`, a path without links, is on another mount than this root itself;
    /// empty for the root.
    ///
    /// # Errors
    /// What openat2(2) answers.
    pub fn is_below_a_mount(&self, name: &str) -> Result<bool> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let name = if name.is_empty() { "." } else { name };
        progress::at(&[self.path.as_ref(), name.as_ref()]);
        match retry(|| openat2(&self.fd, name, how)) {
            Ok(_) => Ok(false),
            Err(Errno::EXDEV) => Ok(true),
            Err(errno) => Err(errno).context(|| self.call(name)),
        }
    }

    /// Whether the mount that `name` is on ignores devices (`nodev`); not where there is nothing.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn is_nodev(&self, name: &str) -> Result<bool> {
        let flags = self.mount_flags(name, OFlag::O_NOFOLLOW)?;
        Ok(flags.is_some_and(|flags| flags.contains(FsFlags::ST_NODEV)))
    }

    /// Whether what `name` leads to, links followed, is on a mount or file system that is read-only
    /// here; `None` for nothing.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn is_read_only(&self, name: &str) -> Result<Option<bool>> {
        let flags = self.mount_flags(name, OFlag::empty())?;
        Ok(flags.map(|flags| flags.contains(FsFlags::ST_RDONLY)))
    }

    fn mount_flags(&self, name: &str, more: OFlag) -> Result<Option<FsFlags>> {
        let mount = self.find(name, more)?;
        let mount = mount.map(|found| retry(|| fstatvfs(&found.fd)));
        let call = || format!("fstatfs({})", self.join(name).display());
        Ok(mount.transpose().context(call)?.map(|mount| mount.flags()))
    }

    /// The names in the directory `name`; none where there is no such directory.
    ///
    /// # Errors
    /// What the calls answer; `E2BIG` for more than ten thousand names.
    pub fn list(&self, name: &str) -> Result<Vec<OsString>> {
        let entries = self.directory(name)?.map(|directory| directory.entries);
        let entries = entries.unwrap_or_default().into_iter();
        Ok(entries.map(|(name, _)| name).collect())
    }

    /// The directory `name` and what is in it, sorted; `None` where there is no such directory.
    ///
    /// # Errors
    /// As [`Root::list`].
    pub fn directory(&self, name: &str) -> Result<Option<ListedDir>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let Some(fd) = self.lookup(name, flags)? else {
            return Ok(None);
        };
        let path = self.join(name);
        let listed = list(&fd, MAX_NAMES);
        let entries = listed.map_err(|errno| {
            let many = "expected at most 10,000 names in that directory";
            let call = format!("getdents64({})", path.display());
            SyscallError::new(call, errno).hint((errno == Errno::E2BIG).then_some(many))
        })?;
        Ok(Some(ListedDir { fd, path, entries }))
    }

    /// The directory `name`, found but not opened; `None` where there is none.
    ///
    /// # Errors
    /// What openat2(2) answers.
    pub fn find_directory(&self, name: &str) -> Result<Option<OwnedFd>> {
        self.lookup(name, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    /// Opens the directory that holds `name`, and gives it with the last part of `name`.
    ///
    /// # Errors
    /// What openat2(2) answers.
    pub fn directory_of(&self, name: &str) -> Result<(OwnedFd, String)> {
        let (directory, last) = name.rsplit_once('/').unwrap_or((".", name));
        let fd = self.open_below(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        Ok((fd.context(|| self.call(directory))?, last.to_owned()))
    }

    /// Makes the directory `name`, with the mode 0755, in a directory that is there. One that is there
    /// already stays as it is.
    ///
    /// # Errors
    /// What mkdirat(2) answers: `EROFS`, `ENOSPC`, `EACCES`; what openat2(2) answers for the directory
    /// around it.
    pub fn make_directory(&self, name: &str) -> Result<()> {
        let call = || format!("mkdirat({})", self.join(name).display());
        let (around, last) = self.directory_of(name)?;
        // Whoever reads there may do so from the first moment on: a run that is killed mends no mode.
        let usual = umask(Mode::S_IWGRP | Mode::S_IWOTH);
        let made = retry(|| mkdirat(&around, last.as_str(), Mode::from_bits_truncate(0o755)));
        umask(usual);
        match made {
            Err(Errno::EEXIST) => return Ok(()),
            made => made.context(call)?,
        }
        // Where the directory around has a default ACL, that one counts instead of the umask.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let made = open_in(&around, last.as_str(), flags).context(call)?;
        let given = fstat(&made).context(call)?.st_mode & 0o7777;
        if given & 0o755 != 0o755 {
            let set = File::from(made).set_permissions(PermissionsExt::from_mode(given | 0o755));
            set.context(|| format!("fchmod({})", self.join(name).display()))?;
        }
        retry(|| fsync(&around)).context(call)
    }

    fn find(&self, name: &str, more: OFlag) -> Result<Option<FileHandle>> {
        let fd = self.lookup(name, OFlag::O_PATH | more)?;
        let found = fd.map(FileHandle::new).transpose();
        found.context(|| format!("fstat({})", self.join(name).display()))
    }

    /// Opens what `name` leads to; `None` where that is nothing.
    fn lookup(&self, name: &str, flags: OFlag) -> Result<Option<OwnedFd>> {
        match self.open_below(name, flags) {
            Err(errno) if is_absent(errno) => Ok(None),
            opened => opened.map(Some).context(|| self.call(name)),
        }
    }

    fn open_below(&self, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        progress::at(&[self.path.as_ref(), name.as_ref()]);
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // EAGAIN: a rename somewhere on the way while a `..` was resolved (openat2(2)).
        let mut tries = 0;
        loop {
            match retry(|| openat2(&self.fd, name, how)) {
                Err(Errno::EAGAIN) if tries < 64 => tries += 1,
                done => return done,
            }
        }
    }

    fn call(&self, name: &str) -> String {
        format!("openat2({}, {name}, RESOLVE_IN_ROOT)", self.path.display())
    }
}

/// A directory that was listed.
#[derive(Debug)]
pub struct ListedDir {
    fd: OwnedFd,
    path: PathBuf,
    /// Each name in it, and whether it is a regular file's for certain.
    pub entries: Vec<(OsString, bool)>,
}

impl ListedDir {
    /// The content of an entry that was listed as a regular file; `None` where it is none any more.
    ///
    /// It costs half of [`Root::read`], which has to find out what it opens.
    ///
    /// # Errors
    /// What the calls answer; `EFBIG` for more than 8 MiB.
    pub fn read(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        progress::at(&[self.path.as_ref(), name]);
        let opened = open_in(&self.fd, name, READ | OFlag::O_NOFOLLOW);
        let read = opened.map(File::from).and_then(|file| {
            let stat = fstat(&file)?;
            let is_file = kind(&stat) == SFlag::S_IFREG;
            is_file.then(|| read_open(&file, &stat)).transpose()
        });
        match read {
            Err(Errno::ELOOP | Errno::ENXIO | Errno::ENODEV) => Ok(None),
            Err(errno) if is_absent(errno) => Ok(None),
            read => read.context(|| format!("read({}/{})", self.path.display(), name.display())),
        }
    }
}

/// Whether an errno says that a path leads nowhere.
fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR)
}
