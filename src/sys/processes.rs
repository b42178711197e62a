//! Other processes, as far as `/proc` shows them. They are only looked at.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, stat};
use nix::unistd::{Gid, Pid, getpgid, read};

use super::entries::entries;
use super::{Inode, open, proc, retry};

/// Parts of a second that /proc counts in, the same on every architecture that runs KVM.
const TICKS: i64 = 100;

/// A process.
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
}

impl Process {
    /// Where its root is seen.
    pub fn root_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }
}

/// The processes with one of these names, oldest ID first.
pub fn named(names: &[&str]) -> Vec<Process> {
    // Few processes are meant, and the kernel makes these files when they are read: `comm` is cheap,
    // `stat` is not, and the node's own `stat` least of all.
    let process = |pid| {
        let line = proc::text(&format!("/proc/{pid}/stat"))?;
        let (name, ticks) = name_and_start(&line).filter(|(name, _)| names.contains(name))?;
        let root = stat(format!("/proc/{pid}/root/").as_str()).ok();
        Some(Process {
            pid,
            name: name.to_owned(),
            started: boot_time()? + (ticks + TICKS) / TICKS,
            root: root.map(|root| (root.st_dev, root.st_ino)),
        })
    };
    let Some((folder, pids)) = pids() else {
        return Vec::new();
    };
    let pids = pids.into_iter().filter(|pid| !is_kernels(*pid));
    let meant = pids.filter(|pid| has_name(&folder, *pid, names));
    meant.filter_map(process).collect()
}

/// Threads of the kernel, most of what /proc shows on a quiet node, have no process group. To ask
/// for it costs a tenth of opening a file.
fn is_kernels(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().map(Pid::from_raw);
    getpgid(pid).is_ok_and(|group| group.as_raw() == 0)
}

fn has_name(folder: &OwnedFd, pid: u32, names: &[&str]) -> bool {
    /// Longer than any name and its newline.
    const ROOM: usize = 32;
    let path = format!("{pid}/comm");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let Ok(file) = retry(|| openat(folder, path.as_str(), flags, Mode::empty())) else {
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

/// The folder `/proc`, and the process IDs in it.
fn pids() -> Option<(OwnedFd, Vec<u32>)> {
    let folder = open("/proc", OFlag::O_RDONLY | OFlag::O_DIRECTORY).ok()?;
    let mut pids = Vec::new();
    // Of what cannot be listed to its end, what was listed.
    let _ = entries(folder.as_fd(), |name, _| {
        pids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        Ok(())
    });
    pids.sort_unstable();
    Some((folder, pids))
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
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    let name = line("Name:")?.trim();
    if !name.starts_with("qemu-") && name != "kvm" {
        return Some(false);
    }
    let wanted = gid.to_string();
    let has =
        |key| line(key).is_some_and(|ids: &str| ids.split_whitespace().any(|id| id == wanted));
    Some(has("Gid:") || has("Groups:"))
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
}
