//! What rules give to a node, and what udevd makes of it.

use nix::unistd::{Gid, Uid};

use super::pair::Op;
use super::rule::Place;
use super::{Forecast, MOST, Notes, Outcome};

/// A value that rules assign one after the other.
#[derive(Debug)]
pub(super) struct Given<'a, T> {
    /// The value and the rule that gave it.
    value: Option<(T, Place<'a>)>,
    fixed: Fixed,
    /// Rules that may have given another one since.
    doubts: Vec<(Place<'a>, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fixed {
    No,
    Maybe,
    Yes,
}

/// What one assignment does to a value.
pub(super) enum Assign<T> {
    /// It becomes this.
    Set(T),
    /// It is as if no rule had given one.
    Unset,
    /// It stays; only a `:=` counts.
    Keep,
    /// That is not known.
    Open,
}

impl<T> Default for Given<'_, T> {
    fn default() -> Self {
        Self {
            value: None,
            fixed: Fixed::No,
            doubts: Vec::new(),
        }
    }
}

impl<'a, T> Given<'a, T> {
    /// One assignment in the rule `at`; `doubt` is why it may not happen.
    pub(super) fn assign(&mut self, op: Op, new: Assign<T>, at: Place<'a>, doubt: Option<&str>) {
        if self.fixed == Fixed::Yes {
            return;
        }
        let fixed = (self.fixed == Fixed::Maybe).then_some("an earlier rule may be final");
        let open = matches!(new, Assign::Open).then_some("its value has a substitution");
        match doubt.or(fixed).or(open) {
            Some(why) if !matches!(new, Assign::Keep) => {
                // One would do; the others are only named.
                if self.doubts.len() < MOST {
                    self.doubts.push((at, why.to_owned()));
                }
            }
            Some(_) => {}
            None => match new {
                Assign::Set(value) => {
                    self.value = Some((value, at));
                    self.doubts.clear();
                }
                Assign::Unset => {
                    self.value = None;
                    self.doubts.clear();
                }
                Assign::Keep | Assign::Open => {}
            },
        }
        if op == Op::Final {
            self.fixed = match doubt {
                Some(_) => Fixed::Maybe,
                None => Fixed::Yes,
            };
        }
    }
}

/// All that rules give.
#[derive(Debug, Default)]
pub(super) struct Gifts<'a> {
    pub(super) uid: Given<'a, Uid>,
    pub(super) gid: Given<'a, Gid>,
    pub(super) mode: Given<'a, u16>,
}

/// A node that permissions are given to, once at an event and rule by rule when udevd starts.
#[derive(Debug)]
pub(super) struct Node<'a> {
    uid: u32,
    gid: u32,
    mode: u16,
    /// What any rule gave, and where.
    by: [Option<Place<'a>>; 3],
    doubts: Vec<(Place<'a>, String)>,
    /// Why all of it may come to nothing.
    ends: Vec<(Place<'a>, String)>,
}

impl Default for Node<'_> {
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            mode: 0o600,
            by: [None, None, None],
            doubts: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl<'a> Node<'a> {
    /// Notes rules that may take back whatever was given.
    pub(super) fn may_get_nothing(&mut self, ends: Vec<(Place<'a>, String)>) {
        self.ends = ends;
    }

    /// Gives it all at once.
    pub(super) fn give(&mut self, gifts: Gifts<'a>) {
        let Gifts { uid, gid, mode } = gifts;
        for doubts in [uid.doubts, gid.doubts, mode.doubts] {
            self.doubts.extend(doubts);
        }
        let new_uid = uid.value.as_ref().map_or(self.uid, |(uid, _)| uid.as_raw());
        let new_gid = gid.value.as_ref().map_or(self.gid, |(gid, _)| gid.as_raw());
        // A group without a mode is one that shall have access.
        let given = gid.value.as_ref().filter(|(gid, _)| gid.as_raw() > 0);
        let default = given.map(|(_, at)| (0o660, *at));
        let mode = mode.value.or(default);
        let new_mode = mode.as_ref().map_or(self.mode, |(mode, _)| *mode);
        // Whether the mode differs is asked of its last nine bits only.
        let differs = (new_mode ^ self.mode) & 0o777 != 0;
        if differs || new_uid != self.uid || new_gid != self.gid {
            self.mode = new_mode;
        }
        (self.uid, self.gid) = (new_uid, new_gid);
        let new = [
            uid.value.map(|(_, at)| at),
            gid.value.map(|(_, at)| at),
            mode.map(|(_, at)| at),
        ];
        for (by, new) in self.by.iter_mut().zip(new) {
            if new.is_some() {
                *by = new;
            }
        }
    }

    /// What became of it.
    pub(super) fn forecast(self, notes: &mut Notes) -> Forecast {
        let given = self.by.iter().any(Option::is_some);
        let ends = self.ends.into_iter().filter(|_| given);
        let doubts: Vec<_> = self.doubts.into_iter().chain(ends).collect();
        if !doubts.is_empty() {
            for (rule, why) in doubts {
                notes.unclear(rule, &why);
            }
            return Forecast::Unclear;
        }
        let [uid, gid, mode] = self.by;
        let given = [&uid, &gid, &mode].map(Option::is_some);
        let Some(place) = gid.or(mode).or(uid) else {
            return Forecast::Untouched;
        };
        Forecast::Becomes(Outcome {
            uid: given[0].then_some(Uid::from_raw(self.uid)),
            gid: given[1].then_some(Gid::from_raw(self.gid)),
            mode: given[2].then_some(self.mode),
            rule: place.to_string(),
            owner_rule: uid.map(|place| place.to_string()),
            mode_rule: mode.map(|place| place.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: &[(Option<u32>, Option<u32>, Option<u16>)]) -> (u32, u32, u16) {
        let at = Place { file: "", line: 1 };
        let mut node = Node::default();
        for (uid, gid, mode) in steps {
            let mut gifts = Gifts::default();
            gifts.uid.value = uid.map(|uid| (Uid::from_raw(uid), at));
            gifts.gid.value = gid.map(|gid| (Gid::from_raw(gid), at));
            gifts.mode.value = mode.map(|mode| (mode, at));
            node.give(gifts);
        }
        (node.uid, node.gid, node.mode)
    }

    #[test]
    fn gifts_are_applied_as_udevd_applies_them() {
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
