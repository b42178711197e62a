//! Splits a rules file into lines: handles line ends, comments, continuations and lines that are too long.

use std::borrow::Cow;

use memchr::arch::all::memchr::Three;

/// The length, in bytes, from which udevd rejects a line; it includes continuations.
pub(super) const LINE_MAX: usize = 16384;

/// A line with its continuations.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A rule's text.
    Rule(Cow<'a, [u8]>),
    /// A line that udevd drops, with the reason.
    Dropped(Vec<u8>, &'static str),
    /// A single line of [`LINE_MAX`] bytes or more: udevd does not read the rest of the file.
    TooLong,
}

/// The lines of a file except empty lines and comments, each with its line number; for a continued line that of
/// its last part.
pub(super) struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
}

/// Whether udevd skips this byte between words.
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Removes leading spaces and line ends.
pub(super) fn trim(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|byte| is_space(**byte)).count();
    text.get(spaces..).unwrap_or_default()
}

impl<'a> Lines<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self {
            rest: file,
            number: 0,
        }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, Line<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut joined: Option<Vec<u8>> = None;
        let mut too_long = false;
        while let Some((raw, after)) = next_line(self.rest) {
            self.rest = after;
            self.number += 1;
            if raw.len() >= LINE_MAX {
                self.rest = &[];
                return Some((self.number, Line::TooLong));
            }
            let part = trim(raw);
            // udevd skips a comment even between the parts of a continued line.
            if part.first() == Some(&b'#') {
                continue;
            }
            let Some(text) = &mut joined else {
                match part {
                    [] => continue,
                    [start @ .., b'\\'] => joined = Some(start.to_vec()),
                    _ => return Some((self.number, Line::Rule(Cow::Borrowed(part)))),
                }
                continue;
            };
            if !too_long {
                too_long = text.len() + part.len() >= LINE_MAX;
                text.extend_from_slice(part);
            }
            let end = if too_long { part.last() } else { text.last() };
            if end == Some(&b'\\') {
                if !too_long {
                    text.pop();
                }
                continue;
            }
            let text = joined.take().unwrap_or_default();
            if too_long {
                return Some((self.number, Line::Dropped(text, "the line is too long")));
            }
            if !text.is_empty() {
                return Some((self.number, Line::Rule(Cow::Owned(text))));
            }
        }
        let why = "the file ends in a continued line";
        Some((self.number, Line::Dropped(joined?, why)))
    }
}

/// The first line, and the text after it. NUL, CR and LF each end a line. Different ones in a row count
/// as one line end, but a NUL is always the last of such a row.
fn next_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    if text.is_empty() {
        return None;
    }
    let is_end = |byte: &u8| matches!(byte, 0 | b'\n' | b'\r');
    let length = Three::new(0, b'\n', b'\r').find(text).unwrap_or(text.len());
    let (line, rest) = text.split_at(length);
    let mut ends = 0;
    for byte in rest {
        let row = rest.get(..ends).unwrap_or_default();
        if !is_end(byte) || row.contains(byte) || row.contains(&0) {
            break;
        }
        ends += 1;
    }
    Some((line, rest.get(ends..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(file: &[u8]) -> String {
        let show = |(number, line)| match line {
            Line::Rule(text) => format!("{number} {}", text.escape_ascii()),
            Line::Dropped(..) => format!("{number} dropped"),
            Line::TooLong => format!("{number} too long"),
        };
        Lines::new(file).map(show).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn lines_end_and_continue_as_in_udevd() {
        let half = "x".repeat(9000);
        for (file, want) in [
            ("", ""),
            ("\n\n a\n", "3 a"),
            ("a\r\nb\r\n", "1 a, 2 b"),
            ("a\rb\0c", "1 a, 2 b, 3 c"),
            ("a\n\nb", "1 a, 3 b"),
            ("# a\n  # b\nc", "3 c"),
            ("a \\\n  b\\\nc\nd", "3 a bc, 4 d"),
            ("a\\\n# no \\\nb", "3 ab"),
            ("a\\\n\nb", "2 a, 3 b"),
            ("a\\ \nb", "1 a\\\\ , 2 b"),
            ("a\nb\\", "1 a, 2 dropped"),
            (&format!("{half}\\\n{half}\\\ny\nz\n"), "3 dropped, 4 z"),
            (&format!("a\n{half}{half}\nb\n"), "1 a, 2 too long"),
        ] {
            assert_eq!(shown(file.as_bytes()), want, "{file}");
        }
    }
}
