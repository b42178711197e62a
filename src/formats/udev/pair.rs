//! Parses one part of a rule: a key, an operator and a quoted value.

use std::borrow::Cow;

use memchr::arch::all::memchr::Two;

use super::key::{Attr, IMPORTS, Key, Op, is_fixed_property, key};
use super::lines::{is_space, trim};
use super::value::{integer, octal};

/// `KEY{attr}op"value"`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair<'a> {
    pub(super) key: Key,
    /// The text in braces; empty without braces.
    pub(super) attr: Cow<'a, [u8]>,
    pub(super) op: Op,
    pub(super) value: Cow<'a, [u8]>,
    /// Whether the value was written `i"…"`.
    pub(super) any_case: bool,
}

impl<'a> Pair<'a> {
    /// Parses the first pair of a rule's text. Returns it with the text after it, or `None` at the end.
    ///
    /// # Errors
    /// The reason why udevd drops the whole line.
    pub(super) fn read(text: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, String> {
        let skip = |byte: &&u8| is_space(**byte) || **byte == b',';
        let skipped = text.iter().take_while(skip).count();
        let text = text.get(skipped..).unwrap_or_default();
        if text.is_empty() {
            return Ok(None);
        }
        let (name, attr, rest) = name(text)?;
        let (op, rest) = operator(trim(rest)).ok_or("unknown operator")?;
        let (value, any_case, rest) = value(trim(rest))?;
        let wrong = |why: &str| format!("{}: {why}", String::from_utf8_lossy(name));
        let (_, key, attrs, ops) = key(name).ok_or_else(|| wrong("unknown key"))?;
        let pair = Self {
            key: *key,
            attr: Cow::Borrowed(attr.unwrap_or_default()),
            op,
            value,
            any_case,
        };
        pair.check().map_err(wrong)?;
        if !takes(attrs, attr) {
            return Err(wrong("the attribute in braces is missing or not allowed"));
        }
        if !ops.take(op) {
            return Err(wrong("the key does not accept this operator"));
        }
        Ok(Some((pair, rest)))
    }

    pub(super) fn into_owned(self) -> Pair<'static> {
        Pair {
            attr: Cow::Owned(self.attr.into_owned()),
            value: Cow::Owned(self.value.into_owned()),
            ..self
        }
    }

    /// Whether udevd evaluates the pair as a comparison. For `PROGRAM` and `IMPORT` this is always so, since their
    /// success decides whether the rule matches.
    pub(super) fn is_comparison(&self) -> bool {
        self.op.is_match() || matches!(self.key, Key::Program | Key::Import | Key::Result)
    }

    /// Sort key for the order in which udevd evaluates the comparisons of a rule.
    pub(super) fn order(&self) -> (Key, usize) {
        let source = |import: &&[u8]| **import == *self.attr;
        let source = match self.key {
            Key::Import => IMPORTS.iter().position(source),
            _ => None,
        };
        (self.key, source.unwrap_or_default())
    }

    /// Checks the prefix and, for keys that accept only certain values, the value.
    fn check(&self) -> Result<(), &'static str> {
        let sets = !self.op.is_match();
        if self.any_case && (sets || matches!(self.key, Key::Test | Key::Program | Key::Import)) {
            return Err("the prefix 'i' is not allowed here");
        }
        match self.key {
            Key::Name if sets && (self.value.is_empty() || *self.value == *b"%k") => {
                Err("this name is not allowed")
            }
            Key::Env if sets && is_fixed_property(&self.attr) => Err("this property cannot be set"),
            Key::Options => check_option(&String::from_utf8_lossy(&self.value)),
            _ => Ok(()),
        }
    }
}

/// The key, the text in braces after it, and the rest.
type Name<'a> = (&'a [u8], Option<&'a [u8]>, &'a [u8]);

fn name(text: &[u8]) -> Result<Name<'_>, &'static str> {
    let mut rest = text;
    loop {
        match rest {
            [b'=' | b'{', ..] | [b'+' | b'-' | b'!' | b':', b'=', ..] => break,
            [byte, ..] if is_space(*byte) => break,
            [_, after @ ..] => rest = after,
            [] => return Err("the key has no operator"),
        }
    }
    let name = &text[..text.len() - rest.len()];
    let Some(inside) = rest.strip_prefix(b"{") else {
        return Ok((name, None, rest));
    };
    let end = inside.iter().position(|byte| *byte == b'}');
    let (attr, rest) = inside.split_at(end.ok_or("the closing '}' is missing")?);
    Ok((name, Some(attr), rest.get(1..).unwrap_or_default()))
}

fn takes(attrs: &Attr, attr: Option<&[u8]>) -> bool {
    let text = attr.unwrap_or_default();
    match attrs {
        Attr::None => attr.is_none(),
        Attr::Any => !text.is_empty(),
        Attr::OneOf(known) => known.contains(&text),
        Attr::NoneOr(known) => attr.is_none_or(|attr| known.contains(&attr)),
        Attr::Mode => text.is_empty() || octal(text).is_some(),
    }
}

fn check_option(option: &str) -> Result<(), &'static str> {
    const LEVELS: [&str; 10] = [
        "reset", "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug", "null",
    ];
    if let Some(priority) = option.strip_prefix("link_priority=") {
        integer(priority).ok_or("link_priority is not a number")?;
    }
    if let Some(level) = option.strip_prefix("log_level=") {
        let is_number = integer(level).is_some_and(|level| (0..8).contains(&level));
        if !is_number && !LEVELS.contains(&level) {
            return Err("log_level is not a valid level");
        }
    }
    Ok(())
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

/// The value, whether its case is ignored, and the text after the closing quote.
fn value(text: &[u8]) -> Result<Value<'_>, &'static str> {
    let (escaped, any_case, text) = match text {
        [b'"', rest @ ..] => (false, false, rest),
        [b'e', b'"', rest @ ..] => (true, false, rest),
        [b'i', b'"', rest @ ..] => (false, true, rest),
        [b'e', b'i', b'"', rest @ ..] | [b'i', b'e', b'"', rest @ ..] => (true, true, rest),
        _ => return Err("the value is not in double quotes"),
    };
    let mut at = Two::new(b'"', b'\\').find(text).unwrap_or(text.len());
    let (start, _) = text.split_at(at);
    if let Some([b'"', rest @ ..]) = text.get(at..) {
        return Ok((Cow::Borrowed(start), any_case, rest));
    }
    let mut plain = start.to_vec();
    loop {
        match (text.get(at), text.get(at + 1)) {
            (None, _) => return Err("the value has no closing quote"),
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
        plain = unescape(&plain).ok_or("unknown escape sequence")?;
    }
    let rest = text.get(at + 1..).unwrap_or_default();
    Ok((Cow::Owned(plain), any_case, rest))
}

/// Decodes the escape sequences of C, and `\s` for a space.
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

    fn shown(line: &str) -> Result<String, String> {
        let mut rest = line.as_bytes();
        let mut shown = Vec::new();
        while let Some((pair, after)) = Pair::read(rest)? {
            let Pair {
                key,
                attr,
                op,
                value,
                any_case,
            } = pair;
            let case = if any_case { "i" } else { "" };
            let (attr, value) = (attr.escape_ascii(), value.escape_ascii());
            shown.push(format!("{key:?}{{{attr}}} {op:?} {case}{value}"));
            rest = after;
        }
        Ok(shown.join(", "))
    }

    #[test]
    fn splits_lines_into_pairs_as_udevd_does() {
        for (line, want) in [
            ("", ""),
            (" , ,, ", ""),
            (
                r#"KERNEL=="kvm",MODE="0660""#,
                "Kernel{} Match kvm, Mode{} Assign 0660",
            ),
            (
                r#"KERNEL=="kvm" MODE="0660""#,
                "Kernel{} Match kvm, Mode{} Assign 0660",
            ),
            (
                r#"KERNEL=="kvm"MODE:="0660","#,
                "Kernel{} Match kvm, Mode{} Final 0660",
            ),
            (r#"KERNEL  ==  "kvm""#, "Kernel{} Match kvm"),
            (r#"ATTR{dev} != "a\"b\c""#, r#"Attr{dev} NoMatch a\"b\\c"#),
            (
                r#"ENV{a b}+="x", TAG-="y""#,
                "Env{a b} Add x, Tag{} Remove y",
            ),
            (
                r#"TAG=e"\x41\102\u0043\t\s\\\"""#,
                r#"Tag{} Assign ABC\t \\\""#,
            ),
            (r#"KERNEL==i"kvm""#, "Kernel{} Match ikvm"),
            (r#"KERNEL==ei"\x41""#, "Kernel{} Match iA"),
            (r#"KERNEL=="\x41""#, r"Kernel{} Match \\x41"),
        ] {
            assert_eq!(shown(line).unwrap(), want, "{line}");
        }
    }

    #[test]
    fn rejects_invalid_lines() {
        for line in [
            "KERNEL",
            "KERNEL==kvm",
            "KERNEL==\"kvm",
            "KERNEL==\"kvm\", MODE",
            "KERNEL==\"kvm\\\"",
            "ENV{a==\"b\"",
            "KERNEL =~ \"kvm\"",
            "KERNEL====\"kvm\"",
            "KERNEL==e\"\\q\"",
            "KERNEL==e\"\\x00\"",
            "KERNEL==e\"\\777\"",
            "KERNEL==ee\"kvm\"",
            "KERNEL==x\"kvm\"",
            "KERNEL=='kvm'",
            "KERNELS{a}==\"kvm\"",
            "KERNEL=\"kvm\"",
            "MODE==\"0660\"",
            "\u{feff}# a comment behind a byte order mark",
        ] {
            assert!(shown(line).is_err(), "{line}");
        }
    }
}
