//! POSIX access control lists as the kernel stores and evaluates them.
//!
//! With an ACL, the group bits of the mode show only the mask: `ls` shows `rw-` even if the entry of
//! the owning group is `---`. Layout: include/uapi/linux/posix_acl_xattr.h; evaluation:
//! fs/posix_acl.c, `posix_acl_permission`; semantics: acl(5).
#![forbid(unsafe_code)]

use std::fmt;

use nix::unistd::{Gid, Uid};

/// The extended attribute that contains the ACL.
pub const XATTR: &std::ffi::CStr = c"system.posix_acl_access";

/// `POSIX_ACL_XATTR_VERSION`
const VERSION: u32 = 2;

/// The permissions that QEMU needs, since it opens the device with `O_RDWR`.
pub const READ_WRITE: u16 = 0o6;

/// The user, group or class that an entry applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// `user::`, the file's owner.
    Owner,
    /// `user:ID:`
    User(Uid),
    /// `group::`, the file's group.
    OwningGroup,
    /// `group:ID:`
    Group(Gid),
    /// `mask::`, the upper limit for every entry except `user::` and `other::`.
    Mask,
    /// `other::`
    Other,
}

/// One entry of an ACL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub tag: Tag,
    /// Permission bits: `r` 4, `w` 2, `x` 1.
    pub perm: u16,
}

/// An access control list with at least the three entries that mirror the mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Tag {
    /// The kernel's code for the tag, and its ID: `ACL_UNDEFINED_ID` for tags without one.
    fn code(self) -> (u16, u32) {
        match self {
            Self::Owner => (0x01, u32::MAX),
            Self::User(uid) => (0x02, uid.as_raw()),
            Self::OwningGroup => (0x04, u32::MAX),
            Self::Group(gid) => (0x08, gid.as_raw()),
            Self::Mask => (0x10, u32::MAX),
            Self::Other => (0x20, u32::MAX),
        }
    }

    fn of_code(code: u16, id: u32) -> Option<Self> {
        Some(match code {
            0x01 => Self::Owner,
            0x02 => Self::User(Uid::from_raw(id)),
            0x04 => Self::OwningGroup,
            0x08 => Self::Group(Gid::from_raw(id)),
            0x10 => Self::Mask,
            0x20 => Self::Other,
            _ => return None,
        })
    }
}

impl Acl {
    /// Parses the attribute's value. `None` if it is not an ACL of version 2, or if the kernel would
    /// reject it (`posix_acl_valid`: an entry has other permission bits than `rwx`).
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*head) != VERSION || rest.len() % 8 != 0 {
            return None;
        }
        let entries = rest.chunks_exact(8).map(|chunk| {
            let short = |at: usize| u16::from_le_bytes([chunk[at], chunk[at + 1]]);
            let id = u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]);
            let (tag, perm) = (Tag::of_code(short(0), id)?, short(2));
            (perm <= 0o7).then_some(Entry { tag, perm })
        });
        let acl = Self(entries.collect::<Option<_>>()?);
        let base = [Tag::Owner, Tag::OwningGroup, Tag::Other];
        let is_whole = base.iter().all(|tag| acl.get(*tag).is_some());
        is_whole.then_some(acl)
    }

    /// The attribute's value for setxattr(2).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            let (code, id) = entry.tag.code();
            bytes.extend_from_slice(&code.to_le_bytes());
            bytes.extend_from_slice(&entry.perm.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    /// A copy of the ACL in which `perm` computes the permissions of each entry.
    fn map(&self, perm: impl Fn(&Entry) -> u16) -> Self {
        let entry = |entry: &Entry| Entry {
            tag: entry.tag,
            perm: perm(entry),
        };
        Self(self.0.iter().map(entry).collect())
    }

    /// The permissions of the first entry with this tag.
    pub fn get(&self, tag: Tag) -> Option<u16> {
        let mut entries = self.0.iter().filter(|entry| entry.tag == tag);
        entries.next().map(|entry| entry.perm)
    }

    /// The ACL that grants read and write to owner and group, or exactly the mode `exact`, without
    /// granting any other user more than before: if the mask is raised, the entries that the old mask
    /// limited are first reduced to their effective permissions.
    #[must_use]
    pub fn repaired(&self, exact: Option<u16>) -> Self {
        let class = |shift: u16, now: u16| match exact {
            Some(mode) => mode >> shift & 0o7,
            None if shift == 0 => now,
            None => now | READ_WRITE,
        };
        let old_mask = self.get(Tag::Mask).unwrap_or(0o7);
        let new_mask = class(3, old_mask);
        let limit = if new_mask & !old_mask == 0 {
            0o7
        } else {
            old_mask
        };
        self.map(|entry| match entry.tag {
            Tag::Owner => class(6, entry.perm),
            Tag::OwningGroup => class(3, entry.perm),
            Tag::Mask => new_mask,
            Tag::Other => class(0, entry.perm),
            Tag::User(_) | Tag::Group(_) => entry.perm & limit,
        })
    }

    /// The ACL after chmod(2) to `mode`, which stores the group bits in the mask if there is one.
    #[must_use]
    pub fn with_mode(&self, mode: u16) -> Self {
        let masked = self.get(Tag::Mask).is_some();
        self.map(|entry| match entry.tag {
            Tag::Owner => mode >> 6 & 0o7,
            Tag::Mask => mode >> 3 & 0o7,
            Tag::OwningGroup if !masked => mode >> 3 & 0o7,
            Tag::Other => mode & 0o7,
            _ => entry.perm,
        })
    }

    /// The ACL after `setfacl -x u:UID`, which recalculates the mask.
    #[must_use]
    pub fn without_user(&self, uid: Uid) -> Self {
        let kept = self.0.iter().filter(|entry| entry.tag != Tag::User(uid));
        let kept = Self(kept.copied().collect());
        let masked = |tag| matches!(tag, Tag::User(_) | Tag::OwningGroup | Tag::Group(_));
        let entries = kept.0.iter().filter(|entry| masked(entry.tag));
        let mask = entries.fold(0, |mask, entry| mask | entry.perm);
        kept.map(|entry| match entry.tag {
            Tag::Mask => mask,
            _ => entry.perm,
        })
    }

    fn permits(&self, subject: &Subject<'_>, owner: Uid, group: Gid, want: u16) -> bool {
        let mask = self.get(Tag::Mask).unwrap_or(0o7);
        let allows = |perm: Option<u16>| perm.is_some_and(|perm| perm & want == want);
        if subject.uid == owner {
            return allows(self.get(Tag::Owner));
        }
        if let Some(perm) = self.get(Tag::User(subject.uid)) {
            return allows(Some(perm & mask));
        }
        let applies = |entry: &&Entry| match entry.tag {
            Tag::OwningGroup => subject.is_in(group),
            Tag::Group(gid) => subject.is_in(gid),
            _ => false,
        };
        let mut groups = self.0.iter().filter(applies).peekable();
        match groups.peek() {
            Some(_) => groups.any(|entry| allows(Some(entry.perm & mask))),
            None => allows(self.get(Tag::Other)),
        }
    }
}

impl fmt::Display for Acl {
    /// The short text form of acl(5).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, entry) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let bit = |mask: u16, letter: char| if entry.perm & mask == 0 { '-' } else { letter };
            let (r, w, x) = (bit(4, 'r'), bit(2, 'w'), bit(1, 'x'));
            write!(f, "{comma}")?;
            match entry.tag {
                Tag::Owner => write!(f, "user:")?,
                Tag::User(uid) => write!(f, "user:{uid}")?,
                Tag::OwningGroup => write!(f, "group:")?,
                Tag::Group(gid) => write!(f, "group:{gid}")?,
                Tag::Mask => write!(f, "mask:")?,
                Tag::Other => write!(f, "other:")?,
            }
            write!(f, ":{r}{w}{x}")?;
        }
        Ok(())
    }
}

/// Credentials of a process without capabilities, as the kernel's permission check uses them.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The file-system UID (credentials(7)).
    pub uid: Uid,
    /// The file-system GID.
    pub gid: Gid,
    pub groups: &'a [Gid],
}

impl Subject<'_> {
    fn is_in(&self, gid: Gid) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// Owner, group, mode and ACL of a file.
#[derive(Debug, Clone, Copy)]
pub struct FilePermissions<'a> {
    pub uid: Uid,
    pub gid: Gid,
    /// The file type bits are ignored.
    pub mode: u16,
    pub acl: Option<&'a Acl>,
}

/// Whether discretionary access control grants `subject` the permissions `want` (fs/namei.c,
/// `acl_permission_check`). The first matching class decides, even if a later one grants more.
pub fn permits(permissions: &FilePermissions<'_>, subject: &Subject<'_>, want: u16) -> bool {
    if let Some(acl) = permissions.acl {
        return acl.permits(subject, permissions.uid, permissions.gid, want);
    }
    let shift = if subject.uid == permissions.uid {
        6
    } else if subject.is_in(permissions.gid) {
        3
    } else {
        0
    };
    permissions.mode >> shift & want == want
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses the short text form with one octal digit for the permissions: `u::6,u:1234:6,g::0,m::6,o::0`.
    fn acl(text: &str) -> Acl {
        let entry = |entry: &str| {
            let parts: Vec<_> = entry.split(':').collect();
            let id = || parts[1].parse().unwrap();
            let tag = match (parts[0], parts[1]) {
                ("u", "") => Tag::Owner,
                ("u", _) => Tag::User(Uid::from_raw(id())),
                ("g", "") => Tag::OwningGroup,
                ("g", _) => Tag::Group(Gid::from_raw(id())),
                ("m", _) => Tag::Mask,
                _ => Tag::Other,
            };
            let perm = parts[2].parse().unwrap();
            Entry { tag, perm }
        };
        Acl(text.split(',').map(entry).collect())
    }

    #[test]
    fn parses_what_to_bytes_writes() {
        let list = acl("u::6,u:1234:6,g::0,m::6,o::0");
        assert_eq!(Acl::parse(&list.to_bytes()), Some(list.clone()));
        assert_eq!(
            list.to_string(),
            "user::rw-,user:1234:rw-,group::---,mask::rw-,other::---"
        );
    }

    #[test]
    fn rejects_truncated_and_invalid_attributes() {
        let good = acl("u::6,g::6,o::0").to_bytes();
        for length in 0..good.len() {
            assert_eq!(Acl::parse(&good[..length]), None, "{length}");
        }
        // The version, and the permission of the first entry.
        for (at, byte) in [(0, 3), (6, 8), (7, 1)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(Acl::parse(&bad), None, "{at}");
        }
    }

    #[test]
    fn repairing_the_mask_grants_no_other_entry_more() {
        let list = acl("u::6,u:1:7,u:2:4,g::0,g:3:6,m::4,o::0");
        let want = acl("u::6,u:1:4,u:2:4,g::6,g:3:4,m::6,o::0");
        assert_eq!(list.repaired(None), want);
        assert_eq!(want.repaired(None), want, "a repaired ACL stays as it is");
    }

    #[test]
    fn an_exact_mode_sets_owner_group_and_other() {
        let list = acl("u::7,u:1:6,g::0,m::6,o::4");
        assert_eq!(list.repaired(Some(0o666)), acl("u::6,u:1:6,g::6,m::6,o::6"));
    }

    #[test]
    fn the_first_matching_class_decides() {
        let groups = [Gid::from_raw(108)];
        let qemu = Subject {
            uid: Uid::from_raw(999),
            gid: Gid::from_raw(5),
            groups: &groups,
        };
        // (owner, group, mode) => may QEMU read and write?
        for ((owner, group, mode), allowed) in [
            ((0, 108, 0o660), true),
            ((0, 108, 0o640), false),
            ((0, 108, 0o606), false),
            ((0, 7, 0o606), true),
            ((0, 7, 0o660), false),
            ((999, 108, 0o066), false),
            ((999, 7, 0o600), true),
            ((0, 5, 0o060), true),
        ] {
            let permissions = FilePermissions {
                uid: Uid::from_raw(owner),
                gid: Gid::from_raw(group),
                mode,
                acl: None,
            };
            let got = permits(&permissions, &qemu, READ_WRITE);
            assert_eq!(got, allowed, "{owner}:{group} {mode:o}");
        }
    }
}
