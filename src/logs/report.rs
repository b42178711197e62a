//! What `logs` found: for people and for programs. Pure. The JSON form (`schema: 1`) is a contract:
//! fields are added, never renamed.
#![forbid(unsafe_code)]

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::codes::Cause;
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
    /// Why, in the words of the other verbs' `proof.cause`.
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
    /// What lies in the folders and is no log: links, devices, sockets, fifos.
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
        let mut names: Vec<_> = guests
            .iter()
            .map(|guest| (&guest.domain, &guest.instance))
            .collect();
        names.sort_unstable();
        names.dedup();
        let unread = unreadable.len();
        let (verdict, mut summary) = match (count, unread) {
            (0, 0) => (Verdict::Ok, "no KVM failure found".to_owned()),
            (0, _) => (Verdict::Failed, "no KVM failure found".to_owned()),
            (1, _) => (
                Verdict::Drift,
                "one guest start failed for want of KVM".to_owned(),
            ),
            _ => {
                let guests = match names.len() {
                    1 => "one guest".to_owned(),
                    many => format!("{many} guests"),
                };
                let text = format!("{count} starts of {guests} failed for want of KVM");
                (Verdict::Drift, text)
            }
        };
        let _ = match (&unreadable[..], read.files) {
            ([], 0) => write!(summary, ": there was no file to read"),
            ([], 1) => write!(summary, " in one file"),
            ([], files) => write!(summary, " in {files} files"),
            ([one], _) => write!(summary, ", but not read: {} ({})", one.path, one.error),
            ([one, ..], _) => write!(
                summary,
                ", but {unread} could not be read: {} ({}) and others",
                one.path, one.error
            ),
        };
        Self {
            guests,
            others,
            read,
            unreadable,
            ..Self::failed(verdict, summary)
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
        }
        for guest in &self.guests {
            push_guest(&mut text, guest);
        }
        if !self.guests.is_empty() {
            text.push('\n');
        }
        let mut advised: Vec<&str> = Vec::new();
        for guest in &self.guests {
            if !advised.contains(&guest.advice.as_str()) {
                advised.push(&guest.advice);
                let line = format!("{}: {}", guest.result, guest.advice);
                push(&mut text, &word(guest.cause), &line);
            }
        }
        if self.others > 0 {
            let line = format!("{} failures of guests beyond these", self.others);
            push(&mut text, "others", &line);
        }
        for unreadable in &self.unreadable {
            let line = format!("{}: {}", unreadable.path, unreadable.error);
            push(&mut text, "not read", &line);
        }
        if self.read.skipped > 0 {
            let line = format!("{} links, devices and fifos", self.read.skipped);
            push(&mut text, "skipped", &line);
        }
        push(&mut text, self.verdict.word(), &self.summary);
        text
    }
}

fn word(cause: Cause) -> String {
    let text = serde_json::to_string(&cause).unwrap_or_default();
    text.trim_matches('"').to_owned()
}

fn push_guest(text: &mut String, guest: &Guest) {
    let time = |time: &Option<String>| {
        let time = time.as_deref().unwrap_or("no time");
        time.trim_end_matches('Z').replacen('T', " ", 1)
    };
    let name = guest.domain.as_deref().unwrap_or(match guest.instance {
        Some(_) => "(no name)",
        None => "(unknown)",
    });
    let mut name = name;
    let end = |text: &str| {
        text.char_indices()
            .nth(WIDTH)
            .map_or(text.len(), |(end, _)| end)
    };
    if name.chars().count() > GUEST {
        while !name.is_empty() {
            let (line, rest) = name.split_at(end(name));
            text.push_str(line);
            text.push('\n');
            name = rest;
        }
    }
    let (first, last) = (time(&guest.first), time(&guest.last));
    let count = guest.count.to_string();
    push_row(text, [name, &count, &first, &last, &word(guest.cause)]);
    if let Some(instance) = &guest.instance {
        let _ = writeln!(text, "  instance {instance}");
    }
    for request in guest.requests.iter().rev() {
        let _ = writeln!(text, "  request  {request}");
    }
}

fn push_row(text: &mut String, [name, count, first, last, cause]: [&str; 5]) {
    let row = format!("{name:GUEST$} {count:>5} {first:19} {last:19} {cause}");
    text.push_str(row.trim_end());
    text.push('\n');
}

/// A labelled paragraph, wrapped between words, and within those that are longer than a line.
fn push(text: &mut String, label: &str, paragraph: &str) {
    const LABEL: usize = 13;
    let paragraph = escape_control(paragraph);
    let mut line = format!("{label:LABEL$} ");
    let indent = line.chars().count();
    let mut used = indent;
    for word in paragraph.split_whitespace() {
        let mut gap = used > indent;
        if gap && used + 1 + word.chars().count() > WIDTH {
            used = WIDTH;
        }
        for character in word.chars() {
            if used >= WIDTH {
                line.push('\n');
                line.extend(std::iter::repeat_n(' ', indent));
                (used, gap) = (indent, false);
            }
            if gap {
                line.push(' ');
                (used, gap) = (used + 1, false);
            }
            line.push(character);
            used += 1;
        }
    }
    text.push_str(line.trim_end());
    text.push('\n');
}
