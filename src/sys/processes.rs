//! Inspects other processes through `/proc`; they are never changed.
//!
//! A process can choose its name (prctl(2)) and, in user and mount namespaces of its own, the content of its root
//! (user_namespaces(7)). Only facts that it cannot choose are trusted: its UIDs, its user namespace, its executable and
//! the owner of that file, and its capabilities.

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

/// Clock ticks per second in /proc (`USER_HZ`), the same on every architecture that runs KVM.
const TICKS: i64 = 100;

/// A process that runs as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// At most 15 bytes (`comm`).
    pub name: String,
    /// Latest possible start, in seconds since 1970: /proc rounds down both the time of the boot and the time from
    /// there to the start.
    pub started: i64,
    /// The inode of its root, if that can be read.
    pub root: Option<Inode>,
    /// Whether it has `CAP_SYS_ADMIN`, which an ordinary container lacks.
    pub is_admin: bool,
}

impl Process {
    pub fn root_path(&self) -> PathBuf {
        root_path(self.pid)
    }
}

fn root_path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root"))
}

/// Splits a path that begins with `/proc/PID/root` into the PID and the rest of the path.
pub fn pid_of_root(path: &Path) -> Option<(u32, PathBuf)> {
    let mut parts = path.components();
    let mut next = || parts.next()?.as_os_str().to_str();
    if next()? != "/" || next()? != "proc" {
        return None;
    }
    let pid = next()?.parse().ok()?;
    (next()? == "root").then(|| (pid, parts.as_path().to_owned()))
}

/// The processes with one of these names that run as root, sorted by PID. Processes of other users are excluded,
/// because they can choose their names freely, and so are zombies.
pub fn named(names: &[&str]) -> Vec<Process> {
    // Few processes match, and the kernel generates these files at each read: reading `comm` is cheap, reading `stat`
    // is not, and reading /proc/stat is the most expensive.
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
    let matching = pids.filter(|pid| has_name(&directory, *pid, names));
    matching.filter_map(process).collect()
}

/// Facts about a process that runs as root.
#[derive(Debug)]
pub struct Inspected {
    pub pid: u32,
    /// Becomes readable when the process ends (pidfd_open(2)).
    pub pidfd: OwnedFd,
    /// Its root, held open: it stays this directory even if the process changes its root.
    pub root: Root,
    /// Whether it is in the same user namespace as this process.
    pub shares_user_namespace: bool,
    /// The base name of its executable.
    pub executable: OsString,
    /// Whether root owns the executable.
    pub executable_is_roots: bool,
    pub is_admin: bool,
}

/// Result of [`inspect`].
#[derive(Debug)]
pub enum Look {
    /// The process runs as root.
    Seen(Box<Inspected>),
    /// The process runs as root, but the kernel does not let this process inspect it.
    Hidden(SyscallError),
    /// The process has ended, or one of its four UIDs is not 0.
    NotRoots,
}

/// Inspects a process. Its root is opened first and all else is read afterwards, so that every fact holds while the
/// root is already open.
pub fn inspect(pid: u32) -> Look {
    let status = || proc::text(&format!("/proc/{pid}/status")).filter(|status| is_roots(status));
    if status().is_none() {
        return Look::NotRoots;
    }
    match facts(pid, status) {
        Ok(Some(seen)) => Look::Seen(Box::new(seen)),
        Ok(None) => Look::NotRoots,
        // For a process that has just ended the kernel also returns EACCES.
        Err(_) if status().is_none() => Look::NotRoots,
        Err(error) => Look::Hidden(error),
    }
}

fn facts(pid: u32, status: impl Fn() -> Option<String>) -> super::Result<Option<Inspected>> {
    let pidfd = syscalls::pidfd_open(pid).context(|| format!("pidfd_open({pid})"))?;
    let path = format!("/proc/{pid}");
    // This directory stays that of the process, even if its PID is reused.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let directory = open(path.as_str(), flags).context(|| format!("open({path}, O_PATH)"))?;
    let root = Root::open_at(&directory, "root", root_path(pid))?;
    let link = readlinkat(&directory, "exe").context(|| format!("readlink({path}/exe)"))?;
    let follow = AtFlags::empty();
    progress::at(&[path.as_ref(), "exe".as_ref()]);
    let executable = fstatat(&directory, "exe", follow).context(|| format!("stat({path}/exe)"))?;
    let its_namespace = namespace(&directory, &path)?;
    let this = open("/proc/self", flags).context(|| "open(/proc/self, O_PATH)".to_owned())?;
    let this_namespace = namespace(&this, "/proc/self")?;
    let Some(status) = status() else {
        return Ok(None);
    };
    Ok(Some(Inspected {
        pid,
        pidfd,
        root,
        shares_user_namespace: its_namespace == this_namespace,
        executable: base_name(&link),
        executable_is_roots: executable.st_uid == 0,
        is_admin: is_admin(&status),
    }))
}

/// The user namespace of a process; `None` if the kernel does not support user namespaces.
fn namespace(directory: &OwnedFd, path: &str) -> super::Result<Option<Inode>> {
    match fstatat(directory, "ns/user", AtFlags::empty()) {
        Ok(stat) => Ok(Some(inode(&stat))),
        // The process exists, because its other links were read.
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno).context(|| format!("stat({path}/ns/user)")),
    }
}

/// The base name in the `exe` link of a process; of a file that was removed or replaced, its former name.
fn base_name(link: &OsStr) -> OsString {
    let link = link.as_bytes();
    let link = link.strip_suffix(b" (deleted)").unwrap_or(link);
    let name = link.rsplit(|byte| *byte == b'/').next();
    OsString::from_vec(name.unwrap_or_default().to_vec())
}

/// The value of `key` in /proc/PID/status.
fn line<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
}

/// Whether a process runs, and its real, effective, saved and file-system UIDs are all 0.
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

/// Whether this is a kernel thread. Most entries of /proc on a quiet node are kernel threads, and these have no process
/// group: getpgid(2) costs a tenth of opening a file.
fn is_kernels(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().map(Pid::from_raw);
    getpgid(pid).is_ok_and(|group| group.as_raw() == 0)
}

fn has_name(directory: &OwnedFd, pid: u32, names: &[&str]) -> bool {
    /// Larger than any name with its newline.
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

/// The PIDs of the visible QEMU processes with this GID in their credentials. A change of the device does not affect
/// them: they keep their open descriptors.
pub fn qemus_with_group(gid: Gid) -> Vec<u32> {
    let pids = pids().map(|(_, pids)| pids).unwrap_or_default();
    let qemu_has = |pid: &u32| is_qemu_with_group(*pid, gid).unwrap_or(false);
    pids.into_iter().filter(qemu_has).collect()
}

/// The directory `/proc` and the PIDs in it. If the listing fails, the entries before the failure are used.
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

/// The name of the process, and its start in ticks since boot (proc_pid_stat(5): the 22nd field).
fn name_and_start(stat: &str) -> Option<(&str, i64)> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    let ticks = rest.split_whitespace().nth(19)?.parse().ok()?;
    Some((name, ticks))
}

fn is_qemu_with_group(pid: u32, gid: Gid) -> Option<bool> {
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
    fn a_process_name_may_contain_parentheses_and_spaces() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(name_and_start(stat), Some(("a) b (c)", 4242)));
        assert_eq!(name_and_start("7 (a"), None);
    }

    #[test]
    fn the_pid_is_taken_from_a_path_through_a_process_root() {
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
    fn only_a_running_process_with_four_zero_uids_is_roots() {
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
        // A name cannot add lines: the kernel escapes a newline in it.
        assert!(!is_roots(
            "Name:\tUid:\t0\t0\t0\t0\nState:\tS\nUid:\t1\t1\t1\t1\n"
        ));
    }

    #[test]
    fn a_removed_executable_keeps_its_base_name() {
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
