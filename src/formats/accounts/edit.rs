//! Edits a group file: sets the GID of a group and adds a user to its members.
//!
//! Tools that rewrite the file from parsed entries (groupmod, usermod) drop or reorder lines that they
//! cannot parse. libvirtd refuses to start if a line that it needs is missing, so this module changes
//! only the bytes that have to change, and produces lines that glibc reads as intended.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use nix::unistd::Gid;

use super::group::{Entry, first_entry};
use super::line::{Line, lines};
use super::strtoul::is_space;

/// The required group entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want<'a> {
    pub group: &'a [u8],
    pub gid: Gid,
    /// The user that the group's own entry has to list, even if another entry lists it already.
    pub member: Option<&'a [u8]>,
}

/// One difference between the current and the desired file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The group's GID is replaced.
    SetGid {
        /// The GID that `getgrnam` finds now. Equal to `to` if the line has the right GID but glibc
        /// misreads it: an indented last line of three fields without a newline.
        from: Gid,
        /// The desired GID.
        to: Gid,
    },
    /// The group does not exist and is added.
    AddGroup {
        /// The desired GID.
        gid: Gid,
    },
    /// The user is added to the group's members.
    AddMember {
        /// The name of the user.
        user: Vec<u8>,
    },
}

/// Why the desired entry cannot be written into a group file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EditError {
    /// The name of a group or user is not safe to write into a group file.
    Name {
        /// `group` or `member`.
        field: &'static str,
        name: Vec<u8>,
        reason: &'static str,
    },
    /// 4294967295, which is not a valid GID, or 0, which belongs to root.
    Gid(Gid),
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name {
                field,
                name,
                reason,
            } => write!(
                f,
                "the {field} name '{}' cannot be written into a group file: {reason}",
                name.escape_ascii()
            ),
            Self::Gid(gid) => write!(f, "{gid} is not a valid GID for the group"),
        }
    }
}

impl std::error::Error for EditError {}

/// The desired file, and its differences from `file`. If there are none, the file is borrowed and the
/// list of changes is empty.
///
/// The entry that `getgrnam` finds is edited: its GID field is replaced, and the user is appended to
/// its members, or put before them on a CRLF line, whose last member glibc misreads. glibc accepts
/// 4294967295, so a line with it is the one to edit; lines without a valid GID (`kvm:x::`,
/// `kvm:x:-1:`) are skipped by glibc and left unchanged. A missing entry is added at the end of the
/// file, or before the first entry of the NIS `compat` service, which does not read the lines after it.
///
/// # Errors
///
/// [`EditError`] for a GID that no group can have, and for a name that has to be written but is not safe
/// to write ([`EditError::Name`]).
pub fn align<'a>(
    file: &'a [u8],
    want: &Want<'_>,
) -> Result<(Cow<'a, [u8]>, Vec<Change>), EditError> {
    if matches!(want.gid.as_raw(), 0 | u32::MAX) {
        return Err(EditError::Gid(want.gid));
    }
    let mut splices = Vec::new();
    let mut changes = Vec::new();
    match first_entry(file, want.group) {
        Some(entry) => {
            let from = entry.group.gid;
            if from != want.gid || entry.misread {
                splices.push((entry.gid_field.clone(), want.gid.to_string().into_bytes()));
                changes.push(Change::SetGid { from, to: want.gid });
            }
            if entry.misread && want.member.is_none() {
                // With the colon, every version of glibc ends the GID there.
                splices.push((entry.end..entry.end, b":".to_vec()));
            }
            if let Some(user) = want.member.filter(|user| !entry.group.has_member(user)) {
                check_name("member", user)?;
                let (at, text) = new_member(file, &entry, user);
                splices.push((at..at, text));
                changes.push(Change::AddMember {
                    user: user.to_vec(),
                });
            }
        }
        None => {
            check_name("group", want.group)?;
            want.member
                .map_or(Ok(()), |user| check_name("member", user))?;
            let at = compat_start(file);
            let mut text = Vec::new();
            if at > 0 && file.get(at - 1) != Some(&b'\n') {
                text.push(b'\n');
            }
            text.extend_from_slice(want.group);
            text.extend_from_slice(format!(":x:{}:", want.gid).as_bytes());
            text.extend_from_slice(want.member.unwrap_or_default());
            text.push(b'\n');
            splices.push((at..at, text));
            changes.push(Change::AddGroup { gid: want.gid });
            changes.extend(want.member.map(|user| Change::AddMember {
                user: user.to_vec(),
            }));
        }
    }
    Ok((splice(file, splices), changes))
}

/// The file with some ranges replaced; the ranges are in ascending order.
fn splice(file: &[u8], splices: Vec<(Range<usize>, Vec<u8>)>) -> Cow<'_, [u8]> {
    if splices.is_empty() {
        return Cow::Borrowed(file);
    }
    let mut out = Vec::with_capacity(file.len() + 64);
    let mut done = 0;
    for (range, text) in splices {
        out.extend_from_slice(file.get(done..range.start).unwrap_or_default());
        out.extend_from_slice(&text);
        done = range.end;
    }
    out.extend_from_slice(file.get(done..).unwrap_or_default());
    Cow::Owned(out)
}

/// Position and text to insert so that glibc reads `user` and all other members.
fn new_member(file: &[u8], entry: &Entry<'_>, user: &[u8]) -> (usize, Vec<u8>) {
    let Some(list) = entry.list.clone() else {
        return (entry.end, [b":", user].concat());
    };
    let text = file.get(list.clone()).unwrap_or_default();
    if text.last() == Some(&b'\r') {
        return (list.start, [user, b","].concat());
    }
    match text.iter().rfind(|b| !is_space(**b)) {
        None | Some(b',') => (list.end, user.to_vec()),
        Some(_) => (list.end, [b",", user].concat()),
    }
}

/// The offset of the first entry of the `compat` service; the file's length if there is none.
fn compat_start(file: &[u8]) -> usize {
    lines(file)
        .find(|line| line.entry().is_some_and(Line::is_compat))
        .map_or(file.len(), |line| line.start)
}

/// Accepts only names that no program can misread: neither a shell that reads the file as a script, nor a tool
/// that accepts an ID or a path in place of a name, nor the NIS compat service. useradd(8) of Debian accepts
/// `x;id;#`, `a/b` and `123`. Only names that are written are checked, not those that are in the file already.
fn check_name(field: &'static str, name: &[u8]) -> Result<(), EditError> {
    /// The limit of the shadow tools, in bytes.
    const MAX: usize = 32;
    let is_letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    let is_valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    // The names of Samba's machine accounts end in `$`.
    let stem = name.strip_suffix(b"$").unwrap_or(name);
    let reason = match stem.split_first() {
        None => "it is empty",
        Some((first, _)) if !is_letter(first) => "it does not start with a letter or _",
        Some((_, rest)) if !rest.iter().all(is_valid) => {
            "it contains characters other than letters, digits, _ . and -"
        }
        Some(_) if name.len() > MAX => "it is longer than 32 bytes",
        Some(_) => return Ok(()),
    };
    Err(EditError::Name {
        field,
        name: name.to_vec(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(member: &str) -> Want<'_> {
        Want {
            group: b"kvm",
            gid: Gid::from_raw(108),
            member: (!member.is_empty()).then_some(member.as_bytes()),
        }
    }

    fn text(bytes: &[u8]) -> String {
        bytes.escape_ascii().to_string()
    }

    #[test]
    fn edits_only_the_entry_that_getgrnam_finds() {
        for (file, member, after) in [
            (&b"kvm:x:424:\n"[..], "", &b"kvm:x:108:\n"[..]),
            (b"kvm:x:424:\n", "nova", b"kvm:x:108:nova\n"),
            (b"kvm:x:108:a", "nova", b"kvm:x:108:a,nova"),
            (b"kvm:x:108:a,", "nova", b"kvm:x:108:a,nova"),
            (b"kvm:x:108: \n", "nova", b"kvm:x:108: nova\n"),
            (b"kvm:x:108:a, \n", "nova", b"kvm:x:108:a, nova\n"),
            (b"kvm:x:108:a \n", "nova", b"kvm:x:108:a ,nova\n"),
            (b"kvm:x:108:nova2\n", "nova", b"kvm:x:108:nova2,nova\n"),
            (b"kvm:x:424\n", "nova", b"kvm:x:108:nova\n"),
            (b"kvm:x:424", "", b"kvm:x:108"),
            (
                b"  kvm:!:  +0424:b\na:x:1:\n",
                "b",
                b"  kvm:!:108:b\na:x:1:\n",
            ),
            (b"kvm:x:108:\r\n", "nova", b"kvm:x:108:nova,\r\n"),
            (
                b"kvm:x:424:a,nova\r\n",
                "nova",
                b"kvm:x:108:nova,a,nova\r\n",
            ),
            (b"kvm:x:424:nova,a\r\n", "nova", b"kvm:x:108:nova,a\r\n"),
            (b"kvm:x:424:a\0z\n", "nova", b"kvm:x:108:a,nova\0z\n"),
            (b"kvm:x:424\0z\n", "nova", b"kvm:x:108:nova\0z\n"),
            (b"kvm:x:424:a:b\n", "nova", b"kvm:x:108:a:b,nova\n"),
            (
                b"kvm:x:1:\nkvm:x:108:nova\n",
                "nova",
                b"kvm:x:108:nova\nkvm:x:108:nova\n",
            ),
            (b"kvm:x:-1:\nkvm:x:1:\n", "", b"kvm:x:-1:\nkvm:x:108:\n"),
            (b"kvm:x::a\n", "b", b"kvm:x::a\nkvm:x:108:b\n"),
            (
                b"kvm:x:4294967295:\nkvm:x:1:\n",
                "b",
                b"kvm:x:108:b\nkvm:x:1:\n",
            ),
            (b"#kvm:x:108:\n", "", b"#kvm:x:108:\nkvm:x:108:\n"),
            (b" kvm:x:108", "", b" kvm:x:108:"),
            (b" kvm:x:424", "nova", b" kvm:x:108:nova"),
            (b"", "nova", b"kvm:x:108:nova\n"),
            (b"a:x:1:", "nova", b"a:x:1:\nkvm:x:108:nova\n"),
            (b"a:x:1:\n\n", "nova", b"a:x:1:\n\nkvm:x:108:nova\n"),
            (
                b"a:x:1:\n+:::\n-b\n",
                "nova",
                b"a:x:1:\nkvm:x:108:nova\n+:::\n-b\n",
            ),
            (b"+", "nova", b"kvm:x:108:nova\n+"),
            (b"a:x:1:\n +kvm:::", "", b"a:x:1:\nkvm:x:108:\n +kvm:::"),
            (b"+\nkvm:x:1:\n", "", b"+\nkvm:x:108:\n"),
        ] {
            let want = want(member);
            let (got, changes) = align(file, &want).unwrap();
            assert_eq!(text(&got), text(after), "{}", text(file));
            assert!(!changes.is_empty());
            let (again, changes) = align(&got, &want).unwrap();
            assert!(
                matches!(again, Cow::Borrowed(_)) && changes.is_empty(),
                "{}",
                text(file)
            );
        }
    }

    #[test]
    fn leaves_a_correct_file_unchanged() {
        for (file, member) in [
            (&b"kvm:x:108:"[..], ""),
            (b"kvm:x:0108:a, nova", "nova"),
            (b"kvm:x:108:nova\0\n", "nova"),
            (b"kvm:x:108:nova,\r\n", "nova"),
            (b"kvm:x:\nkvm:x:108:nova\nkvm:x:9:\n", "nova"),
        ] {
            let (got, changes) = align(file, &want(member)).unwrap();
            assert!(matches!(got, Cow::Borrowed(_)), "{}", text(file));
            assert_eq!(changes, []);
        }
    }

    /// Only names that would be written are refused, not those that the file already contains.
    #[test]
    fn keeps_unsafe_names_that_the_file_already_contains() {
        let unsafe_names = Want {
            group: b"a/b",
            member: Some(b"x;id;#"),
            ..want("")
        };
        let (got, changes) = align(b"a/b:x:108:x;id;#\n", &unsafe_names).unwrap();
        assert!(matches!(got, Cow::Borrowed(_)) && changes.is_empty());
        let (got, changes) = align(b"a/b:x:424:x;id;#\n", &unsafe_names).unwrap();
        assert_eq!(
            (text(&got), changes.len()),
            ("a/b:x:108:x;id;#\\n".to_owned(), 1)
        );
        for file in [&b"a/b:x:108:\n"[..], b"c:x:1:x;id;#\n"] {
            assert!(align(file, &unsafe_names).is_err());
        }
    }

    #[test]
    fn reports_each_change() {
        let (from, to) = (Gid::from_raw(424), Gid::from_raw(108));
        let user = b"nova".to_vec();
        let member = Change::AddMember { user };
        let changes = |file: &[u8]| align(file, &want("nova")).unwrap().1;
        assert_eq!(
            changes(b"kvm:x:424:"),
            [Change::SetGid { from, to }, member.clone()]
        );
        assert_eq!(changes(b""), [Change::AddGroup { gid: to }, member]);
    }

    #[test]
    fn refuses_unsafe_names_and_invalid_gids() {
        let names = " |\ta|\x0ba|+a|-a|#a|a:b|a,b|a\nb|a\r|a\0b|x;id;#|a/b|a$(id)|123|1a|.a|a b|a$b|a$$|$|\u{e4}|\
             a\u{1b}|a23456789012345678901234567890123|a2345678901234567890123456789012$";
        for name in names.split('|').chain([""]) {
            let name = name.as_bytes();
            let as_group = Want {
                group: name,
                ..want("nova")
            };
            let as_member = Want {
                member: Some(name),
                ..want("")
            };
            for want in [as_group, as_member] {
                let error = align(b"kvm:x:1:\n", &want).unwrap_err();
                assert!(matches!(error, EditError::Name { .. }), "{error}");
            }
        }
        for name in [
            "a",
            "_",
            "A_b.c-9",
            "a$",
            "a2345678901234567890123456789012",
        ] {
            let want = Want {
                group: name.as_bytes(),
                member: Some(name.as_bytes()),
                ..want("")
            };
            let (file, _) = align(b"", &want).unwrap();
            assert_eq!(text(&file), format!("{name}:x:108:{name}\\n"));
        }
        for gid in [0, u32::MAX] {
            let want = Want {
                gid: Gid::from_raw(gid),
                ..want("")
            };
            assert_eq!(align(b"", &want), Err(EditError::Gid(want.gid)));
        }
        let unsafe_names = Want {
            group: b"k\nvm",
            ..want("")
        };
        assert_eq!(
            align(b"", &unsafe_names).unwrap_err().to_string(),
            "the group name 'k\\nvm' cannot be written into a group file: \
             it contains characters other than letters, digits, _ . and -"
        );
    }
}
