//! Numbers as C's `strtoul` reads them in base 10.
//!
//! glibc uses that function for the IDs in account files, libvirt for its `user` and `group` settings.
//! It accepts more than digits: leading spaces, a sign, and negative values, which wrap around.

#![forbid(unsafe_code)]

/// A number that `strtoul` accepts.
pub(crate) struct Number {
    /// The value as a 64-bit `unsigned long`: negated modulo 2^64 after a `-`, and `u64::MAX` if
    /// the digits overflow.
    pub(crate) value: u64,
    /// Whether there was a `-`.
    pub(crate) negative: bool,
    /// Whether the digits did not overflow (C: no ERANGE).
    pub(crate) in_range: bool,
}

/// C's `isspace` in the C locale; unlike Rust's ASCII whitespace it includes the vertical tab.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Removes leading bytes for which C's `isspace` is true.
pub(crate) fn trim_start(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|b| is_space(**b)).count();
    text.get(spaces..).unwrap_or_default()
}

/// Parses a number. `None` if there are no digits, or if other text follows them (C: the end pointer is the
/// start of the text, or not its end).
pub(crate) fn strtoul(text: &[u8]) -> Option<Number> {
    let text = trim_start(text);
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_same_numbers_as_strtoul() {
        for (text, want) in [
            (&b"108"[..], Some(108)),
            (b" \t\n\x0b\x0c\r108", Some(108)),
            (b"+0108", Some(108)),
            (b"108 ", None),
            (b"0108:", None),
            (b"0x10", None),
            (b"-1", Some(u64::MAX)),
            (b"-18446744073709551508", Some(108)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"18446744073709551616", Some(u64::MAX)),
            (b"-18446744073709551616", Some(u64::MAX)),
            (b"", None),
            (b" ", None),
            (b"+", None),
            (b"+-1", None),
            (b"- 1", None),
            (b"\xa01", None),
        ] {
            let got = strtoul(text).map(|number| number.value);
            assert_eq!(got, want, "{}", text.escape_ascii());
        }
    }
}
