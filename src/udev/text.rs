//! A rules file as lines: line ends, comments, continuations, and what is too long.

use std::borrow::Cow;

use memchr::arch::all::memchr::Three;

/// The length that udevd allows a line, with its continuations.
pub(super) const LINE_MAX: usize = 16384;

/// What is found in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A rule's text, continuations joined.
    Rule(Cow<'a, [u8]>),
    /// A line that udevd leaves out, and why.
    Broken(Vec<u8>, &'static str),
}

/// The lines of a file that say something, each with its number; of a continued one that of its last line:
/// udevd's own messages count so.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
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

/// The number of the line, longer than [`LINE_MAX`] by itself, at which udevd gives up.
pub(super) fn given_up(file: &[u8]) -> Option<usize> {
    let mut rest = file;
    let mut number = 0;
    while rest.len() >= LINE_MAX {
        let (line, after) = next_line(rest)?;
        number += 1;
        if line.len() >= LINE_MAX {
            return Some(number);
        }
        rest = after;
    }
    None
}

impl<'a> Lines<'a> {
    /// Those of `file`, up to where udevd gives up.
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self {
            rest: file,
            number: 0,
        }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, Found<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut joined: Option<Vec<u8>> = None;
        let mut too_long = false;
        while let Some((raw, after)) = next_line(self.rest) {
            self.rest = after;
            self.number += 1;
            if raw.len() >= LINE_MAX {
                self.rest = &[];
                return None;
            }
            let part = trim(raw);
            // A comment is dropped even between the parts of a continued line.
            if part.first() == Some(&b'#') {
                continue;
            }
            let Some(text) = &mut joined else {
                match part {
                    [] => continue,
                    [start @ .., b'\\'] => joined = Some(start.to_vec()),
                    _ => return Some((self.number, Found::Rule(Cow::Borrowed(part)))),
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
                return Some((self.number, Found::Broken(text, "the line is too long")));
            }
            if !text.is_empty() {
                return Some((self.number, Found::Rule(Cow::Owned(text))));
            }
        }
        let why = "the file ends in a continued line";
        Some((self.number, Found::Broken(joined?, why)))
    }
}

/// The first line and what follows it. NUL, CR and LF all end a line, and different ones in a row
/// count as one end; nothing follows a NUL in such a row.
fn next_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    if text.is_empty() {
        return None;
    }
    let is_end = |byte: &u8| matches!(byte, 0 | b'\n' | b'\r');
    let length = Three::new(0, b'\n', b'\r').find(text).unwrap_or(text.len());
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
        let rule = |(number, found)| match found {
            Found::Rule(text) => Some((number, text.escape_ascii().to_string())),
            Found::Broken(..) => None,
        };
        Lines::new(file).filter_map(rule).collect()
    }

    fn broken(file: &[u8]) -> Vec<usize> {
        let lines = Lines::new(file);
        let broken = lines.filter(|(_, found)| matches!(found, Found::Broken(..)));
        broken.map(|(number, _)| number).collect()
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
        let file = &b"a\nb\\"[..];
        assert_eq!(rules(file), [(1, "a".to_owned())]);
        assert_eq!(broken(file), [2]);

        let half = "x".repeat(9000);
        let file = format!("{half}\\\n{half}\\\ny\nz\n");
        assert_eq!(rules(file.as_bytes()), [(4, "z".to_owned())]);
        assert_eq!(broken(file.as_bytes()), [3]);
        assert_eq!(given_up(file.as_bytes()), None);

        let file = format!("a\n{half}{half}\nb\n");
        assert_eq!(rules(file.as_bytes()), [(1, "a".to_owned())]);
        assert!(broken(file.as_bytes()).is_empty());
        assert_eq!(given_up(file.as_bytes()), Some(2));
    }
}
