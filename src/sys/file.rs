//! Replacing one small file, such that at every moment it is whole: the old one or the new one.
//!
//! By rename where that is possible. Over a mount point it is not (`EBUSY`): there the content is
//! written in place, space first.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};

use super::root::{is_mounted, kind, read_regular};
use super::{CallError, Named, Result, open, raw, retry};

/// How long another run may hold the folder before this one gives up.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often a lock that is taken is asked for again.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// A folder that one of our runs at a time may change files in (flock(2), released by the kernel
/// when the descriptor is closed, or its holder ends, however it ends).
#[derive(Debug)]
pub struct Folder {
    lock: OwnedFd,
    path: PathBuf,
}

/// Whose owner, mode and extended attributes a new file gets.
#[derive(Debug, Clone, Copy)]
pub enum Rights {
    /// Those of the file that it replaces.
    Kept,
    /// Owner 0:0 and this mode.
    Root(u16),
}

impl Folder {
    /// Locks the folder, waiting up to `longest` for another run. `path` is for messages.
    ///
    /// # Errors
    /// `EWOULDBLOCK` when the wait was in vain.
    pub fn lock(fd: OwnedFd, path: PathBuf, longest: Duration) -> Result<Self> {
        let start = Instant::now();
        loop {
            match raw::lock(fd.as_fd()) {
                Ok(()) => return Ok(Self { lock: fd, path }),
                Err(Errno::EWOULDBLOCK) if start.elapsed() < longest => sleep(LOCK_POLL),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(errno).named(|| {
                        let seconds = start.elapsed().as_secs();
                        format!("flock({}) for {seconds} s", path.display())
                    });
                }
            }
        }
    }

    /// The content of the regular file `name`, not through a link; `None` where there is none.
    ///
    /// # Errors
    /// `ELOOP` for a link, `EINVAL` for anything else that is no regular file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some((fd, stat)) = self.find(name)? else {
            return Ok(None);
        };
        let call = || format!("read({})", self.path.join(name).display());
        if kind(&stat) == SFlag::S_IFLNK {
            return Err(Errno::ELOOP).named(call);
        }
        read_regular(fd.as_fd(), &stat).named(call).map(Some)
    }

    /// Makes `content` the content of `name`: by rename, or in place where `name` is a mount
    /// point.
    ///
    /// # Errors
    /// What the calls answer: `EROFS`, `ENOSPC`, `EISDIR` for a folder in its place, `EXDEV` when
    /// somebody else put another file there in the same moment.
    pub fn replace(&self, name: &str, content: &[u8], rights: Rights) -> Result<()> {
        // A rename over it would be refused here, and in another mount namespace it would take the
        // mount away.
        if is_mounted(self.lock.as_fd(), name)
            && let Some(found) = self.find(name)?
        {
            return self.write_in_place(name, &found, content, rights);
        }
        self.replace_by_rename(name, rights, |file| file.write_all(content))
    }

    /// As [`Folder::replace`], with what `fill` writes, and never in place.
    ///
    /// # Errors
    /// As there, and `EBUSY` where `name` is a mount point.
    pub(super) fn replace_by_rename(
        &self,
        name: &str,
        rights: Rights,
        fill: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<()> {
        if is_mounted(self.lock.as_fd(), name) {
            let call = || format!("rename(…, {})", self.path.join(name).display());
            return Err(Errno::EBUSY).named(call);
        }
        let temporary = temporary(name);
        let new = self.write_new(&temporary, name, rights, fill)?;
        let renamed = retry(|| renameat(&self.lock, temporary.as_str(), &self.lock, name));
        if let Err(errno) = renamed {
            let _ = unlinkat(&self.lock, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
            return Err(errno).named(|| {
                let to = self.path.join(name);
                format!("rename({temporary}, {})", to.display())
            });
        }
        self.settle(name, &new)
    }

    /// Takes away what a killed run left beside `name`, if it can.
    pub fn clear(&self, name: &str) {
        let _ = unlinkat(
            &self.lock,
            temporary(name).as_str(),
            UnlinkatFlags::NoRemoveDir,
        );
    }

    /// The same, but a regular file that stands there stays the same inode: another container may
    /// have it mounted, and would never see a new one. One that somebody else than root may hold open
    /// for writing is replaced all the same.
    ///
    /// # Errors
    /// As [`Folder::replace`], and `EMLINK` for a file with other names.
    pub fn overwrite(&self, name: &str, content: &[u8], rights: Rights) -> Result<()> {
        match self.find(name)? {
            Some(found) if kind(&found.1) == SFlag::S_IFREG && only_roots(&found.1) => {
                self.write_in_place(name, &found, content, rights)
            }
            _ => self.replace(name, content, rights),
        }
    }

    /// A renamed file is durable once its folder is; and it must be the one that was written.
    fn settle(&self, name: &str, new: &OwnedFd) -> Result<()> {
        let path = || self.path.join(name).display().to_string();
        retry(|| nix::unistd::fsync(&self.lock))
            .named(|| format!("fsync({})", self.path.display()))?;
        let written = fstat(new).named(|| format!("fstat({})", path()))?;
        let stands = fstatat(&self.lock, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .named(|| format!("fstatat({})", path()))?;
        if (written.st_dev, written.st_ino) == (stands.st_dev, stands.st_ino) {
            return Ok(());
        }
        let call = || format!("rename(…, {}), where another file stands now", path());
        Err(Errno::EXDEV).named(call)
    }

    /// A whole and synced file under a temporary name. What a killed run left there is replaced:
    /// the lock says that nobody else is at it. What it gives is no longer open for writing: nobody
    /// could start a program that is (`ETXTBSY`).
    fn write_new(
        &self,
        temporary: &str,
        name: &str,
        rights: Rights,
        fill: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<OwnedFd> {
        let path = self.path.join(temporary);
        let call = |what: &str| format!("{what}({})", path.display());
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let create =
            || retry(|| openat(&self.lock, temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR));
        let fd = match create() {
            Err(Errno::EEXIST) => {
                unlinkat(&self.lock, temporary, UnlinkatFlags::NoRemoveDir)
                    .named(|| call("unlinkat"))?;
                create()
            }
            done => done,
        };
        let mut file = File::from(fd.named(|| call("openat"))?);
        let written = self.fill(&mut file, name, rights, fill).and_then(|()| {
            let path = raw::proc_path(&file);
            open(path.as_c_str(), OFlag::O_PATH).named(|| call("open"))
        });
        if written.is_err() {
            let _ = unlinkat(&self.lock, temporary, UnlinkatFlags::NoRemoveDir);
        }
        written
    }

    fn fill(
        &self,
        file: &mut File,
        name: &str,
        rights: Rights,
        fill: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<()> {
        let path = self.path.join(name);
        let call = |what: &str| format!("{what}(the new {})", path.display());
        fill(file).map_err(errno_of).named(|| call("write"))?;
        let like = match rights {
            Rights::Kept => self.find(name)?,
            Rights::Root(_) => None,
        };
        let (uid, gid, mode) = match (&like, rights) {
            (Some((_, stat)), _) => (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777),
            (None, Rights::Root(mode)) => (0, 0, mode.into()),
            (None, Rights::Kept) => (0, 0, 0o644),
        };
        give(file, uid, gid, mode).named(|| call("fchown, fchmod"))?;
        if let Some((old, _)) = &like {
            copy_attributes(old, file).named(|| call("setxattr"))?;
        }
        file.sync_all().map_err(errno_of).named(|| call("fsync"))
    }

    /// Writes over the file that a mount pins. A longer content first gets its space, as newlines
    /// at the end, which parse as nothing; a shorter one is padded with newlines and then cut. In
    /// between, every state parses as the old file or the new one. The one write that changes the
    /// content begins where it differs, and is whole even if the process is killed in it as long as
    /// it stays within a page: the kernel looks for a fatal signal only between pages
    /// (mm/filemap.c, `generic_perform_write`).
    ///
    /// It is `found` that is written, whatever `name` leads to by now.
    fn write_in_place(
        &self,
        name: &str,
        (found, stat): &(OwnedFd, FileStat),
        content: &[u8],
        rights: Rights,
    ) -> Result<()> {
        let path = self.path.join(name);
        let call = |what: &str| format!("{what}({})", path.display());
        if kind(stat) != SFlag::S_IFREG {
            return Err(Errno::EINVAL).named(|| call("open"));
        }
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        let fd = open(raw::proc_path(found).as_c_str(), flags).named(|| call("open"))?;
        let file = File::from(fd);
        let old = file.metadata().map_err(errno_of).named(|| call("fstat"))?;
        if let Rights::Root(mode) = rights {
            // Its other names would see the change, and a rename cannot cut them off here.
            if old.nlink() != 1 {
                return Err(Errno::EMLINK).named(|| call("open"));
            }
            give(&file, 0, 0, mode.into()).named(|| call("fchown, fchmod"))?;
        }
        let old = old.len();
        let new = content.len() as u64;
        let mut padded = content.to_vec();
        if new > old {
            let space = vec![b'\n'; usize::try_from(new - old).unwrap_or(0)];
            if let Err(error) = file.write_all_at(&space, old) {
                let _ = file.set_len(old);
                return Err(errno_of(error)).named(|| call("write"));
            }
        } else {
            padded.resize(usize::try_from(old).unwrap_or(padded.len()), b'\n');
        }
        let current = read_at_most(&file, old).named(|| call("read"))?;
        let same = padded
            .iter()
            .zip(&current)
            .take_while(|(a, b)| a == b)
            .count();
        file.write_all_at(&padded[same..], same as u64)
            .map_err(errno_of)
            .named(|| call("write"))?;
        if new < old {
            file.set_len(new)
                .map_err(errno_of)
                .named(|| call("ftruncate"))?;
        }
        file.sync_all().map_err(errno_of).named(|| call("fsync"))
    }

    /// What `name` is, unopened and not through a link.
    pub(super) fn find(&self, name: &str) -> Result<Option<(OwnedFd, FileStat)>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let call = || format!("open({}, O_PATH)", self.path.join(name).display());
        match retry(|| openat(&self.lock, name, flags, Mode::empty())) {
            Ok(fd) => {
                let stat = fstat(&fd).named(call)?;
                Ok(Some((fd, stat)))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).named(call),
        }
    }
}

/// Whether only root can have opened it for writing.
fn only_roots(stat: &FileStat) -> bool {
    stat.st_uid == 0 && stat.st_mode & 0o022 == 0
}

/// What a file is called until it is whole.
pub(super) fn temporary(name: &str) -> String {
    format!(".{name}.libvirt-kvm-init")
}

/// Sets owner and mode where they differ.
pub(super) fn give(file: &File, uid: u32, gid: u32, mode: u32) -> nix::Result<()> {
    let now = fstat(file)?;
    if (now.st_uid, now.st_gid) != (uid, gid) {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fchownat(file.as_fd(), "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    }
    if now.st_mode & 0o7777 != mode {
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
            .map_err(errno_of)?;
    }
    Ok(())
}

/// Security labels and ACLs move to the new file, as rename would otherwise lose them.
///
/// Labels of a security module that is not active, and the checksums of IMA and EVM, which would be
/// those of the old content, take `CAP_SYS_ADMIN`, which is given up: they bind nobody, or the kernel
/// makes them anew.
fn copy_attributes(old: &OwnedFd, new: &File) -> nix::Result<()> {
    let (old, new) = (raw::proc_path(old), raw::proc_path(new));
    let names = raw::listxattr(&old)?;
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = std::ffi::CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let Some(value) = raw::getxattr(&old, name)? else {
            continue;
        };
        if raw::getxattr(&new, name)?.as_ref() == Some(&value) {
            continue;
        }
        match raw::setxattr(&new, name, &value) {
            Err(Errno::EPERM) if name.to_bytes().starts_with(b"security.") => {}
            done => done?,
        }
    }
    Ok(())
}

fn read_at_most(file: &File, length: u64) -> nix::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(length)
        .read_to_end(&mut content)
        .map_err(errno_of)?;
    Ok(content)
}

/// The errno of an error of the standard library's.
pub(super) fn errno_of(error: std::io::Error) -> Errno {
    match error.raw_os_error() {
        Some(raw) => Errno::from_raw(raw),
        // write(2) that wrote nothing.
        None => Errno::ENOSPC,
    }
}

/// Splits a path into the folder, opened, and the name in it.
///
/// # Errors
/// `EINVAL` for a path without a name at its end; what open(2) answers for the folder.
pub fn open_folder(path: &std::path::Path) -> Result<(OwnedFd, PathBuf, String)> {
    let call = || format!("open({})", path.display());
    let name = path.file_name().map(|name| name.as_bytes().to_vec());
    let Some(name) = name.and_then(|name| String::from_utf8(name).ok()) else {
        return Err(CallError {
            call: call(),
            errno: Errno::EINVAL,
        });
    };
    let folder = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => PathBuf::from("/"),
    };
    let fd = open(&folder, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
        .named(|| format!("open({}, O_DIRECTORY)", folder.display()))?;
    Ok((fd, folder, name))
}
