//! A file that was found and not opened yet (`O_PATH`), and reading it up to a limit.
//!
//! Such a descriptor opens nothing behind a fifo or device, and stays the same file whatever happens to its
//! path. To be read or written it is opened once more through `/proc/self/fd`.

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

/// No file that is read here has reason to be larger: a group file of 200,000 lines is not. A sparse one
/// could be endless, and each costs as much memory as it is large, and where it is edited twice that.
pub(crate) const MAX_FILE: u64 = 8 << 20;
/// No directory that is listed here has reason to hold more names.
pub(super) const MAX_NAMES: usize = 10_000;
/// How a file is opened to be read: whatever it may turn out to be, nothing waits for it.
pub(super) const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_NONBLOCK);

/// A file that was found: its descriptor, and its owner, mode and kind at that moment.
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

    /// Finds `name` in `directory`; a link at its end is not followed.
    pub(super) fn at<P: ?Sized + NixPath>(directory: impl AsFd, name: &P) -> nix::Result<Self> {
        Self::new(open_in(directory, name, OFlag::O_PATH | OFlag::O_NOFOLLOW)?)
    }

    /// The kind of file.
    pub fn kind(&self) -> SFlag {
        kind(&self.stat)
    }

    /// Device and inode number.
    pub fn inode(&self) -> Inode {
        inode(&self.stat)
    }

    /// Whether it belongs to another user than root or the one that runs this.
    pub fn is_foreign(&self) -> bool {
        self.stat.st_uid != 0 && self.stat.st_uid != geteuid().as_raw()
    }

    /// Whether others than its owner may write into it.
    pub(super) fn is_writable_by_others(&self) -> bool {
        self.stat.st_mode & 0o022 != 0
    }

    /// Whether it is a regular file that nobody but root has a hold on by its owner or another name.
    pub fn is_roots_file(&self) -> bool {
        self.kind() == SFlag::S_IFREG && self.stat.st_nlink == 1 && !self.is_foreign()
    }

    /// Owner, group and permission bits.
    pub fn rights(&self) -> (u32, u32, u32) {
        let stat = &self.stat;
        (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777)
    }

    /// Opens this very file.
    pub(super) fn open(&self, flags: OFlag) -> nix::Result<File> {
        Ok(open(syscalls::proc_path(&self.fd).as_c_str(), flags)?.into())
    }

    /// The file, open for reading, and its content: a fifo or device is refused unopened (`EINVAL`).
    fn open_and_read(&self) -> nix::Result<(File, Vec<u8>)> {
        size_to_read(&self.stat)?;
        let file = self.open(READ)?;
        let content = read_open(&file, &self.stat)?;
        Ok((file, content))
    }

    /// Reads a regular file.
    pub(super) fn read(&self) -> nix::Result<Vec<u8>> {
        Ok(self.open_and_read()?.1)
    }

    /// How a failed read of it at `path` is named.
    pub(super) fn describe(&self, path: &Path) -> String {
        match self.kind() {
            SFlag::S_IFREG => format!("read({})", path.display()),
            other => format!("read({}), which is {}", path.display(), kind_name(other)),
        }
    }

    /// Whether something is mounted here, as seen through the descriptor of the `directory` in which it is
    /// called `name`: which mounts that shows depends on the namespace in which it was opened, not on the
    /// one of this process.
    pub(super) fn is_mounted<P: ?Sized + NixPath>(
        &self,
        directory: impl AsFd,
        name: &P,
    ) -> nix::Result<bool> {
        let known = retry(|| syscalls::is_mount_root(self.fd.as_fd()))?;
        Ok(known.unwrap_or_else(|| is_mounted(directory.as_fd(), name)))
    }
}

/// Whether something is mounted on `name` in `directory`: the last step to it leaves the directory's mount
/// (`RESOLVE_NO_XDEV`), which also sees a bind mount of the same file system.
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

/// The content of the regular file at `path` in this process' own file system.
///
/// # Errors
/// What the calls answer: `ENOENT`, `EINVAL` for anything but a regular file, which is never opened, `EFBIG`
/// for more than 8 MiB.
pub fn read_here(path: &Path) -> Result<Vec<u8>> {
    Ok(open_here(path)?.1)
}

/// The same, with the file, open for reading.
///
/// # Errors
/// As [`read_here`].
pub fn open_here(path: &Path) -> Result<(File, Vec<u8>)> {
    let found = open(path, OFlag::O_PATH).and_then(FileHandle::new);
    let found = found.context(|| format!("read({})", path.display()))?;
    found.open_and_read().context(|| found.describe(path))
}

/// The size of a regular file that may be read.
fn size_to_read(stat: &FileStat) -> nix::Result<u64> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    match kind(stat) {
        SFlag::S_IFREG if size > MAX_FILE => Err(Errno::EFBIG),
        SFlag::S_IFREG => Ok(size),
        _ => Err(Errno::EINVAL),
    }
}

/// How much is read or written before that counts as a step, in bytes.
pub(super) const PIECE: usize = 256 << 10;

/// Shows each read of a file.
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
    // One byte more than the file had: if the first call gives as many as that, this was all. Asked for
    // first, as a container may have less memory than a file is large.
    let asked = Vec::<u8>::new().try_reserve_exact(size + 1);
    asked.map_err(|_| Errno::ENOMEM)?;
    let mut content = vec![0; size + 1];
    let mut filled = 0;
    let got_less = loop {
        let end = content.len().min(filled + PIECE);
        let asked = end - filled;
        let got = retry(|| nix::unistd::read(file, &mut content[filled..end]))?;
        progress::step();
        filled += got;
        if got < asked || filled == content.len() {
            break filled != size;
        }
    };
    content.truncate(filled);
    if got_less {
        let mut rest = Steps(file).take(MAX_FILE + 1 - filled as u64);
        rest.read_to_end(&mut content).map_err(errno_of)?;
    }
    match content.len() as u64 > MAX_FILE {
        true => Err(Errno::EFBIG),
        false => Ok(content),
    }
}

/// Calls `each` with every name in an open directory but `.` and `..`, and with whether that is a regular
/// file's for certain, which not every file system tells.
///
/// getdents64(2) and not readdir(3): fdopendir(3) takes an interrupted call for the answer that it wanted, and
/// wants memory of the C library's, which nothing else here does.
///
/// # Errors
/// What getdents64(2) answers, and what `each` does.
pub(super) fn entries(
    directory: impl AsFd,
    mut each: impl FnMut(&OsStr, bool) -> nix::Result<()>,
) -> nix::Result<()> {
    let mut room = [0; 4096];
    loop {
        progress::step();
        let filled = match retry(|| syscalls::getdents64(directory.as_fd(), &mut room)) {
            // A directory that was removed has no names any more.
            Ok(0) | Err(Errno::ENOENT) => return Ok(()),
            filled => filled?,
        };
        let mut rest = room.get(..filled).unwrap_or_default();
        // linux_dirent64: two numbers, the record's length, the kind of its file, its name.
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

/// The sorted names in an open directory, as [`entries`] has them.
///
/// # Errors
/// What getdents64(2) answers; `E2BIG` for more than `most` names.
pub(super) fn list(directory: impl AsFd, most: usize) -> nix::Result<Vec<(OsString, bool)>> {
    let mut found = Vec::new();
    entries(directory, |name, is_file| {
        found.push((name.to_owned(), is_file));
        (found.len() <= most).then_some(()).ok_or(Errno::E2BIG)
    })?;
    found.sort_unstable();
    Ok(found)
}

/// Opens `name` in `directory`, which may be a descriptor that can only name it (`O_PATH`), to be listed.
pub(super) fn open_directory<P: ?Sized + NixPath>(
    directory: impl AsFd,
    name: &P,
) -> nix::Result<OwnedFd> {
    open_in(directory, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// As [`list`], the names alone of a directory that may be a descriptor that can only name it (`O_PATH`).
pub(crate) fn names_below(directory: impl AsFd, most: usize) -> nix::Result<Vec<OsString>> {
    let entries = list(open_directory(directory, c".")?, most)?;
    Ok(entries.into_iter().map(|(name, _)| name).collect())
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

/// Device and inode number.
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
    fn every_name_comes_once_however_many_there_are() {
        let directory = tempfile::tempdir().unwrap();
        let mut want = Vec::new();
        for number in 0..1000 {
            let name = format!("{number}-{}", "x".repeat(number % 250));
            fs::write(directory.path().join(&name), "").unwrap();
            want.push((name, true));
        }
        let odd = OsStr::from_bytes(b"...\xff\n");
        fs::create_dir(directory.path().join(odd)).unwrap();
        let open = File::open(directory.path()).unwrap();
        let mut found = Vec::new();
        let mut odds = 0;
        entries(open.as_fd(), |name, is_file| {
            match name.to_str() {
                Some(name) => found.push((name.to_owned(), is_file)),
                None => {
                    assert_eq!((name, is_file), (odd, false));
                    odds += 1;
                }
            }
            Ok(())
        })
        .unwrap();
        found.sort_unstable();
        want.sort_unstable();
        assert_eq!(found, want);
        assert_eq!(odds, 1);
    }

    #[test]
    fn a_removed_folder_is_empty_and_a_file_is_no_folder() {
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
