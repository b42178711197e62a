//! Owner, group and mode that rules assign to a device, and how udevd applies them.

use nix::unistd::{Gid, Uid};

use super::key::Op;
use super::location::Location;
use super::prediction::{MOST, Notes, Outcome, Prediction};

/// The assigned field; its value is the index in arrays of owner, group and mode.
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
    /// Whether udevd determines the value only at the event; such a value does not count when udevd starts.
    pub(super) late: bool,
    /// The diagnostic to report if the value is assigned.
    pub(super) note: Option<String>,
}

/// The effect of one assignment on a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The field gets this UID, GID or mode.
    Set(u32),
    /// The field becomes unset, as if no rule had assigned it.
    Unset,
    /// The field keeps its value; a `:=` still makes it final.
    Keep,
    /// Unknown, because the value contains a substitution.
    Open,
}

/// A field that several rules can assign, one after another.
#[derive(Debug, Default)]
struct Assigned<'a> {
    /// The value and the rule that assigned it.
    value: Option<(u32, Location<'a>)>,
    /// Whether an assignment was final; `None` if that is unknown.
    fixed: Option<bool>,
    /// Later rules that may have assigned another value.
    doubts: Vec<(Location<'a>, String)>,
}

/// All values that rules assign, indexed by [`Field`].
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
    /// Applies one assignment of the rule `at`; `doubt` is why udevd may not execute it.
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
            .then_some("an earlier assignment may be final (:=)");
        let open = (value.change == Change::Open).then_some("its value contains a substitution");
        match (value.change, doubt.or(fixed).or(open)) {
            (Change::Keep, _) => {}
            (_, Some(why)) => {
                // One doubt makes the prediction unclear; the others are only reported.
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

/// The device to which udevd applies permissions: once per event, and once per rule when udevd starts.
#[derive(Debug)]
pub(super) struct DeviceState<'a> {
    /// Owner, group and mode.
    values: [u32; 3],
    /// The rules that assigned them.
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
    /// Applies the permissions as udevd does at the end of an event.
    pub(super) fn apply(&mut self, Permissions(mut new): Permissions<'a>) {
        for field in &mut new {
            self.doubts.append(&mut field.doubts);
        }
        let [uid, gid, mode] = new.map(|field| field.value);
        // udevd sets mode 0660 if a rule assigns a group but no rule assigns a mode.
        let default = gid.filter(|(gid, _)| *gid > 0);
        let mode = mode.or(default.map(|(_, at)| (0o660, at)));
        let before = self.values;
        for (place, new) in [uid, gid, mode].into_iter().enumerate() {
            if let Some((value, at)) = new {
                (self.values[place], self.by[place]) = (value, Some(at));
            }
        }
        // udevd compares only the last nine bits of the mode, and changes nothing if all values are equal.
        let [uid, gid, mode] = self.values;
        if [uid, gid, mode & 0o777] == [before[0], before[1], before[2] & 0o777] {
            self.values[2] = before[2];
        }
    }

    /// The resulting prediction. `ends` are rules that may make udevd abort the event.
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
    fn applies_owner_group_and_mode_as_udevd_does() {
        // Owner, group and mode that each rule assigns.
        const NO: Option<u32> = None;
        let group = Some(5);
        for (rules, want) in [
            (&[[NO, NO, NO]][..], [0, 0, 0o600]),
            (&[[NO, group, NO]], [0, 5, 0o660]),
            (&[[NO, Some(0), NO]], [0, 0, 0o600]),
            (&[[Some(7), NO, NO]], [7, 0, 0o600]),
            (&[[NO, NO, Some(0o666)]], [0, 0, 0o666]),
            (&[[NO, group, Some(0o640)]], [0, 5, 0o640]),
            // A difference only in the set-id bits is ignored; with another difference they are set.
            (&[[NO, NO, Some(0o4600)]], [0, 0, 0o600]),
            (&[[NO, group, Some(0o4600)]], [0, 5, 0o4600]),
            (&[[NO, NO, Some(0o2660)]], [0, 0, 0o2660]),
            // The second rule applies to the result of the first.
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
