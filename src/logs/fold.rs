//! From lines to incidents, and from incidents to guests. Pure.
//!
//! One failed start is printed many times: by QEMU into the guest's own log, by libvirt into its
//! log, by Nova in every record and traceback line of the request. Within a stream, lines join the
//! incident they are compatible with; then incidents of all streams that are near in time join.
//! Two that name different guests, requests or starts never do.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::causes::{self, Form};
use super::patterns::{Hit, Uuid, Who};
use super::report::Guest;
use super::time::{self, Stamp};

/// How far apart in time QEMU, libvirt and Nova print the same.
const NEAR: i64 = 10;
/// How long after the failure a request may still print it.
const REQUEST: i64 = 600;
/// Further apart than any two zones, and all that is joined.
pub const DAY: i64 = 86_400 + REQUEST;
/// Incidents of one stream that further lines may join.
const MAX_OPEN: usize = 16;
/// Incidents that are kept to be joined with other streams'. Where more than half of them remain
/// when they were joined, the latest quarter stays and the others are counted as they are. What
/// another stream prints of those, later, counts again: to know them all the same would take memory
/// for each of them, or all streams read at once in the order of time.
const MAX_KEPT: usize = 16_384;
/// Incidents that one is compared with.
const MAX_LOOK: usize = 64;
/// Guests that are told apart.
const MAX_GUESTS: usize = 10_000;
/// Requests that are named for each guest.
const MAX_REQUESTS: usize = 5;

/// One failed start.
#[derive(Debug, Clone)]
struct Incident {
    /// The streams that printed it.
    streams: Vec<u32>,
    form: Form,
    /// The forms that were seen.
    forms: u8,
    errno: Option<Errno>,
    who: Who,
    /// The start in the guest's own log.
    start: Option<i64>,
    utc: Option<i64>,
    local: Option<i64>,
    /// The local time of the last line that joined it.
    latest: Option<i64>,
    /// Whether a line of it said when, not only what stood before it.
    timed: bool,
}

impl Incident {
    fn at(&self) -> Option<Stamp> {
        let zoned = |seconds| Stamp {
            seconds,
            zoned: true,
        };
        let local = |seconds| Stamp {
            seconds,
            zoned: false,
        };
        self.utc.map(zoned).or(self.local.map(local))
    }

    fn seconds(&self) -> Option<i64> {
        self.utc.or(self.local)
    }

    /// How many names both have; `None` where they have different ones.
    fn shared(&self, other: &Self) -> Option<u32> {
        fn same<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> Option<u32> {
            match (one, other) {
                (Some(one), Some(other)) => (one == other).then_some(1),
                _ => Some(0),
            }
        }
        let (one, two) = (&self.who, &other.who);
        Some(
            same(one.domain.as_ref(), two.domain.as_ref())?
                + same(one.instance.as_ref(), two.instance.as_ref())?
                + same(one.request.as_ref(), two.request.as_ref())?,
        )
    }

    fn same_request(&self, other: &Self) -> bool {
        self.who.request.is_some() && self.who.request == other.who.request
    }

    /// Whether this names nobody and has the time of the line before, as the lines of a traceback
    /// have that of the record that they belong to.
    fn continues(&self, open: &Self) -> bool {
        let same_time = self.latest.is_some() && self.latest == open.latest;
        same_time && self.who == Who::default()
    }

    fn named(&self) -> bool {
        self.who.domain.is_some() || self.who.instance.is_some()
    }

    /// How far apart in time, by the clocks that both have.
    fn apart(&self, other: &Self) -> Option<i64> {
        let by = |one: Option<i64>, other: Option<i64>| Some((one? - other?).abs());
        let same_clock = [by(self.utc, other.utc), by(self.local, other.local)];
        let nearest = same_clock.into_iter().flatten().min();
        nearest.or_else(|| by(self.seconds(), other.seconds()))
    }

    fn absorb(&mut self, other: Self) {
        for stream in other.streams {
            if !self.streams.contains(&stream) {
                self.streams.push(stream);
            }
        }
        // The message that is nearest to the cause decides, with the errno that it names, or, as
        // `kvm version too old` names none, with the one that came along.
        if other.form > self.form {
            self.errno = other.errno.or(self.errno);
            self.form = other.form;
        } else {
            self.errno = self.errno.or(other.errno);
        }
        self.forms |= other.forms;
        self.latest = other.latest.or(self.latest);
        let who = &mut self.who;
        who.domain = who.domain.take().or(other.who.domain);
        who.instance = who.instance.or(other.who.instance);
        who.request = who.request.or(other.who.request);
        self.start = self.start.or(other.start);
        // What only stood before a line is worth less than what a line said.
        if other.timed && !self.timed {
            (self.utc, self.local) = (other.utc.or(self.utc), other.local.or(self.local));
        } else {
            (self.utc, self.local) = (self.utc.or(other.utc), self.local.or(other.local));
        }
        self.timed |= other.timed;
    }
}

/// The lines of one stream.
#[derive(Debug)]
pub struct Stream {
    number: u32,
    /// The last one joined is the last in the list.
    open: Vec<Incident>,
    /// What local time has over UTC, once a line showed both.
    offset: Option<i64>,
}

impl Stream {
    /// A new one; numbers tell streams apart.
    pub fn new(number: u32) -> Self {
        let open = Vec::new();
        Self {
            number,
            open,
            offset: None,
        }
    }

    /// Takes a line in. `timed` says that the time is the line's own, `start` is when the guest
    /// was started, where the stream is its own log.
    pub fn take(&mut self, hit: Hit, timed: bool, start: Option<i64>, fold: &mut Fold) {
        if let (Some(utc), Some(local)) = (hit.utc, hit.local) {
            const QUARTER: i64 = 900;
            let offset = (local - utc + QUARTER / 2).div_euclid(QUARTER) * QUARTER;
            if offset.abs() <= 14 * 3600 {
                self.offset = Some(offset);
            }
        }
        let new = Incident {
            streams: vec![self.number],
            forms: hit.form.bit(),
            form: hit.form,
            errno: hit.errno,
            who: hit.who,
            start,
            utc: hit.utc,
            local: hit.local,
            latest: hit.local,
            timed,
        };
        let score = |(place, open): (usize, &Incident)| {
            let shared = open.shared(&new)?;
            if open.start.is_some() && new.start.is_some() && open.start != new.start {
                return None;
            }
            // Without a time, the same words once more are another failure.
            let again =
                open.forms & new.forms != 0 || open.form > new.form && new.form == Form::Access;
            let joins = match open.apart(&new) {
                Some(apart) if !new.timed && !open.timed => apart <= NEAR && !again,
                Some(apart) => {
                    let late = open.same_request(&new) || new.continues(open);
                    apart <= NEAR || apart <= REQUEST && late
                }
                None => !again,
            };
            joins.then_some((shared, place))
        };
        let best = self.open.iter().enumerate().filter_map(score).max();
        if let Some((_, place)) = best {
            let mut joined = self.open.remove(place);
            joined.absorb(new);
            self.open.push(joined);
            return;
        }
        if self.open.len() == MAX_OPEN {
            let oldest = self.open.remove(0);
            self.close(oldest, fold);
        }
        self.open.push(new);
    }

    /// Ends the stream.
    pub fn end(mut self, fold: &mut Fold) {
        for incident in std::mem::take(&mut self.open) {
            self.close(incident, fold);
        }
    }

    fn close(&self, mut incident: Incident, fold: &mut Fold) {
        if let (None, Some(local), Some(offset)) = (incident.utc, incident.local, self.offset) {
            incident.utc = Some(local - offset);
        }
        fold.push(incident);
    }
}

/// What a row of the report stands for.
type Key = (Option<Uuid>, Option<Box<str>>, Option<Uuid>, String, Form);

#[derive(Debug)]
struct Row {
    count: u64,
    first: Option<Stamp>,
    last: Option<Stamp>,
    requests: Vec<Uuid>,
    errno: Option<Errno>,
}

/// The incidents of all streams.
#[derive(Debug, Default)]
pub struct Fold {
    kept: Vec<Incident>,
    rows: BTreeMap<Key, Row>,
    others: u64,
}

impl Fold {
    /// How many incidents there are, before those of several streams are joined.
    pub fn seen(&self) -> usize {
        self.kept.len()
    }

    fn push(&mut self, incident: Incident) {
        self.kept.push(incident);
        if self.kept.len() >= MAX_KEPT {
            self.kept = join(std::mem::take(&mut self.kept));
            // What cannot be kept is counted now, and joins nothing any more.
            if self.kept.len() > MAX_KEPT / 2 {
                let rest = self.kept.split_off(self.kept.len() - MAX_KEPT / 4);
                let oldest = std::mem::replace(&mut self.kept, rest);
                self.count(oldest);
            }
        }
    }

    /// The guests, the latest first, and how many incidents are of guests beyond those.
    pub fn finish(mut self) -> (Vec<Guest>, u64) {
        let last = join(std::mem::take(&mut self.kept));
        self.count(last);
        let mut guests: Vec<_> = self.rows.into_iter().collect();
        guests.sort_by_key(|(_, row)| std::cmp::Reverse(row.last.map(|stamp| stamp.seconds)));
        let guests = guests
            .into_iter()
            .map(|((instance, domain, _, result, form), row)| Guest {
                domain: domain.map(Into::into),
                instance: instance.map(|uuid| uuid.to_string()),
                requests: row
                    .requests
                    .iter()
                    .map(|uuid| format!("req-{uuid}"))
                    .collect(),
                count: row.count,
                first: row.first.map(time::text),
                last: row.last.map(time::text),
                cause: causes::cause(form, row.errno),
                result,
                advice: causes::advice(form, row.errno).to_owned(),
            });
        (guests.collect(), self.others)
    }

    fn count(&mut self, incidents: Vec<Incident>) {
        for incident in incidents {
            let request = incident.who.request.filter(|_| !incident.named());
            let result = causes::result(incident.form, incident.errno);
            let (at, errno) = (incident.at(), incident.errno);
            let Who {
                domain,
                instance,
                request: any,
            } = incident.who;
            // Of forms with the same outcome, one stands for all.
            let form = match incident.form {
                Form::Initialize => Form::Access,
                Form::NoAccel => Form::Requires,
                form => form,
            };
            let key = (instance, domain, request, result, form);
            if self.rows.len() >= MAX_GUESTS && !self.rows.contains_key(&key) {
                self.others += 1;
                continue;
            }
            let row = self.rows.entry(key).or_insert(Row {
                count: 0,
                first: None,
                last: None,
                requests: Vec::new(),
                errno,
            });
            row.count += 1;
            if let Some(at) = at {
                if row.first.is_none_or(|first| at.seconds < first.seconds) {
                    row.first = Some(at);
                }
                if row.last.is_none_or(|last| at.seconds >= last.seconds) {
                    row.last = Some(at);
                }
            }
            if let Some(request) = any
                && !row.requests.contains(&request)
            {
                if row.requests.len() == MAX_REQUESTS {
                    row.requests.remove(0);
                }
                row.requests.push(request);
            }
        }
    }
}

/// Joins what several streams printed, in order of time.
fn join(mut incidents: Vec<Incident>) -> Vec<Incident> {
    name_both(&mut incidents);
    incidents.sort_by_key(Incident::seconds);
    // First those that share a name, so that what has none does not come between them.
    let incidents = pass(incidents, true);
    let mut incidents = pass(incidents, false);
    name_both(&mut incidents);
    incidents
}

fn pass(incidents: Vec<Incident>, by_name: bool) -> Vec<Incident> {
    let mut out: Vec<Incident> = Vec::with_capacity(incidents.len());
    for incident in incidents {
        let mut best: Option<(usize, (u32, i64))> = None;
        let mut strangers = 0;
        for (place, earlier) in out.iter().enumerate().rev().take(MAX_LOOK) {
            let (then, now) = (earlier.seconds(), incident.seconds());
            if then.zip(now).is_none_or(|(then, now)| now - then > DAY) {
                break;
            }
            let common = |stream| incident.streams.contains(stream);
            if earlier.streams.iter().any(common) {
                continue;
            }
            let Some(apart) = earlier.apart(&incident) else {
                continue;
            };
            let Some(shared) = earlier.shared(&incident) else {
                continue;
            };
            if apart > NEAR && (apart > REQUEST || !earlier.same_request(&incident)) {
                continue;
            }
            if by_name && shared == 0 {
                continue;
            }
            if shared == 0 && earlier.named() && incident.named() {
                strangers += 1;
            }
            let score = (shared, -apart);
            if best.is_none_or(|(_, before)| score > before) {
                best = Some((place, score));
            }
        }
        // Of several guests without a name in common, any could be meant.
        match best {
            Some((place, _)) if strangers < 2 => {
                if let Some(earlier) = out.get_mut(place) {
                    earlier.absorb(incident);
                }
            }
            _ => out.push(incident),
        }
    }
    out
}

/// Where some lines say which name and which UUID belong together, all shall have both.
fn name_both(incidents: &mut [Incident]) {
    let mut uuids: BTreeMap<Box<str>, Option<Uuid>> = BTreeMap::new();
    let mut names: BTreeMap<Uuid, Option<Box<str>>> = BTreeMap::new();
    for incident in &*incidents {
        if let (Some(domain), Some(instance)) = (&incident.who.domain, incident.who.instance) {
            let uuid = uuids.entry(domain.clone()).or_insert(Some(instance));
            *uuid = uuid.filter(|uuid| *uuid == instance);
            let name = names
                .entry(instance)
                .or_insert_with(|| Some(domain.clone()));
            *name = name.take().filter(|name| name == domain);
        }
    }
    for incident in incidents {
        let who = &mut incident.who;
        match (&who.domain, who.instance) {
            (Some(domain), None) => who.instance = uuids.get(domain).copied().flatten(),
            (None, Some(instance)) => who.domain = names.get(&instance).cloned().flatten(),
            _ => {}
        }
    }
}
