//! Matches shell patterns byte by byte, as fnmatch(3) does without flags.

/// Whether a value is a pattern.
pub(super) fn is_glob(text: &[u8]) -> bool {
    text.iter().any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

/// Whether `text` matches `pattern`. `*` and `?` also match slashes and leading dots.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Positions in pattern and text at which to continue after the last `*`.
    let mut retry: Option<(usize, usize)> = None;
    let (mut p, mut t) = (0, 0);
    loop {
        let ahead = pattern.get(p..).unwrap_or_default();
        let fits = match (ahead.first(), text.get(t)) {
            (Some(b'*'), _) => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => None,
            (Some(b'?'), Some(_)) => Some(1),
            (Some(b'['), Some(byte)) => match bracket(ahead, *byte) {
                Some((true, length)) => Some(length),
                Some((false, _)) => None,
                None => (*byte == b'[').then_some(1),
            },
            (Some(b'\\'), Some(byte)) => (ahead.get(1) == Some(byte)).then_some(2),
            (Some(literal), Some(byte)) => (literal == byte).then_some(1),
        };
        match (fits, retry) {
            (Some(length), _) => (p, t) = (p + length, t + 1),
            (None, Some((after, from))) if from < text.len() => {
                (p, t) = (after, from + 1);
                retry = Some((after, from + 1));
            }
            (None, _) => return false,
        }
    }
}

/// Whether the bracket expression at the start of `pattern` matches `byte`, and its length. `None` for
/// a `[` that is never closed, which is an ordinary character.
fn bracket(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let mut at = 1;
    let negated = matches!(pattern.get(at), Some(b'!' | b'^'));
    if negated {
        at += 1;
    }
    let first = at;
    let mut found = false;
    loop {
        let start = *pattern.get(at)?;
        if start == b']' && at > first {
            return Some((found != negated, at + 1));
        }
        if let Some((class, length)) = class(pattern.get(at..)?) {
            found |= class(byte);
            at += length;
            continue;
        }
        let (low, next) = literal(pattern, at)?;
        at = next;
        if pattern.get(at) == Some(&b'-') && pattern.get(at + 1).is_some_and(|end| *end != b']') {
            let (high, next) = literal(pattern, at + 1)?;
            at = next;
            found |= (low..=high).contains(&byte);
        } else {
            found |= low == byte;
        }
    }
}

fn literal(pattern: &[u8], at: usize) -> Option<(u8, usize)> {
    match pattern.get(at)? {
        b'\\' => Some((*pattern.get(at + 1)?, at + 2)),
        // A collating element or an equivalence class of one letter.
        b'[' => match pattern.get(at + 1..at + 5) {
            Some([b'.', byte, b'.', b']'] | [b'=', byte, b'=', b']']) => Some((*byte, at + 5)),
            _ => Some((b'[', at + 1)),
        },
        byte => Some((*byte, at + 1)),
    }
}

type Class = fn(u8) -> bool;

fn class(text: &[u8]) -> Option<(Class, usize)> {
    let inside = text.strip_prefix(b"[:")?;
    let table: [(&[u8], Class); 12] = [
        (b"alnum", |byte| byte.is_ascii_alphanumeric()),
        (b"alpha", |byte| byte.is_ascii_alphabetic()),
        (b"blank", |byte| matches!(byte, b' ' | b'\t')),
        (b"cntrl", |byte| byte.is_ascii_control()),
        (b"digit", |byte| byte.is_ascii_digit()),
        (b"graph", |byte| byte.is_ascii_graphic()),
        (b"lower", |byte| byte.is_ascii_lowercase()),
        (b"print", |byte| byte.is_ascii_graphic() || byte == b' '),
        (b"punct", |byte| byte.is_ascii_punctuation()),
        (b"space", |byte| matches!(byte, b' ' | b'\t'..=b'\r')),
        (b"upper", |byte| byte.is_ascii_uppercase()),
        (b"xdigit", |byte| byte.is_ascii_hexdigit()),
    ];
    table.iter().find_map(|(name, class)| {
        let rest = inside.strip_prefix(*name)?;
        rest.starts_with(b":]").then_some((*class, name.len() + 4))
    })
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_in_fnmatch() {
        let table = [
            ("", "", true),
            ("", "a", false),
            ("kvm", "kvm", true),
            ("kv", "kvm", false),
            ("k*", "kvm", true),
            ("*m", "kvm", true),
            ("*", "", true),
            ("**v**", "kvm", true),
            ("k?m", "kvm", true),
            ("k?", "kvm", false),
            ("*kvm", "/devices/virtual/misc/kvm", true),
            ("[jk]vm", "kvm", true),
            ("[!jk]vm", "kvm", false),
            ("[^a]vm", "kvm", true),
            ("[a-z]vm", "kvm", true),
            ("[z-a]vm", "kvm", false),
            ("[]k]vm", "kvm", true),
            ("[k-]vm", "kvm", true),
            ("[k-]vm", "-vm", true),
            ("[[:lower:]]vm", "kvm", true),
            ("[[:digit:]]vm", "kvm", false),
            ("[[.k.]]vm", "kvm", true),
            ("[[=k=]]vm", "kvm", true),
            ("[[k]vm", "[vm", true),
            ("[kvm", "kvm", false),
            ("[kvm", "[kvm", true),
            ("\\kvm", "kvm", true),
            ("\\*", "*", true),
            ("\\*", "k", false),
            ("kvm\\", "kvm\\", false),
            ("*a*b*c", "xaxbxbc", true),
            ("*a*b*c", "xaxbxbcx", false),
            ("[\\k]vm", "kvm", true),
        ];
        for (pattern, text, want) in table {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                want,
                "{pattern} {text}"
            );
        }
    }
}
