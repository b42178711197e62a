//! What rules assign to a device, and what udevd makes of it.

use nix::unistd::{Gid, Uid};

use super::key::Op;
use super::location::Location;
use super::prediction::{Forecast, MOST, Notes, Outcome};

/// The right side of an assignment of an owner, a group or a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value<T> {
    pub(super) change: Change<T>,
    /// Whether udevd works it out at the event only; such a value does not count when udevd starts.
    pub(super) late: bool,
    /// What is reported where it is assigned.
    pub(super) note: Option<String>,
}

/// An owner, a group or a mode that a rule assigns.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Permission {
    Owner(Value<u32>),
    Group(Value<u32>),
    Mode(Value<u16>),
}

impl Permission {
    pub(super) fn is_late(&self) -> bool {
        match self {
            Self::Owner(id) | Self::Group(id) => id.late,
            Self::Mode(mode) => mode.late,
        }
    }
}

/// What one assignment does to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change<T> {
    /// It becomes this.
    Set(T),
    /// It is as if no rule had assigned one.
    Unset,
    /// It stays; only a `:=` counts.
    Keep,
    /// That is not known: the value has a substitution.
    Open,
}

impl<T> Value<T> {
    pub(super) fn open() -> Self {
        Self {
            change: Change::Open,
            late: true,
            note: None,
        }
    }
}

/// A value that rules assign one after the other.
#[derive(Debug)]
struct Assigned<'a, T> {
    /// The value and the rule that assigned it.
    value: Option<(T, Location<'a>)>,
    fixed: Fixed,
    /// Rules that may have assigned another one since.
    doubts: Vec<(Location<'a>, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fixed {
    No,
    Maybe,
    Yes,
}

impl<T> Default for Assigned<'_, T> {
    fn default() -> Self {
        Self {
            value: None,
            fixed: Fixed::No,
            doubts: Vec::new(),
        }
    }
}

impl<'a, T: Copy> Assigned<'a, T> {
    fn assign(
        &mut self,
        op: Op,
        value: &Value<T>,
        at: Location<'a>,
        doubt: Option<&str>,
        notes: &mut Notes,
    ) {
        if let Some(note) = &value.note {
            notes.ignore(at, note);
        }
        if self.fixed == Fixed::Yes {
            return;
        }
        let fixed = (self.fixed == Fixed::Maybe).then_some("an earlier rule may be final");
        let open = matches!(value.change, Change::Open).then_some("its value has a substitution");
        match (value.change, doubt.or(fixed).or(open)) {
            (Change::Keep, _) => {}
            (_, Some(why)) => {
                // One would do; the others are only named.
                if self.doubts.len() < MOST {
                    self.doubts.push((at, why.to_owned()));
                }
            }
            (change, None) => {
                self.value = match change {
                    Change::Set(value) => Some((value, at)),
                    _ => None,
                };
                self.doubts.clear();
            }
        }
        if op == Op::Final {
            self.fixed = match doubt {
                Some(_) => Fixed::Maybe,
                None => Fixed::Yes,
            };
        }
    }
}

/// All that rules assign.
#[derive(Debug, Default)]
pub(super) struct Permissions<'a> {
    uid: Assigned<'a, u32>,
    gid: Assigned<'a, u32>,
    mode: Assigned<'a, u16>,
}

impl<'a> Permissions<'a> {
    /// One assignment in the rule `at`; `doubt` is why it may not happen.
    pub(super) fn assign(
        &mut self,
        op: Op,
        permission: &Permission,
        at: Location<'a>,
        doubt: Option<&str>,
        notes: &mut Notes,
    ) {
        match permission {
            Permission::Owner(uid) => self.uid.assign(op, uid, at, doubt, notes),
            Permission::Group(gid) => self.gid.assign(op, gid, at, doubt, notes),
            Permission::Mode(mode) => self.mode.assign(op, mode, at, doubt, notes),
        }
    }
}

/// The device to which permissions are applied, once at an event and rule by rule when udevd starts.
#[derive(Debug)]
pub(super) struct DeviceState<'a> {
    uid: u32,
    gid: u32,
    mode: u16,
    /// Where owner, group and mode were assigned.
    by: [Option<Location<'a>>; 3],
    doubts: Vec<(Location<'a>, String)>,
}

impl Default for DeviceState<'_> {
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            mode: 0o600,
            by: [None, None, None],
            doubts: Vec::new(),
        }
    }
}

impl<'a> DeviceState<'a> {
    /// Applies all of it at once.
    pub(super) fn apply(&mut self, new: Permissions<'a>) {
        let Permissions { uid, gid, mode } = new;
        for doubts in [uid.doubts, gid.doubts, mode.doubts] {
            self.doubts.extend(doubts);
        }
        // A group without a mode is one that has to get access.
        let default = gid.value.filter(|(gid, _)| *gid > 0);
        let mode = mode.value.or(default.map(|(_, at)| (0o660, at)));
        let new_uid = uid.value.map_or(self.uid, |(uid, _)| uid);
        let new_gid = gid.value.map_or(self.gid, |(gid, _)| gid);
        let new_mode = mode.map_or(self.mode, |(mode, _)| mode);
        // Only the last nine bits decide whether the mode differs.
        let differs = (new_mode ^ self.mode) & 0o777 != 0;
        if differs || new_uid != self.uid || new_gid != self.gid {
            self.mode = new_mode;
        }
        (self.uid, self.gid) = (new_uid, new_gid);
        let places = [
            uid.value.map(|(_, at)| at),
            gid.value.map(|(_, at)| at),
            mode.map(|(_, at)| at),
        ];
        for (by, at) in self.by.iter_mut().zip(places) {
            *by = at.or(*by);
        }
    }

    /// What became of it. `ends` are rules after which all of it may come to nothing.
    pub(super) fn forecast(
        mut self,
        ends: Vec<(Location<'a>, String)>,
        notes: &mut Notes,
    ) -> Forecast {
        let [uid, gid, mode] = self.by;
        let decisive = gid.or(mode).or(uid);
        if decisive.is_some() {
            self.doubts.extend(ends);
        }
        if !self.doubts.is_empty() {
            for (rule, why) in self.doubts {
                notes.unclear(rule, &why);
            }
            return Forecast::Unclear;
        }
        let Some(at) = decisive else {
            return Forecast::Untouched;
        };
        Forecast::Becomes(Outcome {
            uid: uid.map(|_| Uid::from_raw(self.uid)),
            gid: gid.map(|_| Gid::from_raw(self.gid)),
            mode: mode.map(|_| self.mode),
            rule: at.to_string(),
            owner_rule: uid.map(|at| at.to_string()),
            mode_rule: mode.map(|at| at.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: &[(Option<u32>, Option<u32>, Option<u16>)]) -> (u32, u32, u16) {
        let at = Location { file: "", line: 1 };
        let mut device = DeviceState::default();
        for (uid, gid, mode) in steps {
            let mut new = Permissions::default();
            new.uid.value = uid.map(|uid| (uid, at));
            new.gid.value = gid.map(|gid| (gid, at));
            new.mode.value = mode.map(|mode| (mode, at));
            device.apply(new);
        }
        (device.uid, device.gid, device.mode)
    }

    #[test]
    fn permissions_are_applied_as_udevd_applies_them() {
        let table = [
            (vec![(None, None, None)], (0, 0, 0o600)),
            (vec![(None, Some(5), None)], (0, 5, 0o660)),
            (vec![(None, Some(0), None)], (0, 0, 0o600)),
            (vec![(Some(7), None, None)], (7, 0, 0o600)),
            (vec![(None, None, Some(0o666))], (0, 0, 0o666)),
            (vec![(None, Some(5), Some(0o640))], (0, 5, 0o640)),
            // The set-id bits alone are no difference, but come along with one.
            (vec![(None, None, Some(0o4600))], (0, 0, 0o600)),
            (vec![(None, Some(5), Some(0o4600))], (0, 5, 0o4600)),
            (vec![(None, None, Some(0o2660))], (0, 0, 0o2660)),
            // One rule after the other: the second finds what the first left.
            (
                vec![(None, Some(5), None), (None, None, Some(0o666))],
                (0, 5, 0o666),
            ),
            (
                vec![(None, None, Some(0o666)), (None, Some(5), None)],
                (0, 5, 0o660),
            ),
        ];
        for (steps, want) in table {
            assert_eq!(after(&steps), want, "{steps:?}");
        }
    }
}
