//! Numbers as C's `strtoul` reads them in base 10.
//!
//! Both glibc's account files and libvirt's `user`/`group` settings go through that function, and
//! it accepts more than a plain number: leading blanks, a sign, and negative values that wrap.

#![forbid(unsafe_code)]

/// What `strtoul` found at the start of a text.
pub(crate) struct Number<'a> {
    /// The value as a 64-bit `unsigned long`: negated modulo 2^64 after a `-`, and `u64::MAX` where
    /// the digits do not fit.
    pub(crate) value: u64,
    /// Whether there was a `-`.
    pub(crate) negative: bool,
    /// Whether the digits fit (C: no ERANGE).
    pub(crate) in_range: bool,
    /// What follows the last digit.
    pub(crate) rest: &'a [u8],
}

/// C's `isspace` in the C locale; unlike Rust's ASCII whitespace it includes the vertical tab.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Drops leading blanks as C's `isspace` knows them.
pub(crate) fn trim_start(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|b| is_space(**b)).count();
    text.get(blanks..).unwrap_or_default()
}

/// Reads a number; `None` where there is no digit to read (C: the end pointer is the start).
pub(crate) fn strtoul(text: &[u8]) -> Option<Number<'_>> {
    let text = trim_start(text);
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let count = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    let (digits, rest) = digits.split_at(count);
    let magnitude = digits.iter().try_fold(0u64, |value, digit| {
        value
            .checked_mul(10)?
            .checked_add(u64::from(digit.wrapping_sub(b'0')))
    });
    Some(Number {
        value: match magnitude {
            None => u64::MAX,
            Some(value) if negative => value.wrapping_neg(),
            Some(value) => value,
        },
        negative,
        in_range: magnitude.is_some(),
        rest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_strtoul_reads() {
        for (text, want) in [
            (&b"108"[..], Some((108, &b""[..]))),
            (b" \t\n\x0b\x0c\r108", Some((108, b""))),
            (b"+108", Some((108, b""))),
            (b"0108:", Some((108, b":"))),
            (b"0x10", Some((0, b"x10"))),
            (b"-1", Some((u64::MAX, b""))),
            (b"-18446744073709551508", Some((108, b""))),
            (b"18446744073709551615", Some((u64::MAX, b""))),
            (b"18446744073709551616a", Some((u64::MAX, b"a"))),
            (b"-18446744073709551616", Some((u64::MAX, b""))),
            (b"", None),
            (b" ", None),
            (b"+", None),
            (b"+-1", None),
            (b"- 1", None),
            (b"\xa01", None),
        ] {
            let got = strtoul(text).map(|n| (n.value, n.rest));
            assert_eq!(got, want, "{}", text.escape_ascii());
        }
    }
}
