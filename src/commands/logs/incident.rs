//! Incidents, and which of them are the same. Pure.
//!
//! One failed start is printed many times: by QEMU into the guest's own log, by libvirt into its
//! log, by Nova in every record and traceback line of the request. Within a stream, lines join the
//! incident they are compatible with; then incidents of all streams that are near in time join.
//! Two that name different guests, requests or starts never do.
#![forbid(unsafe_code)]

use super::lines::{GuestId, Hit};
use super::patterns::Form;

/// How many seconds apart QEMU, libvirt and Nova print the same failure.
const NEAR: i64 = 10;
/// How many seconds after the failure a request may still print it.
const REQUEST: i64 = 600;
/// In seconds, further apart than any two zones, and than all that is joined.
pub const DAY: i64 = 86_400 + REQUEST;

/// One failed start.
#[derive(Debug)]
pub struct Incident {
    /// The numbers of the streams that printed it.
    streams: Vec<u32>,
    /// What is known of it: the form nearest to the cause, and all that some line named.
    pub hit: Hit,
    /// The forms that were seen, a bit for each.
    forms: u8,
    /// The local time of the last line that joined it.
    latest: Option<i64>,
}

impl Incident {
    /// An incident of which one line is known.
    pub fn new(stream: u32, hit: Hit) -> Self {
        Self {
            streams: vec![stream],
            forms: hit.form.bit(),
            latest: hit.time.local,
            hit,
        }
    }

    /// When it was, in seconds since 1970.
    pub fn seconds(&self) -> Option<i64> {
        self.hit.time.seconds()
    }

    /// Whether `later` names nothing and has the time of the last line, as the lines of a traceback
    /// have that of the record that they belong to.
    fn is_continued_by(&self, later: &Self) -> bool {
        let same_time = later.latest.is_some() && later.latest == self.latest;
        same_time && later.hit.guest == GuestId::default()
    }

    /// How many names it shares with a `later` one of the same stream that belongs to it.
    pub fn joins(&self, later: &Self) -> Option<u32> {
        let shared = self.hit.guest.shared(&later.hit.guest)?;
        let (start, later_start) = (self.hit.start, later.hit.start);
        if start.is_some() && later_start.is_some() && start != later_start {
            return None;
        }
        // Without a time, the same message again is another failure.
        let again = self.forms & later.forms != 0
            || self.hit.form > later.hit.form && later.hit.form == Form::Access;
        let joins = match self.hit.time.apart(later.hit.time) {
            None => !again,
            Some(apart) if !self.hit.timed && !later.hit.timed => apart <= NEAR && !again,
            Some(apart) => {
                let late = self.hit.guest.same_request(&later.hit.guest);
                apart <= NEAR || apart <= REQUEST && (late || self.is_continued_by(later))
            }
        };
        joins.then_some(shared)
    }

    /// How well another stream's incident fits this one, if it can be the same: names that both
    /// have, and seconds apart, negative.
    pub fn fits(&self, other: &Self) -> Option<(u32, i64)> {
        if self.streams.iter().any(|of| other.streams.contains(of)) {
            return None;
        }
        let apart = self.hit.time.apart(other.hit.time)?;
        let shared = self.hit.guest.shared(&other.hit.guest)?;
        let same_request = self.hit.guest.same_request(&other.hit.guest);
        let near = apart <= NEAR || apart <= REQUEST && same_request;
        near.then_some((shared, -apart))
    }

    /// Joins `other` with this one.
    pub fn absorb(&mut self, other: Self) {
        for stream in other.streams {
            if !self.streams.contains(&stream) {
                self.streams.push(stream);
            }
        }
        let (hit, new) = (&mut self.hit, other.hit);
        // The message that is nearest to the cause decides, with the errno that it names, or, as
        // `kvm version too old` names none, with the one of another.
        if new.form > hit.form {
            hit.errno = new.errno.or(hit.errno);
            hit.form = new.form;
        } else {
            hit.errno = hit.errno.or(new.errno);
        }
        hit.guest.complete(new.guest);
        // A time that an earlier line had counts less than one that a line has itself.
        hit.time = if new.timed && !hit.timed {
            new.time.or(hit.time)
        } else {
            hit.time.or(new.time)
        };
        hit.timed |= new.timed;
        hit.start = hit.start.or(new.start);
        self.forms |= other.forms;
        self.latest = other.latest.or(self.latest);
    }
}
