//! Owners, groups, modes and numbers, as far as udevd understands them.

use nix::unistd::{Gid, Uid};

use super::rule::Rule;
use super::{Database, Udevd, systemd};

/// An owner or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who<Id> {
    /// A number, or a name that has one.
    Id(Id),
    /// A name that the node does not know: as if nothing had been set before either.
    Unknown(String),
    /// A name that is looked up at the event.
    Late(Id),
    /// Such a name that is not found: nothing happens.
    UnknownLate(String),
    /// A name that is not found in what is seen of the node's names.
    Unseen,
    /// With a substitution.
    Open,
}

/// A mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bits {
    Octal(u16),
    /// No octal number: nothing happens.
    Broken(String),
    /// With a substitution.
    Open,
}

/// What `OWNER=` says.
pub(super) fn owner(
    rule: &mut Rule<'_>,
    value: &[u8],
    node: &Udevd,
    db: &Database<'_>,
) -> Who<Uid> {
    let name = String::from_utf8_lossy(value).into_owned();
    let known = match (id(value), name.as_str()) {
        (Some(number), _) => Some(number),
        (None, "root") => Some(0),
        (None, name) => (db.user)(name).map(Uid::as_raw).filter(is_id),
    };
    let verdict = known.map(|uid| systemd::takes_id(node, uid, node.system_uid_max));
    let known = known.map(Uid::from_raw);
    settle("user", rule, value, (known, db.complete), verdict, node)
}

/// What `GROUP=` says.
pub(super) fn group(
    rule: &mut Rule<'_>,
    value: &[u8],
    node: &Udevd,
    db: &Database<'_>,
) -> Who<Gid> {
    let name = String::from_utf8_lossy(value).into_owned();
    let known = match (id(value), name.as_str()) {
        (Some(number), _) => Some(number),
        (None, "root") => Some(0),
        (None, name) => (db.group)(name).map(Gid::as_raw).filter(is_id),
    };
    let verdict = known.map(|gid| systemd::takes_id(node, gid, node.system_gid_max));
    let known = known.map(Gid::from_raw);
    settle("group", rule, value, (known, db.complete), verdict, node)
}

/// What becomes of an owner or group, given what the node knows about it, and whether all that it knows is
/// seen.
fn settle<Id>(
    what: &str,
    rule: &mut Rule<'_>,
    value: &[u8],
    (known, complete): (Option<Id>, bool),
    verdict: Option<systemd::Taken>,
    node: &Udevd,
) -> Who<Id> {
    let name = String::from_utf8_lossy(value).into_owned();
    if is_open(value) {
        return Who::Open;
    }
    // Such a value is taken for a substitution, and looked up only at the event.
    let late = value.first() == Some(&b'[');
    match (known, verdict) {
        (Some(id), _) if late => Who::Late(id),
        (Some(id), verdict) => {
            match verdict {
                Some(systemd::Taken::No(why)) => {
                    let _ = rule.dropped.get_or_insert(format!("{what} {name}: {why}"));
                }
                Some(systemd::Taken::Unknown(why)) => rule.doubt(Some(why)),
                Some(systemd::Taken::Yes) | None => {}
            }
            Who::Id(id)
        }
        (None, _) if !complete => {
            rule.doubt(Some(
                "it names a user or group that is not in the files of the node that are seen here, and \
                 may be in others",
            ));
            Who::Unseen
        }
        (None, _) if late => Who::UnknownLate(name),
        (None, _) => {
            match systemd::drops_unknown(node) {
                Some(true) => {
                    let why = format!("the node knows no {what} '{name}'");
                    let _ = rule.dropped.get_or_insert(why);
                }
                Some(false) => {}
                None => rule.doubt(Some(
                    "the node does not know a name in it, and what follows differs by version",
                )),
            }
            Who::Unknown(name)
        }
    }
}

/// What `MODE=` says.
pub(super) fn mode(value: &[u8]) -> Bits {
    match octal(value) {
        Some(bits) => Bits::Octal(bits),
        None if is_open(value) => Bits::Open,
        None => Bits::Broken(String::from_utf8_lossy(value).into_owned()),
    }
}

/// Whether a value has a substitution in it.
pub(super) fn is_open(value: &[u8]) -> bool {
    value.iter().any(|byte| matches!(byte, b'$' | b'%'))
}

fn is_id(id: &u32) -> bool {
    !matches!(*id, 0xffff | u32::MAX)
}

/// A user or group number: digits only, no leading zero, and none that stands for "no one".
fn id(text: &[u8]) -> Option<u32> {
    let digits = text.iter().all(u8::is_ascii_digit);
    let zero = text.len() > 1 && text.first() == Some(&b'0');
    let text = std::str::from_utf8(text).ok().filter(|_| digits && !zero)?;
    text.parse().ok().filter(is_id)
}

/// A mode: octal digits after blanks, up to 7777.
pub(super) fn octal(text: &[u8]) -> Option<u16> {
    let digits = text.trim_ascii_start();
    let plain = !digits.is_empty() && digits.iter().all(|digit| (b'0'..=b'7').contains(digit));
    let digits = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    let bits = u16::from_str_radix(digits, 8).ok();
    bits.filter(|bits| *bits <= 0o7777)
}

/// A number with C's prefixes and a sign, which is left out: only whether it is one counts.
pub(super) fn integer(text: &str) -> Option<i64> {
    let text = text.trim_start();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let radix = |prefix: &str, radix| {
        let digits = digits.strip_prefix(prefix)?;
        i64::from_str_radix(digits, radix).ok()
    };
    radix("0x", 16)
        .or_else(|| radix("0o", 8))
        .or_else(|| radix("0b", 2))
        .or_else(|| radix("0", 8))
        .or_else(|| digits.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_udevd_takes_for_numbers() {
        for (text, want) in [
            ("108", Some(108)),
            ("0", Some(0)),
            ("0108", None),
            ("+108", None),
            (" 108", None),
            ("108 ", None),
            ("", None),
            ("65534", Some(65534)),
            ("65535", None),
            ("4294967294", Some(4_294_967_294)),
            ("4294967295", None),
            ("4294967296", None),
            ("0x6c", None),
        ] {
            assert_eq!(id(text.as_bytes()), want, "{text}");
        }
        for (text, want) in [
            ("0660", Some(0o660)),
            ("660", Some(0o660)),
            (" 0660", Some(0o660)),
            ("0660 ", None),
            ("0", Some(0)),
            ("7777", Some(0o7777)),
            ("10000", None),
            ("0o660", None),
            ("0680", None),
            ("+660", None),
            ("", None),
            ("u=rw", None),
        ] {
            assert_eq!(octal(text.as_bytes()), want, "{text}");
        }
    }
}
