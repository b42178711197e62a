//! One line of rules as keys, operators and quoted values.

use std::borrow::Cow;

use memchr::arch::all::memchr::Two;

use super::key::{Key, key};
use super::text::{is_blank, trim};

/// What stands between a key and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// `==`
    Match,
    /// `!=`
    NoMatch,
    /// `+=`
    Add,
    /// `-=`
    Remove,
    /// `=`
    Assign,
    /// `:=`
    Final,
}

impl Op {
    /// Whether it asks instead of setting.
    pub(super) fn is_match(self) -> bool {
        matches!(self, Self::Match | Self::NoMatch)
    }
}

/// `KEY{attr}op"value"`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair<'a> {
    /// The key, if it is one that udevd knows.
    pub(super) key: Option<Key>,
    /// The key as it was written.
    pub(super) name: &'a [u8],
    pub(super) attr: Option<&'a [u8]>,
    pub(super) op: Op,
    pub(super) value: Cow<'a, [u8]>,
    /// Whether the value was written `i"…"`.
    pub(super) any_case: bool,
}

/// Splits a line into `found`, whatever was in it, up to the first pair that is `enough`, of which it is
/// said whether there was one; an error is what makes udevd drop all of the line.
pub(super) fn pairs<'a>(
    line: &'a [u8],
    found: &mut Vec<Pair<'a>>,
    enough: impl Fn(&Pair<'a>) -> bool,
) -> Result<bool, &'static str> {
    found.clear();
    let mut rest = line;
    loop {
        let skip = |byte: &&u8| is_blank(**byte) || **byte == b',';
        let skipped = rest.iter().take_while(skip).count();
        rest = rest.get(skipped..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(false);
        }
        let (pair, after) = pair(rest)?;
        if enough(&pair) {
            return Ok(true);
        }
        found.push(pair);
        rest = after;
    }
}

fn pair(text: &[u8]) -> Result<(Pair<'_>, &[u8]), &'static str> {
    let mut rest = text;
    loop {
        match rest {
            [b'=' | b'{', ..] | [b'+' | b'-' | b'!' | b':', b'=', ..] => break,
            [byte, ..] if is_blank(*byte) => break,
            [_, after @ ..] => rest = after,
            [] => return Err("a key without an operator"),
        }
    }
    let name = &text[..text.len() - rest.len()];
    let mut attr = None;
    if let Some(inside) = rest.strip_prefix(b"{") {
        let end = inside.iter().position(|byte| *byte == b'}');
        let (inside, after) = inside.split_at(end.ok_or("a '{' without its '}'")?);
        attr = Some(inside);
        rest = after.get(1..).unwrap_or_default();
    }
    let (op, rest) = operator(trim(rest)).ok_or("no operator that udev knows")?;
    let (value, any_case, rest) = value(trim(rest))?;
    let pair = Pair {
        key: key(name),
        name,
        attr,
        op,
        value,
        any_case,
    };
    Ok((pair, rest))
}

fn operator(text: &[u8]) -> Option<(Op, &[u8])> {
    Some(match text {
        [b'=', b'=', rest @ ..] => (Op::Match, rest),
        [b'!', b'=', rest @ ..] => (Op::NoMatch, rest),
        [b'+', b'=', rest @ ..] => (Op::Add, rest),
        [b'-', b'=', rest @ ..] => (Op::Remove, rest),
        [b'=', rest @ ..] => (Op::Assign, rest),
        [b':', b'=', rest @ ..] => (Op::Final, rest),
        _ => return None,
    })
}

type Value<'a> = (Cow<'a, [u8]>, bool, &'a [u8]);

/// The value, whether case does not matter, and what follows the closing quote.
fn value(text: &[u8]) -> Result<Value<'_>, &'static str> {
    let (escaped, any_case, text) = match text {
        [b'"', rest @ ..] => (false, false, rest),
        [b'e', b'"', rest @ ..] => (true, false, rest),
        [b'i', b'"', rest @ ..] => (false, true, rest),
        [b'e', b'i', b'"', rest @ ..] | [b'i', b'e', b'"', rest @ ..] => (true, true, rest),
        _ => return Err("a value that is not in double quotes"),
    };
    let mut at = Two::new(b'"', b'\\').find(text).unwrap_or(text.len());
    let (start, _) = text.split_at(at);
    if let Some([b'"', rest @ ..]) = text.get(at..) {
        return Ok((Cow::Borrowed(start), any_case, rest));
    }
    let mut plain = start.to_vec();
    loop {
        match (text.get(at), text.get(at + 1)) {
            (None, _) => return Err("a value without its closing quote"),
            (Some(b'"'), _) => break,
            (Some(b'\\'), Some(next)) if escaped => {
                plain.extend([b'\\', *next]);
                at += 2;
            }
            (Some(b'\\'), Some(b'"')) => {
                plain.push(b'"');
                at += 2;
            }
            (Some(byte), _) => {
                plain.push(*byte);
                at += 1;
            }
        }
    }
    if escaped {
        plain = unescape(&plain).ok_or("an escape sequence that udev does not know")?;
    }
    let rest = text.get(at + 1..).unwrap_or_default();
    Ok((Cow::Owned(plain), any_case, rest))
}

/// The escapes of C, and `\s` for a blank.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'\\' {
            plain.push(*byte);
            continue;
        }
        let [kind, after @ ..] = rest else {
            return None;
        };
        rest = after;
        let simple = match kind {
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b's' => b' ',
            b'\\' | b'"' | b'\'' => *kind,
            b'x' => {
                let byte = digits(&mut rest, 2, 16)?;
                plain.push(u8::try_from(byte).ok().filter(|byte| *byte != 0)?);
                continue;
            }
            b'u' | b'U' => {
                let count = if *kind == b'u' { 4 } else { 8 };
                let letter = char::from_u32(digits(&mut rest, count, 16)?);
                let letter = letter.filter(|letter| *letter != '\0')?;
                plain.extend(letter.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            b'0'..=b'7' => {
                let high = u32::from(*kind - b'0') << 6;
                let byte = high + digits(&mut rest, 2, 8)?;
                plain.push(u8::try_from(byte).ok().filter(|byte| *byte != 0)?);
                continue;
            }
            _ => return None,
        };
        plain.push(simple);
    }
    Some(plain)
}

fn digits(rest: &mut &[u8], count: usize, radix: u32) -> Option<u32> {
    let (digits, after) = rest.split_at_checked(count)?;
    *rest = after;
    digits.iter().try_fold(0u32, |value, digit| {
        let digit = char::from(*digit).to_digit(radix)?;
        value.checked_mul(radix)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> Result<Vec<String>, &'static str> {
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let mut found = Vec::new();
        pairs(line.as_bytes(), &mut found, |_| false)?;
        let show = |pair: &Pair| {
            let attr = pair.attr.map(|attr| format!("{{{}}}", text(attr)));
            let (key, value) = (text(pair.name), text(&pair.value));
            let case = if pair.any_case { "i" } else { "" };
            format!(
                "{key}{} {:?} {case}{value}",
                attr.unwrap_or_default(),
                pair.op
            )
        };
        Ok(found.iter().map(show).collect())
    }

    #[test]
    fn lines_split_as_udevd_splits_them() {
        let table: [(&str, &[&str]); 13] = [
            ("", &[]),
            (" , ,, ", &[]),
            (
                r#"KERNEL=="kvm",MODE="0660""#,
                &["KERNEL Match kvm", "MODE Assign 0660"],
            ),
            (
                r#"KERNEL=="kvm" MODE="0660""#,
                &["KERNEL Match kvm", "MODE Assign 0660"],
            ),
            (
                r#"KERNEL=="kvm"MODE:="0660","#,
                &["KERNEL Match kvm", "MODE Final 0660"],
            ),
            (r#"KERNEL  ==  "kvm""#, &["KERNEL Match kvm"]),
            (
                r#"ATTR{dev} != "a\"b\c""#,
                &["ATTR{dev} NoMatch a\\\"b\\\\c"],
            ),
            (
                r#"ENV{a b}+="x", TAG-="y""#,
                &["ENV{a b} Add x", "TAG Remove y"],
            ),
            (
                r#"A=e"\x41\102\u0043\t\s\\\"""#,
                &["A Assign ABC\\t \\\\\\\""],
            ),
            (r#"A==i"kvm""#, &["A Match ikvm"]),
            (r#"A==ei"\x41""#, &["A Match iA"]),
            (r#"A=="\x41""#, &["A Match \\\\x41"]),
            (r#"A===="x""#, &[]),
        ];
        for (line, want) in table {
            let got = shown(line);
            if want.is_empty() && line.contains('A') {
                assert!(got.is_err(), "{line}");
            } else {
                assert_eq!(got.unwrap(), want, "{line}");
            }
        }
    }

    #[test]
    fn broken_lines_are_broken() {
        for line in [
            "KERNEL",
            "KERNEL==kvm",
            "KERNEL==\"kvm",
            "KERNEL==\"kvm\", MODE",
            "KERNEL==\"kvm\\\"",
            "ENV{a==\"b\"",
            "KERNEL =~ \"kvm\"",
            "KERNEL==e\"\\q\"",
            "KERNEL==e\"\\x00\"",
            "KERNEL==e\"\\777\"",
            "KERNEL==ee\"kvm\"",
            "KERNEL==x\"kvm\"",
            "KERNEL=='kvm'",
            "\u{feff}# a comment behind a byte order mark",
        ] {
            assert!(shown(line).is_err(), "{line}");
        }
    }
}
