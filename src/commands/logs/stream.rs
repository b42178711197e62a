//! The lines of one stream that contain a message: each is completed by the lines before it, and
//! joins an incident. Pure.
#![forbid(unsafe_code)]

use std::path::Path;

use super::aggregate::Aggregator;
use super::incident::{DAY, Incident};
use super::lines::{Context, GuestId, Hit, domain_of_path};
use super::scan::Match;
use super::time::Time;

/// The incidents of one stream that further lines may join.
const MAX_OPEN: usize = 16;

/// One stream, with what its earlier lines tell about later ones.
#[derive(Debug)]
pub struct Stream<'a> {
    number: u32,
    aggregator: &'a mut Aggregator,
    /// Incidents that further lines may join. The one that was joined last is the last.
    open: Vec<Incident>,
    /// By the file's name.
    domain: Option<Box<str>>,
    /// By libvirt's record of the guest's start.
    guest: GuestId,
    /// When the guest was started, by the same record.
    start: Option<i64>,
    /// The last time that a line began with.
    time: Option<Time>,
    /// How many seconds local time is ahead of UTC, once a line showed both.
    offset: Option<i64>,
    reference: i64,
}

impl<'a> Stream<'a> {
    /// Begins the stream with this number, which tells it from the others that go into
    /// `aggregator`. Its path may name the guest. `reference`, when it was last written, in seconds
    /// since 1970, gives syslog's times a year.
    pub fn new(number: u32, path: &Path, reference: i64, aggregator: &'a mut Aggregator) -> Self {
        Self {
            number,
            aggregator,
            open: Vec::new(),
            domain: domain_of_path(path),
            guest: GuestId::default(),
            start: None,
            time: None,
            offset: None,
            reference,
        }
    }

    /// Ends the stream.
    pub fn end(mut self) {
        while !self.open.is_empty() {
            self.close_oldest();
        }
    }

    /// Takes in a line with a message.
    pub fn take(&mut self, found: Match<'_>) {
        if !found.whole {
            (self.guest, self.start, self.time) = (GuestId::default(), None, None);
        }
        let context = Context::read(found.before, self.reference);
        if let Some((guest, start)) = context.start {
            (self.guest, self.start) = (guest, start);
        }
        self.time = context.time.or(self.time);
        let mut hit = Hit::read_at(found.line, found.message, self.reference);
        let mut time = self.time;
        if let Some((guest, at)) = context.record {
            hit.guest.complete(guest);
            time = at.or(time);
        }
        hit.guest.complete(self.guest.clone());
        if self.domain.is_some() {
            hit.guest.domain.clone_from(&self.domain);
        }
        hit.start = self.start;
        // QEMU's output on a line of its own, within a record of Nova's: that one's time is this
        // one's too, by another clock, as long as both may show the same moment.
        let continued = hit.time.local.is_none() && found.line.get(10) == Some(&b'T');
        if continued
            && let (Some(local), Some(utc)) = (time.and_then(|time| time.local), hit.time.utc)
            && (local - utc).abs() <= DAY
        {
            hit.time.local = Some(local);
        }
        let (utc, local) = (hit.time.utc, hit.time.local);
        if local.is_some() {
            self.time = Some(Time { utc: None, local });
        } else if utc.is_some() && !continued {
            self.time = Some(hit.time);
        }
        if !hit.timed {
            hit.time = time.unwrap_or_default();
        }
        self.join(hit);
    }

    fn join(&mut self, hit: Hit) {
        if let Some((local, utc)) = hit.time.local.zip(hit.time.utc) {
            const QUARTER: i64 = 900;
            let offset = (local - utc + QUARTER / 2).div_euclid(QUARTER) * QUARTER;
            if offset.abs() <= 14 * 3600 {
                self.offset = Some(offset);
            }
        }
        let new = Incident::new(self.number, hit);
        let open = self.open.iter().enumerate();
        let fitting = open.filter_map(|(place, open)| Some((open.joins(&new)?, place)));
        if let Some((_, place)) = fitting.max() {
            let mut joined = self.open.remove(place);
            joined.absorb(new);
            self.open.push(joined);
            return;
        }
        if self.open.len() == MAX_OPEN {
            self.close_oldest();
        }
        self.open.push(new);
    }

    fn close_oldest(&mut self) {
        let mut incident = self.open.remove(0);
        let time = &mut incident.hit.time;
        let by_offset = time.local.zip(self.offset);
        time.utc = time.utc.or(by_offset.map(|(local, offset)| local - offset));
        self.aggregator.push(incident);
    }
}
