//! Directories that the program writes into: nobody but root may steer what ends up there.
//!
//! The path is walked one component at a time, each found by a descriptor of the directory before it. What
//! was found is what is used: a directory that is renamed, or swapped for a link, while the path is walked
//! makes no difference.

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

/// How many links a path may lead through, as for the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;
/// What an emptyDir has, as the kubelet makes it.
const OPEN_TO_ALL: u32 = 0o777;
/// What it has once root has taken it over.
const ROOTS_ALONE: u32 = 0o755;
/// What is wrong with a directory that others may write.
const REPLACEABLE: &str = "in which another user can replace files";

/// What a directory is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Nothing is changed.
    Look,
    /// A mount point of root's that all may write becomes root's alone.
    Write,
}

/// Why a directory is not written into.
#[derive(Debug)]
pub enum OutputDirError {
    /// A call failed.
    Call(SyscallError),
    /// Another user than root could replace what is written, or lead it elsewhere.
    Untrusted {
        /// The directory or link.
        path: PathBuf,
        /// Its owner and mode, and what is wrong with that.
        why: String,
    },
}

impl OutputDirError {
    /// The errno of a call that failed.
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

/// For callers that only log: what is refused is a call that was not made.
impl From<OutputDirError> for SyscallError {
    fn from(unfit: OutputDirError) -> Self {
        match unfit {
            OutputDirError::Call(error) => error,
            OutputDirError::Untrusted { .. } => Self::new(unfit.to_string(), Errno::EACCES),
        }
    }
}

impl fmt::Display for OutputDirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => error.fmt(f),
            Self::Untrusted { path, why } => write!(
                f,
                "{} is {why}: use a directory below which root alone may write (owner root, mode \
                 0755), or mount a volume of its own there (in a pod without fsGroup)",
                path.display()
            ),
        }
    }
}

impl std::error::Error for OutputDirError {}

/// What walking a path, or opening where it leads, answers.
type Walked<T> = std::result::Result<T, OutputDirError>;

/// Whether root alone decides which file the name of `entry` in `directory` is. In a sticky directory others
/// may add names, and not take away or rename what is root's.
fn keeps(directory: &FileHandle, entry: &FileHandle) -> bool {
    let is_sticky = directory.stat.st_mode & Mode::S_ISVTX.bits() != 0;
    is_roots_alone(directory) || !directory.is_foreign() && is_sticky && !entry.is_foreign()
}

/// Whether root alone may change what is in a directory.
fn is_roots_alone(directory: &FileHandle) -> bool {
    !directory.is_foreign() && !directory.is_writable_by_others()
}

/// The directories from a root to where a path leads.
struct Walk {
    root: FileHandle,
    /// Where the root is, for messages.
    above: PathBuf,
    /// Those below it, each with its name in the one before.
    below: Vec<(OsString, FileHandle)>,
}

impl Walk {
    fn start(root: OwnedFd, above: &Path) -> Result<Self> {
        let above = above.to_owned();
        let root = FileHandle::new(root).context(|| format!("fstat({})", above.display()))?;
        let below = Vec::new();
        Ok(Self { root, above, below })
    }

    /// The directory that it has come to.
    fn last(&self) -> &FileHandle {
        self.below.last().map_or(&self.root, |(_, found)| found)
    }

    /// Where it has come to, as seen from here.
    fn path(&self) -> PathBuf {
        let names = self.below.iter().map(|(name, _)| name);
        self.above.join(names.collect::<PathBuf>())
    }

    /// No, for the directory that it has come to.
    fn untrusted(&self, why: &str) -> OutputDirError {
        let (uid, _, mode) = self.last().rights();
        let path = self.path();
        let why = format!("a directory of UID {uid} with mode {mode:04o}, {why}");
        OutputDirError::Untrusted { path, why }
    }

    fn follow(&mut self, path: &Path) -> Walked<()> {
        let mut links = 0;
        let mut todo = reversed(path);
        while let Some(part) = todo.pop() {
            match part.as_bytes() {
                b"/" => self.below.clear(),
                // What is above the root is the root (path_resolution(7)).
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

    /// Enters the directory `name`, or gives where the link of that name leads.
    fn step(&mut self, name: OsString) -> Walked<Option<PathBuf>> {
        let path = self.path().join(&name);
        let call = || format!("open({}, O_PATH|O_NOFOLLOW)", path.display());
        progress::at(&[path.as_ref()]);
        let found = FileHandle::at(&self.last().fd, name.as_os_str()).context(call)?;
        match found.kind() {
            SFlag::S_IFDIR if !keeps(self.last(), &found) => {
                Err(self.untrusted("in which another user can replace what is below"))
            }
            SFlag::S_IFDIR => {
                self.below.push((name, found));
                Ok(None)
            }
            SFlag::S_IFLNK => self.target(&found, path).map(Some),
            _ => Err(failed(call(), Errno::ENOTDIR)),
        }
    }

    /// Where a link in the directory that the walk has come to leads.
    fn target(&self, link: &FileHandle, path: PathBuf) -> Walked<PathBuf> {
        let untrusted = |path, why: &str| {
            let why = format!("a link of UID {}, {why}", link.stat.st_uid);
            Err(OutputDirError::Untrusted { path, why })
        };
        if link.is_foreign() {
            return untrusted(path, "and those of root alone are followed");
        }
        if !is_roots_alone(self.last()) {
            return Err(self.untrusted("in which another user can replace links"));
        }
        let on = fstatfs(&self.last().fd).context(|| format!("fstatfs({})", path.display()))?;
        if on.filesystem_type() == PROC_SUPER_MAGIC {
            return untrusted(path, "in /proc, where links lead elsewhere than their text");
        }
        let target = retry(|| readlinkat(&link.fd, c""));
        let target = target.context(|| format!("readlinkat({})", path.display()))?;
        Ok(target.into())
    }

    /// Opens the directory that the walk has come to, if it is root's alone.
    fn arrive(self, purpose: Purpose) -> Walked<LockedDir> {
        let path = self.path();
        let call = |what: &str| format!("{what}({})", path.display());
        let last = self.last();
        progress::at(&[path.as_ref()]);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let open = || open_in(&last.fd, c".", flags).context(|| call("open"));
        if is_roots_alone(last) {
            return Ok(LockedDir::new(open()?, path));
        }
        if last.is_foreign() {
            return Err(self.untrusted("not root's"));
        }
        let (uid, _, mode) = last.rights();
        if uid != 0 || mode != OPEN_TO_ALL || !self.is_mount_point()? {
            return Err(self.untrusted(REPLACEABLE));
        }
        if purpose == Purpose::Look {
            return Ok(LockedDir::new(open()?, path));
        }
        let opened = File::from(open()?);
        let set = opened.set_permissions(PermissionsExt::from_mode(ROOTS_ALONE));
        set.context(|| format!("fchmod({}, {ROOTS_ALONE:04o})", path.display()))?;
        let now = FileHandle::new(opened.into()).context(|| call("fstat"))?;
        if !is_roots_alone(&now) {
            return Err(self.untrusted(REPLACEABLE));
        }
        log::info!(
            "{} had the mode 0777, as the kubelet makes an emptyDir: now root alone may write there",
            path.display()
        );
        Ok(LockedDir::new(now.fd, path))
    }

    /// Whether the directory that the walk has come to is the root of a mount.
    fn is_mount_point(&self) -> Result<bool> {
        let (before, (name, last)) = match &self.below[..] {
            [] => return Ok(true),
            [last] => (&self.root, last),
            [.., (_, before), last] => (before, last),
        };
        let known = last.is_mounted(&before.fd, name.as_os_str());
        known.context(|| format!("statx({})", self.path().display()))
    }
}

fn failed(call: String, errno: Errno) -> OutputDirError {
    OutputDirError::Call(SyscallError::new(call, errno))
}

/// The parts of a path, the first one last.
fn reversed(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    let parts = parts.filter(|part| *part != Component::CurDir);
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

/// The directory that holds the output `path`, opened, and the output's name in it.
///
/// # Errors
/// [`OutputDirError::Untrusted`] where another user than root could replace the output or lead it elsewhere; `EINVAL`
/// for a path without a name at its end; what the calls answer for the directories.
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

/// The directory `name` below `root`, opened: links lead no further up than that root.
///
/// # Errors
/// As [`open_output`].
pub fn open_below(root: &Root, name: &str) -> Walked<LockedDir> {
    let mut walk = Walk::start(root.descriptor()?, root.path())?;
    walk.follow(Path::new(name))?;
    walk.arrive(Purpose::Write)
}
