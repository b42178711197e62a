//! A rules file as lines: line ends, comments, continuations, and what is too long.

use std::borrow::Cow;

use crate::find::three;

/// The length that udevd allows a line, with its continuations.
pub(super) const LINE_MAX: usize = 16384;

/// What was found in a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lines<'a> {
    /// Each rule's text, continuations joined, with the number of its last line: udevd's own
    /// messages count so.
    pub(super) rules: Vec<(usize, Cow<'a, [u8]>)>,
    /// Lines that udevd leaves out: number, text, and why.
    pub(super) broken: Vec<(usize, Cow<'a, [u8]>, &'static str)>,
    /// The number of the line, longer than [`LINE_MAX`] by itself, at which udevd gives up.
    pub(super) given_up: Option<usize>,
}

/// Whether udevd skips this byte between words.
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Drops blanks at the start.
pub(super) fn trim(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|byte| is_blank(**byte)).count();
    text.get(blanks..).unwrap_or_default()
}

/// Splits a file.
pub(super) fn lines(file: &[u8]) -> Lines<'_> {
    /// Shorter than most lines, so that most files need one piece of memory.
    const SHORT: usize = 64;
    let mut found = Lines::default();
    found.rules.reserve(file.len() / SHORT);
    let mut continued: Option<Cow<'_, [u8]>> = None;
    let mut too_long = false;
    let mut number = 0;
    let mut rest = file;
    while let Some((raw, after)) = next_line(rest) {
        rest = after;
        number += 1;
        if raw.len() >= LINE_MAX {
            found.given_up = Some(number);
            return found;
        }
        let mut line = Cow::Borrowed(trim(raw));
        // A comment is dropped even between the parts of a continued line.
        if line.first() == Some(&b'#') {
            continue;
        }
        if let Some(start) = continued.as_mut().filter(|_| !too_long) {
            too_long = start.len() + line.len() >= LINE_MAX;
            start.to_mut().extend_from_slice(&line);
            if !too_long {
                line.clone_from(start);
            }
        }
        if line.last() == Some(&b'\\') {
            if !too_long {
                without_last(&mut line);
                continued = Some(line);
            }
            continue;
        }
        if too_long {
            let text = continued.take().unwrap_or(line);
            found.broken.push((number, text, "the line is too long"));
        } else if !line.is_empty() {
            found.rules.push((number, line));
        }
        continued = None;
        too_long = false;
    }
    if let Some(text) = continued {
        let why = "the file ends in a continued line";
        found.broken.push((number, text, why));
    }
    found
}

fn without_last(line: &mut Cow<'_, [u8]>) {
    match line {
        Cow::Borrowed(line) => *line = line.split_last().map_or(&[], |(_, rest)| rest),
        Cow::Owned(line) => {
            line.pop();
        }
    }
}

/// The first line and what follows it. NUL, CR and LF all end a line, and different ones in a row
/// count as one end; nothing follows a NUL in such a row.
fn next_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    if text.is_empty() {
        return None;
    }
    let is_end = |byte: &u8| matches!(byte, 0 | b'\n' | b'\r');
    let length = three(0, b'\n', b'\r', text).unwrap_or(text.len());
    let (line, rest) = text.split_at(length);
    let mut ends = 0;
    for byte in rest {
        let seen = rest.get(..ends).unwrap_or_default();
        if !is_end(byte) || seen.contains(byte) || seen.contains(&0) {
            break;
        }
        ends += 1;
    }
    Some((line, rest.get(ends..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(file: &[u8]) -> Vec<(usize, String)> {
        let text =
            |(number, text): (usize, Cow<'_, [u8]>)| (number, text.escape_ascii().to_string());
        lines(file).rules.into_iter().map(text).collect()
    }

    #[test]
    fn lines_end_and_go_on_as_udevd_reads_them() {
        type Row<'a> = (&'a [u8], &'a [(usize, &'a str)]);
        let table: [Row<'_>; 10] = [
            (b"", &[]),
            (b"\n\n a\n", &[(3, "a")]),
            (b"a\r\nb\r\n", &[(1, "a"), (2, "b")]),
            (b"a\rb\0c", &[(1, "a"), (2, "b"), (3, "c")]),
            (b"a\n\nb", &[(1, "a"), (3, "b")]),
            (b"# a\n  # b\nc", &[(3, "c")]),
            (b"a \\\n  b\\\nc\nd", &[(3, "a bc"), (4, "d")]),
            (b"a\\\n# no \\\nb", &[(3, "ab")]),
            (b"a\\\n\nb", &[(2, "a"), (3, "b")]),
            (b"a\\ \nb", &[(1, "a\\\\ "), (2, "b")]),
        ];
        for (file, want) in table {
            let want: Vec<_> = want.iter().map(|(n, t)| (*n, (*t).to_owned())).collect();
            assert_eq!(rules(file), want, "{}", file.escape_ascii());
        }
    }

    #[test]
    fn what_is_too_long_or_unfinished_is_said() {
        let found = lines(b"a\nb\\");
        assert_eq!(found.rules, [(1, Cow::from(&b"a"[..]))]);
        assert_eq!(found.broken[0].0, 2);

        let half = "x".repeat(9000);
        let text = format!("{half}\\\n{half}\\\ny\nz\n");
        let found = lines(text.as_bytes());
        assert_eq!(found.rules, [(4, Cow::from(&b"z"[..]))]);
        assert_eq!(found.broken[0].0, 3);

        let text = format!("a\n{half}{half}\nb\n");
        let found = lines(text.as_bytes());
        assert_eq!(found.rules, [(1, Cow::from(&b"a"[..]))]);
        assert_eq!(found.given_up, Some(2));
    }
}
