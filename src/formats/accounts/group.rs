//! group(5): finds groups by name or GID, and the groups of a user.
//!
//! Source of the behaviour: glibc `nss_files` (observed with 2.36), which libvirtd calls when it starts
//! (`getgrnam`) and each time it starts a guest (`getgrouplist`).

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ops::Range;

use nix::unistd::Gid;

use super::line::{Line, entries, lines};
use super::strtoul::trim_start;

/// One entry of a group file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group<'a> {
    /// Without leading spaces.
    pub name: &'a [u8],
    /// Never 4294967295, which is not a valid ID. 0 is possible.
    pub gid: Gid,
    /// The 1-based line of the entry.
    pub line: usize,
    members: &'a [u8],
}

impl<'a> Group<'a> {
    /// The users that the entry lists, in its order, including duplicates. Spaces before a member are
    /// ignored, those after it belong to the name. So does the carriage return of a CRLF line, which
    /// is why the last member of such a line matches no user.
    pub fn members(&self) -> impl Iterator<Item = &'a [u8]> {
        self.members
            .split(|b| *b == b',')
            .map(trim_start)
            .filter(|member| !member.is_empty())
    }

    /// Whether glibc treats `user` as a member because of this entry.
    pub fn has_member(&self, user: &[u8]) -> bool {
        self.members().any(|member| member == user)
    }
}

/// An entry, and the positions in the file at which it can be edited.
pub(super) struct Entry<'a> {
    pub(super) group: Group<'a>,
    /// Byte range of the GID field in the file, including spaces and sign.
    pub(super) gid_field: Range<usize>,
    /// Byte range of the member list up to a NUL; `None` if the line has only three fields.
    pub(super) list: Option<Range<usize>>,
    /// The end of the line for C code: its newline, a NUL, or the end of the file.
    pub(super) end: usize,
    /// Whether glibc may read digits into the GID that are not in the file ([`Line::is_misread`]).
    pub(super) misread: bool,
}

fn parse(line: Line<'_>) -> Option<Entry<'_>> {
    let compat = line.is_compat();
    let end = line.start + line.text.len();
    let mut fields = line.fields();
    let (name, _) = fields.string();
    let entry = |gid, gid_field, list: Option<(usize, _)>| Entry {
        group: Group {
            name,
            gid: Gid::from_raw(gid),
            line: line.number,
            members: list.map_or(&[][..], |(_, members)| members),
        },
        gid_field,
        list: list.map(|(at, _)| at..end),
        end,
        misread: list.is_none() && line.is_misread(),
    };
    if compat && fields.rest.is_empty() {
        return Some(entry(0, end..end, None));
    }
    fields.string();
    let gid_at = fields.at;
    let before = fields.rest;
    let gid = if compat {
        fields.number_or_empty()?
    } else {
        fields.number()?
    };
    let taken = before.len() - fields.rest.len();
    let colon = before
        .get(..taken)
        .is_some_and(|field| field.ends_with(b":"));
    Some(entry(
        gid,
        gid_at..gid_at + taken - usize::from(colon),
        colon.then_some((fields.at, fields.rest)),
    ))
}

/// The entry that `getgrnam` finds, including one with 4294967295.
pub(super) fn first_entry<'a>(file: &'a [u8], name: &[u8]) -> Option<Entry<'a>> {
    entries(file)
        .filter(|line| line.is_named(name))
        .find_map(parse)
}

/// The entries of the lines for which `matches` returns true, except those with 4294967295: glibc accepts that
/// GID, but to the kernel it is not a valid ID.
fn usable<'a>(
    file: &'a [u8],
    matches: impl Fn(&Line<'_>) -> bool,
) -> impl Iterator<Item = Group<'a>> {
    entries(file)
        .filter(matches)
        .filter_map(parse)
        .map(|entry| entry.group)
        .filter(|group| group.gid.as_raw() != u32::MAX)
}

/// Every entry that a lookup by name or GID can find. As in glibc, these lines are skipped: blank lines,
/// comments, entries of the NIS `compat` service (`+` and `-`), and lines with a GID that is missing,
/// is followed by other text, or does not fit in 32 bits (such as -1). Lines of three fields are
/// entries without members.
///
/// Lines with 4294967295 are ignored here: glibc accepts it, but to the kernel it is not a valid ID.
pub fn groups(file: &[u8]) -> impl Iterator<Item = Group<'_>> {
    usable(file, |_| true)
}

/// The group of that name, as `getgrnam` finds it: the first entry with a valid ID (see [`groups`]).
///
/// An indented last line without a newline is parsed as intended; glibc 2.36 reads some of its last
/// bytes twice, ` kvm:x:108` as 1088. [`align`](super::edit::align) rewrites such a line.
pub fn by_name<'a>(file: &'a [u8], name: &[u8]) -> Option<Group<'a>> {
    all_by_name(file, name).next()
}

/// Every entry of that name. Lookups return only the first, but the members of all of them count.
pub fn all_by_name<'a>(file: &'a [u8], name: &[u8]) -> impl Iterator<Item = Group<'a>> {
    usable(file, |line| line.is_named(name))
}

/// Every entry that has one of these names. Lines of other names are not parsed.
pub fn all_by_names<'a>(file: &'a [u8], names: &[&str]) -> impl Iterator<Item = Group<'a>> {
    usable(file, |line| {
        names.iter().any(|name| line.is_named(name.as_bytes()))
    })
}

/// Every entry with that GID: the members of all these groups have the GID's permissions.
pub fn all_by_gid(file: &[u8], gid: Gid) -> impl Iterator<Item = Group<'_>> {
    groups(file).filter(move |group| group.gid == gid)
}

/// The groups that a process of `user` gets, as `getgrouplist` finds them: `primary` first, then
/// each other GID once, in the file's order.
///
/// More lines count than in lookups (glibc `nss_files` initgroups): every entry of a name that occurs
/// twice, entries of the `compat` service (an empty GID there is 0), and comments: with
/// `#kvm:x:108:nova`, nova gets GID 108. A line with 4294967295 counts as well; then no process of
/// that user can be started, because setgroups(2) returns `EINVAL`.
pub fn gids_of(file: &[u8], user: &[u8], primary: Gid) -> Vec<Gid> {
    let mut seen = BTreeSet::from([primary.as_raw()]);
    let mut gids = vec![primary];
    for Entry { group, .. } in lines(file).filter_map(parse) {
        if group.has_member(user) && seen.insert(group.gid.as_raw()) {
            gids.push(group.gid);
        }
    }
    gids
}

/// Whether the content is certainly a group file, and not a passwd file, a script or another file in its place:
/// every line except empty lines, comments and entries of the NIS `compat` service has four fields, with a name
/// without spaces and a GID in digits, and one of them is root with GID 0. Stricter than glibc, which skips
/// lines that it cannot parse.
pub fn is_group_file(file: &[u8]) -> bool {
    let mut has_root = false;
    for line in lines(file) {
        if line.text.is_empty() && line.ended || line.text.starts_with(b"#") || line.is_compat() {
            continue;
        }
        let fields: Vec<_> = line.text.split(|byte| *byte == b':').take(5).collect();
        let [name, _, gid, _] = fields[..] else {
            return false;
        };
        let digits = !gid.is_empty() && gid.iter().all(u8::is_ascii_digit);
        let gid = std::str::from_utf8(gid).ok().filter(|_| digits);
        let Some(gid) = gid.and_then(|gid| gid.parse::<u32>().ok()) else {
            return false;
        };
        let is_invalid = |byte: &u8| byte.is_ascii_whitespace() || byte.is_ascii_control();
        if name.is_empty() || name.iter().any(is_invalid) {
            return false;
        }
        has_root |= name == b"root" && gid == 0;
    }
    // `lines` ends the text of a line at a NUL, so the bytes after one were not checked.
    has_root && !file.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GID, line and members.
    fn shown(group: Group<'_>) -> String {
        let members = group
            .members()
            .map(|member| member.escape_ascii().to_string());
        let members: Vec<_> = members.collect();
        format!("{} {} {}", group.gid, group.line, members.join(","))
    }

    #[test]
    fn by_name_finds_the_same_entry_as_getgrnam() {
        for (file, want) in [
            (&b"kvm:x:108:"[..], "108 1 "),
            (b"root:x:0:\nkvm:x:108:nova,a\n", "108 2 nova,a"),
            (b"kvm:x:1:a\nkvm:x:2:b\n", "1 1 a"),
            (b"\n#kvm:x:1:\n \tkvm::108: a,,\tb ,", "108 3 a,b "),
            (b"kvm:x: +0108:nova", "108 1 nova"),
            (b"kvm:x:0:", "0 1 "),
            (b"kvm:x:108", "108 1 "),
            (
                b"kvm:x:-1:\nkvm:x:4294967295:\nkvm:x::\nkvm:x:7 :\nkvm:x:108:",
                "108 5 ",
            ),
            (b"kvm:x:99999999999999999999:\nkvm:x:5:", "5 2 "),
            (b"kvm\nkvm:x\nkvm:x:\nkvm:x:5:", "5 4 "),
            (b"kvm:x:108:nova\r\n", "108 1 nova\\r"),
            (b"kvm:x:108:\r\n", "108 1 "),
            (b"kvm:x:1\r\nkvm:x:2:", "2 2 "),
            (b"kvm:x:108:a:b,c", "108 1 a:b,c"),
            (b"\0kvm:x:1:\nkv\0m:x:1:\nkvm:x:108:a\0,b\n", "108 3 a"),
            (b"\xff\xfe:x:1:\nkvm:\xff:108:n\xf8", "108 2 n\\xf8"),
            (b"+kvm:x:1:\n-kvm:x:1:\nkvmx:x:1:\nkvm:x:108:", "108 4 "),
        ] {
            let got = by_name(file, b"kvm").map(shown);
            assert_eq!(got.as_deref(), Some(want), "{}", file.escape_ascii());
        }
        for name in ["+kvm", "-kvm", "#kvm", " kvm", "kvm:x", "other", "+"] {
            let file = b"+kvm:x:1:\n-kvm:x:1:\n#kvm:x:1:\n kvm:x:1:\n+\n";
            assert_eq!(by_name(file, name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn recognizes_group_files_and_rejects_other_files() {
        for file in [
            &b"root:x:0:\n"[..],
            b"root:x:0:",
            b"# groups\nroot:*:0:\nkvm:x:108:nova,a\n\n\n+:::\n+\n-x\n",
            b"kvm::1:\nroot::0:root\n",
        ] {
            assert!(is_group_file(file), "{}", file.escape_ascii());
        }
        for file in [
            &b""[..],
            b"\n",
            b"kvm:x:108:\n",
            b"root:x:1:\n",
            b"root:x:0:0:root:/root:/bin/sh\n",
            b"root:$6$salt:19000:0:99999:7:::\n",
            b"root:*::\n",
            b"root:x:0:\nkvm:x:108\n",
            b"root:x:0:\nkvm:x::\n",
            b"root:x:0:\nkvm:x:-1:\n",
            b"root:x:0:\nkvm:x:4294967296:\n",
            b"root:x:0:\nkvm:x:1 :\n",
            b"root:x:0:\n:x:1:\n",
            b"root:x:0:\n kvm\n",
            b"#!/bin/sh\nroot:x:0:\necho\n",
            b"root:x:0:\nexport A=b:c:1:d\n",
            b"root:x:0:\n\0\n",
        ] {
            assert!(!is_group_file(file), "{}", file.escape_ascii());
        }
    }

    #[test]
    fn all_by_name_and_all_by_gid_find_every_entry() {
        let file = b"kvm:x:108:a\nx:x:108:\nkvm:x:7:b\n+kvm:x:108:\n#kvm:x:108:\n";
        let lines = |groups: Vec<Group<'_>>| groups.iter().map(|g| g.line).collect::<Vec<_>>();
        assert_eq!(lines(all_by_name(file, b"kvm").collect()), [1, 3]);
        let gid = Gid::from_raw(108);
        assert_eq!(lines(all_by_gid(file, gid).collect()), [1, 2]);
        assert_eq!(lines(groups(file).collect()), [1, 2, 3]);
    }

    #[test]
    fn gids_of_finds_the_same_groups_as_getgrouplist() {
        for (file, want) in [
            (&b""[..], &[5][..]),
            (b"a:x:1:nova\nb:x:2:x\nc:x:3:x,nova", &[5, 1, 3]),
            (
                b"kvm:x:1:nova\nkvm:x:2:nova\nd:x:1:nova\ne:x:5:nova",
                &[5, 1, 2],
            ),
            (b"#a:x:1:nova\n  #b:x:2:nova\n", &[5, 1, 2]),
            (b"+a:x::nova\n", &[5, 0]),
            (b"+:::nova\n", &[5, 0]),
            (b" +a:x::nova\n+\n+:\n-\n", &[5]),
            (b"-a:x:7:nova\n", &[5, 7]),
            (
                b"a:x:1\nb:x::nova\nc:x:-1:nova\nd:x:4294967296:nova\n",
                &[5],
            ),
            (b"a:x:1:nova\r\nb:x:2:nova,\r\n", &[5, 2]),
            (b"a:x:4294967295:nova\n", &[5, u32::MAX]),
            (b"a:x:1:nova:y\nb:x:2:nova \nc:x:3: nova", &[5, 3]),
            (b"a:x:1:nova\0\nb:x:2:\0nova", &[5, 1]),
        ] {
            let got = gids_of(file, b"nova", Gid::from_raw(5)).into_iter();
            let got: Vec<_> = got.map(Gid::as_raw).collect();
            assert_eq!(got, want, "{}", file.escape_ascii());
        }
    }
}
