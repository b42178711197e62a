//! A directory that is treated as a root directory, such as the node's root mounted into a pod.
//!
//! Lookups below it cannot leave it: an absolute link (`etc/group -> /usr/lib/group`) is resolved inside, `..` stops at
//! the top, and magic links of `/proc` are not followed (openat2(2), `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`,
//! Linux 5.6).

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

/// An open directory below which paths are resolved.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

/// Identity and state of a file. Two equal stamps mean that the file has not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub inode: Inode,
    /// Seconds and nanoseconds; the kernel updates it at every change.
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
    /// Opens the directory at `path`; links are followed.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .context(|| format!("open({}, O_PATH|O_DIRECTORY)", path.display()))?;
        let path = path.to_owned();
        Ok(Self { fd, path })
    }

    /// Opens `name` in an open directory; links are followed, even magic links of `/proc`. `path` is used in messages.
    pub(super) fn open_at(directory: &OwnedFd, name: &str, path: PathBuf) -> Result<Self> {
        progress::at(&[path.as_ref()]);
        let fd = open_in(directory, name, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .context(|| format!("open({}, O_PATH|O_DIRECTORY)", path.display()))?;
        Ok(Self { fd, path })
    }

    /// Makes the directory `name` below this one the root. An empty name changes nothing.
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

    /// A copy with a duplicated descriptor.
    pub fn again(&self) -> Result<Self> {
        let fd = self.descriptor()?;
        let path = self.path.clone();
        Ok(Self { fd, path })
    }

    /// The path by which this process reaches the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A duplicated descriptor of the directory.
    pub(super) fn descriptor(&self) -> Result<OwnedFd> {
        let fd = retry(|| self.fd.try_clone().map_err(errno_of));
        fd.context(|| format!("dup({})", self.path.display()))
    }

    /// Device and inode number, which identify the root.
    pub fn id(&self) -> Result<Inode> {
        progress::at(&[self.path.as_ref()]);
        let stat = fstat(&self.fd).context(|| format!("fstat({})", self.path.display()))?;
        Ok(inode(&stat))
    }

    /// The path of `name` below this root, for messages.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The content of the regular file `name`, or `None` if it does not exist.
    ///
    /// # Errors
    /// `EINVAL` for a file of another type, which is never opened, and `EFBIG` for more than 8 MiB.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.read_which(name)?.map(|(content, _)| content))
    }

    /// As [`Root::read`], with the inode that was read.
    pub fn read_which(&self, name: &str) -> Result<Option<(Vec<u8>, Inode)>> {
        let found = self.read_stamped(name)?;
        Ok(found.map(|(content, stamp)| (content, stamp.inode)))
    }

    /// As [`Root::read`], with a [`Stamp`] that detects later changes.
    pub fn read_stamped(&self, name: &str) -> Result<Option<(Vec<u8>, Stamp)>> {
        let Some(found) = self.find(name, OFlag::empty())? else {
            return Ok(None);
        };
        let content = found.read().context(|| found.describe(&self.join(name)))?;
        Ok(Some((content, Stamp::of(&found.stat))))
    }

    /// The [`Stamp`] of the file `name`, links followed; `None` if it does not exist.
    pub fn stamp(&self, name: &str) -> Result<Option<Stamp>> {
        let found = self.find(name, OFlag::empty())?;
        Ok(found.map(|found| Stamp::of(&found.stat)))
    }

    /// The attributes of `name`, a link at its end not followed; `None` if it does not exist.
    pub fn stat(&self, name: &str) -> Result<Option<FileStat>> {
        let found = self.find(name, OFlag::O_NOFOLLOW)?;
        Ok(found.map(|found| found.stat))
    }

    /// The inode of the file `name`, links followed; `None` if it does not exist.
    pub fn inode(&self, name: &str) -> Result<Option<Inode>> {
        let found = self.find(name, OFlag::empty())?;
        Ok(found.map(|found| found.inode()))
    }

    /// The target of the symbolic link `name`, unresolved; `None` if `name` is not a link.
    pub fn link(&self, name: &str) -> Result<Option<OsString>> {
        let found = self.find(name, OFlag::O_NOFOLLOW)?;
        let link = found.filter(|found| found.kind() == SFlag::S_IFLNK);
        let target = link.map(|link| retry(|| readlinkat(&link.fd, "")));
        let call = || format!("readlinkat({})", self.join(name).display());
        target.transpose().context(call)
    }

    /// Whether the directory `name`, a path without links, is on another mount than this root. An empty name means the
    /// root itself.
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

    /// Whether the mount of `name` has the option `nodev`; false if `name` does not exist.
    pub fn is_nodev(&self, name: &str) -> Result<bool> {
        let flags = self.mount_flags(name, OFlag::O_NOFOLLOW)?;
        Ok(flags.is_some_and(|flags| flags.contains(FsFlags::ST_NODEV)))
    }

    /// Whether `name`, links followed, is on a mount or file system that is read-only here; `None` if it does not
    /// exist.
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

    /// The names in the directory `name`; none if it does not exist.
    ///
    /// # Errors
    /// `E2BIG` for more than 10,000 names.
    pub fn list(&self, name: &str) -> Result<Vec<OsString>> {
        let entries = self.directory(name)?.map(|directory| directory.entries);
        let entries = entries.unwrap_or_default().into_iter();
        Ok(entries.map(|(name, _)| name).collect())
    }

    /// The directory `name` with its sorted entries; `None` if it does not exist.
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
            let many = "that directory must not have more than 10,000 names";
            let call = format!("getdents64({})", path.display());
            SyscallError::new(call, errno).hint((errno == Errno::E2BIG).then_some(many))
        })?;
        Ok(Some(ListedDir { fd, path, entries }))
    }

    /// An `O_PATH` descriptor of the directory `name`; `None` if it does not exist.
    pub fn find_directory(&self, name: &str) -> Result<Option<OwnedFd>> {
        self.lookup(name, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    /// Opens the parent directory of `name`. Returns it with the last component of `name`.
    pub fn directory_of(&self, name: &str) -> Result<(OwnedFd, String)> {
        let (directory, last) = name.rsplit_once('/').unwrap_or((".", name));
        let fd = self.open_below(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        Ok((fd.context(|| self.call(directory))?, last.to_owned()))
    }

    /// Creates the directory `name` with mode 0755 in an existing parent. An existing directory is not changed.
    pub fn make_directory(&self, name: &str) -> Result<()> {
        let call = || format!("mkdirat({})", self.join(name).display());
        let (parent, last) = self.directory_of(name)?;
        // Set the umask so that mkdirat(2) creates the directory with its final mode, even if the run is then killed.
        let usual = umask(Mode::S_IWGRP | Mode::S_IWOTH);
        let made = retry(|| mkdirat(&parent, last.as_str(), Mode::from_bits_truncate(0o755)));
        umask(usual);
        match made {
            Err(Errno::EEXIST) => return Ok(()),
            made => made.context(call)?,
        }
        // If the parent has a default ACL, the kernel ignores the umask (umask(2)): add missing bits.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let made = open_in(&parent, last.as_str(), flags).context(call)?;
        let mode = fstat(&made).context(call)?.st_mode & 0o7777;
        if mode & 0o755 != 0o755 {
            let set = File::from(made).set_permissions(PermissionsExt::from_mode(mode | 0o755));
            set.context(|| format!("fchmod({})", self.join(name).display()))?;
        }
        retry(|| fsync(&parent)).context(call)
    }

    fn find(&self, name: &str, more: OFlag) -> Result<Option<FileHandle>> {
        let fd = self.lookup(name, OFlag::O_PATH | more)?;
        let found = fd.map(FileHandle::new).transpose();
        found.context(|| format!("fstat({})", self.join(name).display()))
    }

    /// Opens `name`; `None` if it does not exist.
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
        // EAGAIN: a component was renamed while `..` was resolved (openat2(2)).
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

/// An open directory and its entries.
#[derive(Debug)]
pub struct ListedDir {
    fd: OwnedFd,
    path: PathBuf,
    /// Each name, and whether it is known to be a regular file.
    pub entries: Vec<(OsString, bool)>,
}

impl ListedDir {
    /// The content of an entry that was listed as a regular file; `None` if it is no longer one.
    ///
    /// It costs half as much as [`Root::read`], which has to check the type of the file first.
    ///
    /// # Errors
    /// `EFBIG` for more than 8 MiB.
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

/// Whether this errno means that the path does not exist.
fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR)
}
