//! Opens the directories that the program writes to, and checks that only root can redirect or replace its output.
//!
//! The path is walked one component at a time, each opened relative to the descriptor of its parent. The checked
//! descriptor is the one that is used, so renaming a directory or replacing it by a link during the walk has no effect.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{Mode, SFlag};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::file::LockedDir;
use super::handle::FileHandle;
use super::root::Root;
use super::{Context, Result, SyscallError, open, open_in, progress, retry};

/// Most symbolic links in one path, the kernel's limit (path_resolution(7)).
const MOST_LINKS: usize = 40;
/// The mode with which the kubelet creates an emptyDir.
const EMPTY_DIR_MODE: u32 = 0o777;
/// The mode that this program sets on an emptyDir before it writes there.
const PRIVATE_MODE: u32 = 0o755;
/// The reason to refuse a directory that users other than root can write to.
const REPLACEABLE: &str = "in which another user can replace files";

/// Why a directory is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To read; nothing is changed.
    Look,
    /// To write. A mount point of root with mode 0777 is set to 0755 first.
    Write,
}

/// Why a directory cannot be used for output.
#[derive(Debug)]
pub enum OutputDirError {
    Call(SyscallError),
    /// A user other than root could replace or redirect the output.
    Untrusted {
        path: PathBuf,
        /// Its owner and mode, and the reason to refuse it.
        why: String,
    },
}

impl OutputDirError {
    /// The errno of the failed call, if a call failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Call(error) => Some(error.errno),
            Self::Untrusted { .. } => None,
        }
    }
}

impl From<SyscallError> for OutputDirError {
    fn from(error: SyscallError) -> Self {
        Self::Call(error)
    }
}

/// For callers that only log: a refused directory is shown as a failed call (`EACCES`).
impl From<OutputDirError> for SyscallError {
    fn from(refused: OutputDirError) -> Self {
        match refused {
            OutputDirError::Call(error) => error,
            OutputDirError::Untrusted { .. } => Self::new(refused.to_string(), Errno::EACCES),
        }
    }
}

impl fmt::Display for OutputDirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => error.fmt(f),
            Self::Untrusted { path, why } => write!(
                f,
                "{} is {why}: use a directory that only root can write to (owner root, mode 0755), or \
                 mount a separate volume there (in a pod without fsGroup)",
                path.display()
            ),
        }
    }
}

impl std::error::Error for OutputDirError {}

type Walked<T> = std::result::Result<T, OutputDirError>;

/// Whether only root can replace `entry` in `directory`. In a sticky directory other users can add entries, but not
/// remove or rename those of root.
fn only_root_can_replace(directory: &FileHandle, entry: &FileHandle) -> bool {
    let is_sticky = directory.stat.st_mode & Mode::S_ISVTX.bits() != 0;
    only_root_can_write(directory) || !directory.is_foreign() && is_sticky && !entry.is_foreign()
}

/// Whether only root can create, remove and rename entries in a directory.
fn only_root_can_write(directory: &FileHandle) -> bool {
    !directory.is_foreign() && !directory.is_writable_by_others()
}

/// The directories from a root to the current position in a path.
struct Walk {
    root: FileHandle,
    /// The path of the root, for messages.
    above: PathBuf,
    /// The directories below the root, each with its name in its parent.
    below: Vec<(OsString, FileHandle)>,
}

impl Walk {
    fn start(root: OwnedFd, above: &Path) -> Result<Self> {
        let above = above.to_owned();
        let root = FileHandle::new(root).context(|| format!("fstat({})", above.display()))?;
        let below = Vec::new();
        Ok(Self { root, above, below })
    }

    /// The current directory of the walk.
    fn last(&self) -> &FileHandle {
        self.below.last().map_or(&self.root, |(_, found)| found)
    }

    /// The path of the current directory, as this process sees it.
    fn path(&self) -> PathBuf {
        let names = self.below.iter().map(|(name, _)| name);
        self.above.join(names.collect::<PathBuf>())
    }

    /// The error that refuses the current directory.
    fn untrusted(&self, why: &str) -> OutputDirError {
        let (uid, _, mode) = self.last().rights();
        let path = self.path();
        let why = format!("a directory owned by UID {uid} with mode {mode:04o}, {why}");
        OutputDirError::Untrusted { path, why }
    }

    fn follow(&mut self, path: &Path) -> Walked<()> {
        let mut links = 0;
        let mut todo = reversed(path);
        while let Some(part) = todo.pop() {
            match part.as_bytes() {
                b"/" => self.below.clear(),
                // The parent of the root is the root itself (path_resolution(7)).
                b".." => drop(self.below.pop()),
                _ => {
                    let Some(target) = self.step(part)? else {
                        continue;
                    };
                    links += 1;
                    if links > MOST_LINKS {
                        let call = format!("open({}, O_PATH)", path.display());
                        return Err(failed(call, Errno::ELOOP));
                    }
                    todo.append(&mut reversed(&target));
                }
            }
        }
        Ok(())
    }

    /// Enters the directory `name`, or returns the target if `name` is a link.
    fn step(&mut self, name: OsString) -> Walked<Option<PathBuf>> {
        let path = self.path().join(&name);
        let call = || format!("open({}, O_PATH|O_NOFOLLOW)", path.display());
        progress::at(&[path.as_ref()]);
        let found = FileHandle::at(&self.last().fd, name.as_os_str()).context(call)?;
        match found.kind() {
            SFlag::S_IFDIR if !only_root_can_replace(self.last(), &found) => {
                Err(self.untrusted("in which another user can replace subdirectories"))
            }
            SFlag::S_IFDIR => {
                self.below.push((name, found));
                Ok(None)
            }
            SFlag::S_IFLNK => self.target(&found, path).map(Some),
            _ => Err(failed(call(), Errno::ENOTDIR)),
        }
    }

    /// The target of a link in the current directory.
    fn target(&self, link: &FileHandle, path: PathBuf) -> Walked<PathBuf> {
        let untrusted = |path, why: &str| {
            let why = format!("a symbolic link owned by UID {}, {why}", link.stat.st_uid);
            Err(OutputDirError::Untrusted { path, why })
        };
        if link.is_foreign() {
            return untrusted(path, "and only links of root are followed");
        }
        if !only_root_can_write(self.last()) {
            return Err(self.untrusted("in which another user can replace links"));
        }
        let file_system =
            fstatfs(&self.last().fd).context(|| format!("fstatfs({})", path.display()))?;
        if file_system.filesystem_type() == PROC_SUPER_MAGIC {
            return untrusted(
                path,
                "in /proc, where the kernel does not follow the text of a link",
            );
        }
        let target = retry(|| readlinkat(&link.fd, c""));
        let target = target.context(|| format!("readlinkat({})", path.display()))?;
        Ok(target.into())
    }

    /// Opens the current directory, if only root can write to it.
    fn arrive(self, purpose: Purpose) -> Walked<LockedDir> {
        let path = self.path();
        let call = |what: &str| format!("{what}({})", path.display());
        let last = self.last();
        progress::at(&[path.as_ref()]);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let open = || open_in(&last.fd, c".", flags).context(|| call("open"));
        if only_root_can_write(last) {
            return Ok(LockedDir::new(open()?, path));
        }
        if last.is_foreign() {
            return Err(self.untrusted("not owned by root"));
        }
        let (uid, _, mode) = last.rights();
        if uid != 0 || mode != EMPTY_DIR_MODE || !self.is_mount_point()? {
            return Err(self.untrusted(REPLACEABLE));
        }
        if purpose == Purpose::Look {
            return Ok(LockedDir::new(open()?, path));
        }
        let opened = File::from(open()?);
        let set = opened.set_permissions(PermissionsExt::from_mode(PRIVATE_MODE));
        set.context(|| format!("fchmod({}, {PRIVATE_MODE:04o})", path.display()))?;
        let now = FileHandle::new(opened.into()).context(|| call("fstat"))?;
        if !only_root_can_write(&now) {
            return Err(self.untrusted(REPLACEABLE));
        }
        log::info!(
            "changed the mode of {} from 0777, the kubelet's default for an emptyDir, to 0755",
            path.display()
        );
        Ok(LockedDir::new(now.fd, path))
    }

    /// Whether the current directory is a mount point.
    fn is_mount_point(&self) -> Result<bool> {
        let (parent, (name, last)) = match &self.below[..] {
            [] => return Ok(true),
            [last] => (&self.root, last),
            [.., (_, parent), last] => (parent, last),
        };
        let is_mounted = last.is_mounted(&parent.fd, name.as_os_str());
        is_mounted.context(|| format!("statx({})", self.path().display()))
    }
}

fn failed(call: String, errno: Errno) -> OutputDirError {
    OutputDirError::Call(SyscallError::new(call, errno))
}

/// The components of a path in reverse order.
fn reversed(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    let parts = parts.filter(|part| *part != Component::CurDir);
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

/// Opens the directory of the output file `path`. Returns it with the name of the file.
///
/// # Errors
/// [`OutputDirError::Untrusted`] if a user other than root could replace or redirect the output; `EINVAL` for a path
/// that does not end in a name.
pub fn open_output(path: &Path, purpose: Purpose) -> Walked<(LockedDir, String)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(name) = name else {
        return Err(failed(format!("open({})", path.display()), Errno::EINVAL));
    };
    let call = || format!("getcwd(), for {}", path.display());
    let absolute = std::path::absolute(path).context(call)?;
    let root = Path::new("/");
    let fd = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY).context(|| "open(/)".to_owned())?;
    let mut walk = Walk::start(fd, root)?;
    walk.follow(absolute.parent().unwrap_or(root))?;
    Ok((walk.arrive(purpose)?, name.to_owned()))
}

/// Opens the directory `name` below `root`. Links cannot lead out of that root.
///
/// # Errors
/// As [`open_output`].
pub fn open_below(root: &Root, name: &str) -> Walked<LockedDir> {
    let mut walk = Walk::start(root.descriptor()?, root.path())?;
    walk.follow(Path::new(name))?;
    walk.arrive(Purpose::Write)
}
