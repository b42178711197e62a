//! Turns the lines of one stream that contain a message into incidents, with the guest and the time from
//! earlier lines. Pure.
#![forbid(unsafe_code)]

use std::path::Path;

use super::aggregate::Aggregator;
use super::incident::{DAY, Incident};
use super::lines::{Context, GuestId, Hit, domain_of_path};
use super::scan::Match;
use super::time::Time;

/// Maximum number of incidents of one stream that further lines can join.
const MAX_OPEN: usize = 16;

/// One stream, with the facts from its earlier lines that apply to later ones.
#[derive(Debug)]
pub struct Stream<'a> {
    number: u32,
    aggregator: &'a mut Aggregator,
    /// Incidents that further lines can join. The last one was joined last.
    open: Vec<Incident>,
    /// The domain's name in the file's path.
    domain: Option<Box<str>>,
    /// The guest in libvirt's last record of a start.
    guest: GuestId,
    /// The time of that start, as a Unix timestamp.
    start: Option<i64>,
    /// The last time at the beginning of a line.
    time: Option<Time>,
    /// The seconds by which local time is ahead of UTC, once a line contained both.
    offset: Option<i64>,
    reference: i64,
}

impl<'a> Stream<'a> {
    /// Begins a stream. `number` is unique among the streams of `aggregator`. `path` may contain the domain's
    /// name. `reference` is the time of the last write as a Unix timestamp, and determines the year of syslog
    /// times.
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

    /// Passes all open incidents to the aggregator.
    pub fn end(mut self) {
        while !self.open.is_empty() {
            self.close_oldest();
        }
    }

    /// Adds a line with a message.
    pub fn take(&mut self, matched: Match<'_>) {
        if !matched.whole {
            (self.guest, self.start, self.time) = (GuestId::default(), None, None);
        }
        let context = Context::read(matched.before, self.reference);
        if let Some((guest, start)) = context.start {
            (self.guest, self.start) = (guest, start);
        }
        self.time = context.time.or(self.time);
        let mut hit = Hit::read_at(matched.line, matched.message, self.reference);
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
        // A line of QEMU's output within a record of Nova: the record's local time also applies to this
        // line, if both times can be the same moment in different zones.
        let continued = hit.time.local.is_none() && matched.line.get(10) == Some(&b'T');
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
