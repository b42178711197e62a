//! The device file: located once, checked, and changed only through the descriptor that was checked.
//!
//! An `O_PATH|O_NOFOLLOW` descriptor does not open the driver and cannot be swapped for another file afterwards.
//! fchown(2), fchmod(2) and fgetxattr(2) refuse such a descriptor with `EBADF`, so owners go through fchownat(2) with
//! `AT_EMPTY_PATH`, modes through fchmodat2(2) or, before Linux 6.6, like the ACL, through `/proc/self/fd`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, major, minor};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{Gid, Uid, fchownat};

use super::handle::{FileHandle, inode, kind};
use super::{Context, Inode, Result, open, retry, syscalls};
use crate::formats::posix_acl::{self, Acl};

/// The attributes of the file at the device's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceStat {
    pub kind: SFlag,
    /// 0 if the file is not a device.
    pub major: u64,
    /// 0 if the file is not a device.
    pub minor: u64,
    pub uid: Uid,
    pub gid: Gid,
    /// Permission bits.
    pub mode: u16,
    /// The inode of the device file (not `st_rdev`).
    pub inode: Inode,
    /// Seconds and nanoseconds. A chown(2) or chmod(2) updates it even if it changes nothing.
    pub ctime: (i64, i64),
}

impl From<nix::sys::stat::FileStat> for DeviceStat {
    fn from(stat: nix::sys::stat::FileStat) -> Self {
        let kind = kind(&stat);
        let is_device = kind == SFlag::S_IFCHR || kind == SFlag::S_IFBLK;
        let number = if is_device { stat.st_rdev } else { 0 };
        Self {
            kind,
            major: major(number),
            minor: minor(number),
            uid: Uid::from_raw(stat.st_uid),
            gid: Gid::from_raw(stat.st_gid),
            mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
            inode: inode(&stat),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

impl DeviceStat {
    /// Whether the file is the character device 10:232.
    pub fn is_kvm(&self) -> bool {
        self.kind == SFlag::S_IFCHR
            && (self.major, self.minor) == (super::kvm::MAJOR, super::kvm::MINOR)
    }
}

/// An `O_PATH` descriptor of a device file.
#[derive(Debug)]
pub struct Device {
    found: FileHandle,
    path: PathBuf,
}

impl Device {
    /// Locates the file at `path`, a link at its end not followed; `None` if it does not exist.
    pub fn find(path: &Path) -> Result<Option<Self>> {
        let fd = match open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            fd => fd.context(|| format!("open({}, O_PATH|O_NOFOLLOW)", path.display()))?,
        };
        let found = FileHandle::new(fd).context(|| format!("fstat({})", path.display()))?;
        let path = path.to_owned();
        Ok(Some(Self { found, path }))
    }

    /// The attributes of the file when it was located.
    pub fn facts(&self) -> DeviceStat {
        self.found.stat.into()
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.found.fd
    }

    /// The access ACL; `None` if the device has none or the file system does not support ACLs.
    ///
    /// # Errors
    /// `EINVAL` for an ACL of unknown format.
    pub fn acl(&self) -> Result<Option<Acl>> {
        let call = || format!("getxattr({}, system.posix_acl_access)", self.path.display());
        let Some(bytes) =
            syscalls::getxattr(&syscalls::proc_path(&self.found.fd), posix_acl::XATTR)
                .context(call)?
        else {
            return Ok(None);
        };
        let acl = Acl::parse(&bytes).ok_or(Errno::EINVAL);
        acl.map(Some).context(call)
    }

    /// Whether the device is on a `nodev` mount, where every open fails with `EACCES`.
    pub fn on_nodev_mount(&self) -> Result<bool> {
        let call = || format!("fstatfs({})", self.path.display());
        let mount = retry(|| fstatvfs(&self.found.fd)).context(call)?;
        Ok(mount.flags().contains(FsFlags::ST_NODEV))
    }

    /// Sets the owner and group of this inode.
    ///
    /// # Errors
    /// `EROFS` on a read-only mount, `EPERM` without `CAP_CHOWN`, `EINVAL` for an ID that this user namespace does not
    /// map.
    pub fn set_owner(&self, uid: Uid, gid: Gid) -> Result<()> {
        let (fd, flags) = (self.fd(), AtFlags::AT_EMPTY_PATH);
        retry(|| fchownat(fd, "", Some(uid), Some(gid), flags))
            .context(|| format!("fchownat({}, {uid}, {gid})", self.path.display()))
    }

    /// Sets the permission bits of this inode.
    pub fn set_mode(&self, mode: u16) -> Result<()> {
        let bits = Mode::from_bits_truncate(mode.into());
        let done = match syscalls::fchmodat2(self.found.fd.as_fd(), bits.bits()) {
            // Linux before 6.6, or a seccomp filter that does not allow the call.
            Err(Errno::ENOSYS | Errno::EPERM) => self.chmod_by_proc(bits),
            done => done,
        };
        done.context(|| format!("fchmodat({}, {mode:04o})", self.path.display()))
    }

    fn chmod_by_proc(&self, mode: Mode) -> nix::Result<()> {
        let path = syscalls::proc_path(&self.found.fd);
        let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
        retry(|| nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, path.as_c_str(), mode, follow))
    }

    /// Sets the ACL of this inode, and with it the mode, in one step.
    pub fn set_acl(&self, acl: &Acl) -> Result<()> {
        let path = syscalls::proc_path(&self.found.fd);
        syscalls::setxattr(&path, posix_acl::XATTR, &acl.to_bytes())
            .context(|| format!("setxattr({}, posix_acl_access, {acl})", self.path.display()))
    }

    /// Opens this inode for reading and writing with the credentials of this process, to test whether it has a driver.
    ///
    /// # Errors
    /// `ENODEV` or `ENXIO` without a driver.
    pub fn try_open(&self) -> Result<()> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        let opened = self.found.open(flags).map(drop);
        opened.context(|| format!("open({}, O_RDWR)", self.path.display()))
    }
}
