//! Reads the node's group database: group(5) files and userdb records, in the order in which NSS
//! consults them.
#![forbid(unsafe_code)]

use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::unistd::Gid;

use super::view::View;
use crate::error::Result;
use crate::formats::accounts::group::{self, Group};
use crate::formats::userdb::{Record, record};
use crate::sys::root::Root;
use crate::sys::{Inode, ReadBudget};

/// Group files of distributions: the usual one, nss-altfiles (ostree, bootc), and Flatcar's
/// usrfiles.
pub const FILES: [&str; 3] = ["etc/group", "usr/lib/group", "usr/share/baselayout/group"];

/// Directories in which systemd-userdbd searches records (src/shared/userdb-dropin.h), in its order.
pub const RECORD_DIRECTORIES: [&str; 5] = [
    "etc/userdb",
    "run/userdb",
    "run/host/userdb",
    "usr/local/lib/userdb",
    "usr/lib/userdb",
];

/// The files and records that were read.
#[derive(Debug, Clone, Default)]
pub struct GroupDb {
    /// Path below the host root, and content.
    pub files: Vec<(&'static str, Vec<u8>)>,
    pub records: Vec<Record>,
    pub unseen: Unseen,
}

/// Which sources of the group database are not visible, although the node may have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Unseen {
    /// All sources are visible: a group that is not found does not exist on the node.
    #[default]
    None,
    /// Only sources that few nodes have are missing: groups that are found count.
    Rare,
    /// A source that the node probably has is not visible. It could override all sources after it.
    Before {
        /// The number of [`GroupDb::files`] that take precedence over this source.
        files: usize,
        /// Path below the host root.
        name: &'static str,
        /// Why it is not visible.
        why: String,
    },
}

/// A group that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    /// 0 is possible.
    pub gid: Gid,
    /// File and line, or file of the record, below the host root.
    pub at: String,
}

impl GroupDb {
    /// The group `name`, from the first file that contains it. `None` also if a file that is not visible could
    /// override it.
    pub fn by_name(&self, name: &str) -> Option<Found> {
        let (files, records) = match self.unseen {
            Unseen::Before { files, .. } => (files, &[][..]),
            Unseen::None | Unseen::Rare => (self.files.len(), &self.records[..]),
        };
        first(
            self.files.iter().take(files),
            |file| group::by_name(file, name.as_bytes()),
            records.iter().find(|record| record.name == name),
        )
    }

    /// The name of the first group with this GID.
    pub fn name_of(&self, gid: Gid) -> Option<String> {
        self.by_gid(gid).map(|found| found.name)
    }

    /// Name and location of a group with this GID and one of these names: a GID can have several names.
    pub fn named(&self, names: &[&str], gid: Gid) -> Option<(String, String)> {
        let is_one = |record: &&Record| record.gid == gid && names.contains(&&*record.name);
        let found = first(
            self.files.iter(),
            |file| group::all_by_names(file, names).find(|group| group.gid == gid),
            self.records.iter().find(is_one),
        )?;
        Some((found.name, found.at))
    }

    /// Name and location of another group than `name` with this GID. `None` if `name` has the GID too.
    pub fn other_owner(&self, gid: Gid, name: &str) -> Option<(String, String)> {
        if self.by_name(name).is_some_and(|found| found.gid == gid) {
            return None;
        }
        self.by_gid(gid).map(|found| (found.name, found.at))
    }

    fn by_gid(&self, gid: Gid) -> Option<Found> {
        first(
            self.files.iter(),
            |file| group::all_by_gid(file, gid).next(),
            self.records.iter().find(|record| record.gid == gid),
        )
    }
}

/// The first group found in the files, or else the one of the userdb record.
fn first<'a>(
    files: impl Iterator<Item = &'a (&'static str, Vec<u8>)>,
    look_up: impl Fn(&'a [u8]) -> Option<Group<'a>>,
    record: Option<&Record>,
) -> Option<Found> {
    for (file, content) in files {
        if let Some(group) = look_up(content) {
            return Some(Found {
                name: String::from_utf8_lossy(group.name).into_owned(),
                gid: group.gid,
                at: format!("/{file}:{}", group.line),
            });
        }
    }
    record.map(|record| Found {
        name: record.name.clone(),
        gid: record.gid,
        at: format!("/{}", record.at),
    })
}

/// Reads the groups; returns them with the inodes of their files. Adds sources that are not visible and that
/// few nodes have to `not_shown`.
pub(super) fn groups(
    root: &Root,
    view: View,
    not_shown: &mut Vec<&'static str>,
) -> Result<(GroupDb, Vec<Inode>)> {
    let mut db = GroupDb::default();
    let mut inodes = Vec::new();
    for name in FILES {
        if let Some((content, inode)) = root.read_which(name)? {
            db.files.push((name, content));
            inodes.push(inode);
        } else if let Some(hidden) = view.hides(root, name)? {
            if hidden.linked || name == FILES[0] {
                overruled(&mut db, name, hidden.why(root));
            } else {
                not_shown.push(name);
            }
        }
    }
    let mut room = ReadBudget::new();
    for directory in RECORD_DIRECTORIES {
        let names = root.list(directory)?;
        let hidden = match names.is_empty() {
            true => view.hides(root, directory)?,
            false => None,
        };
        match hidden {
            Some(hidden) if hidden.linked => overruled(&mut db, directory, hidden.why(root)),
            Some(_) => not_shown.push(directory),
            None => {}
        }
        for name in names {
            if !name.as_bytes().ends_with(b".group") {
                continue;
            }
            let at = format!("{directory}/{}", name.display());
            let json = match root.read(&at) {
                // userdbd also ignores names that are not regular files.
                Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ELOOP) => None,
                read => read?,
            };
            if json.is_none()
                && let Some(hidden) = view.hides(root, &at)?
            {
                overruled(&mut db, directory, hidden.why(root));
            }
            let json = json.unwrap_or_default();
            room.take(&json, || root.path().join(&at))?;
            db.records.extend(record(&at, &json));
        }
    }
    if db.unseen == Unseen::None && !not_shown.is_empty() {
        db.unseen = Unseen::Rare;
    }
    Ok((db, inodes))
}

/// Records the first source that is not visible: all sources after it are in doubt.
fn overruled(db: &mut GroupDb, name: &'static str, why: String) {
    if !matches!(db.unseen, Unseen::Before { .. }) {
        let files = db.files.len();
        db.unseen = Unseen::Before { files, name, why };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn db() -> GroupDb {
        GroupDb {
            files: vec![
                ("etc/group", b"root:x:0:\nnetdev:x:36:\n".to_vec()),
                (
                    "usr/lib/group",
                    b"# ostree\nkvm:x:36:\nqemu:x:107:\n".to_vec(),
                ),
            ],
            records: vec![Record {
                name: "kvm".into(),
                gid: Gid::from_raw(9),
                at: "usr/lib/userdb/kvm.group".into(),
            }],
            unseen: Unseen::None,
        }
    }

    #[test]
    fn by_name_uses_the_first_file_with_the_group() {
        let found = db().by_name("kvm").unwrap();
        assert_eq!(
            (found.gid.as_raw(), found.at.as_str()),
            (36, "/usr/lib/group:2")
        );
        assert_eq!(db().by_name("disk"), None);
    }

    #[test]
    fn uses_records_if_no_file_has_the_group() {
        let mut db = db();
        db.files.clear();
        let found = db.by_name("kvm").unwrap();
        assert_eq!(
            (found.gid.as_raw(), found.at.as_str()),
            (9, "/usr/lib/userdb/kvm.group")
        );
        assert_eq!(db.name_of(Gid::from_raw(9)).as_deref(), Some("kvm"));
        assert_eq!(db.name_of(Gid::from_raw(36)), None);
    }

    #[test]
    fn groups_after_a_file_that_is_not_visible_are_unknown() {
        let mut db = db();
        let before = |files| Unseen::Before {
            files,
            name: "usr/share/baselayout/group",
            why: String::new(),
        };
        for (unseen, kvm, netdev) in [
            (Unseen::Rare, Some(36), Some(36)),
            (before(2), Some(36), Some(36)),
            (before(1), None, Some(36)),
            (before(0), None, None),
        ] {
            db.unseen = unseen;
            let found = |name| db.by_name(name).map(|found| found.gid.as_raw());
            assert_eq!((found("kvm"), found("netdev")), (kvm, netdev), "{db:?}");
            // The owner of a GID is still reported, to be on the safe side.
            let owner = db.other_owner(Gid::from_raw(107), "kvm");
            assert_eq!(owner.unwrap().0, "qemu");
        }
        db.files.clear();
        assert_eq!(db.by_name("kvm"), None);
    }

    #[test]
    fn other_owner_ignores_a_gid_that_the_group_itself_has() {
        assert_eq!(db().other_owner(Gid::from_raw(36), "kvm"), None);
        let (name, at) = db().other_owner(Gid::from_raw(107), "kvm").unwrap();
        assert_eq!((name.as_str(), at.as_str()), ("qemu", "/usr/lib/group:3"));
    }

    #[test]
    fn named_finds_every_name_of_a_gid() {
        let mut db = db();
        db.files[0].1.extend(b"other:x:36:\n");
        db.records[0].gid = Gid::from_raw(36);
        db.records[0].name = "games".into();
        let named = |names: &[&str], gid| {
            let found = db.named(names, Gid::from_raw(gid));
            found.map(|(name, at)| format!("{name} {at}"))
        };
        for (name, at) in [
            ("netdev", "/etc/group:2"),
            ("other", "/etc/group:3"),
            ("kvm", "/usr/lib/group:2"),
            ("games", "/usr/lib/userdb/kvm.group"),
        ] {
            assert_eq!(named(&["x", name], 36), Some(format!("{name} {at}")));
            assert_eq!(named(&["x", name], 37), None);
        }
        assert_eq!(named(&["root", "qemu"], 36), None);
    }
}
