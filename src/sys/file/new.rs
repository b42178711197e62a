//! A new file, and how it gets its name once it is whole.

use std::fs::File;
#[cfg(feature = "watch")]
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, unlinkat};

use super::{Folder, Found, LockFile, Rights, TRIES, errno_of};
use crate::sys::entries::entries;
use crate::sys::output::is_trusted;
use crate::sys::root::kind;
use crate::sys::{CallError, Named, Result, open, raw, retry};

/// How the name of a file ends that has no other name yet.
const UNFINISHED: &str = "libvirt-kvm-init";

/// A new file, without a name where the file system lets it.
pub(super) struct New<'a> {
    pub(super) file: File,
    name: NewName<'a>,
}

/// The name of a file that is not in its place yet: taken away again unless it gets there.
struct NewName<'a> {
    name: Option<String>,
    folder: &'a Folder,
}

impl Drop for NewName<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            let _ = unlinkat(&self.folder.fd, name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl Folder {
    /// Takes away what killed runs have left beside `name`, if it can.
    pub fn clear(&self, name: &str, found: Option<&Found>) {
        let owner = found.map(|found| found.stat.st_uid);
        for left in self.left_beside(name) {
            let is_file =
                fstatat(&self.fd, left.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| {
                    let is_ours = is_trusted(stat.st_uid) || Some(stat.st_uid) == owner;
                    kind(&stat) == SFlag::S_IFREG && is_ours
                });
            if is_file {
                let _ = unlinkat(&self.fd, left.as_str(), UnlinkatFlags::NoRemoveDir);
            }
        }
    }

    /// Whether a killed run has left something here.
    pub fn has_leftovers(&self, name: &str) -> bool {
        let lock = LockFile::Own.name();
        !self.left_beside(name).is_empty() || matches!(self.inode_at(lock), Ok(Some(_)))
    }

    pub(super) fn left_beside(&self, name: &str) -> Vec<String> {
        /// Nobody has reason to have so many files there.
        const MANY: usize = 10_000;
        let mut found = Vec::new();
        let mut seen = 0;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        if let Ok(fd) = retry(|| openat(&self.fd, c".", flags, Mode::empty())) {
            let _ = entries(fd.as_fd(), |entry, _| {
                seen += 1;
                let entry = entry.to_str().filter(|entry| is_temporary(entry, name));
                found.extend(entry.map(str::to_owned));
                (seen < MANY).then_some(()).ok_or(Errno::E2BIG)
            });
        }
        found
    }

    /// A whole and synced file that has no name, or one that nobody asks for.
    pub(super) fn write_new(
        &self,
        name: &str,
        found: Option<&Found>,
        rights: Rights,
        fill: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<New<'_>> {
        self.clear(name, found);
        let mut new = self.create(name)?;
        let path = self.path.join(name);
        let call = |what: &str| format!("{what}(the new {})", path.display());
        let file = &mut new.file;
        fill(file).map_err(errno_of).named(|| call("write"))?;
        let like = found.filter(|_| matches!(rights, Rights::Kept));
        let (uid, gid, mode) = match (like, rights) {
            (Some(found), _) => found.rights(),
            (None, Rights::Root(mode)) => (0, 0, mode.into()),
            (None, Rights::Kept) => (0, 0, 0o644),
        };
        give(file, uid, gid, mode).named(|| call("fchown, fchmod"))?;
        if let Some(old) = like {
            copy_attributes(&old.fd, file).named(|| call("setxattr"))?;
        }
        file.sync_all().map_err(errno_of).named(|| call("fsync"))?;
        Ok(new)
    }

    pub(super) fn create(&self, name: &str) -> Result<New<'_>> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let call = || format!("openat({}, O_TMPFILE)", self.path.display());
        match retry(|| openat(&self.fd, c".", flags | OFlag::O_TMPFILE, mode)) {
            // What a file system without such files answers, and a kernel older than they are.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {}
            made => {
                let (file, name, folder) = (made.named(call)?.into(), None, self);
                let name = NewName { name, folder };
                return Ok(New { file, name });
            }
        }
        let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        let (fd, name) =
            self.with_new_name(name, "openat", |name| openat(&self.fd, name, flags, mode))?;
        let (file, name, folder) = (fd.into(), Some(name), self);
        let name = NewName { name, folder };
        Ok(New { file, name })
    }

    /// Tries names that nobody can guess until one is free.
    pub(super) fn with_new_name<T>(
        &self,
        name: &str,
        call: &str,
        mut make: impl FnMut(&str) -> nix::Result<T>,
    ) -> Result<(T, String)> {
        let mut tries = 1;
        loop {
            let new = temporary(name).named(|| "getrandom()".to_owned())?;
            match retry(|| make(&new)) {
                Err(Errno::EEXIST) if tries < TRIES => tries += 1,
                made => {
                    let made =
                        made.named(|| format!("{call}({})", self.path.join(&new).display()))?;
                    return Ok((made, new));
                }
            }
        }
    }

    /// Names the new file.
    pub(super) fn link(&self, name: &str, new: &mut New<'_>) -> Result<()> {
        if new.name.name.is_none() {
            let path = raw::proc_path(&new.file);
            let follow = AtFlags::AT_SYMLINK_FOLLOW;
            let make = |to: &str| linkat(AT_FDCWD, path.as_c_str(), &self.fd, to, follow);
            new.name.name = Some(self.with_new_name(name, "linkat", make)?.1);
        }
        Ok(())
    }

    /// Renames the new file to `name`, which must still be what was found there.
    pub(super) fn rename(
        &self,
        name: &str,
        found: Option<&Found>,
        new: &mut New<'_>,
    ) -> Result<()> {
        let path = || self.path.join(name).display().to_string();
        let Some(temporary) = &new.name.name else {
            return Err(Errno::ENOENT).named(|| format!("rename(…, {})", path()));
        };
        if self.inode_at(name)? != found.map(Found::inode) {
            return Err(another_file(&path()));
        }
        let renamed = retry(|| renameat(&self.fd, temporary.as_str(), &self.fd, name));
        renamed.named(|| format!("rename({temporary}, {})", path()))?;
        new.name.name = None;
        Ok(())
    }

    /// Gives the new file its name. A renamed file is durable once its directory is; and it must be the one
    /// that was written.
    pub(super) fn put_in_place(
        &self,
        name: &str,
        found: Option<&Found>,
        mut new: New<'_>,
    ) -> Result<()> {
        let found = match found {
            Some(old) if old.kind() == SFlag::S_IFDIR => {
                self.put_aside(name, old)?;
                None
            }
            found => found,
        };
        self.link(name, &mut new)?;
        let path = self.path.join(name);
        let as_path = raw::proc_path(&new.file);
        let call = || format!("open(the new {}, O_PATH)", path.display());
        // From here on it is not open for writing.
        new.file = File::from(open(as_path.as_c_str(), OFlag::O_PATH).named(call)?);
        self.rename(name, found, &mut new)?;
        retry(|| nix::unistd::fsync(&self.fd))
            .named(|| format!("fsync({})", self.path.display()))?;
        let written = fstat(&new.file).named(|| format!("fstat({})", path.display()))?;
        if self.inode_at(name)? == Some((written.st_dev, written.st_ino)) {
            return Ok(());
        }
        Err(another_file(&path.display().to_string()))
    }

    /// Makes `content` the content of `name` for whoever reads it next, readable by all, and not worth
    /// waiting for the disk. `prepare` is called before the file has its name; it stays open.
    #[cfg(feature = "watch")]
    pub(in crate::sys) fn publish(
        &self,
        name: &str,
        found: Option<&Found>,
        content: &[u8],
        prepare: impl FnOnce(&File) -> nix::Result<()>,
    ) -> Result<File> {
        let path = self.path.join(name);
        let call = |what: &str| format!("{what}(the new {})", path.display());
        let mut new = self.create(name)?;
        let written = new.file.write_all(content);
        written.map_err(errno_of).named(|| call("write"))?;
        give(&new.file, 0, 0, 0o644).named(|| call("fchown, fchmod"))?;
        prepare(&new.file).named(|| call("fcntl"))?;
        self.link(name, &mut new)?;
        self.rename(name, found, &mut new)?;
        Ok(new.file)
    }
}

fn another_file(path: &str) -> CallError {
    let call = format!("rename(…, {path}), where another file stands now");
    let errno = Errno::EXDEV;
    CallError { call, errno }
}

/// What a file is called until it is whole.
pub(super) fn temporary(name: &str) -> nix::Result<String> {
    let random = retry(raw::random)?;
    Ok(format!(".{name}.{random:016x}.{UNFINISHED}"))
}

/// Whether `entry` is such a name, or what 0.1.0 called such a file.
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
pub(super) fn give(file: &File, uid: u32, gid: u32, mode: u32) -> nix::Result<()> {
    let now = fstat(file)?;
    if (now.st_uid, now.st_gid) != (uid, gid) {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fchownat(file.as_fd(), "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    }
    if now.st_mode & 0o7777 != mode {
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
            .map_err(errno_of)?;
    }
    Ok(())
}

/// Security labels and ACLs move to the new file, as rename would otherwise lose them.
///
/// Labels of a security module that is not active, and the checksums of IMA and EVM, which would be
/// those of the old content, take `CAP_SYS_ADMIN`, which is given up: they bind nobody, or the kernel
/// makes them anew.
fn copy_attributes(old: &OwnedFd, new: &File) -> nix::Result<()> {
    let (old, new) = (raw::proc_path(old), raw::proc_path(new));
    let names = raw::listxattr(&old)?;
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = std::ffi::CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let Some(value) = raw::getxattr(&old, name)? else {
            continue;
        };
        if raw::getxattr(&new, name)?.as_ref() == Some(&value) {
            continue;
        }
        match raw::setxattr(&new, name, &value) {
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
    fn a_name_that_was_made_is_known_again_and_no_other_one_is() {
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
