//! Splits account files into lines and fields as glibc's readers do.
//!
//! glibc has two readers that differ. Lookups (glibc `__nss_readline`) skip leading spaces,
//! blank lines and `#` comments. The search for a user's groups (glibc `nss_files` initgroups) parses
//! every line as it is, so that a commented-out group that lists the user still counts.
//!
//! One glibc bug is not reproduced: `__nss_readline` moves an indented line to the front of its buffer
//! without the terminating NUL, so on an indented last line without a newline it sees some of the
//! last bytes twice (` kvm:x:108` is read as `kvm:x:1088`). Later versions may be fixed, so such a line
//! is parsed as intended, and [`Line::is_misread`] reports it to the code that edits the file.

#![forbid(unsafe_code)]

use super::strtoul::{strtoul, trim_start};
use memchr::arch::all::memchr::{One, Two};

/// One line of an account file.
#[derive(Clone, Copy)]
pub(crate) struct Line<'a> {
    /// The line as C code sees it: without the newline, and only up to the first NUL.
    pub(crate) text: &'a [u8],
    /// Where `text` starts in the file, in bytes.
    pub(crate) start: usize,
    /// 1-based.
    pub(crate) number: usize,
    /// Whether a newline follows `text`.
    pub(crate) ended: bool,
    /// Whether spaces before `text` were skipped.
    pub(crate) indented: bool,
}

impl<'a> Line<'a> {
    /// The line as a lookup reads it, without leading spaces; `None` for blank lines and comments.
    pub(crate) fn entry(self) -> Option<Self> {
        let text = trim_start(self.text);
        let start = self.start + (self.text.len() - text.len());
        match text.first() {
            None | Some(b'#') => None,
            Some(_) => Some(Self {
                text,
                start,
                indented: start > self.start,
                ..self
            }),
        }
    }

    /// Whether glibc may read some bytes at the end of this line twice (see the module's documentation).
    pub(crate) fn is_misread(self) -> bool {
        self.indented && !self.ended
    }

    /// Whether this is an entry for the NIS `compat` service, which the `files` service never returns.
    pub(crate) fn is_compat(self) -> bool {
        matches!(self.text.first(), Some(b'+' | b'-'))
    }

    /// Whether the first of several fields is `name`: a cheap check before the line is parsed.
    pub(crate) fn is_named(self, name: &[u8]) -> bool {
        self.text
            .strip_prefix(name)
            .is_some_and(|rest| rest.first() == Some(&b':'))
            && !name.contains(&b':')
    }

    pub(crate) fn fields(self) -> Fields<'a> {
        Fields {
            rest: self.text,
            at: self.start,
        }
    }
}

/// Every line of `file`, including blank lines and comments.
pub(crate) fn lines(file: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut start = 0;
    let mut number = 0;
    std::iter::from_fn(move || {
        let rest = file.get(start..).filter(|rest| !rest.is_empty())?;
        let length = Two::new(b'\n', 0).find(rest).unwrap_or(rest.len());
        let (text, behind) = rest.split_at(length);
        // Bytes after a NUL belong to the line, but C code does not see them.
        let unseen = One::new(b'\n').find(behind).unwrap_or(behind.len());
        number += 1;
        let line = Line {
            text,
            start,
            number,
            ended: behind.first() == Some(&b'\n'),
            indented: false,
        };
        start += text.len() + unseen + 1;
        Some(line)
    })
}

/// Every line that a lookup in the `files` service may return.
pub(crate) fn entries(file: &[u8]) -> impl Iterator<Item = Line<'_>> {
    lines(file)
        .filter_map(Line::entry)
        .filter(|line| !line.is_compat())
}

/// Reads the fields of a line one after the other.
pub(crate) struct Fields<'a> {
    /// The part of the line that was not read yet.
    pub(crate) rest: &'a [u8],
    /// Where `rest` starts in the file, in bytes.
    pub(crate) at: usize,
}

impl<'a> Fields<'a> {
    /// The text up to the next colon or the end of the line, and whether there was a colon.
    pub(crate) fn string(&mut self) -> (&'a [u8], bool) {
        match One::new(b':').find(self.rest) {
            Some(colon) => {
                let (field, rest) = self.rest.split_at(colon);
                self.rest = rest.get(1..).unwrap_or_default();
                self.at += colon + 1;
                (field, true)
            }
            None => {
                let field = std::mem::take(&mut self.rest);
                self.at += field.len();
                (field, false)
            }
        }
    }

    /// The UID or GID in the next field. `None`, for which glibc rejects the line, if there are no
    /// digits, if the value does not fit in 32 bits (such as -1), or if other text follows.
    /// 4294967295 is returned, although it is not a valid ID.
    pub(crate) fn number(&mut self) -> Option<u32> {
        let (field, _) = self.string();
        u32::try_from(strtoul(field)?.value).ok()
    }

    /// Like [`Self::number`], for entries of the NIS `compat` service: an empty field is 0, a missing
    /// one rejects the line.
    pub(crate) fn number_or_empty(&mut self) -> Option<u32> {
        match self.rest.first()? {
            b':' => {
                self.string();
                Some(0)
            }
            _ => self.number(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_entries_have_their_offset_in_the_file() {
        let file = b"a:1\n\n \t b\0c\n#d\r\n  #e\n+f\nlast";
        let shown = |line: Line<'_>| {
            let Line { number, start, .. } = line;
            let entry = line.entry().map_or("-".to_owned(), |entry| {
                format!("{} {}", entry.start, entry.text.escape_ascii())
            });
            format!(
                "{number} {start} {:?} {entry}",
                line.text.escape_ascii().to_string()
            )
        };
        let want = [
            r#"1 0 "a:1" 0 a:1"#,
            r#"2 4 "" -"#,
            r#"3 5 " \\t b" 8 b"#,
            r##"4 12 "#d\\r" -"##,
            r##"5 16 "  #e" -"##,
            r#"6 21 "+f" 21 +f"#,
            r#"7 24 "last" 24 last"#,
        ];
        assert_eq!(lines(file).map(shown).collect::<Vec<_>>(), want);
        assert_eq!(entries(file).count(), 3);
        assert_eq!(lines(b"").count(), 0);
    }
}
