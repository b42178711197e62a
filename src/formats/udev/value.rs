//! Parses values as udevd does: IDs, modes, integers and the paths of static nodes.

/// Whether a value contains a substitution, which udevd fills in at the event.
pub(super) fn is_open(value: &[u8]) -> bool {
    value.iter().any(|byte| matches!(byte, b'$' | b'%'))
}

pub(super) fn is_id(id: &u32) -> bool {
    !matches!(*id, 0xffff | u32::MAX)
}

/// A UID or GID: digits only, no leading zero, and none that means "no ID" (65535 and 4294967295).
pub(super) fn id(text: &[u8]) -> Option<u32> {
    let digits = text.iter().all(u8::is_ascii_digit);
    let zero = text.len() > 1 && text.first() == Some(&b'0');
    let text = std::str::from_utf8(text).ok().filter(|_| digits && !zero)?;
    text.parse().ok().filter(is_id)
}

/// A mode: octal digits up to 7777, after optional spaces.
pub(super) fn octal(text: &[u8]) -> Option<u16> {
    let digits = text.trim_ascii_start();
    let plain = !digits.is_empty() && digits.iter().all(|digit| (b'0'..=b'7').contains(digit));
    let digits = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    let bits = u16::from_str_radix(digits, 8).ok();
    bits.filter(|bits| *bits <= 0o7777)
}

/// The absolute value of an integer with C's prefixes and an optional sign. Callers only check whether it is
/// an integer and whether it is small.
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

/// Whether a static node's name below /dev resolves to kvm, without another directory than /dev on the way. A
/// name that ends in a slash would have to be a directory.
pub(super) fn is_kvm(name: &[u8]) -> bool {
    let mut parts = name.split(|byte| *byte == b'/');
    let last = parts.next_back();
    let mut above = false;
    let stays = parts.all(|part| match part {
        b"" | b"." => true,
        b".." => !std::mem::replace(&mut above, true),
        b"dev" => std::mem::replace(&mut above, false),
        _ => false,
    });
    last == Some(b"kvm") && stays && !above
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_ids_and_modes_as_udevd_does() {
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
