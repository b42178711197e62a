//! The node's group database: group(5) files and userdb records, in the order in which a name
//! service would ask them.
#![forbid(unsafe_code)]

use nix::unistd::Gid;
use serde::Deserialize;

use crate::accounts::group;

/// Where distributions keep groups: the usual file, nss-altfiles (ostree, bootc), and Flatcar's
/// usrfiles.
pub const FILES: [&str; 3] = ["etc/group", "usr/lib/group", "usr/share/baselayout/group"];

/// Where systemd-userdbd finds records (src/shared/userdb-dropin.h), in its order.
pub const RECORD_FOLDERS: [&str; 5] = [
    "etc/userdb",
    "run/userdb",
    "run/host/userdb",
    "usr/local/lib/userdb",
    "usr/lib/userdb",
];

/// Everything that was read.
#[derive(Debug, Clone, Default)]
pub struct HostDb {
    /// Name below the host root, and content.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// The userdb records.
    pub records: Vec<Record>,
    /// Which sources are not seen.
    pub unseen: Unseen,
}

/// Which sources of a group database are not seen, though the node may have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Unseen {
    /// None: a group that is not found does not exist on the node.
    #[default]
    None,
    /// Some that few nodes have: what is found counts.
    Rare,
    /// One that the node has or had. What would be asked after it could be overruled by it.
    Before {
        /// How many of [`HostDb::files`] are asked before it.
        files: usize,
        /// Its name below the host root.
        name: &'static str,
        /// Why it is not seen.
        why: String,
    },
}

/// One group of a userdb record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The group's name.
    pub name: String,
    /// Its number.
    pub gid: Gid,
    /// The file's name below the host root.
    pub at: String,
}

/// A number and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The number; 0 is possible.
    pub gid: Gid,
    /// File and line below the host root.
    pub at: String,
}

impl HostDb {
    /// The number of the group `name`: the first file that knows it decides. Nothing also where a file that
    /// is not seen may decide otherwise.
    pub fn by_name(&self, name: &str) -> Option<Found> {
        let (files, records) = match self.unseen {
            Unseen::Before { files, .. } => (files, &[][..]),
            Unseen::None | Unseen::Rare => (self.files.len(), &self.records[..]),
        };
        let in_files = self.files.iter().take(files).find_map(|(file, content)| {
            let found = group::by_name(content, name.as_bytes())?;
            let at = format!("/{file}:{}", found.line);
            Some(Found { gid: found.gid, at })
        });
        in_files.or_else(|| {
            let record = records.iter().find(|record| record.name == name)?;
            let at = format!("/{}", record.at);
            let gid = record.gid;
            Some(Found { gid, at })
        })
    }

    /// The name of the first group with this number.
    pub fn name_of(&self, gid: Gid) -> Option<String> {
        let mut files = self.files.iter();
        let in_files = files.find_map(|(_, content)| group::all_by_gid(content, gid).next());
        let in_files = in_files.map(|found| String::from_utf8_lossy(found.name).into_owned());
        in_files.or_else(|| {
            let record = self.records.iter().find(|record| record.gid == gid)?;
            Some(record.name.clone())
        })
    }

    /// A group that has this GID and one of these names, and where it stands: a GID may have several names.
    pub fn named(&self, names: &[&str], gid: Gid) -> Option<(String, String)> {
        let in_files = self.files.iter().find_map(|(file, content)| {
            let found = group::all_by_names(content, names).find(|group| group.gid == gid)?;
            let name = String::from_utf8_lossy(found.name).into_owned();
            Some((name, format!("/{file}:{}", found.line)))
        });
        in_files.or_else(|| {
            let is_one =
                |record: &&Record| record.gid == gid && names.contains(&record.name.as_str());
            let record = self.records.iter().find(is_one)?;
            Some((record.name.clone(), format!("/{}", record.at)))
        })
    }

    /// The group other than `name` that has this number, and where it stands. Nothing when `name`
    /// has it too.
    pub fn other_owner(&self, gid: Gid, name: &str) -> Option<(String, String)> {
        if self.by_name(name).is_some_and(|found| found.gid == gid) {
            return None;
        }
        let in_files = self.files.iter().find_map(|(file, content)| {
            let found = group::all_by_gid(content, gid).next()?;
            let owner = String::from_utf8_lossy(found.name).into_owned();
            Some((owner, format!("/{file}:{}", found.line)))
        });
        in_files.or_else(|| {
            let record = self.records.iter().find(|record| record.gid == gid)?;
            Some((record.name.clone(), format!("/{}", record.at)))
        })
    }
}

/// Reads the userdb record in the file `at` (`<name>.group`, or a link `<gid>.group` to one).
/// `None` if it is no group record, or one that userdbd would not find under this file name.
pub fn record(at: &str, json: &[u8]) -> Option<Record> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Fields {
        group_name: String,
        gid: u32,
    }
    // An array would do for serde, its elements in this order; a record is an object.
    if !json.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let fields: Fields = serde_json::from_slice(json).ok()?;
    let file = at.rsplit('/').next()?;
    let stem = file.strip_suffix(".group")?;
    if stem != fields.group_name && stem != fields.gid.to_string() {
        return None;
    }
    Some(Record {
        name: fields.group_name,
        gid: Gid::from_raw(fields.gid),
        at: at.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn db() -> HostDb {
        HostDb {
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
    fn the_first_file_that_knows_the_name_decides() {
        let found = db().by_name("kvm").unwrap();
        assert_eq!(
            (found.gid.as_raw(), found.at.as_str()),
            (36, "/usr/lib/group:2")
        );
        assert_eq!(db().by_name("disk"), None);
    }

    #[test]
    fn records_answer_when_no_file_does() {
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
    fn what_an_unseen_file_could_overrule_is_not_known() {
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
            // Whose a number is may matter all the same.
            let owner = db.other_owner(Gid::from_raw(107), "kvm");
            assert_eq!(owner.unwrap().0, "qemu");
        }
        db.files.clear();
        assert_eq!(db.by_name("kvm"), None);
    }

    #[test]
    fn a_number_that_is_also_the_groups_own_belongs_to_nobody_else() {
        assert_eq!(db().other_owner(Gid::from_raw(36), "kvm"), None);
        let (name, at) = db().other_owner(Gid::from_raw(107), "kvm").unwrap();
        assert_eq!((name.as_str(), at.as_str()), ("qemu", "/usr/lib/group:3"));
    }

    #[test]
    fn every_name_of_a_gid_is_found() {
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

    #[test]
    fn only_group_records_under_their_own_name_count() {
        let table: [(&str, &str, Option<u32>); 7] = [
            (
                "usr/lib/userdb/kvm.group",
                r#"{"groupName":"kvm","gid":78}"#,
                Some(78),
            ),
            (
                "usr/lib/userdb/78.group",
                r#"{"groupName":"kvm","gid":78,"disposition":"system"}"#,
                Some(78),
            ),
            (
                "usr/lib/userdb/other.group",
                r#"{"groupName":"kvm","gid":78}"#,
                None,
            ),
            (
                "usr/lib/userdb/kvm.group",
                r#"{"userName":"kvm","uid":78}"#,
                None,
            ),
            (
                "usr/lib/userdb/kvm.group",
                r#"{"groupName":"kvm","gid":-1}"#,
                None,
            ),
            ("usr/lib/userdb/kvm.group", "kvm:x:78:", None),
            ("usr/lib/userdb/kvm.group", r#"["kvm",78]"#, None),
        ];
        for (at, json, gid) in table {
            let found = record(at, json.as_bytes()).map(|record| record.gid.as_raw());
            assert_eq!(found, gid, "{at} {json}");
        }
    }
}
