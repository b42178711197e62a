//! Becoming the QEMU user, and making sure of it.

use caps::Capability;
use nix::errno::Errno;
use nix::unistd::{self, Gid, Uid};

use super::raw;

/// A process' credentials as the kernel reports them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The one uid: real, effective and saved.
    pub uid: Uid,
    /// The one gid: real, effective and saved.
    pub gid: Gid,
    /// The supplementary groups, sorted, each once.
    pub groups: Vec<Gid>,
}

/// Which step of becoming somebody else failed, for the parent's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Drop {
    /// setresgid(2)
    Gid = 1,
    /// setgroups(2)
    Groups,
    /// setresuid(2)
    Uid,
    /// capset(2)
    Capabilities,
    /// The calls succeeded and the kernel reports other credentials than were asked for.
    Verify,
}

/// Gives up this process' identity for `who`, in the order and with the outcome of libvirt
/// (`virSetUIDGIDWithCaps`): gid, groups, uid, and no capability unless `who` is root.
///
/// Meant for a forked child: it cannot be undone.
///
/// # Errors
/// The step that failed and its errno: `EPERM` without `CAP_SETGID` and `CAP_SETUID`, `EINVAL` for
/// an ID that this user namespace does not map. setresuid(2) with 4294967295 succeeds and changes
/// nothing, hence the last step, which asks the kernel what became of it (`EBADE`).
pub fn become_user(who: &Credentials) -> Result<(), (Drop, Errno)> {
    let at = |step| move |errno| (step, errno);
    unistd::setresgid(who.gid, who.gid, who.gid).map_err(at(Drop::Gid))?;
    unistd::setgroups(&who.groups).map_err(at(Drop::Groups))?;
    unistd::setresuid(who.uid, who.uid, who.uid).map_err(at(Drop::Uid))?;
    // Root keeps its capabilities, as libvirt lets it (user = "root").
    if !who.uid.is_root() {
        drop_capabilities().map_err(at(Drop::Capabilities))?;
    }
    // Other processes of this user must not be able to trace the one that will judge.
    let _ = nix::sys::prctl::set_dumpable(false);
    verify(who).ok_or((Drop::Verify, Errno::EBADE))
}

/// Whether this process may do what owner, mode and ACL of a file do not let it (`CAP_DAC_OVERRIDE`).
pub fn overrides_rights() -> bool {
    let wanted = Capability::CAP_DAC_OVERRIDE.bitmask();
    raw::capabilities().is_ok_and(|held| held.effective & wanted != 0)
}

/// The identity of nobody: it owns nothing and is in no group that matters.
#[cfg(feature = "logs")]
const NOBODY: u32 = 65_534;

/// Gives up everything that this process may do but what its open descriptors allow: uid and gid
/// 65534, no other group, no capability, and no way to get any by executing a program. Without
/// root there is no identity to give up, and only the rest is done. It cannot be undone.
///
/// # Errors
/// As [`become_user`].
#[cfg(feature = "logs")]
pub fn become_nobody() -> Result<(), (Drop, Errno)> {
    let _ = nix::sys::prctl::set_no_new_privs();
    if unistd::geteuid().is_root() {
        return become_user(&Credentials {
            uid: Uid::from_raw(NOBODY),
            gid: Gid::from_raw(NOBODY),
            groups: Vec::new(),
        });
    }
    drop_capabilities().map_err(|errno| (Drop::Capabilities, errno))
}

/// Empties the effective, permitted, inheritable and ambient sets, and makes sure of it (`EBADE`). The
/// bounding set stays, as it does for a QEMU that libvirt starts; it does not matter to open(2).
fn drop_capabilities() -> Result<(), Errno> {
    let none = raw::Capabilities::default();
    if raw::capabilities()? != none {
        raw::set_capabilities(none)?;
        if raw::capabilities()? != none {
            return Err(Errno::EBADE);
        }
    }
    Ok(())
}

fn verify(who: &Credentials) -> Option<()> {
    let uids = unistd::getresuid().ok()?;
    let gids = unistd::getresgid().ok()?;
    let groups = normalised(unistd::getgroups().ok()?);
    let same = [uids.real, uids.effective, uids.saved] == [who.uid; 3]
        && [gids.real, gids.effective, gids.saved] == [who.gid; 3]
        && groups == normalised(who.groups.clone());
    same.then_some(())
}

/// Sorted and each once: the kernel sorts the list and keeps repeats.
pub fn normalised(mut groups: Vec<Gid>) -> Vec<Gid> {
    groups.sort_unstable_by_key(|gid| gid.as_raw());
    groups.dedup();
    groups
}
