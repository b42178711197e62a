//! What rules assign to a device, and what udevd makes of it.

use nix::unistd::{Gid, Uid};

use super::key::Op;
use super::location::Location;
use super::prediction::{MOST, Notes, Outcome, Prediction};

/// What is assigned: the places of owner, group and mode in arrays of three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Owner,
    Group,
    Mode,
}

/// The right side of an assignment of an owner, a group or a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) change: Change,
    /// Whether udevd works it out at the event only; such a value does not count when udevd starts.
    pub(super) late: bool,
    /// What is reported where it is assigned.
    pub(super) note: Option<String>,
}

/// What one assignment does to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It becomes this UID, GID or mode.
    Set(u32),
    /// It is as if no rule had assigned one.
    Unset,
    /// It stays; only a `:=` counts.
    Keep,
    /// That is not known: the value has a substitution.
    Open,
}

/// A value that rules assign one after the other.
#[derive(Debug, Default)]
struct Assigned<'a> {
    /// The value and the rule that assigned it.
    value: Option<(u32, Location<'a>)>,
    /// Whether an assignment was final; none where that is not known.
    fixed: Option<bool>,
    /// Rules that may have assigned another one since.
    doubts: Vec<(Location<'a>, String)>,
}

/// All that rules assign, by [`Field`].
#[derive(Debug)]
pub(super) struct Permissions<'a>([Assigned<'a>; 3]);

impl Default for Permissions<'_> {
    fn default() -> Self {
        Self([(); 3].map(|()| Assigned {
            fixed: Some(false),
            ..Assigned::default()
        }))
    }
}

impl<'a> Permissions<'a> {
    /// One assignment in the rule `at`; `doubt` is why it may not happen.
    pub(super) fn assign(
        &mut self,
        (field, op): (Field, Op),
        value: &Value,
        at: Location<'a>,
        doubt: Option<&str>,
        notes: &mut Notes,
    ) {
        if let Some(note) = &value.note {
            notes.ignore(at, note);
        }
        let Self(fields) = self;
        let old = &mut fields[field as usize];
        if old.fixed == Some(true) {
            return;
        }
        let fixed = old
            .fixed
            .is_none()
            .then_some("an earlier rule may be final");
        let open = (value.change == Change::Open).then_some("its value has a substitution");
        match (value.change, doubt.or(fixed).or(open)) {
            (Change::Keep, _) => {}
            (_, Some(why)) => {
                // One would do; the others are only named.
                if old.doubts.len() < MOST {
                    old.doubts.push((at, why.to_owned()));
                }
            }
            (change, None) => {
                old.value = match change {
                    Change::Set(value) => Some((value, at)),
                    _ => None,
                };
                old.doubts.clear();
            }
        }
        if op == Op::Final {
            old.fixed = doubt.is_none().then_some(true);
        }
    }
}

/// The device to which permissions are applied, once at an event and rule by rule when udevd starts.
#[derive(Debug)]
pub(super) struct DeviceState<'a> {
    /// Owner, group and mode.
    values: [u32; 3],
    /// Where they were assigned.
    by: [Option<Location<'a>>; 3],
    doubts: Vec<(Location<'a>, String)>,
}

impl Default for DeviceState<'_> {
    fn default() -> Self {
        Self {
            values: [0, 0, 0o600],
            by: [None; 3],
            doubts: Vec::new(),
        }
    }
}

impl<'a> DeviceState<'a> {
    /// Applies all of it at once.
    pub(super) fn apply(&mut self, Permissions(mut new): Permissions<'a>) {
        for field in &mut new {
            self.doubts.append(&mut field.doubts);
        }
        let [uid, gid, mode] = new.map(|field| field.value);
        // A group without a mode is one that has to get access.
        let default = gid.filter(|(gid, _)| *gid > 0);
        let mode = mode.or(default.map(|(_, at)| (0o660, at)));
        let before = self.values;
        for (place, new) in [uid, gid, mode].into_iter().enumerate() {
            if let Some((value, at)) = new {
                (self.values[place], self.by[place]) = (value, Some(at));
            }
        }
        // Only the last nine bits decide whether the mode differs.
        let [uid, gid, mode] = self.values;
        if [uid, gid, mode & 0o777] == [before[0], before[1], before[2] & 0o777] {
            self.values[2] = before[2];
        }
    }

    /// What became of it. `ends` are rules after which all of it may come to nothing.
    pub(super) fn prediction(
        mut self,
        ends: Vec<(Location<'a>, String)>,
        notes: &mut Notes,
    ) -> Prediction {
        let [by_uid, by_gid, by_mode] = self.by;
        let decisive = by_gid.or(by_mode).or(by_uid);
        if decisive.is_some() {
            self.doubts.extend(ends);
        }
        if !self.doubts.is_empty() {
            for (rule, why) in self.doubts {
                notes.unclear(rule, &why);
            }
            return Prediction::Unclear;
        }
        let Some(at) = decisive else {
            return Prediction::Untouched;
        };
        let [uid, gid, mode] = self.values;
        Prediction::Becomes(Outcome {
            uid: by_uid.map(|_| Uid::from_raw(uid)),
            gid: by_gid.map(|_| Gid::from_raw(gid)),
            mode: by_mode.and(u16::try_from(mode).ok()),
            rule: at.to_string(),
            owner_rule: by_uid.map(|at| at.to_string()),
            mode_rule: by_mode.map(|at| at.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_applied_as_udevd_applies_them() {
        // Owner, group and mode of one rule after the other; none where it assigns none.
        const NO: Option<u32> = None;
        let group = Some(5);
        for (rules, want) in [
            (&[[NO, NO, NO]][..], [0, 0, 0o600]),
            (&[[NO, group, NO]], [0, 5, 0o660]),
            (&[[NO, Some(0), NO]], [0, 0, 0o600]),
            (&[[Some(7), NO, NO]], [7, 0, 0o600]),
            (&[[NO, NO, Some(0o666)]], [0, 0, 0o666]),
            (&[[NO, group, Some(0o640)]], [0, 5, 0o640]),
            // The set-id bits alone are no difference, but come along with one.
            (&[[NO, NO, Some(0o4600)]], [0, 0, 0o600]),
            (&[[NO, group, Some(0o4600)]], [0, 5, 0o4600]),
            (&[[NO, NO, Some(0o2660)]], [0, 0, 0o2660]),
            // The second rule finds what the first left.
            (&[[NO, group, NO], [NO, NO, Some(0o666)]], [0, 5, 0o666]),
            (&[[NO, NO, Some(0o666)], [NO, group, NO]], [0, 5, 0o660]),
        ] {
            let mut device = DeviceState::default();
            for rule in rules {
                let at = Location { file: "", line: 1 };
                device.apply(Permissions(rule.map(|value| Assigned {
                    value: value.map(|value| (value, at)),
                    ..Assigned::default()
                })));
            }
            assert_eq!(device.values, want, "{rules:?}");
        }
    }
}
