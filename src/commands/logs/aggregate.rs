//! Joins incidents of different streams that are close in time, and counts them by guest. Pure.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::causes::Outcome;
use super::incident::{DAY, Incident};
use super::lines::{GuestId, Uuid};
use super::patterns::Form;
use super::report::Guest;
use super::time::{self, Time};

/// Maximum number of incidents kept for joining with those of other streams. If more than half of them
/// remain after joining, the latest quarter is kept and the others are counted. Another stream's lines
/// about a counted incident are counted again: avoiding that would take memory for each incident, or
/// reading all streams at once in order of time.
const MAX_KEPT: usize = 16_384;
/// Maximum number of earlier incidents that each incident is compared with.
const MAX_COMPARED: usize = 64;
/// Maximum number of rows in the report.
const MAX_ROWS: usize = 10_000;
/// Maximum number of requests in a row.
const MAX_REQUESTS: usize = 5;

#[derive(Debug)]
struct Row {
    outcome: Outcome,
    count: u64,
    first: Time,
    last: Time,
    requests: Vec<Uuid>,
}

impl Row {
    fn add(&mut self, at: Time, request: Option<Uuid>) {
        self.count += 1;
        if self.first == Time::default()
            || at
                .seconds()
                .is_some_and(|at| Some(at) < self.first.seconds())
        {
            self.first = at;
        }
        if at.seconds() >= self.last.seconds() {
            self.last = at;
        }
        if let Some(request) = request.filter(|request| !self.requests.contains(request)) {
            if self.requests.len() == MAX_REQUESTS {
                self.requests.remove(0);
            }
            self.requests.push(request);
        }
    }

    fn into_guest(self, id: GuestId) -> Guest {
        let requests = self.requests.iter().map(|uuid| format!("req-{uuid}"));
        Guest {
            domain: id.domain.map(Into::into),
            instance: id.instance.map(|uuid| uuid.to_string()),
            requests: requests.collect(),
            count: self.count,
            first: time::text(self.first),
            last: time::text(self.last),
            cause: self.outcome.cause,
            result: self.outcome.result,
            advice: self.outcome.advice.to_owned(),
        }
    }
}

/// The incidents of all streams.
#[derive(Debug, Default)]
pub struct Aggregator {
    kept: Vec<Incident>,
    /// The key is the guest (the request if the guest is unknown), the result and the form.
    rows: BTreeMap<(GuestId, String, Form), Row>,
    /// Failures beyond [`MAX_ROWS`].
    others: u64,
}

impl Aggregator {
    /// Adds an incident that no further line of its stream can join.
    pub fn push(&mut self, incident: Incident) {
        self.kept.push(incident);
        if self.kept.len() >= MAX_KEPT {
            self.join();
            if self.kept.len() > MAX_KEPT / 2 {
                self.count(self.kept.len() - MAX_KEPT / 4);
            }
        }
    }

    /// The guests, the latest first, and the number of failures of guests that are not among them.
    pub fn finish(mut self) -> (Vec<Guest>, u64) {
        self.join();
        self.count(self.kept.len());
        let mut rows: Vec<_> = self.rows.into_iter().collect();
        rows.sort_by_key(|(_, row)| Reverse(row.last.seconds()));
        let guests = rows.into_iter();
        let guests = guests.map(|((id, ..), row)| row.into_guest(id));
        (guests.collect(), self.others)
    }

    /// Joins incidents that several streams printed, in order of time.
    fn join(&mut self) {
        complete_names(&mut self.kept);
        self.kept.sort_by_key(Incident::seconds);
        // Incidents that share a name are joined first, so that one without a name does not take their place.
        for by_name in [true, false] {
            self.kept = joined(std::mem::take(&mut self.kept), by_name);
        }
        complete_names(&mut self.kept);
    }

    /// Counts the first `many` of the kept incidents, which can then no longer be joined.
    fn count(&mut self, many: usize) {
        for Incident { hit, .. } in self.kept.drain(..many) {
            let mut guest = hit.guest;
            let request = guest.request;
            if guest.is_named() {
                guest.request = None;
            }
            // Forms with the same outcome share a row.
            let form = match hit.form {
                Form::Initialize => Form::Access,
                Form::NoAccel => Form::Requires,
                form => form,
            };
            let outcome = Outcome::of(form, hit.errno);
            let key = (guest, outcome.result.clone(), form);
            if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&key) {
                self.others += 1;
                continue;
            }
            let row = self.rows.entry(key).or_insert(Row {
                outcome,
                count: 0,
                first: Time::default(),
                last: Time::default(),
                requests: Vec::new(),
            });
            row.add(hit.time, request);
        }
    }
}

/// Joins each incident with the earlier one that fits best.
fn joined(incidents: Vec<Incident>, by_name: bool) -> Vec<Incident> {
    let mut out: Vec<Incident> = Vec::with_capacity(incidents.len());
    for incident in incidents {
        let in_reach = |earlier: &Incident| match (earlier.seconds(), incident.seconds()) {
            (Some(then), Some(now)) => now - then <= DAY,
            _ => false,
        };
        let recent = out.iter().enumerate().rev().take(MAX_COMPARED);
        let (mut best, mut strangers) = (None, 0);
        for (place, earlier) in recent.take_while(|(_, earlier)| in_reach(earlier)) {
            let Some((shared, near)) = earlier.fits(&incident) else {
                continue;
            };
            if shared > 0 || !by_name {
                let both_named = earlier.hit.guest.is_named() && incident.hit.guest.is_named();
                strangers += usize::from(shared == 0 && both_named);
                best = best.max(Some((shared, near, place)));
            }
        }
        // If it fits several named guests and shares a name with none, it is ambiguous and stays separate.
        let best = best.filter(|_| strangers < 2);
        match best.and_then(|(.., place)| out.get_mut(place)) {
            Some(earlier) => earlier.absorb(incident),
            None => out.push(incident),
        }
    }
    out
}

/// Adds the missing name or UUID to all incidents of a guest, if some incidents contain both.
fn complete_names(incidents: &mut [Incident]) {
    let pairs = || {
        let guests = incidents.iter().map(|incident| &incident.hit.guest);
        guests.filter_map(|guest| Some((guest.domain.clone()?, guest.instance?)))
    };
    let instances = unambiguous(pairs());
    let domains = unambiguous(pairs().map(|(domain, instance)| (instance, domain)));
    for incident in incidents {
        let guest = &mut incident.hit.guest;
        match (&guest.domain, guest.instance) {
            (Some(domain), None) => guest.instance = instances.get(domain).copied().flatten(),
            (None, Some(instance)) => guest.domain = domains.get(&instance).cloned().flatten(),
            _ => {}
        }
    }
}

/// The value of each key; `None` for a key with several different values.
fn unambiguous<K: Ord, V: PartialEq>(
    pairs: impl Iterator<Item = (K, V)>,
) -> BTreeMap<K, Option<V>> {
    let mut values = BTreeMap::new();
    for (key, value) in pairs {
        match values.entry(key) {
            Entry::Vacant(entry) => _ = entry.insert(Some(value)),
            Entry::Occupied(entry) if *entry.get() == Some(value) => {}
            Entry::Occupied(mut entry) => *entry.get_mut() = None,
        }
    }
    values
}
