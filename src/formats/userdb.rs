//! Group records of systemd's user database (userdbd(8)): one JSON object in each file.
#![forbid(unsafe_code)]

use nix::unistd::Gid;
use serde::Deserialize;

/// One group of a userdb record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The group's name.
    pub name: String,
    /// Its GID.
    pub gid: Gid,
    /// The file's name below the host root.
    pub at: String,
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
    // serde also accepts an array of the elements in this order; a record is an object.
    if !json.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let fields: Fields = serde_json::from_slice(json).ok()?;
    let stem = at.rsplit('/').next()?.strip_suffix(".group")?;
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

    #[test]
    fn only_group_records_under_their_own_name_count() {
        const KVM: &str = r#"{"groupName":"kvm","gid":78,"disposition":"system"}"#;
        for (file, json, gid) in [
            ("kvm.group", KVM, Some(78)),
            ("78.group", KVM, Some(78)),
            ("other.group", KVM, None),
            ("kvm.group", r#"{"userName":"kvm","uid":78}"#, None),
            ("kvm.group", r#"{"groupName":"kvm","gid":-1}"#, None),
            ("kvm.group", "kvm:x:78:", None),
            ("kvm.group", r#"["kvm",78]"#, None),
        ] {
            let found = record(&format!("usr/lib/userdb/{file}"), json.as_bytes());
            assert_eq!(found.map(|found| found.gid.as_raw()), gid, "{file} {json}");
        }
    }
}
