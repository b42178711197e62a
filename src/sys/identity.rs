//! Taking on the credentials of the QEMU user or of nobody, and making sure of it.

use caps::Capability;
use nix::errno::Errno;
use nix::unistd::{self, Gid, Uid};

#[cfg(feature = "logs")]
use super::progress;
use super::syscalls;

/// The credentials of a process that libvirt starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The one uid: real, effective and saved.
    pub uid: Uid,
    /// The one gid: real, effective and saved.
    pub gid: Gid,
    /// The supplementary groups, sorted, each once.
    pub groups: Vec<Gid>,
}

/// Which step of taking on other credentials failed, for the parent's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DropStep {
    /// setfsgid(2) for the proof, setresgid(2) for nobody.
    Gid = 1,
    /// setgroups(2)
    Groups,
    /// setfsuid(2) for the proof, setresuid(2) for nobody.
    Uid,
    /// capset(2)
    Capabilities,
    /// The calls succeeded and the kernel reports other credentials than were asked for.
    Verify,
}

/// An ID that is none: calls that set IDs take it for "unchanged".
const UNCHANGED: u32 = u32::MAX;

/// Takes on `who` for every access to files: the supplementary groups, the file-system GID, the
/// file-system UID, and then no capability unless `who` is root, which keeps them as a QEMU that libvirt
/// starts as root does. By these the kernel decides open(2) and stat(2) (credentials(7)).
///
/// The real, effective and saved IDs stay as they are, root's. By those the kernel decides who may
/// signal, trace, limit or renice a process (kill(2), ptrace(2), prlimit(2), setpriority(2),
/// sched_setaffinity(2)): no process of the user `who` may.
///
/// Meant for a forked child: it cannot be undone.
///
/// # Errors
/// The step that failed and its errno: `EPERM` without `CAP_SETGID` and `CAP_SETUID`, `EINVAL` for an ID
/// that this user namespace does not map, `EBADE` where a call succeeded and the kernel reports other
/// credentials than these.
pub fn open_as(who: &Credentials) -> Result<(), (DropStep, Errno)> {
    let at = |step| move |errno| (step, errno);
    let not_taken = (DropStep::Verify, Errno::EBADE);
    let before = (unistd::getresuid(), unistd::getresgid());
    // setfsgid(2) and setfsuid(2) report no error. Where one did not do it, the call for the saved ID alone
    // has the same conditions, and reports which one is not met.
    let (keep_gid, keep_uid) = (Gid::from_raw(UNCHANGED), Uid::from_raw(UNCHANGED));
    let gid_refused = || unistd::setresgid(keep_gid, keep_gid, who.gid);
    if let Err(errno) = unistd::setgroups(&who.groups) {
        // A user namespace can deny the call altogether (user_namespaces(7)): that the namespace does not
        // map the ID is the better reason.
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
    // Only now: to set the IDs takes capabilities. Root keeps them, as libvirt lets it (user = "root").
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

/// The file-system UID of this process: setfsuid(2) returns it, and with an ID that is none it changes
/// nothing.
fn file_uid() -> Uid {
    unistd::setfsuid(Uid::from_raw(UNCHANGED))
}

/// The same for setfsgid(2).
fn file_gid() -> Gid {
    unistd::setfsgid(Gid::from_raw(UNCHANGED))
}

/// Whether this process may do what owner, mode and ACL of a file do not let it (`CAP_DAC_OVERRIDE`).
pub fn has_dac_override() -> bool {
    let wanted = Capability::CAP_DAC_OVERRIDE.bitmask();
    syscalls::capabilities().is_ok_and(|held| held.effective & wanted != 0)
}

/// The identity of nobody: it owns nothing and is in no group that matters.
#[cfg(feature = "logs")]
const NOBODY: u32 = 65_534;

/// Gives up everything that this process may do but what its open descriptors allow: uid and gid
/// 65534, no other group, no capability, and no way to get any by executing a program. Without
/// root there is no identity to give up, and only the rest is done. It cannot be undone.
///
/// # Errors
/// The step that failed and its errno, as [`open_as`].
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
        // Other processes of nobody must not be able to trace this one.
        let _ = nix::sys::prctl::set_dumpable(false);
        let is_nobody = is(uid, gid) && has_groups(&[]);
        return is_nobody
            .then_some(())
            .ok_or((DropStep::Verify, Errno::EBADE));
    }
    Ok(())
}

/// Whether the real, effective and saved IDs are these.
#[cfg(feature = "logs")]
fn is(uid: Uid, gid: Gid) -> bool {
    let uids = unistd::getresuid();
    let gids = unistd::getresgid();
    uids.is_ok_and(|uids| [uids.real, uids.effective, uids.saved] == [uid; 3])
        && gids.is_ok_and(|gids| [gids.real, gids.effective, gids.saved] == [gid; 3])
}

/// Empties the effective, permitted, inheritable and ambient sets, and makes sure of it (`EBADE`). The
/// bounding set stays, as it does for a QEMU that libvirt starts; it does not matter to open(2).
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

/// Whether these are the supplementary groups.
fn has_groups(groups: &[Gid]) -> bool {
    let now = unistd::getgroups().map(normalised);
    now == Ok(normalised(groups.to_vec()))
}

/// Sorted and each once: the kernel sorts the list and keeps repeats.
pub fn normalised(mut groups: Vec<Gid>) -> Vec<Gid> {
    groups.sort_unstable_by_key(|gid| gid.as_raw());
    groups.dedup();
    groups
}
