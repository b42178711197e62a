//! Creates a new file, and gives it its final name by rename(2) once it is complete.

use std::ffi::CStr;
use std::fs::File;
#[cfg(feature = "watch")]
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, fsync, linkat, unlinkat};

use super::{FileHandle, LockFile, LockedDir, OwnerAndMode, TRIES};
use crate::sys::handle::{entries, inode, open_directory};
use crate::sys::{Context, Inode, Result, SyscallError, errno_of, open, retry, syscalls};

/// Suffix of the temporary name of a new file.
const UNFINISHED: &str = "libvirt-kvm-init";

/// The temporary name of a new file, which is removed unless the file is renamed to its final name. `None` for a file
/// that was created without a name (`O_TMPFILE`).
struct NewName<'a> {
    name: Option<String>,
    directory: &'a LockedDir,
}

impl Drop for NewName<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            let _ = unlinkat(
                &self.directory.fd,
                name.as_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
    }
}

impl LockedDir {
    /// Removes temporary files that killed runs left for `name`; errors are ignored. `found` is the current file:
    /// temporary files that belong to its owner are removed too.
    pub fn clear(&self, name: &str, found: Option<&FileHandle>) {
        let owner = found.map(|found| found.stat.st_uid);
        for left in self.left_beside(name) {
            let is_ours = FileHandle::at(&self.fd, left.as_str()).is_ok_and(|left| {
                let is_ours = !left.is_foreign() || Some(left.stat.st_uid) == owner;
                left.kind() == SFlag::S_IFREG && is_ours
            });
            if is_ours {
                let _ = unlinkat(&self.fd, left.as_str(), UnlinkatFlags::NoRemoveDir);
            }
        }
    }

    /// Whether a killed run has left a temporary file or a lock file in the directory.
    pub fn has_leftovers(&self, name: &str) -> bool {
        let lock = LockFile::Own.name();
        !self.left_beside(name).is_empty() || matches!(self.inode_at(lock), Ok(Some(_)))
    }

    fn left_beside(&self, name: &str) -> Vec<String> {
        /// Limit on the entries that are read.
        const MANY: usize = 10_000;
        let (mut left, mut count) = (Vec::new(), 0);
        // If the listing fails, the entries before the failure are used.
        let _ = open_directory(&self.fd, c".").and_then(|directory| {
            entries(directory, |entry, _| {
                count += 1;
                let entry = entry.to_str().filter(|entry| is_temporary(entry, name));
                left.extend(entry.map(str::to_owned));
                (count < MANY).then_some(()).ok_or(Errno::E2BIG)
            })
        });
        left
    }

    /// Replaces the file `found` at `name` by a new, complete and synced file. A rename is durable once the directory
    /// is synced (fsync(2)). Finally checks that `name` is the file that was written; otherwise another process
    /// replaced it.
    pub(super) fn write_new(
        &self,
        name: &str,
        found: Option<&FileHandle>,
        rights: OwnerAndMode,
        fill: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<()> {
        self.clear(name, found);
        let call = |what: &str| self.call_on_new(what, name);
        let (mut file, mut new) = self.create(name)?;
        fill(&mut file).context(|| call("write"))?;
        let like = found.filter(|_| matches!(rights, OwnerAndMode::Kept));
        let (uid, gid, mode) = match (like, rights) {
            (Some(found), _) => found.rights(),
            (None, OwnerAndMode::Root(mode)) => (0, 0, mode.into()),
            (None, OwnerAndMode::Kept) => (0, 0, 0o644),
        };
        set_owner_and_mode(&file, uid, gid, mode).context(|| call("fchown, fchmod"))?;
        if let Some(old) = like {
            copy_attributes(&old.fd, &file).context(|| call("setxattr"))?;
        }
        file.sync_all().context(|| call("fsync"))?;

        let expected = match found {
            Some(old) if old.kind() == SFlag::S_IFDIR => {
                self.put_aside(name, old)?;
                None
            }
            found => found.map(FileHandle::inode),
        };
        self.link(name, &file, &mut new)?;
        let path = syscalls::proc_path(&file);
        let call = || format!("open(the new {}, O_PATH)", self.path.join(name).display());
        let written = open(path.as_c_str(), OFlag::O_PATH).context(call)?;
        // Close the file before the rename: a program that is open for writing cannot be executed (`ETXTBSY`).
        drop(file);
        self.rename(name, expected, &mut new)?;
        retry(|| fsync(&self.fd)).context(|| format!("fsync({})", self.path.display()))?;
        let written = fstat(&written).context(|| self.call("fstat", name))?;
        match self.inode_at(name)? == Some(inode(&written)) {
            true => Ok(()),
            false => Err(self.another_file(name)),
        }
    }

    /// Describes a call on the new file that will replace `name`.
    fn call_on_new(&self, what: &str, name: &str) -> String {
        format!("{what}(the new {})", self.path.join(name).display())
    }

    fn create(&self, name: &str) -> Result<(File, NewName<'_>)> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let made = match retry(|| openat(&self.fd, c".", flags | OFlag::O_TMPFILE, mode)) {
            // The file system or the kernel has no O_TMPFILE (open(2)).
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => None,
            made => Some(made.context(|| format!("openat({}, O_TMPFILE)", self.path.display()))?),
        };
        let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        let (fd, name) = match made {
            Some(fd) => (fd, None),
            None => {
                let make = |name: &str| openat(&self.fd, name, flags, mode);
                let (fd, name) = self.with_new_name(name, "openat", make)?;
                (fd, Some(name))
            }
        };
        let directory = self;
        Ok((fd.into(), NewName { name, directory }))
    }

    /// Calls `make` with random, unpredictable names until one is free.
    fn with_new_name<T>(
        &self,
        name: &str,
        call: &str,
        mut make: impl FnMut(&str) -> nix::Result<T>,
    ) -> Result<(T, String)> {
        let mut tries = 1;
        loop {
            let new = temporary(name).context(|| "getrandom()".to_owned())?;
            match retry(|| make(&new)) {
                Err(Errno::EEXIST) if tries < TRIES => tries += 1,
                made => return Ok((made.context(|| self.call(call, &new))?, new)),
            }
        }
    }

    /// Gives a file without a name (`O_TMPFILE`) a temporary name.
    fn link(&self, name: &str, file: &File, new: &mut NewName<'_>) -> Result<()> {
        if new.name.is_none() {
            let path = syscalls::proc_path(file);
            let follow = AtFlags::AT_SYMLINK_FOLLOW;
            let make = |to: &str| linkat(AT_FDCWD, path.as_c_str(), &self.fd, to, follow);
            new.name = Some(self.with_new_name(name, "linkat", make)?.1);
        }
        Ok(())
    }

    /// Renames the new file to `name`, which must still be the inode `expected`.
    fn rename(&self, name: &str, expected: Option<Inode>, new: &mut NewName<'_>) -> Result<()> {
        if self.inode_at(name)? != expected {
            return Err(self.another_file(name));
        }
        let from = new.name.as_deref().unwrap_or_default();
        let renamed = retry(|| renameat(&self.fd, from, &self.fd, name));
        renamed.context(|| format!("rename({from}, {})", self.path.join(name).display()))?;
        new.name = None;
        Ok(())
    }

    /// Replaces the file at `name` by a new one with `content`, owned by root, mode 0644, without fsync(2). `prepare`
    /// is called on the new file before the rename. The returned file is open.
    #[cfg(feature = "watch")]
    pub(in crate::sys) fn publish(
        &self,
        name: &str,
        found: Option<&FileHandle>,
        content: &[u8],
        prepare: impl FnOnce(&File) -> nix::Result<()>,
    ) -> Result<File> {
        let call = |what: &str| self.call_on_new(what, name);
        let (mut file, mut new) = self.create(name)?;
        file.write_all(content).context(|| call("write"))?;
        set_owner_and_mode(&file, 0, 0, 0o644).context(|| call("fchown, fchmod"))?;
        prepare(&file).context(|| call("fcntl"))?;
        self.link(name, &file, &mut new)?;
        self.rename(name, found.map(FileHandle::inode), &mut new)?;
        Ok(file)
    }

    fn another_file(&self, name: &str) -> SyscallError {
        let path = self.path.join(name);
        let call = format!(
            "rename(…, {}), which another process replaced during the run",
            path.display()
        );
        SyscallError::new(call, Errno::EXDEV)
    }
}

/// A random temporary name for the file that will replace `name`.
pub(super) fn temporary(name: &str) -> nix::Result<String> {
    let random = retry(syscalls::random)?;
    Ok(format!(".{name}.{random:016x}.{UNFINISHED}"))
}

/// Whether `entry` is a temporary name for `name`. Names of version 0.1.0 have no random part.
fn is_temporary(entry: &str, name: &str) -> bool {
    let rest = entry
        .strip_prefix('.')
        .and_then(|rest| rest.strip_prefix(name));
    let middle = rest.and_then(|rest| rest.strip_prefix('.')?.strip_suffix(UNFINISHED));
    middle.is_some_and(|middle| match middle.strip_suffix('.') {
        Some(random) => random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => middle.is_empty(),
    })
}

/// Sets owner and mode where they differ.
pub(super) fn set_owner_and_mode(file: &File, uid: u32, gid: u32, mode: u32) -> nix::Result<()> {
    let now = fstat(file)?;
    if (now.st_uid, now.st_gid) != (uid, gid) {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fchownat(file.as_fd(), "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    }
    if now.st_mode & 0o7777 != mode {
        file.set_permissions(PermissionsExt::from_mode(mode))
            .map_err(errno_of)?;
    }
    Ok(())
}

/// Copies security labels and ACLs to the new file, because a rename would lose them.
///
/// Two kinds need `CAP_SYS_ADMIN`, which this program drops, and are skipped: labels of a security module that is not
/// active have no effect, and the kernel recomputes the checksums of IMA and EVM for the new content.
fn copy_attributes(old: &OwnedFd, new: &File) -> nix::Result<()> {
    let (old, new) = (syscalls::proc_path(old), syscalls::proc_path(new));
    let names = syscalls::listxattr(&old)?;
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let Some(value) = syscalls::getxattr(&old, name)? else {
            continue;
        };
        if syscalls::getxattr(&new, name)?.as_ref() == Some(&value) {
            continue;
        }
        match syscalls::setxattr(&new, name, &value) {
            Err(Errno::EPERM) if name.to_bytes().starts_with(b"security.") => {}
            done => done?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_temporary_names_of_the_same_file_are_recognised() {
        let made = temporary("group").unwrap_or_default();
        assert!(is_temporary(&made, "group"), "{made}");
        assert_ne!(made, temporary("group").unwrap_or_default());
        assert!(is_temporary(".group.libvirt-kvm-init", "group"));
        for other in [
            "group",
            ".group",
            ".group.",
            ".group.old",
            ".group.old.libvirt-kvm-init",
            ".group.old.0123456789abcdef.libvirt-kvm-init",
            ".group.0123456789abcdeg.libvirt-kvm-init",
            ".groups.0123456789abcdef.libvirt-kvm-init",
            ".libvirt-kvm-init.lock",
        ] {
            assert!(!is_temporary(other, "group"), "{other}");
        }
    }
}
