//! What `logs` found: for people and for programs. Pure. The JSON form (`schema: 1`) is a contract:
//! fields are added, never renamed.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::iter;

use serde::{Deserialize, Serialize};

use crate::codes::Cause;
use crate::commands::output::finish;
use crate::config::Format;
use crate::text::{escape_control, json_line};
use crate::verdict::Verdict;

/// The version of the JSON form.
pub const SCHEMA: u32 = 1;
/// A terminal's width.
const WIDTH: usize = 80;
/// The width of the first column.
const GUEST: usize = 20;

/// Everything that a run of `logs` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogReport {
    /// [`SCHEMA`]
    pub schema: u32,
    /// `ok` for none, `drift` for some, `failed` where none were found and not all could be read.
    pub verdict: Verdict,
    /// The process' exit code.
    pub exit_code: u8,
    /// One sentence.
    pub summary: String,
    /// One entry for each guest and result, the latest first.
    pub guests: Vec<Guest>,
    /// Failures of guests beyond the ten thousand that are told apart.
    pub others: u64,
    /// What was read.
    pub read: Read,
    /// What could not be read, or not to its end.
    pub unreadable: Vec<Unreadable>,
}

/// One guest's failures that have one result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The domain's name in libvirt; null where no line says it. Control characters are escaped.
    pub domain: Option<String>,
    /// Nova's instance; null where no line says it.
    pub instance: Option<String>,
    /// The latest of Nova's requests, at most five.
    pub requests: Vec<String>,
    /// How many starts failed.
    pub count: u64,
    /// The first, RFC 3339; without a zone where the log says none; null where it says no time.
    pub first: Option<String>,
    /// The last, likewise.
    pub last: Option<String>,
    /// Why, in the words of the other commands' `proof.cause`.
    pub cause: Cause,
    /// The errno's name; `mismatch` for the API version, `none` where libvirt did not try,
    /// `unknown`.
    pub result: String,
    /// What to do about it.
    pub advice: String,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Streams: files, and standard input.
    pub files: u64,
    /// Bytes, as they are stored.
    pub bytes: u64,
    /// What lies in the directories and is no log: links, devices, sockets, fifos.
    pub skipped: u64,
}

/// What could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Which; control characters are escaped.
    pub path: String,
    /// Why.
    pub error: String,
}

impl LogReport {
    /// Prints it, nothing of it on stdout without a format. Gives the exit code.
    pub fn say(&self, format: Option<Format>) -> u8 {
        let text = match format {
            Some(Format::Json) => self.to_json().unwrap_or_default(),
            Some(_) => self.table(),
            None => String::new(),
        };
        let closing = (self.verdict != Verdict::Ok).then(|| self.closing_line());
        finish(&text, self.exit_code, Verdict::Failed.code(), closing)
    }

    /// A report that ends before anything was read.
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

    /// Puts together what was found, and judges it.
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
        let found = match (count, names.len()) {
            (0, _) => "no KVM failure found".to_owned(),
            (1, _) => "one guest start failed for want of KVM".to_owned(),
            (_, 1) => format!("{count} starts of one guest failed for want of KVM"),
            (_, many) => format!("{count} starts of {many} guests failed for want of KVM"),
        };
        let extent = match (&unreadable[..], read.files) {
            ([], 0) => ": there was no file to read".to_owned(),
            ([], 1) => " in one file".to_owned(),
            ([], files) => format!(" in {files} files"),
            ([one], _) => format!(", but not read: {} ({})", one.path, one.error),
            ([one, ..], _) => format!(
                ", but {} could not be read: {} ({}) and others",
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
            ..Self::failed(verdict, found + &extent)
        }
    }

    /// One line of JSON and a newline.
    ///
    /// # Errors
    /// None that can happen: every key is a string and every number finite.
    pub fn to_json(&self) -> serde_json::Result<String> {
        json_line(self)
    }

    /// The last line of a run that found something or failed.
    pub fn closing_line(&self) -> String {
        let word = self.verdict.word();
        escape_control(&format!("libvirt-kvm-init: {word}: {}", self.summary))
    }

    /// The report for people, within 80 columns.
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

    /// What the table says below the guests, each with its label.
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
            let text = format!("{} failures of guests beyond these", self.others);
            all.push(("others", text));
        }
        for Unreadable { path, error } in &self.unreadable {
            all.push(("not read", format!("{path}: {error}")));
        }
        if self.read.skipped > 0 {
            let text = format!("{} links, devices and fifos", self.read.skipped);
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
    // A name that is too wide for its column stands above the row.
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

/// Adds a labelled paragraph, wrapped between words, and within those that are longer than a line.
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
