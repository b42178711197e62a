//! Group records of systemd's user database (userdbd(8)): one JSON object in each file.
#![forbid(unsafe_code)]

use nix::unistd::Gid;
use serde::Deserialize;

/// The group that a userdb record defines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub name: String,
    pub gid: Gid,
    /// Path of the record's file below the host root.
    pub at: String,
}

/// Parses the userdb record in the file `at` (`<name>.group`, or a link `<gid>.group` to it).
/// `None` if it is not a group record, or if userdbd would not find it under this file name.
pub fn record(at: &str, json: &[u8]) -> Option<Record> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Fields {
        group_name: String,
        gid: u32,
    }
    // serde would also accept an array of the fields in this order, but a record is an object.
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
    fn accepts_only_group_records_with_a_matching_file_name() {
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
            let group = record(&format!("usr/lib/userdb/{file}"), json.as_bytes());
            assert_eq!(group.map(|group| group.gid.as_raw()), gid, "{file} {json}");
        }
    }
}
