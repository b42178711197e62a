//! Directories that the program writes into: nobody but root may steer what ends up there.
//!
//! The path is walked one component at a time, each found by a descriptor of the directory before it. What
//! was found is what is used: a directory that is renamed, or swapped for a link, while the path is walked
//! makes no difference.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::geteuid;

use super::file::{Folder, errno_of};
use super::root::{Root, is_mounted, kind};
use super::{CallError, Named, Result, open, progress, raw, retry};

/// How many links a path may lead through, as for the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;
/// What an emptyDir has, as the kubelet makes it.
const OPEN_TO_ALL: u32 = 0o777;
/// What it has once root has taken it over.
const ROOTS_ALONE: u32 = 0o755;

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
pub enum Unfit {
    /// A call failed.
    Call(CallError),
    /// Another user than root could replace what is written, or lead it elsewhere.
    Untrusted {
        /// The directory or link.
        path: PathBuf,
        /// Its owner and mode, and what is wrong with that.
        why: String,
    },
}

impl Unfit {
    /// The errno of a call that failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Call(error) => Some(error.errno),
            Self::Untrusted { .. } => None,
        }
    }
}

impl From<CallError> for Unfit {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// For callers that only log: what is refused is a call that was not made.
impl From<Unfit> for CallError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Call(error) => error,
            Unfit::Untrusted { .. } => Self {
                call: unfit.to_string(),
                errno: Errno::EACCES,
            },
        }
    }
}

impl fmt::Display for Unfit {
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

impl std::error::Error for Unfit {}

/// Whether an owner is root, or the user that runs this.
pub(super) fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// A directory on the way.
struct Found {
    fd: OwnedFd,
    stat: FileStat,
    /// What it is called in the one before; nothing for the first.
    name: OsString,
}

impl Found {
    fn new(fd: OwnedFd, name: OsString) -> nix::Result<Self> {
        let stat = fstat(&fd)?;
        Ok(Self { fd, stat, name })
    }

    fn is_writable_by_others(&self) -> bool {
        self.stat.st_mode & 0o022 != 0
    }

    /// Whether root alone decides which file a name in it is. In a sticky directory others may add names,
    /// and not take away or rename what is root's.
    fn keeps(&self, entry: &FileStat) -> bool {
        let is_sticky = self.stat.st_mode & Mode::S_ISVTX.bits() != 0;
        is_trusted(self.stat.st_uid)
            && (!self.is_writable_by_others() || is_sticky && is_trusted(entry.st_uid))
    }
}

/// The directories from a root to where a path leads.
struct Walk {
    stack: Vec<Found>,
    /// Where the root is, for messages.
    above: PathBuf,
}

impl Walk {
    fn start(root: OwnedFd, above: &Path) -> Result<Self> {
        let above = above.to_owned();
        let first = Found::new(root, OsString::new());
        let first = first.named(|| format!("fstat({})", above.display()))?;
        let stack = vec![first];
        Ok(Self { stack, above })
    }

    /// Where it has come to, as seen from here.
    fn path(&self) -> PathBuf {
        let names = self.stack.iter().skip(1).map(|found| &found.name);
        self.above.join(names.collect::<PathBuf>())
    }

    fn untrusted(&self, name: Option<&OsString>, stat: &FileStat, why: &str) -> Unfit {
        let path = name.map_or_else(|| self.path(), |name| self.path().join(name));
        let (uid, mode) = (stat.st_uid, stat.st_mode & 0o7777);
        let why = match kind(stat) {
            SFlag::S_IFLNK => format!("a link of UID {uid}, {why}"),
            _ => format!("a directory of UID {uid} with mode {mode:04o}, {why}"),
        };
        Unfit::Untrusted { path, why }
    }

    fn follow(&mut self, path: &Path) -> std::result::Result<(), Unfit> {
        let mut links = 0;
        let mut todo = reversed(path);
        while let Some(part) = todo.pop() {
            match part.as_bytes() {
                b"/" => self.stack.truncate(1),
                // What is above the root is the root (path_resolution(7)).
                b".." if self.stack.len() == 1 => {}
                b".." => drop(self.stack.pop()),
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
    fn step(&mut self, name: OsString) -> std::result::Result<Option<PathBuf>, Unfit> {
        let Some(top) = self.stack.last() else {
            return Ok(None);
        };
        let path = || self.path().join(&name);
        let call = || format!("open({}, O_PATH|O_NOFOLLOW)", path().display());
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        progress::at(&[path().as_os_str().as_encoded_bytes()]);
        let fd = retry(|| openat(&top.fd, name.as_os_str(), flags, Mode::empty())).named(call)?;
        let found = Found::new(fd, name.clone()).named(call)?;
        match kind(&found.stat) {
            SFlag::S_IFDIR if !top.keeps(&found.stat) => {
                let why = "in which another user can replace what is below";
                Err(self.untrusted(None, &top.stat, why))
            }
            SFlag::S_IFDIR => {
                self.stack.push(found);
                Ok(None)
            }
            SFlag::S_IFLNK => {
                if !is_trusted(found.stat.st_uid) {
                    let why = "and those of root alone are followed";
                    return Err(self.untrusted(Some(&name), &found.stat, why));
                }
                if !is_trusted(top.stat.st_uid) || top.is_writable_by_others() {
                    let why = "in which another user can replace links";
                    return Err(self.untrusted(None, &top.stat, why));
                }
                let on = fstatfs(&top.fd).named(|| format!("fstatfs({})", path().display()))?;
                if on.filesystem_type() == PROC_SUPER_MAGIC {
                    let why = "in /proc, where links lead elsewhere than their text";
                    return Err(self.untrusted(Some(&name), &found.stat, why));
                }
                let target = retry(|| readlinkat(&found.fd, c""));
                let target = target.named(|| format!("readlinkat({})", path().display()))?;
                Ok(Some(target.into()))
            }
            _ => Err(failed(call(), Errno::ENOTDIR)),
        }
    }

    /// Opens the directory that the walk has come to, if it is root's alone.
    fn arrive(self, purpose: Purpose) -> std::result::Result<Folder, Unfit> {
        let path = self.path();
        let call = |what: &str| format!("{what}({})", path.display());
        let Some(last) = self.stack.last() else {
            return Err(failed(call("open"), Errno::ENOENT));
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = || retry(|| openat(&last.fd, c".", flags, Mode::empty()));
        let is_roots = |stat: &FileStat| is_trusted(stat.st_uid) && stat.st_mode & 0o022 == 0;
        if is_roots(&last.stat) {
            return Ok(Folder::new(open().named(|| call("open"))?, path));
        }
        if !is_trusted(last.stat.st_uid) {
            return Err(self.untrusted(None, &last.stat, "not root's"));
        }
        let why = "in which another user can replace files";
        let is_open_to_all = last.stat.st_mode & 0o7777 == OPEN_TO_ALL;
        if last.stat.st_uid != 0 || !is_open_to_all || !self.is_mount_point()? {
            return Err(self.untrusted(None, &last.stat, why));
        }
        let fd = open().named(|| call("open"))?;
        if purpose == Purpose::Look {
            return Ok(Folder::new(fd, path));
        }
        let opened = File::from(fd);
        opened
            .set_permissions(Permissions::from_mode(ROOTS_ALONE))
            .map_err(errno_of)
            .named(|| format!("fchmod({}, {ROOTS_ALONE:04o})", path.display()))?;
        let now = fstat(&opened).named(|| call("fstat"))?;
        if !is_roots(&now) {
            return Err(self.untrusted(None, &now, why));
        }
        log::info!(
            "{} had the mode 0777, as the kubelet makes an emptyDir: now root alone may write there",
            path.display()
        );
        Ok(Folder::new(opened.into(), path))
    }

    /// Whether the directory that the walk has come to is the root of a mount.
    fn is_mount_point(&self) -> Result<bool> {
        let [.., before, last] = &self.stack[..] else {
            return Ok(true);
        };
        let call = || format!("statx({})", self.path().display());
        let known = retry(|| raw::is_mount_root(last.fd.as_fd())).named(call)?;
        Ok(known.unwrap_or_else(|| is_mounted(before.fd.as_fd(), last.name.as_os_str())))
    }
}

fn failed(call: String, errno: Errno) -> Unfit {
    Unfit::Call(CallError { call, errno })
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
/// [`Unfit::Untrusted`] where another user than root could replace the output or lead it elsewhere; `EINVAL`
/// for a path without a name at its end; what the calls answer for the directories.
pub fn open_output(path: &Path, purpose: Purpose) -> std::result::Result<(Folder, String), Unfit> {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(name) = name else {
        return Err(failed(format!("open({})", path.display()), Errno::EINVAL));
    };
    let call = || format!("getcwd(), for {}", path.display());
    let absolute = std::path::absolute(path).map_err(errno_of).named(call)?;
    let root = Path::new("/");
    let fd = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY).named(|| "open(/)".to_owned())?;
    let mut walk = Walk::start(fd, root)?;
    walk.follow(absolute.parent().unwrap_or(root))?;
    Ok((walk.arrive(purpose)?, name.to_owned()))
}

/// The directory `name` below `root`, opened: links lead no further up than that root.
///
/// # Errors
/// As [`open_output`].
pub fn open_below(root: &Root, name: &str) -> std::result::Result<Folder, Unfit> {
    let mut walk = Walk::start(root.descriptor()?, root.path())?;
    walk.follow(Path::new(name))?;
    walk.arrive(Purpose::Write)
}
