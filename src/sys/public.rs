//! Files that others read: what stands where one belongs, and one that is made anew all the time.

#[cfg(feature = "watch")]
use std::fs::File;
#[cfg(feature = "watch")]
use std::io::Write;
use std::os::fd::AsFd;
#[cfg(feature = "watch")]
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
#[cfg(feature = "watch")]
use nix::fcntl::{AtFlags, openat, renameat};
#[cfg(feature = "watch")]
use nix::sys::stat::{Mode, fstatat};
use nix::sys::stat::{SFlag, fstat};
#[cfg(feature = "watch")]
use nix::unistd::{UnlinkatFlags, unlinkat};

#[cfg(feature = "watch")]
use super::file::{errno_of, give, open_folder, temporary};
#[cfg(feature = "watch")]
use super::retry;
use super::root::{kind, read_regular};
use super::{Named, Result, open};

/// What stands where a file was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    /// Its content.
    pub content: Vec<u8>,
    /// Whether all but the content is what this program leaves: one link, owned by root, 0644.
    pub as_left: bool,
}

/// The regular file `path`. `None` for anything else, which is to be replaced.
///
/// # Errors
/// What the calls answer for a file that is there.
pub fn read_public(path: &Path) -> Result<Option<Public>> {
    let call = || format!("open({}, O_PATH|O_NOFOLLOW)", path.display());
    let fd = match open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
        Ok(fd) => fd,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(errno) => return Err(errno).named(call),
    };
    let stat = fstat(&fd).named(call)?;
    if kind(&stat) != SFlag::S_IFREG {
        return Ok(None);
    }
    let as_left =
        (stat.st_uid, stat.st_gid, stat.st_nlink) == (0, 0, 1) && stat.st_mode & 0o7777 == 0o644;
    match read_regular(fd.as_fd(), &stat) {
        Ok(content) => Ok(Some(Public { content, as_left })),
        // Nobody's group file; it is to be replaced as well.
        Err(Errno::EFBIG) => Ok(None),
        Err(errno) => Err(errno).named(|| format!("read({})", path.display())),
    }
}

/// Makes `content` the content of the file `path` for whoever reads it next: whole at every moment,
/// readable by all, and not worth waiting for the disk. Only a regular file is replaced. `prepare` is called with
/// the new file before it has its name; it is given back open for writing.
///
/// # Errors
/// What the calls answer; `EINVAL` where something else stands.
#[cfg(feature = "watch")]
pub fn publish(
    path: &Path,
    content: &[u8],
    prepare: impl FnOnce(&File) -> nix::Result<()>,
) -> Result<File> {
    let (folder, shown, name) = open_folder(path)?;
    is_file(&folder, &name, path)?;
    let temporary = temporary(&name);
    let call = |what: &str| format!("{what}({})", shown.join(&temporary).display());
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let unlink = || unlinkat(&folder, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
    let create = || {
        retry(|| {
            openat(
                &folder,
                temporary.as_str(),
                flags,
                Mode::S_IRUSR | Mode::S_IWUSR,
            )
        })
    };
    let fd = match create() {
        // A killed run left it.
        Err(Errno::EEXIST) => unlink().and_then(|()| create()),
        fd => fd,
    };
    let mut file = File::from(fd.named(|| call("openat"))?);
    let written = file
        .write_all(content)
        .map_err(errno_of)
        .named(|| call("write"));
    let given = written.and_then(|()| give(&file, 0, 0, 0o644).named(|| call("fchown, fchmod")));
    let prepared = given.and_then(|()| prepare(&file).named(|| call("fcntl")));
    let renamed = prepared.and_then(|()| {
        let to = || format!("rename({temporary}, {})", path.display());
        retry(|| renameat(&folder, temporary.as_str(), &folder, name.as_str())).named(to)
    });
    if renamed.is_err() {
        let _ = unlink();
    }
    renamed.map(|()| file)
}

/// Whether a regular file stands there, or nothing: a device or a link that somebody named by mistake is
/// not theirs to lose.
///
/// # Errors
/// `EINVAL` for anything else, and what the call answers.
#[cfg(feature = "watch")]
fn is_file(folder: &OwnedFd, name: &str, path: &Path) -> Result<bool> {
    let found = match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => Ok(false),
        Ok(stat) if kind(&stat) == SFlag::S_IFREG => Ok(true),
        Ok(_) => Err(Errno::EINVAL),
        Err(errno) => Err(errno),
    };
    found.named(|| format!("fstatat({}), where a regular file belongs", path.display()))
}

/// Takes the regular file `path` away, if there is one.
///
/// # Errors
/// What the calls answer, but for a file or a folder that is not there; `EINVAL` where something else
/// stands.
#[cfg(feature = "watch")]
pub fn withdraw(path: &Path) -> Result<()> {
    let (folder, _, name) = match open_folder(path) {
        Err(error) if error.errno == Errno::ENOENT => return Ok(()),
        opened => opened?,
    };
    if !is_file(&folder, &name, path)? {
        return Ok(());
    }
    let unlink = || unlinkat(&folder, name.as_str(), UnlinkatFlags::NoRemoveDir);
    match retry(unlink) {
        Err(Errno::ENOENT) => Ok(()),
        done => done.named(|| format!("unlinkat({})", path.display())),
    }
}
