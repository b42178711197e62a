//! Output files that other programs read: inspects an existing file, and publishes a frequently updated one.

#[cfg(feature = "watch")]
use std::fs::File;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

#[cfg(feature = "watch")]
use super::file::LockedDir;
#[cfg(feature = "watch")]
use super::handle::FileHandle;
use super::output_dir::{OutputDirError, Purpose, open_output};
use super::{Context, Inode};
#[cfg(feature = "watch")]
use super::{Result, SyscallError};

/// A regular file at the path of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    pub content: Vec<u8>,
    /// Whether all but the content is as this program writes it: a single link, owner 0:0, mode 0644, in a directory
    /// that only root can write to.
    pub as_left: bool,
}

/// A file of any kind at the path of an output.
#[derive(Debug)]
pub struct ExistingOutput {
    pub kind: SFlag,
    pub inode: Inode,
    /// `None` for a file that was not read, because it is replaced anyway. Only a regular file of root with a single
    /// link is opened: the owner of another file could delay the open or make it fail (a lease, fcntl(2)).
    pub file: Option<OutputFile>,
}

/// Inspects the file at `path`; `None` if there is none.
///
/// # Errors
/// [`OutputDirError`] if the directory cannot be used for output.
pub fn read_public(path: &Path) -> std::result::Result<Option<ExistingOutput>, OutputDirError> {
    let (directory, name) = match open_output(path, Purpose::Look) {
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENOTDIR)) => {
            return Ok(None);
        }
        opened => opened?,
    };
    let Some(found) = directory.find(&name)? else {
        return Ok(None);
    };
    let (kind, inode) = (found.kind(), found.inode());
    let mut file = None;
    if found.is_roots_file() {
        let as_left = found.rights() == (0, 0, 0o644) && !directory.is_shared()?;
        file = match found.read() {
            Ok(content) => Some(OutputFile { content, as_left }),
            // Too large for a group file: it is replaced as well.
            Err(Errno::EFBIG) => None,
            Err(errno) => Err(errno).context(|| format!("read({})", path.display()))?,
        };
    }
    Ok(Some(ExistingOutput { kind, inode, file }))
}

/// Replaces the file `path` atomically by one with `content`, mode 0644, without fsync(2). A device or link that
/// belongs to root may have been named by mistake and is not replaced; one of another user is.
///
/// `prepare` is called on the new file before it has its name. The returned file is open.
///
/// # Errors
/// `EINVAL` if `path` is not a regular file and belongs to root, `EACCES` for a directory in which another user could
/// replace the file.
#[cfg(feature = "watch")]
pub fn publish(
    path: &Path,
    content: &[u8],
    prepare: impl FnOnce(&File) -> nix::Result<()>,
) -> Result<File> {
    let (directory, name) = open_output(path, Purpose::Write)?;
    let found = replaceable(&directory, &name, path)?;
    directory.publish(&name, found.as_ref(), content, prepare)
}

/// Removes the file `path`, and temporary files that a killed run has left for it. A missing file or directory is no
/// error.
///
/// # Errors
/// As [`publish`].
#[cfg(feature = "watch")]
pub fn withdraw(path: &Path) -> Result<()> {
    let (directory, name) = match open_output(path, Purpose::Write) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(()),
        opened => opened.map_err(SyscallError::from)?,
    };
    directory.clear(&name, None);
    match replaceable(&directory, &name, path)? {
        Some(_) => directory.remove(&name),
        None => Ok(()),
    }
}

/// Removes temporary files that a killed run has left for `path`.
#[cfg(feature = "watch")]
pub fn clear(path: &Path) {
    if let Ok((directory, name)) = open_output(path, Purpose::Write) {
        directory.clear(&name, None);
    }
}

/// The file at `name` that will be replaced. A directory of another user is moved aside first.
#[cfg(feature = "watch")]
fn replaceable(directory: &LockedDir, name: &str, path: &Path) -> Result<Option<FileHandle>> {
    let found = directory.find(name)?;
    match found {
        Some(found) if found.kind() == SFlag::S_IFDIR && found.is_foreign() => {
            directory.put_aside(name, &found)?;
            Ok(None)
        }
        Some(found) if found.kind() != SFlag::S_IFREG && !found.is_foreign() => Err(Errno::EINVAL)
            .context(|| format!("open({}), which is not a regular file", path.display())),
        found => Ok(found),
    }
}
