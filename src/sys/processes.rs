//! Other processes, as far as `/proc` shows them. They are only looked at.
//!
//! A process chooses its own name, and in a user and mount namespace of its own also what its root shows
//! (prctl(2), user_namespaces(7)). What it cannot choose is what the kernel says of it: its UIDs, its user
//! namespace, the file that it executes and the owner of that file, its capabilities.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use caps::Capability;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, readlinkat};
use nix::sys::stat::{fstatat, stat};
use nix::unistd::{Gid, Pid, getpgid, read};

use super::handle::{entries, inode, open_directory};
use super::root::Root;
use super::{Context, Inode, SyscallError, open, open_in, proc, progress, retry, syscalls};

/// Parts of a second that /proc counts in, the same on every architecture that runs KVM.
const TICKS: i64 = 100;

/// A process of root's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its ID.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// When it had started for certain, in seconds since 1970: /proc tells both the boot and the
    /// time since then rounded down.
    pub started: i64,
    /// Device and inode number of its root, where that can be read.
    pub root: Option<Inode>,
    /// Whether it has `CAP_SYS_ADMIN`, which an ordinary container has not.
    pub is_admin: bool,
}

impl Process {
    /// Where its root is seen.
    pub fn root_path(&self) -> PathBuf {
        root_path(self.pid)
    }
}

/// Where the root of a process is seen.
fn root_path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root"))
}

/// The process whose root a path begins with, as it is written (`/proc/PID/root`), and the rest of the path.
pub fn pid_of_root(path: &Path) -> Option<(u32, PathBuf)> {
    let mut parts = path.components();
    let mut next = || parts.next()?.as_os_str().to_str();
    if next()? != "/" || next()? != "proc" {
        return None;
    }
    let pid = next()?.parse().ok()?;
    (next()? == "root").then(|| (pid, parts.as_path().to_owned()))
}

/// The processes of root's with one of these names, oldest ID first. A process of another user may have any
/// name, so it is none of them; nor is one that has ended and waits for its parent.
pub fn named(names: &[&str]) -> Vec<Process> {
    // Few processes are meant, and the kernel makes these files when they are read: `comm` is cheap,
    // `stat` is not, and the node's own `stat` least of all.
    let process = |pid| {
        let status = proc::text(&format!("/proc/{pid}/status"))?;
        if !is_roots(&status) {
            return None;
        }
        let line = proc::text(&format!("/proc/{pid}/stat"))?;
        let (name, ticks) = name_and_start(&line).filter(|(name, _)| names.contains(name))?;
        let path = format!("/proc/{pid}/root/");
        progress::at(&[path.as_ref()]);
        let root = stat(path.as_str()).ok();
        Some(Process {
            pid,
            name: name.to_owned(),
            started: boot_time()? + (ticks + TICKS) / TICKS,
            root: root.map(|root| inode(&root)),
            is_admin: is_admin(&status),
        })
    };
    let Some((directory, pids)) = pids() else {
        return Vec::new();
    };
    let pids = pids.into_iter().filter(|pid| !is_kernels(*pid));
    let meant = pids.filter(|pid| has_name(&directory, *pid, names));
    meant.filter_map(process).collect()
}

/// What the kernel says of a process that runs as root.
#[derive(Debug)]
pub struct Inspected {
    /// Its ID.
    pub pid: u32,
    /// Readable once it has ended (pidfd_open(2)).
    pub pidfd: OwnedFd,
    /// Its root, held open: this directory whatever the process does from now on.
    pub root: Root,
    /// Whether its user namespace is this process' own.
    pub shares_user_namespace: bool,
    /// The base name of the file that it executes.
    pub executable: OsString,
    /// Whether root owns that file.
    pub executable_is_roots: bool,
    /// Whether it has `CAP_SYS_ADMIN`.
    pub is_admin: bool,
}

/// What came of looking at a process.
#[derive(Debug)]
pub enum Look {
    /// It runs as root.
    Seen(Box<Inspected>),
    /// It runs as root, and the kernel does not let this process look at it.
    Hidden(SyscallError),
    /// It has ended, or one of its four UIDs is not 0.
    NotRoots,
}

/// Looks at a process. Its root is opened first and everything else is asked afterwards, so that all of it was
/// true when the root was already held.
pub fn inspect(pid: u32) -> Look {
    let status = || proc::text(&format!("/proc/{pid}/status")).filter(|status| is_roots(status));
    if status().is_none() {
        return Look::NotRoots;
    }
    match facts(pid, status) {
        Ok(Some(seen)) => Look::Seen(Box::new(seen)),
        Ok(None) => Look::NotRoots,
        // Of one that ends in this moment the kernel answers EACCES, too.
        Err(_) if status().is_none() => Look::NotRoots,
        Err(error) => Look::Hidden(error),
    }
}

fn facts(pid: u32, status: impl Fn() -> Option<String>) -> super::Result<Option<Inspected>> {
    let pidfd = syscalls::pidfd_open(pid).context(|| format!("pidfd_open({pid})"))?;
    let path = format!("/proc/{pid}");
    // This directory is the process', and stays so when its number is another's.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let directory = open(path.as_str(), flags).context(|| format!("open({path}, O_PATH)"))?;
    let root = Root::open_at(&directory, "root", root_path(pid))?;
    let link = readlinkat(&directory, "exe").context(|| format!("readlink({path}/exe)"))?;
    let follow = AtFlags::empty();
    progress::at(&[path.as_ref(), "exe".as_ref()]);
    let executable = fstatat(&directory, "exe", follow).context(|| format!("stat({path}/exe)"))?;
    let its = namespace(&directory, &path)?;
    let own = open("/proc/self", flags).context(|| "open(/proc/self, O_PATH)".to_owned())?;
    let own = namespace(&own, "/proc/self")?;
    let Some(status) = status() else {
        return Ok(None);
    };
    Ok(Some(Inspected {
        pid,
        pidfd,
        root,
        shares_user_namespace: its == own,
        executable: base_name(&link),
        executable_is_roots: executable.st_uid == 0,
        is_admin: is_admin(&status),
    }))
}

/// The user namespace of a process; `None` where the kernel has none.
fn namespace(directory: &OwnedFd, path: &str) -> super::Result<Option<Inode>> {
    match fstatat(directory, "ns/user", AtFlags::empty()) {
        Ok(stat) => Ok(Some(inode(&stat))),
        // The process is there: its other links were read.
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno).context(|| format!("stat({path}/ns/user)")),
    }
}

/// The name of a file without its directories; of one that was removed or replaced since, its former name.
fn base_name(link: &OsStr) -> OsString {
    let link = link.as_bytes();
    let link = link.strip_suffix(b" (deleted)").unwrap_or(link);
    let name = link.rsplit(|byte| *byte == b'/').next();
    OsString::from_vec(name.unwrap_or_default().to_vec())
}

/// The rest of a line of /proc/PID/status.
fn line<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
}

/// Whether a process runs, and its real, effective, saved and file-system UID are 0.
fn is_roots(status: &str) -> bool {
    let ended =
        line(status, "State").is_none_or(|state| state.trim_start().starts_with(['Z', 'X']));
    let uids = line(status, "Uid").map(|uids| uids.split_whitespace().eq(["0"; 4]));
    !ended && uids == Some(true)
}

fn is_admin(status: &str) -> bool {
    let admin = Capability::CAP_SYS_ADMIN.bitmask();
    capabilities(status).is_some_and(|held| held & admin != 0)
}

/// The effective capabilities.
fn capabilities(status: &str) -> Option<u64> {
    u64::from_str_radix(line(status, "CapEff")?.trim(), 16).ok()
}

/// Threads of the kernel, most of what /proc shows on a quiet node, have no process group. To ask
/// for it costs a tenth of opening a file.
fn is_kernels(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().map(Pid::from_raw);
    getpgid(pid).is_ok_and(|group| group.as_raw() == 0)
}

fn has_name(directory: &OwnedFd, pid: u32, names: &[&str]) -> bool {
    /// Longer than any name and its newline.
    const ROOM: usize = 32;
    let path = format!("{pid}/comm");
    let Ok(file) = open_in(directory, path.as_str(), OFlag::O_RDONLY) else {
        return false;
    };
    let mut name = [0; ROOM];
    let length = retry(|| read(&file, &mut name)).unwrap_or(0);
    let name = name[..length].trim_ascii_end();
    names.iter().any(|want| want.as_bytes() == name)
}

/// The process IDs of QEMU processes whose credentials include `gid`; empty where none can be
/// seen. They are not disturbed by a change, they keep what they hold.
pub fn qemus_with_group(gid: Gid) -> Vec<u32> {
    let pids = pids().map(|(_, pids)| pids).unwrap_or_default();
    let carries = |pid: &u32| carries(*pid, gid).unwrap_or(false);
    pids.into_iter().filter(carries).collect()
}

/// The directory `/proc`, and the process IDs in it: of what cannot be listed to its end, what was listed.
fn pids() -> Option<(OwnedFd, Vec<u32>)> {
    let directory = open_directory(AT_FDCWD, "/proc").ok()?;
    let mut pids: Vec<u32> = Vec::new();
    let _ = entries(&directory, |name, _| {
        pids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        Ok(())
    });
    pids.sort_unstable();
    Some((directory, pids))
}

fn boot_time() -> Option<i64> {
    let stat = proc::text("/proc/stat")?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    boot.trim().parse().ok()
}

/// The process' name, and its start in ticks since boot (proc_pid_stat(5): the 22nd field).
fn name_and_start(stat: &str) -> Option<(&str, i64)> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    let ticks = rest.split_whitespace().nth(19)?.parse().ok()?;
    Some((name, ticks))
}

fn carries(pid: u32, gid: Gid) -> Option<bool> {
    let status = proc::text(&format!("/proc/{pid}/status"))?;
    let name = line(&status, "Name")?.trim();
    if !name.starts_with("qemu-") && name != "kvm" {
        return Some(false);
    }
    let wanted = gid.to_string();
    let has = |key| {
        let ids = line(&status, key).unwrap_or_default();
        ids.split_whitespace().any(|id| id == wanted)
    };
    Some(has("Gid") || has("Groups"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(name_and_start(stat), Some(("a) b (c)", 4242)));
        assert_eq!(name_and_start("7 (a"), None);
    }

    #[test]
    fn a_path_through_the_root_of_a_process_names_the_process() {
        let pid = |path: &str| pid_of_root(Path::new(path));
        let of = |pid: u32, rest: &str| Some((pid, PathBuf::from(rest)));
        assert_eq!(pid("/proc/12/root"), of(12, ""));
        assert_eq!(pid("//proc/./012//root/"), of(12, ""));
        assert_eq!(pid("/proc/12/root/a/../b"), of(12, "a/../b"));
        for other in [
            "/proc/12",
            "/proc/self/root",
            "proc/12/root",
            "/proc/12/cwd",
            "/",
        ] {
            assert_eq!(pid(other), None, "{other}");
        }
    }

    #[test]
    fn all_four_uids_count_and_what_has_ended_does_not() {
        let status = |state: &str, uids: &str| {
            format!("Name:\tx\nState:\t{state}\nUid:\t{uids}\nCapEff:\t0000000000200001\n")
        };
        let all = ["0\t0\t0\t0"; 1];
        assert!(is_roots(&status("S (sleeping)", all[0])));
        assert!(!is_roots(&status("Z (zombie)", all[0])));
        for uids in [
            "1\t0\t0\t0",
            "0\t1\t0\t0",
            "0\t0\t1\t0",
            "0\t0\t0\t1",
            "0 0 0",
            "",
        ] {
            assert!(!is_roots(&status("S (sleeping)", uids)), "{uids}");
        }
        assert!(!is_roots(""));
        assert_eq!(capabilities(&status("S", "")), Some(1 << 21 | 1));
        // A name cannot bring lines of its own: the kernel escapes the newline in it.
        assert!(!is_roots(
            "Name:\tUid:\t0\t0\t0\t0\nState:\tS\nUid:\t1\t1\t1\t1\n"
        ));
    }

    #[test]
    fn the_name_of_an_executable_survives_its_removal() {
        for (link, name) in [
            ("/usr/sbin/libvirtd", "libvirtd"),
            ("/usr/sbin/libvirtd (deleted)", "libvirtd"),
            ("/libvirtd/x", "x"),
            ("/", ""),
        ] {
            assert_eq!(base_name(OsStr::new(link)), name, "{link}");
        }
    }
}
