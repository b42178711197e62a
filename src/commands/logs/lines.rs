//! Parses log lines that contain a message: the guest, the request and the time. Pure.
//!
//! To add a line format, extend `instance` and `request` with the way in which it names a guest, `FAILURES`
//! with the first line of a record of several lines, and `time` with the way in which it writes a time.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;

use memchr::memmem;
use nix::errno::Errno;

use super::causes::errno_in;
use super::patterns::{Form, Message, Searcher};
use super::time::{self, Time};
use crate::text::is_hidden;

/// NAME_MAX of Linux: libvirt creates files with the names of domains, so no name is longer.
const MAX_NAME: usize = 255;

/// A UUID as a number, which is fast to compare: many failures need very many comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uuid(u128);

impl Uuid {
    /// Parses the UUID at the very start of `text`, in the notation of Nova and libvirt.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut number = 0;
        for (place, byte) in text.get(..36)?.iter().enumerate() {
            match (place, byte) {
                (8 | 13 | 18 | 23, b'-') => {}
                (8 | 13 | 18 | 23, _) => return None,
                _ => number = number << 4 | u128::from(char::from(*byte).to_digit(16)?),
            }
        }
        Some(Self(number))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{:032x}", self.0);
        for place in [8, 13, 18, 23] {
            text.insert(place, '-');
        }
        f.write_str(&text)
    }
}

/// The names in a line that identify a guest and a failed start.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestId {
    /// The UUID of the instance in Nova, which is also the domain's UUID in libvirt.
    pub instance: Option<Uuid>,
    /// The domain's name in libvirt.
    pub domain: Option<Box<str>>,
    /// The UUID of Nova's request (`req-UUID`).
    pub request: Option<Uuid>,
}

impl GuestId {
    /// Copies missing names from `other`, unless `other` is another guest.
    pub fn complete(&mut self, other: Self) {
        if self.instance.is_some() && other.instance.is_some() && self.instance != other.instance {
            return;
        }
        self.instance = self.instance.or(other.instance);
        self.domain = self.domain.take().or(other.domain);
        self.request = self.request.or(other.request);
    }

    /// The number of names that both contain and that are equal; `None` if one name differs.
    pub fn shared(&self, other: &Self) -> Option<u32> {
        fn same<T: PartialEq>(one: &Option<T>, other: &Option<T>) -> Option<u32> {
            match (one, other) {
                (Some(one), Some(other)) => (one == other).then_some(1),
                _ => Some(0),
            }
        }
        Some(
            same(&self.instance, &other.instance)?
                + same(&self.domain, &other.domain)?
                + same(&self.request, &other.request)?,
        )
    }

    pub fn same_request(&self, other: &Self) -> bool {
        self.request.is_some() && self.request == other.request
    }

    /// Whether it contains a guest's name or UUID, not only a request.
    pub fn is_named(&self) -> bool {
        self.domain.is_some() || self.instance.is_some()
    }
}

/// The parsed content of a line with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    pub form: Form,
    pub errno: Option<Errno>,
    pub guest: GuestId,
    pub time: Time,
    /// Whether the line itself contains the time; else it is inherited from an earlier line.
    pub timed: bool,
    /// The start of the guest as a Unix timestamp, if the stream is the guest's own log.
    pub start: Option<i64>,
}

impl Hit {
    /// Parses a line; `None` if it contains no message. `reference`, a Unix timestamp shortly after the line was
    /// written, determines the year of syslog times.
    pub fn read(line: &[u8], reference: i64) -> Option<Self> {
        let searcher = Searcher::default();
        let message = searcher.messages(line, 0..line.len()).next()?;
        Some(Self::read_at(line, message, reference))
    }

    /// Parses a line like [`read`](Self::read), with the position of its message.
    pub fn read_at(line: &[u8], message: Message, reference: i64) -> Self {
        let time = time_of(line, message.anchor, reference);
        Self {
            form: message.form,
            errno: errno_in(&line[message.end..]),
            guest: GuestId {
                domain: None,
                instance: instance(line),
                request: request(line),
            },
            time,
            timed: time != Time::default(),
            start: None,
        }
    }
}

/// As UTC, the last time with a zone before the message, or else the first one after it: in a line that
/// quotes QEMU's output, the last one before is QEMU's. As local time, the first time without a zone.
fn time_of(line: &[u8], message: usize, reference: i64) -> Time {
    let (mut before, mut after, mut local) = (None, None, None);
    for colon in memchr::memchr_iter(b':', line) {
        // A timestamp's first colon is its fourteenth byte; the second comes three bytes later.
        let (Some(start), Some(b':')) = (colon.checked_sub(13), line.get(colon + 3)) else {
            continue;
        };
        match time::parse(&line[start..]) {
            Some(time) if time.local.is_some() => local = local.or(time.local),
            Some(time) if start < message => before = time.utc,
            Some(time) => after = after.or(time.utc),
            None => {}
        }
    }
    let syslog = || time::syslog(line, reference)?.local;
    Time {
        utc: before.or(after),
        local: local.or_else(syslog),
    }
}

/// The UUID in `[instance: UUID]`, `"instance_uuid": "UUID"` or `Instance UUID`.
fn instance(line: &[u8]) -> Option<Uuid> {
    memmem::find_iter(line, b"nstance").find_map(|at| {
        let rest = &line[at + 7..];
        (0..rest.len().min(12)).find_map(|skip| Uuid::parse(&rest[skip..]))
    })
}

/// The UUID in `req-UUID`. Of two next to each other, the first is the request of the calling service
/// (oslo.log: global_request_id), so the second is returned.
fn request(line: &[u8]) -> Option<Uuid> {
    const LENGTH: usize = "req-".len() + 36;
    let mut all = memmem::find_iter(line, b"req-");
    let (at, first) = all.find_map(|at| Some((at, Uuid::parse(line.get(at + 4..)?)?)))?;
    let next = line
        .get(at + LENGTH..)
        .and_then(|rest| rest.strip_prefix(b" req-"));
    next.and_then(Uuid::parse).or(Some(first))
}

/// A format of records of several lines.
struct Record {
    /// Text in the first line of each record.
    key: &'static [u8],
    /// The text before the domain's name, and the bytes that can follow the name.
    domain: (&'static [u8], &'static [u8]),
    /// The text before the instance's UUID, and the bytes that can follow the UUID.
    instance: (&'static [u8], &'static [u8]),
}

/// The record that libvirt writes into a guest's log when it starts the guest, with QEMU's command line.
const START: Record = Record {
    key: b": starting up libvirt version",
    domain: (b"-name guest=", b",\n \\'"),
    instance: (b"-uuid ", b" \n\\"),
};
/// Records that end with a message: Nova's record with the domain's XML, and virsh's output.
const FAILURES: [Record; 2] = [
    Record {
        key: b"Error launching a defined domain",
        domain: (b"<name>", b"<\n"),
        instance: (b"<uuid>", b"<\n"),
    },
    Record {
        key: b"Failed to start domain ",
        domain: (b"Failed to start domain ", b"\n"),
        instance: (b"<uuid>", b""),
    },
];

impl Record {
    /// The guest and the time of the last record of this format in a text.
    fn read(&self, text: &[u8], reference: i64) -> Option<(GuestId, Option<Time>)> {
        let (before, record) = text.split_at(memmem::rfind(text, self.key)?);
        let line = memchr::memrchr(b'\n', before).map_or(0, |end| end + 1);
        let head = &before[line..];
        let guest = GuestId {
            instance: value(record, self.instance).and_then(Uuid::parse),
            domain: value(record, self.domain).map(|text| printable(unquoted(text)).into()),
            request: request(head),
        };
        Some((guest, line_time(head, reference)))
    }
}

/// Facts about a line with a message, from the text between it and the previous line with a message.
#[derive(Debug)]
pub struct Context {
    /// The guest of this log and the time of its start, from libvirt's record of the start.
    pub start: Option<(GuestId, Option<i64>)>,
    /// The guest and the time of the record that ends with the line.
    pub record: Option<(GuestId, Option<Time>)>,
    /// The last time at the beginning of a line.
    pub time: Option<Time>,
}

impl Context {
    /// Parses the text between two lines. `reference` as for [`Hit::read`].
    pub fn read(text: &[u8], reference: i64) -> Self {
        let start = START.read(text, reference);
        let start = start.map(|(guest, time)| (guest, time.and_then(Time::seconds)));
        let mut failures = FAILURES.iter();
        let record = failures.find_map(|record| record.read(text, reference));
        let mut lines = text.rsplit(|byte| *byte == b'\n');
        let time = lines.find_map(|line| line_time(line, reference));
        Self {
            start,
            record,
            time,
        }
    }
}

/// The time at the beginning of a line.
fn line_time(line: &[u8], reference: i64) -> Option<Time> {
    time::parse(line).or_else(|| time::syslog(line, reference))
}

/// The text between `key` and the first of `ends`.
fn value<'a>(text: &'a [u8], (key, ends): (&[u8], &[u8])) -> Option<&'a [u8]> {
    let at = memmem::find(text, key)? + key.len();
    let rest = &text[at..text.len().min(at + MAX_NAME + 1)];
    let end = rest.iter().position(|byte| ends.contains(byte))?;
    (end > 0).then(|| &rest[..end])
}

fn unquoted(text: &[u8]) -> &[u8] {
    match text.trim_ascii_end() {
        [b'\'', inner @ .., b'\''] => inner,
        text => text,
    }
}

/// The domain's name in the path of its log. libvirt writes `…/qemu/NAME.log`; logrotate appends numbers,
/// dates and `.gz`.
pub fn domain_of_path(path: &Path) -> Option<Box<str>> {
    let directory = path.parent()?.file_name()?;
    let file = path.file_name()?.as_encoded_bytes();
    if directory != "qemu" {
        return None;
    }
    let end = memmem::rfind(file, b".log")?;
    let is_log = matches!(file[end + 4..], [] | [b'.' | b'-', ..]);
    (is_log && end > 0).then(|| printable(&file[..end]).into())
}

/// Escapes text for a terminal: control characters, characters that change the text direction, and bytes that
/// are not UTF-8. Long text is truncated.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes[..bytes.len().min(4 * MAX_NAME)].utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_hidden(character) {
                text.extend(character.escape_unicode());
            } else {
                text.push(character);
            }
        }
        text.extend(chunk.invalid().escape_ascii().map(char::from));
    }
    text
}
