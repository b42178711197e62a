//! Decides which log lines are about the same failed start, an incident. Pure.
//!
//! One failed start is printed many times: by QEMU into the guest's own log, by libvirt into its
//! log, by Nova in every record and traceback line of the request. Within a stream, a line joins an
//! incident that it is compatible with; then incidents of different streams that are close in time are
//! joined. Incidents that contain different guests, requests or starts are never joined.
#![forbid(unsafe_code)]

use super::lines::{GuestId, Hit};
use super::patterns::Form;

/// Maximum number of seconds between the messages of QEMU, libvirt and Nova about the same failure.
const NEAR: i64 = 10;
/// Maximum number of seconds after a failure in which its request can print it again.
const REQUEST: i64 = 600;
/// Seconds beyond which two times never belong together, even if their time zones are unknown.
pub const DAY: i64 = 86_400 + REQUEST;

#[derive(Debug)]
pub struct Incident {
    /// The numbers of the streams that contain the incident.
    streams: Vec<u32>,
    /// The form nearest to the cause, with the guest, errno and times from all lines.
    pub hit: Hit,
    /// The set of forms in all lines, one bit for each.
    forms: u8,
    /// The local time of the last line that was added.
    latest: Option<i64>,
}

impl Incident {
    /// An incident with one line.
    pub fn new(stream: u32, hit: Hit) -> Self {
        Self {
            streams: vec![stream],
            forms: hit.form.bit(),
            latest: hit.time.local,
            hit,
        }
    }

    /// The time of the failure as a Unix timestamp, by local time if the zone is unknown.
    pub fn seconds(&self) -> Option<i64> {
        self.hit.time.seconds()
    }

    /// Whether `later` contains no guest and no request, and has the time of the last line, as the lines of a
    /// traceback have the time of their record.
    fn is_continued_by(&self, later: &Self) -> bool {
        let same_time = later.latest.is_some() && later.latest == self.latest;
        same_time && later.hit.guest == GuestId::default()
    }

    /// The number of names that both contain, if `later`, from the same stream, belongs to this incident.
    pub fn joins(&self, later: &Self) -> Option<u32> {
        let shared = self.hit.guest.shared(&later.hit.guest)?;
        let (start, later_start) = (self.hit.start, later.hit.start);
        if start.is_some() && later_start.is_some() && start != later_start {
            return None;
        }
        // Without a time, a repeated message is another failure.
        let repeated = self.forms & later.forms != 0
            || self.hit.form > later.hit.form && later.hit.form == Form::Access;
        let joins = match self.hit.time.apart(later.hit.time) {
            None => !repeated,
            Some(apart) if !self.hit.timed && !later.hit.timed => apart <= NEAR && !repeated,
            Some(apart) => {
                let late = self.hit.guest.same_request(&later.hit.guest);
                apart <= NEAR || apart <= REQUEST && (late || self.is_continued_by(later))
            }
        };
        joins.then_some(shared)
    }

    /// How well another stream's incident fits this one, if both can be the same failure: the number of
    /// shared names, and the negated difference in seconds. The greatest value fits best.
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

    pub fn absorb(&mut self, other: Self) {
        for stream in other.streams {
            if !self.streams.contains(&stream) {
                self.streams.push(stream);
            }
        }
        let (hit, new) = (&mut self.hit, other.hit);
        // The message nearest to the cause decides. `kvm version too old` contains no errno: then the
        // other message's errno is used.
        if new.form > hit.form {
            hit.errno = new.errno.or(hit.errno);
            hit.form = new.form;
        } else {
            hit.errno = hit.errno.or(new.errno);
        }
        hit.guest.complete(new.guest);
        // A timestamp on the line itself has priority over one inherited from an earlier line.
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
