//! The right side of a comparison.

use std::borrow::Cow;

use super::glob;
use super::key::Key;
use super::pair::{Op, Pair};

/// What a value is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern<'a> {
    /// `==` rather than `!=`.
    wanted: bool,
    kind: Kind,
    /// The alternatives, as written.
    value: Cow<'a, [u8]>,
    any_case: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Empty,
    /// `SUBSYSTEM=="subsystem"`, and its old names.
    Subsystem,
    Plain,
    Glob,
}

impl<'a> Pattern<'a> {
    /// Of a pair with `==` or `!=`.
    pub(super) fn new(pair: &Pair<'a>) -> Self {
        let value = &*pair.value;
        let mut wanted = pair.op == Op::Match;
        let kind = if pair.key == Some(Key::Subsystem) && is_subsystem(value) {
            Kind::Subsystem
        } else if value.is_empty() {
            Kind::Empty
        } else if value == b"?*" {
            // "Anything" is kept as "not nothing".
            wanted = !wanted;
            Kind::Empty
        } else if glob::is_glob(value) {
            Kind::Glob
        } else {
            Kind::Plain
        };
        Self {
            wanted,
            kind,
            value: pair.value.clone(),
            any_case: pair.any_case,
        }
    }

    /// Whether the comparison holds for one value.
    pub(super) fn holds(&self, value: &[u8]) -> bool {
        let lower;
        let value = if self.any_case {
            lower = value.to_ascii_lowercase();
            &lower
        } else {
            value
        };
        let mut parts = self.value.split(|byte| *byte == b'|');
        let found = match self.kind {
            Kind::Empty => value.is_empty(),
            Kind::Subsystem => is_subsystem(value),
            _ if value.is_empty() && parts.clone().any(<[u8]>::is_empty) => true,
            Kind::Plain if self.any_case => parts.any(|part| part.eq_ignore_ascii_case(value)),
            Kind::Plain => parts.any(|part| part == value),
            Kind::Glob if self.any_case => {
                parts.any(|part| glob::matches(&part.to_ascii_lowercase(), value))
            }
            Kind::Glob => parts.any(|part| glob::matches(part, value)),
        };
        found == self.wanted
    }

    /// Whether the comparison holds for a list, as of tags: `==` if any is meant, `!=` if none is.
    /// A list of nothing is `!= ""` and with it `== "?*"`.
    pub(super) fn holds_for_list<'v>(&self, mut list: impl Iterator<Item = &'v [u8]>) -> bool {
        let met = list.any(|value| self.holds(value) == self.wanted);
        met == self.wanted
    }
}

fn is_subsystem(value: &[u8]) -> bool {
    [&b"subsystem"[..], b"bus", b"class"].contains(&value)
}

#[cfg(test)]
mod tests {
    use super::super::pair::pairs;
    use super::*;

    fn pattern(text: &str) -> Pattern<'_> {
        let mut found = Vec::new();
        pairs(text.as_bytes(), &mut found, |_| false).unwrap();
        Pattern::new(&found[0])
    }

    #[test]
    fn comparisons_hold() {
        let table = [
            ("KERNEL==\"kvm\"", "kvm", true),
            ("KERNEL!=\"kvm\"", "kvm", false),
            ("KERNEL==\"sda|kvm\"", "kvm", true),
            ("KERNEL==\"sda|k?m\"", "kvm", true),
            ("KERNEL!=\"sda|tun\"", "kvm", true),
            ("KERNEL==\"|sda\"", "", true),
            ("KERNEL==\"sda\"", "", false),
            ("KERNEL==\"?*\"", "", false),
            ("KERNEL==\"?*\"", "kvm", true),
            ("KERNEL!=\"?*\"", "kvm", false),
            ("KERNEL==\"*\"", "", true),
            ("KERNEL==\"\"", "kvm", false),
            ("KERNEL==i\"KVM\"", "kvm", true),
            ("KERNEL==\"KVM\"", "kvm", false),
            ("SUBSYSTEM==\"class\"", "bus", true),
            ("SUBSYSTEM!=\"bus\"", "misc", true),
            ("KERNEL==\"bus\"", "class", false),
        ];
        for (text, value, want) in table {
            assert_eq!(
                pattern(text).holds(value.as_bytes()),
                want,
                "{text} {value}"
            );
        }
    }

    #[test]
    fn lists_are_compared_one_by_one() {
        let table: [(&str, &[&str], bool); 8] = [
            ("TAG==\"a\"", &["b", "a"], true),
            ("TAG==\"a\"", &["b"], false),
            ("TAG!=\"a\"", &["b"], true),
            ("TAG!=\"a\"", &["b", "a"], false),
            ("TAG==\"\"", &[], false),
            ("TAG!=\"\"", &[], true),
            ("TAG==\"?*\"", &[], true),
            ("TAG!=\"?*\"", &["a"], false),
        ];
        for (text, list, want) in table {
            let list = list.iter().map(|tag| tag.as_bytes());
            assert_eq!(pattern(text).holds_for_list(list), want, "{text}");
        }
    }
}
