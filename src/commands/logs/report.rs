//! The report of `logs`, as a table and as JSON. Pure. The JSON form (`schema: 1`) is stable: fields are
//! added, never renamed.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::iter;

use serde::{Deserialize, Serialize};

use crate::codes::Cause;
use crate::commands::output::finish;
use crate::config::Format;
use crate::text::{escape_control, json_line};
use crate::verdict::Verdict;

pub const SCHEMA: u32 = 1;
const WIDTH: usize = 80;
/// The width of the first column.
const GUEST: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogReport {
    pub schema: u32,
    /// `ok` without failures, `drift` with failures, `failed` if none was found but a log could not be read.
    pub verdict: Verdict,
    pub exit_code: u8,
    /// One sentence.
    pub summary: String,
    /// One entry for each guest and result, the latest first.
    pub guests: Vec<Guest>,
    /// Failures of guests that are not listed, beyond ten thousand entries.
    pub others: u64,
    pub read: Read,
    /// Paths that could not be opened, or not be read to the end.
    pub unreadable: Vec<Unreadable>,
}

/// The failures of one guest with the same result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The domain's name in libvirt, with control characters escaped; null if no line contains it.
    pub domain: Option<String>,
    /// The UUID of Nova's instance; null if no line contains it.
    pub instance: Option<String>,
    /// The latest of Nova's requests, at most five.
    pub requests: Vec<String>,
    /// The number of failed starts.
    pub count: u64,
    /// The time of the first failure (RFC 3339), without a zone if the log has none; null without a time.
    pub first: Option<String>,
    /// The time of the last failure, in the same form.
    pub last: Option<String>,
    /// One of the causes of `proof.cause` in the report of the other commands.
    pub cause: Cause,
    /// The errno's name; `mismatch` for the API version, `none` if libvirt did not start QEMU, else
    /// `unknown`.
    pub result: String,
    pub advice: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// The number of files, standard input included.
    pub files: u64,
    /// The number of bytes before decompression.
    pub bytes: u64,
    /// The number of symbolic links, devices, sockets and FIFOs in the directories.
    pub skipped: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// The path, with control characters escaped.
    pub path: String,
    pub error: String,
}

impl LogReport {
    /// Prints the report on stdout, if `format` is set, and the closing line. Returns the exit code.
    pub fn print(&self, format: Option<Format>) -> u8 {
        let text = match format {
            Some(Format::Json) => self.to_json().unwrap_or_default(),
            Some(_) => self.table(),
            None => String::new(),
        };
        let closing = (self.verdict != Verdict::Ok).then(|| self.closing_line());
        finish(&text, self.exit_code, Verdict::Failed.code(), closing)
    }

    /// The report of a run that failed before it read a log.
    pub fn failed(verdict: Verdict, summary: impl Into<String>) -> Self {
        Self {
            schema: SCHEMA,
            verdict,
            exit_code: verdict.code(),
            summary: summary.into(),
            guests: Vec::new(),
            others: 0,
            read: Read::default(),
            unreadable: Vec::new(),
        }
    }

    /// Derives the verdict and the summary.
    pub fn new(
        (guests, others): (Vec<Guest>, u64),
        read: Read,
        unreadable: Vec<Unreadable>,
    ) -> Self {
        let count = guests.iter().map(|guest| guest.count).sum::<u64>() + others;
        let names: BTreeSet<_> = guests
            .iter()
            .map(|guest| (&guest.domain, &guest.instance))
            .collect();
        let verdict = match (count, unreadable.len()) {
            (0, 0) => Verdict::Ok,
            (0, _) => Verdict::Failed,
            _ => Verdict::Drift,
        };
        let failures = match (count, names.len()) {
            (0, _) => "no KVM failure found".to_owned(),
            (1, _) => "one guest start failed because KVM was unavailable".to_owned(),
            (_, 1) => format!("{count} starts of one guest failed because KVM was unavailable"),
            (_, many) => {
                format!("{count} starts of {many} guests failed because KVM was unavailable")
            }
        };
        let extent = match (&unreadable[..], read.files) {
            ([], 0) => ": there are no files to read".to_owned(),
            ([], 1) => " (one file read)".to_owned(),
            ([], files) => format!(" ({files} files read)"),
            ([one], _) => format!(", but could not read {}: {}", one.path, one.error),
            ([one, ..], _) => format!(
                ", but could not read {} paths, such as {}: {}",
                unreadable.len(),
                one.path,
                one.error
            ),
        };
        Self {
            guests,
            others,
            read,
            unreadable,
            ..Self::failed(verdict, failures + &extent)
        }
    }

    /// One line of JSON and a newline.
    pub fn to_json(&self) -> serde_json::Result<String> {
        json_line(self)
    }

    /// The last line of a run with another verdict than `ok`.
    pub fn closing_line(&self) -> String {
        let word = self.verdict.word();
        escape_control(&format!("libvirt-kvm-init: {word}: {}", self.summary))
    }

    /// The report as a table, at most 80 columns wide.
    pub fn table(&self) -> String {
        let mut text = String::new();
        if !self.guests.is_empty() {
            push_row(&mut text, ["GUEST", "COUNT", "FIRST", "LAST", "CAUSE"]);
            self.guests
                .iter()
                .for_each(|guest| push_guest(&mut text, guest));
            text.push('\n');
        }
        for (label, paragraph) in self.paragraphs() {
            push_paragraph(&mut text, label, &paragraph);
        }
        text
    }

    /// The paragraphs below the guests, each with its label.
    fn paragraphs(&self) -> Vec<(&'static str, String)> {
        let mut all = Vec::new();
        let mut advised = BTreeSet::new();
        for guest in &self.guests {
            if advised.insert(&guest.advice) {
                let text = format!("{}: {}", guest.result, guest.advice);
                all.push((guest.cause.word(), text));
            }
        }
        if self.others > 0 {
            let text = format!("{} more failures, of guests not listed here", self.others);
            all.push(("others", text));
        }
        for Unreadable { path, error } in &self.unreadable {
            all.push(("unreadable", format!("{path}: {error}")));
        }
        if self.read.skipped > 0 {
            let text = format!(
                "{} symbolic links, devices, sockets and FIFOs",
                self.read.skipped
            );
            all.push(("skipped", text));
        }
        all.push((self.verdict.word(), self.summary.clone()));
        all
    }
}

fn push_guest(text: &mut String, guest: &Guest) {
    let time = |time: &Option<String>| {
        let time = time.as_deref().unwrap_or("no time");
        time.trim_end_matches('Z').replacen('T', " ", 1)
    };
    let mut name = guest.domain.as_deref().unwrap_or(match guest.instance {
        Some(_) => "(no name)",
        None => "(unknown)",
    });
    // A name that is too wide for its column is printed above the row.
    if name.chars().count() > GUEST {
        for line in name.chars().collect::<Vec<_>>().chunks(WIDTH) {
            text.extend(line);
            text.push('\n');
        }
        name = "";
    }
    let (first, last) = (time(&guest.first), time(&guest.last));
    let count = guest.count.to_string();
    push_row(text, [name, &count, &first, &last, guest.cause.word()]);
    if let Some(instance) = &guest.instance {
        text.push_str(&format!("  instance {instance}\n"));
    }
    for request in guest.requests.iter().rev() {
        text.push_str(&format!("  request  {request}\n"));
    }
}

fn push_row(text: &mut String, [name, count, first, last, cause]: [&str; 5]) {
    let row = format!("{name:GUEST$} {count:>5} {first:19} {last:19} {cause}");
    text.push_str(row.trim_end());
    text.push('\n');
}

/// Adds a labelled paragraph, wrapped between words, or within words that are longer than a line.
fn push_paragraph(text: &mut String, label: &str, paragraph: &str) {
    const LABEL: usize = 13;
    let mut line = format!("{label:LABEL$} ");
    let indent = line.chars().count();
    let mut used = indent;
    for word in escape_control(paragraph).split_whitespace() {
        let word: Vec<_> = word.chars().collect();
        for piece in word.chunks(WIDTH - indent) {
            if used > indent && used + 1 + piece.len() > WIDTH {
                line.push('\n');
                line.extend(iter::repeat_n(' ', indent));
                used = indent;
            }
            if used > indent {
                line.push(' ');
                used += 1;
            }
            line.extend(piece);
            used += piece.len();
        }
    }
    text.push_str(line.trim_end());
    text.push('\n');
}
