//! What a line says: which failure, of which guest, when. Pure.
//!
//! Every message holds `KVM` or `kvm`; that is what whole blocks are searched for, and the bytes
//! around it decide. So the search costs two passes however many messages there are.
#![forbid(unsafe_code)]

use std::fmt;

use memchr::memmem::Finder;
use nix::errno::Errno;

use super::causes::{Form, errno_in};
use super::time::{self, Stamp};
use crate::text::is_hidden;

/// The texts that are looked for, whole, as a grep would be given them.
pub const NEEDLES: [&str; 10] = [
    "Could not access KVM kernel module",
    "failed to initialize kvm",
    "failed to initialize KVM",
    "ioctl(KVM_CREATE_VM) failed",
    "kvm version too old",
    "kvm version not supported",
    "Domain requires KVM",
    "the accel 'kvm' is not supported by",
    "does not support virt type 'kvm'",
    "domaintype=kvm",
];

/// What stands before and after the anchor, and what the whole means.
const UPPER: [(&[u8], &[u8], Form); 4] = [
    (b"Could not access ", b"KVM kernel module", Form::Access),
    (b"failed to initialize ", b"KVM", Form::Initialize),
    (b"ioctl(", b"KVM_CREATE_VM) failed", Form::CreateVm),
    (b"Domain requires ", b"KVM", Form::Requires),
];
const LOWER: [(&[u8], &[u8], Form); 6] = [
    (b"failed to initialize ", b"kvm", Form::Initialize),
    (b"", b"kvm version too old", Form::TooOld),
    (b"", b"kvm version not supported", Form::NotSupported),
    (b"the accel '", b"kvm' is not supported by", Form::NoAccel),
    (b"does not support virt type '", b"kvm'", Form::NoAccel),
    // `could not find capabilities for arch=x86_64 domaintype=kvm`
    (b"domaintype=", b"kvm", Form::NoAccel),
];

/// No message reaches further than this to either side of its anchor.
pub const REACH: usize = 64;
/// No domain's name that libvirt accepts makes a longer file name.
const MAX_NAME: usize = 255;

/// The form of the message around the anchor (`KVM` or `kvm`) at `at`, and where the message ends.
pub fn message(text: &[u8], at: usize) -> Option<(Form, usize)> {
    let (before, after) = text.split_at(at);
    let table: &[_] = match after.first() {
        Some(b'K') => &UPPER,
        _ => &LOWER,
    };
    let found = table
        .iter()
        .find(|(head, tail, _)| after.starts_with(tail) && before.ends_with(head));
    found.map(|(_, tail, form)| (*form, at + tail.len()))
}

/// Finds anchors, in order.
#[derive(Debug)]
pub struct Anchors {
    upper: Finder<'static>,
    lower: Finder<'static>,
}

impl Default for Anchors {
    fn default() -> Self {
        Self {
            upper: Finder::new(b"KVM"),
            lower: Finder::new(b"kvm"),
        }
    }
}

impl Anchors {
    /// A search of `text`. Anchors from `end` on are left alone.
    pub fn search<'a>(&'a self, text: &'a [u8], from: usize, end: usize) -> Search<'a> {
        Search {
            anchors: self,
            text,
            end,
            window: from,
            upper: None,
            lower: None,
        }
    }
}

/// How much is searched for one anchor before it is for the other: what the first-level cache
/// still holds then.
const WINDOW: usize = 32 << 10;

/// One search: the next place of either anchor is kept, so that each byte is looked at once.
#[derive(Debug)]
pub struct Search<'a> {
    anchors: &'a Anchors,
    text: &'a [u8],
    end: usize,
    /// No anchor before this is unknown.
    window: usize,
    upper: Option<usize>,
    lower: Option<usize>,
}

impl Search<'_> {
    fn find(&self, finder: &Finder<'_>, from: usize) -> Option<usize> {
        // An anchor is three bytes long, so that this ends with one that begins in the window.
        let end = self.text.len().min(self.window + 2);
        let place = finder.find(self.text.get(from..end)?)? + from;
        (place < self.end).then_some(place)
    }

    /// The next message whose anchor is at or after `from`: the anchor's place, the form, and the
    /// end of the message.
    pub fn next(&mut self, mut from: usize) -> Option<(usize, Form, usize)> {
        loop {
            if self.upper.is_some_and(|upper| upper < from) {
                self.upper = self.find(&self.anchors.upper, from);
            }
            if self.lower.is_some_and(|lower| lower < from) {
                self.lower = self.find(&self.anchors.lower, from);
            }
            let at = match (self.upper, self.lower) {
                (Some(upper), Some(lower)) => upper.min(lower),
                (Some(at), None) | (None, Some(at)) => at,
                (None, None) if self.window >= self.end => return None,
                (None, None) => {
                    let start = from.max(self.window);
                    self.window = start + WINDOW;
                    self.upper = self.find(&self.anchors.upper, start);
                    self.lower = self.find(&self.anchors.lower, start);
                    continue;
                }
            };
            if let Some((form, after)) = message(self.text, at) {
                return Some((at, form, after));
            }
            from = at + 1;
        }
    }
}

/// A UUID, written the one way that Nova and libvirt write it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(u128);

impl Uuid {
    /// The UUID at the very start of `text`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = text.get(..36)?;
        let mut number = 0;
        for (place, byte) in text.iter().enumerate() {
            if matches!(place, 8 | 13 | 18 | 23) {
                if *byte != b'-' {
                    return None;
                }
                continue;
            }
            let digit = char::from(*byte).to_digit(16)?;
            number = number << 4 | u128::from(digit);
        }
        Some(Self(number))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        let (a, b, c, d, e) = (
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        );
        write!(f, "{a}-{b}-{c}-{d}-{e}")
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What one line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Which message.
    pub form: Form,
    /// The errno that it names.
    pub errno: Option<Errno>,
    /// The guest it is about.
    pub who: Who,
    /// When, by a clock whose zone is known.
    pub utc: Option<i64>,
    /// When, by a clock that does not say its zone.
    pub local: Option<i64>,
}

/// What tells guests and incidents apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    /// The domain's name in libvirt.
    pub domain: Option<Box<str>>,
    /// The instance's UUID in Nova, which is the domain's too.
    pub instance: Option<Uuid>,
    /// Nova's request.
    pub request: Option<Uuid>,
}

/// What a line says, if it holds one of the messages. `reference` gives syslog's lines a year.
pub fn read(line: &[u8], reference: i64) -> Option<Hit> {
    let anchors = Anchors::default();
    let (at, form, after) = anchors.search(line, 0, line.len()).next(0)?;
    Some(read_at(line, (at, form, after), reference))
}

/// What a line says whose message was found.
pub fn read_at(line: &[u8], (at, form, after): (usize, Form, usize), reference: i64) -> Hit {
    let (utc, local) = times(line, at, reference);
    Hit {
        form,
        errno: errno_in(&line[after..]),
        who: Who {
            domain: None,
            instance: instance(line),
            request: request(line),
        },
        utc,
        local,
    }
}

/// The last zoned time before the message, which is QEMU's own where the line wraps its output, or
/// the first after it; and the first time without a zone.
fn times(line: &[u8], at: usize, reference: i64) -> (Option<i64>, Option<i64>) {
    let (mut before, mut later, mut local) = (None, None, None);
    for colon in memchr::memchr_iter(b':', line) {
        // `:` is the fourteenth byte of a timestamp; its second colon comes three bytes later.
        let (Some(start), Some(b':')) = (colon.checked_sub(13), line.get(colon + 3)) else {
            continue;
        };
        match time::parse(&line[start..]) {
            Some(Stamp {
                seconds,
                zoned: true,
            }) if start < at => before = Some(seconds),
            Some(Stamp {
                seconds,
                zoned: true,
            }) => later = later.or(Some(seconds)),
            Some(Stamp { seconds, .. }) => local = local.or(Some(seconds)),
            None => {}
        }
    }
    let syslog = || time::syslog(line, reference).map(|stamp| stamp.seconds);
    (before.or(later), local.or_else(syslog))
}

/// `[instance: UUID]`, `"instance_uuid": "UUID"`, `Instance UUID`.
fn instance(line: &[u8]) -> Option<Uuid> {
    memchr::memmem::find_iter(line, b"nstance").find_map(|at| {
        let rest = &line[at + 7..];
        (0..rest.len().min(12)).find_map(|skip| Uuid::parse(&rest[skip..]))
    })
}

/// `req-UUID`. Where two stand side by side, the first is the one that another service was asked.
fn request(line: &[u8]) -> Option<Uuid> {
    const LENGTH: usize = "req-".len() + 36;
    let mut all = memchr::memmem::find_iter(line, b"req-");
    let (at, first) = all.find_map(|at| Some((at, Uuid::parse(line.get(at + 4..)?)?)))?;
    let next = line
        .get(at + LENGTH..)
        .and_then(|rest| rest.strip_prefix(b" req-"));
    next.and_then(Uuid::parse).or(Some(first))
}

/// What stands between the last hit and this one, as far as it is about this one.
#[derive(Debug, Default)]
pub struct Before {
    /// libvirt's start of a guest, in the guest's own log.
    pub start: Option<Start>,
    /// The head of the record that the hit ends: its guest and its time.
    pub record: Option<(Who, Option<Stamp>)>,
    /// The last time that a line began with.
    pub time: Option<Stamp>,
}

/// libvirt's start of a guest: the time, and the guest as QEMU's command line names it.
#[derive(Debug)]
pub struct Start {
    /// When.
    pub time: Option<i64>,
    /// Name and UUID.
    pub who: Who,
}

/// Reads what stands before a hit.
pub fn before(text: &[u8], reference: i64) -> Before {
    let last = |needle: &[u8]| memchr::memmem::find_iter(text, needle).last();
    let line_start = |at: usize| memchr::memrchr(b'\n', &text[..at]).map_or(0, |end| end + 1);
    let start = last(b": starting up libvirt version").map(|at| {
        let rest = &text[at..];
        let time = time::parse(&text[line_start(at)..]).map(|stamp| stamp.seconds);
        let domain = value_after(rest, b"-name guest=", b",\n \\'");
        let instance = value_after(rest, b"-uuid ", b" \n\\").and_then(Uuid::parse);
        let domain = domain.map(name);
        let who = Who {
            domain,
            instance,
            request: None,
        };
        Start { time, who }
    });
    let xml = last(b"Error launching a defined domain").map(|at| {
        let rest = &text[at..];
        let head = &text[line_start(at)..at];
        let who = Who {
            domain: value_after(rest, b"<name>", b"<\n").map(name),
            instance: value_after(rest, b"<uuid>", b"<\n").and_then(Uuid::parse),
            request: request(head),
        };
        (who, stamp_of(head, reference))
    });
    let virsh = || {
        let at = last(b"Failed to start domain ")?;
        let domain = value_after(&text[at..], b"domain ", b"\n").map(|name| {
            let name = name.trim_ascii_end();
            name.strip_prefix(b"'")
                .and_then(|name| name.strip_suffix(b"'"))
                .unwrap_or(name)
        });
        let who = Who {
            domain: domain.map(name),
            ..Who::default()
        };
        Some((who, stamp_of(&text[line_start(at)..at], reference)))
    };
    let time = text
        .rsplit(|byte| *byte == b'\n')
        .find_map(|line| stamp_of(line, reference));
    Before {
        start,
        record: xml.or_else(virsh),
        time,
    }
}

fn stamp_of(line: &[u8], reference: i64) -> Option<Stamp> {
    time::parse(line).or_else(|| time::syslog(line, reference))
}

/// What stands between `key` and the first of `ends`.
fn value_after<'a>(text: &'a [u8], key: &[u8], ends: &[u8]) -> Option<&'a [u8]> {
    let at = memchr::memmem::find(text, key)? + key.len();
    let rest = &text[at..text.len().min(at + MAX_NAME + 1)];
    let end = rest.iter().position(|byte| ends.contains(byte))?;
    (end > 0).then(|| &rest[..end])
}

fn name(bytes: &[u8]) -> Box<str> {
    printable(bytes).into()
}

/// The domain that a log is about, by its path: libvirt writes `…/qemu/NAME.log`, logrotate adds
/// its numbers, dates and `.gz`.
pub fn domain_of_path(path: &std::path::Path) -> Option<Box<str>> {
    use std::os::unix::ffi::OsStrExt;
    let folder = path.parent()?.file_name()?;
    let file = path.file_name()?.as_bytes();
    if folder != "qemu" {
        return None;
    }
    let end = memchr::memmem::rfind(file, b".log")?;
    let rest = &file[end + 4..];
    let rotated = rest.is_empty() || matches!(rest[0], b'.' | b'-');
    (rotated && end > 0).then(|| name(&file[..end]))
}

/// Text that a terminal can be given: control characters, and those that turn the writing
/// direction, are written as escapes, and so is what is not UTF-8. Cut where it grows too long.
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
        for byte in chunk.invalid() {
            text.extend(std::ascii::escape_default(*byte).map(char::from));
        }
    }
    text
}
