//! Files that others read: what stands where one belongs, and one that is made anew all the time.

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

/// What stands where a file was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    /// Its content.
    pub content: Vec<u8>,
    /// Whether all but the content is what this program leaves: one link, owned by root, 0644, in a
    /// directory that root alone may write.
    pub as_left: bool,
}

/// What was found at a path.
#[derive(Debug)]
pub struct ExistingOutput {
    /// Its kind.
    pub kind: SFlag,
    /// Device and inode number.
    pub inode: Inode,
    /// What was read of it. Only a regular file of root's with one name is opened: the owner of another one
    /// could make that wait or fail (a lease), and it is to be replaced anyway.
    pub file: Option<OutputFile>,
}

/// Looks at what stands at `path`; `None` for nothing.
///
/// # Errors
/// [`OutputDirError`] where an output must not be put there; what the calls answer.
pub fn read_public(path: &Path) -> std::result::Result<Option<ExistingOutput>, OutputDirError> {
    let (directory, name) = match open_output(path, Purpose::Look) {
        Err(unfit) if matches!(unfit.errno(), Some(Errno::ENOENT | Errno::ENOTDIR)) => {
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
            // Nobody's group file; it is to be replaced as well.
            Err(Errno::EFBIG) => None,
            Err(errno) => Err(errno).context(|| format!("read({})", path.display()))?,
        };
    }
    Ok(Some(ExistingOutput { kind, inode, file }))
}

/// Makes `content` the content of the file `path` for whoever reads it next: whole at every moment,
/// readable by all, and not worth waiting for the disk. A device or link of root's that was named by mistake
/// is not replaced; what another user has put there is.
///
/// `prepare` is called on the new file before it has its name. The file stays open.
///
/// # Errors
/// What the calls answer; `EINVAL` where something else of root's stands, `EACCES` for a directory in which
/// another user could replace the file.
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

/// Takes the file `path` away, if there is one, and what a killed run has left beside it.
///
/// # Errors
/// What the calls answer, but for a file or a directory that is not there; as [`publish`].
#[cfg(feature = "watch")]
pub fn withdraw(path: &Path) -> Result<()> {
    let (directory, name) = match open_output(path, Purpose::Write) {
        Err(unfit) if unfit.errno() == Some(Errno::ENOENT) => return Ok(()),
        opened => opened.map_err(SyscallError::from)?,
    };
    directory.clear(&name, None);
    match replaceable(&directory, &name, path)? {
        Some(_) => directory.remove(&name),
        None => Ok(()),
    }
}

/// Takes away what a killed run has left beside `path`.
#[cfg(feature = "watch")]
pub fn clear(path: &Path) {
    if let Ok((directory, name)) = open_output(path, Purpose::Write) {
        directory.clear(&name, None);
    }
}

/// What stands at `name`, if it may be replaced: a directory of another user's is put aside.
#[cfg(feature = "watch")]
fn replaceable(directory: &LockedDir, name: &str, path: &Path) -> Result<Option<FileHandle>> {
    let found = directory.find(name)?;
    match found {
        Some(found) if found.kind() == SFlag::S_IFDIR && found.is_foreign() => {
            directory.put_aside(name, &found)?;
            Ok(None)
        }
        Some(found) if found.kind() != SFlag::S_IFREG && !found.is_foreign() => Err(Errno::EINVAL)
            .context(|| format!("open({}), where a regular file belongs", path.display())),
        found => Ok(found),
    }
}
