//! A folder seen as the root of a file system, such as the node's mounted into a pod.
//!
//! Reads below it cannot leave it: an absolute link (`etc/group -> /usr/lib/group`) resolves
//! inside, `..` stops at the top, and links of `/proc` are not followed (openat2(2),
//! `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`, Linux 5.6).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat, umask};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::entries::entries;
use super::file::errno_of;
use super::{Inode, Named, Result, open, progress, raw, retry};

/// No file that is read here has reason to be larger: a group file of 200,000 lines is not. A sparse one
/// could be endless, and each costs as much memory as it is large, and where it is edited twice that.
pub(crate) const MAX_FILE: u64 = 8 << 20;
/// How a file is opened to be read: whatever it may turn out to be, nothing waits for it.
pub(super) const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_NONBLOCK);
/// No folder that is listed here has reason to hold more names.
const MAX_NAMES: usize = 10_000;

/// An open folder that paths are resolved below.
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
            inode: (stat.st_dev, stat.st_ino),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
            size: stat.st_size,
        }
    }
}

impl Root {
    /// Opens the folder at `path`, following links to it.
    ///
    /// # Errors
    /// What open(2) answers: `ENOENT`, `ENOTDIR`, `EACCES`.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .named(|| format!("open({}, O_PATH|O_DIRECTORY)", path.display()))?;
        let path = path.to_owned();
        Ok(Self { fd, path })
    }

    /// Opens `name` in an open folder, links followed, also those of `/proc`. `path` is what it is called.
    ///
    /// # Errors
    /// As [`Root::open`].
    pub(super) fn open_at(folder: &OwnedFd, name: &str, path: PathBuf) -> Result<Self> {
        progress::at(&[path.as_os_str().as_encoded_bytes()]);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = retry(|| openat(folder, name, flags, Mode::empty()))
            .named(|| format!("open({}, O_PATH|O_DIRECTORY)", path.display()))?;
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
        let fd = self.open_below(&shown, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let path = self.path.join(name);
        Ok(Self { fd, path })
    }

    /// The same directory by one more descriptor.
    ///
    /// # Errors
    /// What fcntl(2) answers: `EMFILE`.
    pub fn again(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(errno_of);
        let fd = fd.named(|| format!("dup({})", self.path.display()))?;
        let path = self.path.clone();
        Ok(Self { fd, path })
    }

    /// Where it is seen from here.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder itself, for paths that are resolved otherwise.
    pub(super) fn descriptor(&self) -> Result<OwnedFd> {
        let call = || format!("open({}, O_PATH|O_DIRECTORY)", self.path.display());
        progress::at(&[self.path.as_os_str().as_encoded_bytes()]);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        retry(|| openat(&self.fd, c".", flags, Mode::empty())).named(call)
    }

    /// Device and inode number, which tell two roots apart.
    ///
    /// # Errors
    /// What fstat(2) answers.
    pub fn id(&self) -> Result<Inode> {
        progress::at(&[self.path.as_os_str().as_encoded_bytes()]);
        let stat = fstat(&self.fd).named(|| format!("fstat({})", self.path.display()))?;
        Ok((stat.st_dev, stat.st_ino))
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
        let found = self.find(name, OFlag::empty())?;
        let Some((fd, stat)) = found else {
            return Ok(None);
        };
        let call = || describe(&self.join(name), &stat);
        let content = read_regular(fd.as_fd(), &stat).named(call)?;
        Ok(Some((content, Stamp::of(&stat))))
    }

    /// What tells that the file `name` leads to has changed; `None` where there is none.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn stamp(&self, name: &str) -> Result<Option<Stamp>> {
        let found = self.find(name, OFlag::empty())?;
        Ok(found.map(|(_, stat)| Stamp::of(&stat)))
    }

    /// What `name` is, a link at its end not followed; `None` where there is nothing.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn stat(&self, name: &str) -> Result<Option<FileStat>> {
        let found = self.find(name, OFlag::O_NOFOLLOW)?;
        Ok(found.map(|(_, stat)| stat))
    }

    /// Device and inode number of what `name` leads to, links followed; `None` for nothing.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn inode(&self, name: &str) -> Result<Option<Inode>> {
        let found = self.find(name, OFlag::empty())?;
        Ok(found.map(|(_, stat)| (stat.st_dev, stat.st_ino)))
    }

    /// Where the link `name` leads, as it is written; `None` where there is no link.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn link(&self, name: &str) -> Result<Option<OsString>> {
        let call = || format!("readlinkat({})", self.join(name).display());
        match self.find(name, OFlag::O_NOFOLLOW)? {
            Some((fd, stat)) if kind(&stat) == SFlag::S_IFLNK => {
                retry(|| readlinkat(&fd, "")).named(call).map(Some)
            }
            _ => Ok(None),
        }
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
        progress::at(&[self.path.as_os_str().as_encoded_bytes(), name.as_bytes()]);
        match retry(|| openat2(&self.fd, name, how)) {
            Ok(_) => Ok(false),
            Err(Errno::EXDEV) => Ok(true),
            Err(errno) => Err(errno).named(|| self.call(name)),
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
        let Some((fd, _)) = self.find(name, more)? else {
            return Ok(None);
        };
        let call = || format!("fstatfs({})", self.join(name).display());
        let mount = retry(|| fstatvfs(&fd)).named(call)?;
        Ok(Some(mount.flags()))
    }

    /// The names in the folder `name`; none where there is no such folder.
    ///
    /// # Errors
    /// What the calls answer; `E2BIG` for more than ten thousand names.
    pub fn list(&self, name: &str) -> Result<Vec<OsString>> {
        let entries = self.folder(name)?.map(|folder| folder.entries);
        let entries = entries.unwrap_or_default().into_iter();
        Ok(entries.map(|(name, _)| name).collect())
    }

    /// The folder `name` and what is in it, sorted; `None` where there is no such folder.
    ///
    /// # Errors
    /// As [`Root::list`].
    pub fn folder(&self, name: &str) -> Result<Option<Folder>> {
        let fd = match self.open_below(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(fd) => fd,
            Err(error) if absent(error.errno) => return Ok(None),
            Err(error) => return Err(error),
        };
        let path = self.join(name);
        let entries = entries_in(fd.as_fd());
        let entries = entries.named(|| format!("getdents64({})", path.display()))?;
        Ok(Some(Folder { fd, path, entries }))
    }

    /// The folder `name`, found but not opened; `None` where there is none.
    ///
    /// # Errors
    /// What openat2(2) answers.
    pub fn find_folder(&self, name: &str) -> Result<Option<OwnedFd>> {
        match self.open_below(name, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Err(error) if absent(error.errno) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Opens the folder that holds `name`, and gives it with the last part of `name`.
    ///
    /// # Errors
    /// What openat2(2) answers.
    pub fn folder_of(&self, name: &str) -> Result<(OwnedFd, String)> {
        let (folder, last) = name.rsplit_once('/').unwrap_or((".", name));
        let fd = self.open_below(folder, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        Ok((fd, last.to_owned()))
    }

    /// Makes the folder `name`, with the mode 0755, in a folder that is there. One that is there
    /// already stays as it is.
    ///
    /// # Errors
    /// What mkdirat(2) answers: `EROFS`, `ENOSPC`, `EACCES`; what openat2(2) answers for the folder
    /// around it.
    pub fn make_folder(&self, name: &str) -> Result<()> {
        let call = || format!("mkdirat({})", self.join(name).display());
        let (around, last) = self.folder_of(name)?;
        // Whoever reads there may do so from the first moment on: a run that is killed mends no mode.
        let usual = umask(Mode::S_IWGRP | Mode::S_IWOTH);
        let made = retry(|| mkdirat(&around, last.as_str(), Mode::from_bits_truncate(0o755)));
        umask(usual);
        match made {
            Err(Errno::EEXIST) => return Ok(()),
            made => made.named(call)?,
        }
        // Where the folder around has a default ACL, that one counts instead of the umask.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = retry(|| openat(&around, last.as_str(), flags, Mode::empty())).named(call)?;
        let given = fstat(&made).named(call)?.st_mode & 0o7777;
        if given & 0o755 != 0o755 {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(given | 0o755);
            let set = std::fs::File::from(made).set_permissions(mode);
            let call = || format!("fchmod({})", self.join(name).display());
            set.map_err(errno_of).named(call)?;
        }
        retry(|| nix::unistd::fsync(&around)).named(call)
    }

    fn find(&self, name: &str, more: OFlag) -> Result<Option<(OwnedFd, FileStat)>> {
        match self.open_below(name, OFlag::O_PATH | more) {
            Ok(fd) => {
                let stat = fstat(&fd).named(|| format!("fstat({})", self.join(name).display()))?;
                Ok(Some((fd, stat)))
            }
            Err(error) if absent(error.errno) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_below(&self, name: &str, flags: OFlag) -> Result<OwnedFd> {
        progress::at(&[self.path.as_os_str().as_encoded_bytes(), name.as_bytes()]);
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // EAGAIN: a rename somewhere on the way while a `..` was resolved (openat2(2)).
        let mut tries = 0;
        loop {
            match retry(|| openat2(&self.fd, name, how)) {
                Err(Errno::EAGAIN) if tries < 64 => tries += 1,
                done => return done.named(|| self.call(name)),
            }
        }
    }

    fn call(&self, name: &str) -> String {
        format!("openat2({}, {name}, RESOLVE_IN_ROOT)", self.path.display())
    }
}

/// A folder that was listed.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    /// Each name in it, and whether it is a regular file's for certain.
    pub entries: Vec<(OsString, bool)>,
}

impl Folder {
    /// The content of an entry that was listed as a regular file; `None` where it is none any more.
    ///
    /// It costs half of [`Root::read`], which has to find out what it opens.
    ///
    /// # Errors
    /// What the calls answer; `EFBIG` for more than 8 MiB.
    pub fn read(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        progress::at(&[
            self.path.as_os_str().as_encoded_bytes(),
            name.as_encoded_bytes(),
        ]);
        let call = || format!("read({}/{})", self.path.display(), name.display());
        let flags = READ | OFlag::O_NOFOLLOW;
        match retry(|| openat(&self.fd, name, flags, Mode::empty())) {
            Ok(file) => match fstat(&file).and_then(|stat| read_open(&file, &stat)) {
                Err(Errno::EINVAL) => Ok(None),
                done => done.named(call).map(Some),
            },
            Err(Errno::ELOOP | Errno::ENXIO | Errno::ENODEV) => Ok(None),
            Err(errno) if absent(errno) => Ok(None),
            Err(errno) => Err(errno).named(call),
        }
    }
}

/// Whether `path` is a mount point: the last step to it leaves its folder's mount
/// (`RESOLVE_NO_XDEV`), which also sees a bind mount of the same file system.
pub fn is_mount_point(path: &Path) -> bool {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return true;
    };
    let Ok(folder) = Root::open(folder) else {
        return false;
    };
    is_mounted(folder.fd.as_fd(), name)
}

/// Whether something is mounted on `name` in `folder`.
pub(super) fn is_mounted<P: ?Sized + nix::NixPath>(folder: BorrowedFd<'_>, name: &P) -> bool {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
    matches!(retry(|| openat2(folder, name, how)), Err(Errno::EXDEV))
}

/// The content of the regular file at `path` in this process' own file system.
///
/// # Errors
/// As [`Root::read`], and `ENOENT`.
pub fn read_here(path: &Path) -> Result<Vec<u8>> {
    Ok(open_here(path)?.1)
}

/// The same, with the file, open for reading.
///
/// # Errors
/// As [`read_here`].
pub fn open_here(path: &Path) -> Result<(File, Vec<u8>)> {
    let call = || format!("read({})", path.display());
    let fd = open(path, OFlag::O_PATH).named(call)?;
    let stat = fstat(&fd).named(call)?;
    let opened = open_regular(fd.as_fd(), &stat);
    let read = opened.and_then(|file| Ok((read_open(&file, &stat)?, file)));
    let (content, file) = read.named(|| describe(path, &stat))?;
    Ok((file.into(), content))
}

fn describe(path: &Path, stat: &FileStat) -> String {
    match kind(stat) {
        SFlag::S_IFREG => format!("read({})", path.display()),
        other => format!("read({}), which is {}", path.display(), kind_name(other)),
    }
}

/// Reads a regular file that was found by `O_PATH`: a fifo or device is refused unopened.
pub(super) fn read_regular(fd: BorrowedFd<'_>, stat: &FileStat) -> nix::Result<Vec<u8>> {
    let file = open_regular(fd, stat)?;
    read_open(&file, stat)
}

fn open_regular(fd: BorrowedFd<'_>, stat: &FileStat) -> nix::Result<OwnedFd> {
    readable(stat)?;
    open(raw::proc_path(fd).as_c_str(), READ)
}

/// The size of a regular file that may be read.
fn readable(stat: &FileStat) -> nix::Result<u64> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    match kind(stat) {
        SFlag::S_IFREG if size > MAX_FILE => Err(Errno::EFBIG),
        SFlag::S_IFREG => Ok(size),
        _ => Err(Errno::EINVAL),
    }
}

fn read_open(file: &OwnedFd, stat: &FileStat) -> nix::Result<Vec<u8>> {
    let size = readable(stat)?;
    // One byte more than it said: then giving just what it said means that this was all.
    let length = usize::try_from(size).unwrap_or(0) + 1;
    // Asked for first, as a container may have less memory than a file is large; then zeroed by the
    // kernel.
    room_for(&mut Vec::new(), length)?;
    let mut content = vec![0; length];
    let mut got = 0;
    loop {
        let more = retry(|| nix::unistd::read(file, &mut content[got..]))?;
        progress::step();
        got += more;
        if more == 0 || got as u64 == size {
            content.truncate(got);
            return Ok(content);
        }
        if got as u64 > MAX_FILE {
            return Err(Errno::EFBIG);
        }
        if got == content.len() {
            room_for(&mut content, got)?;
            content.resize(got * 2, 0);
        }
    }
}

fn room_for(content: &mut Vec<u8>, more: usize) -> nix::Result<()> {
    let room = content.try_reserve_exact(more);
    room.map_err(|_| Errno::ENOMEM)
}

/// A kind of file in words.
pub fn kind_name(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFLNK => "a symbolic link",
        SFlag::S_IFIFO => "a fifo",
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFBLK => "a block device",
        SFlag::S_IFCHR => "a character device",
        _ => "a file of unknown kind",
    }
}

/// The type bits of a mode.
pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn entries_in(folder: BorrowedFd<'_>) -> nix::Result<Vec<(OsString, bool)>> {
    let mut found = Vec::new();
    entries(folder, |name, is_file| {
        found.push((name.to_owned(), is_file));
        match found.len() > MAX_NAMES {
            true => Err(Errno::E2BIG),
            false => Ok(()),
        }
    })?;
    found.sort_unstable();
    Ok(found)
}

/// The names in a directory, sorted. `folder` may be a descriptor that can only name it (`O_PATH`).
pub(super) fn names_below(folder: &OwnedFd) -> nix::Result<Vec<OsString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = retry(|| openat(folder, ".", flags, Mode::empty()))?;
    let entries = entries_in(folder.as_fd())?.into_iter();
    Ok(entries.map(|(name, _)| name).collect())
}

/// Whether an errno says that the path leads nowhere.
fn absent(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR)
}
