//! A handle of a file that is not opened yet (`O_PATH`), and reading up to a size limit.
//!
//! Such a descriptor triggers no open of a fifo or device, and refers to the same file even if its path changes. To
//! read or write the file, it is reopened through `/proc/self/fd`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::geteuid;

use super::{Context, Inode, Result, errno_of, open, open_in, progress, retry, syscalls};

/// Size limit for files that are read; a group file of 200,000 lines is smaller. A sparse file could have any size, and
/// reading a file needs memory of its size, editing it twice as much.
pub(crate) const MAX_FILE: u64 = 8 << 20;
/// Limit on the names in a listed directory.
pub(super) const MAX_NAMES: usize = 10_000;
/// Flags to open a file for reading that do not block, whatever its type is.
pub(super) const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_NONBLOCK);

/// An `O_PATH` descriptor of a file, and the attributes of the file when it was opened.
#[derive(Debug)]
pub struct FileHandle {
    pub(super) fd: OwnedFd,
    pub(super) stat: FileStat,
}

impl FileHandle {
    pub(super) fn new(fd: OwnedFd) -> nix::Result<Self> {
        let stat = fstat(&fd)?;
        Ok(Self { fd, stat })
    }

    /// A handle of `name` in `directory`; a link at its end is not followed.
    pub(super) fn at<P: ?Sized + NixPath>(directory: impl AsFd, name: &P) -> nix::Result<Self> {
        Self::new(open_in(directory, name, OFlag::O_PATH | OFlag::O_NOFOLLOW)?)
    }

    pub fn kind(&self) -> SFlag {
        kind(&self.stat)
    }

    pub fn inode(&self) -> Inode {
        inode(&self.stat)
    }

    /// Whether the owner is neither root nor the user of this process.
    pub fn is_foreign(&self) -> bool {
        self.stat.st_uid != 0 && self.stat.st_uid != geteuid().as_raw()
    }

    /// Whether the group or others have write permission.
    pub(super) fn is_writable_by_others(&self) -> bool {
        self.stat.st_mode & 0o022 != 0
    }

    /// Whether this is a regular file of root, or of the user of this process, without further hard links.
    pub fn is_roots_file(&self) -> bool {
        self.kind() == SFlag::S_IFREG && self.stat.st_nlink == 1 && !self.is_foreign()
    }

    /// UID, GID and permission bits.
    pub fn rights(&self) -> (u32, u32, u32) {
        let stat = &self.stat;
        (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777)
    }

    /// Opens the file itself, not its path again.
    pub(super) fn open(&self, flags: OFlag) -> nix::Result<File> {
        Ok(open(syscalls::proc_path(&self.fd).as_c_str(), flags)?.into())
    }

    /// Opens the file for reading and reads its content. A fifo or device is refused without opening it (`EINVAL`).
    fn open_and_read(&self) -> nix::Result<(File, Vec<u8>)> {
        size_to_read(&self.stat)?;
        let file = self.open(READ)?;
        let content = read_open(&file, &self.stat)?;
        Ok((file, content))
    }

    pub(super) fn read(&self) -> nix::Result<Vec<u8>> {
        Ok(self.open_and_read()?.1)
    }

    /// Describes a failed read of the file, for messages.
    pub(super) fn describe(&self, path: &Path) -> String {
        match self.kind() {
            SFlag::S_IFREG => format!("read({})", path.display()),
            other => format!("read({}), which is {}", path.display(), kind_name(other)),
        }
    }

    /// Whether the file, which is `name` in `directory`, is a mount point. Which mounts are visible depends on the
    /// mount namespace in which the descriptor of the directory was opened, not on that of this process.
    pub(super) fn is_mounted<P: ?Sized + NixPath>(
        &self,
        directory: impl AsFd,
        name: &P,
    ) -> nix::Result<bool> {
        let is_root = retry(|| syscalls::is_mount_root(self.fd.as_fd()))?;
        Ok(is_root.unwrap_or_else(|| is_mounted(directory.as_fd(), name)))
    }
}

/// Whether `name` in `directory` is a mount point: resolving it leaves the mount of the directory (`RESOLVE_NO_XDEV`).
/// This also detects a bind mount of the same file system.
pub(super) fn is_mounted<P: ?Sized + NixPath>(directory: BorrowedFd<'_>, name: &P) -> bool {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
    matches!(retry(|| openat2(directory, name, how)), Err(Errno::EXDEV))
}

/// Whether `path` is a mount point.
pub fn is_mount_point(path: &Path) -> bool {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return true;
    };
    let parent = open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY);
    parent.is_ok_and(|parent| is_mounted(parent.as_fd(), name))
}

/// The content of the regular file at `path`, as this process sees it.
///
/// # Errors
/// `EINVAL` for a file of another type, which is never opened, `EFBIG` for more than 8 MiB.
pub fn read_here(path: &Path) -> Result<Vec<u8>> {
    Ok(open_here(path)?.1)
}

/// As [`read_here`], but also returns the file, open for reading.
pub fn open_here(path: &Path) -> Result<(File, Vec<u8>)> {
    let found = open(path, OFlag::O_PATH).and_then(FileHandle::new);
    let found = found.context(|| format!("read({})", path.display()))?;
    found.open_and_read().context(|| found.describe(path))
}

/// The size of a file, if it is regular and within the limit.
fn size_to_read(stat: &FileStat) -> nix::Result<u64> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    match kind(stat) {
        SFlag::S_IFREG if size > MAX_FILE => Err(Errno::EFBIG),
        SFlag::S_IFREG => Ok(size),
        _ => Err(Errno::EINVAL),
    }
}

/// Number of bytes that are read or written between two recorded steps.
pub(super) const PIECE: usize = 256 << 10;

/// Records a step after each read.
struct Steps<'a>(&'a File);

impl Read for Steps<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.0.read(buffer);
        progress::step();
        got
    }
}

/// Reads an open regular file.
pub(super) fn read_open(file: &File, stat: &FileStat) -> nix::Result<Vec<u8>> {
    let size = size_to_read(stat)?;
    let size = usize::try_from(size).unwrap_or(0);
    // One byte more than the size: a read that returns exactly the size has reached the end of the file. Try to reserve
    // the memory first, because a container may have less memory than the file needs.
    let reserved = Vec::<u8>::new().try_reserve_exact(size + 1);
    reserved.map_err(|_| Errno::ENOMEM)?;
    let mut content = vec![0; size + 1];
    let mut filled = 0;
    let size_changed = loop {
        let end = content.len().min(filled + PIECE);
        let wanted = end - filled;
        let got = retry(|| nix::unistd::read(file, &mut content[filled..end]))?;
        progress::step();
        filled += got;
        if got < wanted || filled == content.len() {
            break filled != size;
        }
    };
    content.truncate(filled);
    if size_changed {
        let mut rest = Steps(file).take(MAX_FILE + 1 - filled as u64);
        rest.read_to_end(&mut content).map_err(errno_of)?;
    }
    match content.len() as u64 > MAX_FILE {
        true => Err(Errno::EFBIG),
        false => Ok(content),
    }
}

/// Calls `each` with every name in an open directory except `.` and `..`, and with whether the name is known to be a
/// regular file; not every file system reports the type.
///
/// It uses getdents64(2) and not readdir(3), because fdopendir(3) treats an interrupted call as a success, and
/// allocates with the C library, which nothing else here does.
pub(super) fn entries(
    directory: impl AsFd,
    mut each: impl FnMut(&OsStr, bool) -> nix::Result<()>,
) -> nix::Result<()> {
    let mut room = [0; 4096];
    loop {
        progress::step();
        let filled = match retry(|| syscalls::getdents64(directory.as_fd(), &mut room)) {
            // ENOENT: the directory was removed, and is empty.
            Ok(0) | Err(Errno::ENOENT) => return Ok(()),
            filled => filled?,
        };
        let mut rest = room.get(..filled).unwrap_or_default();
        // struct linux_dirent64: inode and offset (16 bytes), record length (2), file type (1), name.
        while let Some(([.., low, high, kind], name)) = rest.split_first_chunk::<19>() {
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            if name != b"." && name != b".." {
                each(OsStr::from_bytes(name), *kind == nix::libc::DT_REG)?;
            }
            let length = u16::from_ne_bytes([*low, *high]).max(19);
            rest = rest.get(length.into()..).unwrap_or_default();
        }
    }
}

/// The entries of an open directory as in [`entries`], sorted.
///
/// # Errors
/// `E2BIG` for more than `most` names.
pub(super) fn list(directory: impl AsFd, most: usize) -> nix::Result<Vec<(OsString, bool)>> {
    let mut found = Vec::new();
    entries(directory, |name, is_file| {
        found.push((name.to_owned(), is_file));
        (found.len() <= most).then_some(()).ok_or(Errno::E2BIG)
    })?;
    found.sort_unstable();
    Ok(found)
}

/// Opens the directory `name` in `directory` for listing; `directory` may be an `O_PATH` descriptor.
pub(super) fn open_directory<P: ?Sized + NixPath>(
    directory: impl AsFd,
    name: &P,
) -> nix::Result<OwnedFd> {
    open_in(directory, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// The sorted names in `directory`, which may be an `O_PATH` descriptor.
pub(crate) fn names_below(directory: impl AsFd, most: usize) -> nix::Result<Vec<OsString>> {
    let entries = list(open_directory(directory, c".")?, most)?;
    Ok(entries.into_iter().map(|(name, _)| name).collect())
}

/// The type of a file, for messages.
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

pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

pub(super) fn inode(stat: &FileStat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn each_name_is_listed_once_in_a_directory_of_any_size() {
        let directory = tempfile::tempdir().unwrap();
        let mut want = Vec::new();
        for number in 0..1000 {
            let name = format!("{number}-{}", "x".repeat(number % 250));
            fs::write(directory.path().join(&name), "").unwrap();
            want.push((name, true));
        }
        let not_utf8 = OsStr::from_bytes(b"...\xff\n");
        fs::create_dir(directory.path().join(not_utf8)).unwrap();
        let open = File::open(directory.path()).unwrap();
        let mut found = Vec::new();
        let mut others = 0;
        entries(open.as_fd(), |name, is_file| {
            match name.to_str() {
                Some(name) => found.push((name.to_owned(), is_file)),
                None => {
                    assert_eq!((name, is_file), (not_utf8, false));
                    others += 1;
                }
            }
            Ok(())
        })
        .unwrap();
        found.sort_unstable();
        want.sort_unstable();
        assert_eq!(found, want);
        assert_eq!(others, 1);
    }

    #[test]
    fn a_removed_directory_is_empty_and_a_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let open = File::open(&inner).unwrap();
        fs::remove_dir(&inner).unwrap();
        let none = |_: &OsStr, _| Err(Errno::EEXIST);
        assert_eq!(entries(open.as_fd(), none), Ok(()));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(entries(file.as_fd(), none), Err(Errno::ENOTDIR));
    }
}
