//! Other processes, as far as `/proc` shows them. They are only looked at.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::unistd::Gid;

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
    pub root: Option<(u64, u64)>,
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
        has_name(pid, names)?;
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        let (name, ticks) = name_and_start(&stat).filter(|(name, _)| names.contains(name))?;
        let root = fs::metadata(format!("/proc/{pid}/root/")).ok();
        Some(Process {
            pid,
            name: name.to_owned(),
            started: boot_time()? + (ticks + TICKS) / TICKS,
            root: root.map(|root| (root.dev(), root.ino())),
        })
    };
    pids().into_iter().filter_map(process).collect()
}

fn has_name(pid: u32, names: &[&str]) -> Option<()> {
    /// Longer than any name and its newline.
    const ROOM: usize = 32;
    let mut name = [0; ROOM];
    let mut file = fs::File::open(format!("/proc/{pid}/comm")).ok()?;
    let length = file.read(&mut name).ok()?;
    let name = name[..length].trim_ascii_end();
    names
        .iter()
        .any(|want| want.as_bytes() == name)
        .then_some(())
}

/// The process IDs of QEMU processes whose credentials include `gid`; empty where none can be
/// seen. They are not disturbed by a change, they keep what they hold.
pub fn qemus_with_group(gid: Gid) -> Vec<u32> {
    let pids = pids().into_iter();
    pids.filter(|pid| carries(*pid, gid).unwrap_or(false))
        .collect()
}

fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut pids: Vec<u32> = names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

fn boot_time() -> Option<i64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
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
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
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
