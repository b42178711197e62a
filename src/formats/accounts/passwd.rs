//! passwd(5): finds users by name or UID, with their primary group.
//!
//! libvirt resolves the configured user to a UID, and at each guest start that UID back to a name;
//! the guest gets the groups of that name. If two names share a UID, the first one therefore
//! decides. Source of the behaviour: glibc `nss_files` (observed with 2.36).

#![forbid(unsafe_code)]

use nix::unistd::{Gid, Uid};

use super::line::{Line, entries};

/// The fields of a passwd entry that this program uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User<'a> {
    /// Without leading spaces.
    pub name: &'a [u8],
    /// Never 4294967295, which is not a valid ID.
    pub uid: Uid,
    /// The primary group; never 4294967295.
    pub gid: Gid,
    /// The 1-based line of the entry.
    pub line: usize,
}

fn parse(line: Line<'_>) -> Option<User<'_>> {
    let mut fields = line.fields();
    let (name, _) = fields.string();
    fields.string();
    Some(User {
        name,
        uid: Uid::from_raw(fields.number()?),
        gid: Gid::from_raw(fields.number()?),
        line: line.number,
    })
}

fn is_usable(user: &User<'_>) -> bool {
    user.uid.as_raw() != u32::MAX && user.gid.as_raw() != u32::MAX
}

/// Every entry that a lookup can find and that has valid IDs. As in glibc, these lines are skipped: blank
/// lines, comments, entries of the NIS `compat` service (`+` and `-`), and lines with a UID or GID
/// that is missing, is followed by other text, or does not fit in 32 bits (such as -1). The fields
/// after the GID can be missing.
pub fn users(file: &[u8]) -> impl Iterator<Item = User<'_>> {
    entries(file).filter_map(parse).filter(is_usable)
}

/// The user of that name, as `getpwnam` finds it: the first entry.
///
/// glibc also finds an entry with 4294967295, which means "no ID" to the kernel. If the first entry
/// has it, the result is `None`: libvirtd would not find a later entry of that name, and this program
/// never repairs a passwd file.
pub fn by_name<'a>(file: &'a [u8], name: &[u8]) -> Option<User<'a>> {
    entries(file)
        .filter(|line| line.is_named(name))
        .find_map(parse)
        .filter(is_usable)
}

/// The user with that UID, as `getpwuid` finds it: the first entry. `None` if its GID is 4294967295.
pub fn by_uid(file: &[u8], uid: Uid) -> Option<User<'_>> {
    entries(file)
        .filter_map(parse)
        .find(|user| user.uid == uid)
        .filter(is_usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_find_the_first_entry_that_glibc_accepts() {
        let file: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
            #nova:x:1:1::/:\n\
            +nova:x:1:1::/:\n\
            minus:x:4294967295:1::/:\n\
            minus:x:1:1::/:\n\
            large:x:8:4294967295::/:\n\
            large:x:8:8::/:\n\
            \n\
            nova:x:1:\n\
            nova:x:1\n\
            nova:x: :1::\n\
            nova:x:1 :1::\n\
            nova:x:1:1\r\n\
            \t nova::+42424:042436:a:b:c:d:e\n\
            nova:x:7:7::/:\n\
            alias:x:42424:9";
        let nova = by_name(file, b"nova").unwrap();
        assert_eq!(
            (nova.uid.as_raw(), nova.gid.as_raw(), nova.line),
            (42424, 42436, 14)
        );
        assert_eq!(by_uid(file, Uid::from_raw(42424)), Some(nova));
        assert_eq!(by_uid(file, Uid::from_raw(1)).map(|u| u.line), Some(5));
        assert_eq!(by_uid(file, Uid::from_raw(8)), None);
        assert_eq!(by_uid(file, Uid::from_raw(u32::MAX)), None);
        assert_eq!(by_name(file, b"alias").map(|u| u.gid.as_raw()), Some(9));
        for name in ["+nova", "#nova", "nov", "nova:x", "", "minus", "large"] {
            assert_eq!(by_name(file, name.as_bytes()), None, "{name}");
        }
        assert_eq!(
            users(file).map(|u| u.line).collect::<Vec<_>>(),
            [1, 5, 7, 14, 15, 16]
        );
    }
}
