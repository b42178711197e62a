//! What the lines of a log tell besides the message: of which guest, of which request, when. Pure.
//!
//! A new format of lines: its way to name a guest in `instance` and `request`, to begin a record
//! of several lines in `FAILURES`, to write a time in `time`.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;

use memchr::memmem;
use nix::errno::Errno;

use super::causes::errno_in;
use super::patterns::{Form, Message, Searcher};
use super::time::{self, Time};
use crate::text::is_hidden;

/// The longest name of a file: no name of a domain that libvirt accepts is longer.
const MAX_NAME: usize = 255;

/// A UUID: a number, since a flood of failures compares very many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uuid(u128);

impl Uuid {
    /// The UUID at the very start of `text`, written as Nova and libvirt write it.
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

/// What tells guests and failed starts apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestId {
    /// The instance's UUID in Nova, which is the domain's too.
    pub instance: Option<Uuid>,
    /// The domain's name in libvirt.
    pub domain: Option<Box<str>>,
    /// The UUID of Nova's request.
    pub request: Option<Uuid>,
}

impl GuestId {
    /// Takes what it lacks from `other`, unless that is another guest's.
    pub fn complete(&mut self, other: Self) {
        if self.instance.is_some() && other.instance.is_some() && self.instance != other.instance {
            return;
        }
        self.instance = self.instance.or(other.instance);
        self.domain = self.domain.take().or(other.domain);
        self.request = self.request.or(other.request);
    }

    /// How many of the three both have; `None` where they differ in one.
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

    /// Whether both have the same request.
    pub fn same_request(&self, other: &Self) -> bool {
        self.request.is_some() && self.request == other.request
    }

    /// Whether it names a guest, and not only a request or nothing.
    pub fn is_named(&self) -> bool {
        self.domain.is_some() || self.instance.is_some()
    }
}

/// What one line with a message contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// What the message means.
    pub form: Form,
    /// The errno that it names.
    pub errno: Option<Errno>,
    /// The guest it is about.
    pub guest: GuestId,
    /// When.
    pub time: Time,
    /// Whether the time is the line's own, not an earlier line's.
    pub timed: bool,
    /// When the guest was started, if the stream is its own log.
    pub start: Option<i64>,
}

impl Hit {
    /// Reads a line that contains one of the messages. `reference`, in seconds since 1970, gives
    /// syslog's times a year.
    pub fn read(line: &[u8], reference: i64) -> Option<Self> {
        let searcher = Searcher::default();
        let message = searcher.messages(line, 0..line.len()).next()?;
        Some(Self::read_at(line, message, reference))
    }

    /// As [`read`](Self::read), where the message was found already.
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

/// The last zoned time before the message, which is QEMU's own where the line wraps its output, or
/// the first after it; and the first time without a zone.
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

/// `[instance: UUID]`, `"instance_uuid": "UUID"`, `Instance UUID`.
fn instance(line: &[u8]) -> Option<Uuid> {
    memmem::find_iter(line, b"nstance").find_map(|at| {
        let rest = &line[at + 7..];
        (0..rest.len().min(12)).find_map(|skip| Uuid::parse(&rest[skip..]))
    })
}

/// `req-UUID`. Where two stand side by side, the first is the one that another service was asked.
fn request(line: &[u8]) -> Option<Uuid> {
    const LENGTH: usize = "req-".len() + 36;
    let mut all = memmem::find_iter(line, b"req-");
    let (at, first) = all.find_map(|at| Some((at, Uuid::parse(line.get(at + 4..)?)?)))?;
    let next = line
        .get(at + LENGTH..)
        .and_then(|rest| rest.strip_prefix(b" req-"));
    next.and_then(Uuid::parse).or(Some(first))
}

/// How a record of several lines begins, and how it names its guest.
struct Record {
    /// What its first line contains.
    key: &'static [u8],
    /// What stands before the domain's name, and the bytes that can follow it.
    domain: (&'static [u8], &'static [u8]),
    /// The same of the instance's UUID.
    instance: (&'static [u8], &'static [u8]),
}

/// libvirt's start of a guest, in the guest's own log, with QEMU's command line.
const START: Record = Record {
    key: b": starting up libvirt version",
    domain: (b"-name guest=", b",\n \\'"),
    instance: (b"-uuid ", b" \n\\"),
};
/// What ends in a message: Nova's record with the domain's XML, and virsh's output.
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
    /// The guest and the time of the last such record in a text.
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

/// What the text between two lines with a message tells about the second one.
#[derive(Debug)]
pub struct Context {
    /// The guest that the log is about, and when it was started.
    pub start: Option<(GuestId, Option<i64>)>,
    /// The guest and the time of the record that the line ends.
    pub record: Option<(GuestId, Option<Time>)>,
    /// The last time that a line began with.
    pub time: Option<Time>,
}

impl Context {
    /// Reads the text between two lines. `reference` as for [`Hit::read`].
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

/// The time that a line begins with.
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

/// The domain that a log is about, by its path: libvirt writes `…/qemu/NAME.log`, logrotate adds
/// its numbers, dates and `.gz`.
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

/// Text for a terminal: control characters, those that change the direction of writing, and bytes
/// that are not UTF-8 become escapes. Cut where it grows too long.
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
