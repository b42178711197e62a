//! Switches to the credentials of the QEMU user or of `nobody`, and verifies the result.

use caps::Capability;
use nix::errno::Errno;
use nix::unistd::{self, Gid, Uid};

#[cfg(feature = "logs")]
use super::progress;
use super::syscalls;

/// The credentials of a process that libvirt starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Real, effective and saved UID.
    pub uid: Uid,
    /// Real, effective and saved GID.
    pub gid: Gid,
    /// The supplementary groups, sorted and without duplicates.
    pub groups: Vec<Gid>,
}

/// The step of a change of credentials that failed, for the parent's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DropStep {
    /// setfsgid(2) for the proof, setresgid(2) for `nobody`.
    Gid = 1,
    /// setgroups(2)
    Groups,
    /// setfsuid(2) for the proof, setresuid(2) for `nobody`.
    Uid,
    /// capset(2)
    Capabilities,
    /// All calls succeeded, but the kernel reports other credentials than were requested.
    Verify,
}

/// The invalid ID -1, which calls that set IDs interpret as "unchanged".
const UNCHANGED: u32 = u32::MAX;

/// Switches to the credentials `who` for all file access: supplementary groups, file-system GID, file-system UID, and
/// then no capabilities, unless `who` is root: a QEMU that libvirt starts as root keeps them too. The kernel uses these
/// credentials for open(2) and stat(2) (credentials(7)).
///
/// The real, effective and saved IDs remain those of root. The kernel uses them to decide who can signal, trace, limit
/// or renice a process (kill(2), ptrace(2), prlimit(2), setpriority(2), sched_setaffinity(2)), so no process of the
/// user `who` can.
///
/// Only for a forked child, because it cannot be undone.
///
/// # Errors
/// The step that failed and its errno: `EPERM` without `CAP_SETGID` and `CAP_SETUID`, `EINVAL` for an ID that this user
/// namespace does not map, `EBADE` if all calls succeeded and the kernel reports other credentials.
pub fn open_as(who: &Credentials) -> Result<(), (DropStep, Errno)> {
    let at = |step| move |errno| (step, errno);
    let not_taken = (DropStep::Verify, Errno::EBADE);
    let before = (unistd::getresuid(), unistd::getresgid());
    // setfsgid(2) and setfsuid(2) report no error. If one had no effect, setting only the saved ID, which has the same
    // conditions, returns the errno.
    let (keep_gid, keep_uid) = (Gid::from_raw(UNCHANGED), Uid::from_raw(UNCHANGED));
    let gid_refused = || unistd::setresgid(keep_gid, keep_gid, who.gid);
    if let Err(errno) = unistd::setgroups(&who.groups) {
        // A user namespace can deny setgroups(2) altogether (user_namespaces(7)). An ID that the namespace does not map
        // is the more useful reason.
        return Err(match gid_refused() {
            Err(Errno::EINVAL) => (DropStep::Gid, Errno::EINVAL),
            _ => (DropStep::Groups, errno),
        });
    }
    unistd::setfsgid(who.gid);
    if file_gid() != who.gid {
        gid_refused().map_err(at(DropStep::Gid))?;
        return Err(not_taken);
    }
    unistd::setfsuid(who.uid);
    if file_uid() != who.uid {
        unistd::setresuid(keep_uid, keep_uid, who.uid).map_err(at(DropStep::Uid))?;
        return Err(not_taken);
    }
    // Last, because setting the IDs needs capabilities. Root keeps them, as with libvirt (user = "root").
    if !who.uid.is_root() {
        drop_capabilities().map_err(at(DropStep::Capabilities))?;
    }
    let _ = nix::sys::prctl::set_dumpable(false);
    let after = (unistd::getresuid(), unistd::getresgid());
    let same = before.0.is_ok()
        && before.1.is_ok()
        && after == before
        && (file_uid(), file_gid()) == (who.uid, who.gid)
        && has_groups(&who.groups);
    same.then_some(()).ok_or(not_taken)
}

/// The file-system UID of this process, which setfsuid(2) returns without changing it when called with an invalid ID.
fn file_uid() -> Uid {
    unistd::setfsuid(Uid::from_raw(UNCHANGED))
}

/// The file-system GID of this process, likewise by setfsgid(2).
fn file_gid() -> Gid {
    unistd::setfsgid(Gid::from_raw(UNCHANGED))
}

/// Whether this process has `CAP_DAC_OVERRIDE`, which bypasses owner, mode and ACL of a file.
pub fn has_dac_override() -> bool {
    let wanted = Capability::CAP_DAC_OVERRIDE.bitmask();
    syscalls::capabilities().is_ok_and(|held| held.effective & wanted != 0)
}

/// UID and GID of `nobody`, which owns no files.
#[cfg(feature = "logs")]
const NOBODY: u32 = 65_534;

/// Drops all privileges, so that this process can only use its open descriptors: UID and GID 65534, no other group, no
/// capability, and no way to gain any by executing a program. A process that does not run as root keeps its IDs. It
/// cannot be undone.
///
/// # Errors
/// As [`open_as`].
#[cfg(feature = "logs")]
pub fn become_nobody() -> Result<(), (DropStep, Errno)> {
    let at = |step| move |errno| (step, errno);
    let _ = nix::sys::prctl::set_no_new_privs();
    let is_root = unistd::geteuid().is_root();
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    if is_root {
        unistd::setresgid(gid, gid, gid).map_err(at(DropStep::Gid))?;
        unistd::setgroups(&[]).map_err(at(DropStep::Groups))?;
        unistd::setresuid(uid, uid, uid).map_err(at(DropStep::Uid))?;
        progress::change_user();
    }
    drop_capabilities().map_err(at(DropStep::Capabilities))?;
    if is_root {
        // Other processes that run as `nobody` must not be able to trace this one.
        let _ = nix::sys::prctl::set_dumpable(false);
        let is_nobody = is(uid, gid) && has_groups(&[]);
        return is_nobody
            .then_some(())
            .ok_or((DropStep::Verify, Errno::EBADE));
    }
    Ok(())
}

/// Whether all real, effective and saved IDs are these.
#[cfg(feature = "logs")]
fn is(uid: Uid, gid: Gid) -> bool {
    let uids = unistd::getresuid();
    let gids = unistd::getresgid();
    uids.is_ok_and(|uids| [uids.real, uids.effective, uids.saved] == [uid; 3])
        && gids.is_ok_and(|gids| [gids.real, gids.effective, gids.saved] == [gid; 3])
}

/// Empties the effective, permitted, inheritable and ambient sets, and verifies that (`EBADE`). The bounding set
/// remains, as for a QEMU that libvirt starts; it has no effect on open(2).
fn drop_capabilities() -> Result<(), Errno> {
    let none = syscalls::Capabilities::default();
    if syscalls::capabilities()? != none {
        syscalls::set_capabilities(none)?;
        if syscalls::capabilities()? != none {
            return Err(Errno::EBADE);
        }
    }
    Ok(())
}

/// Whether the supplementary groups of this process are exactly these.
fn has_groups(groups: &[Gid]) -> bool {
    let now = unistd::getgroups().map(normalised);
    now == Ok(normalised(groups.to_vec()))
}

/// Sorts a list of groups and removes duplicates: the kernel sorts it and keeps duplicates.
pub fn normalised(mut groups: Vec<Gid>) -> Vec<Gid> {
    groups.sort_unstable_by_key(|gid| gid.as_raw());
    groups.dedup();
    groups
}
