//! Which running QEMUs still carry a group's old number.

use std::fs;

use nix::unistd::Gid;

/// The process IDs of QEMU processes whose credentials include `gid`, as far as `/proc` shows
/// them; empty where it shows none. They are not disturbed by a change, they keep what they hold.
pub fn qemus_with_group(gid: Gid) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| carries(*pid, gid).unwrap_or(false))
        .collect();
    found.sort_unstable();
    found
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
