//! The right side of a comparison.

use super::glob;
use super::pair::Pair;

/// What a value is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    /// `==` rather than `!=`.
    wanted: bool,
    kind: Kind,
    /// Whether nothing at all is one of the alternatives.
    or_empty: bool,
    alternatives: Vec<Vec<u8>>,
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

impl Pattern {
    /// Of a pair with `==` or `!=`.
    pub(super) fn new(pair: &Pair) -> Self {
        let value = pair.value.as_slice();
        let mut wanted = pair.op == super::pair::Op::Match;
        let kind = if pair.key == b"SUBSYSTEM" && is_subsystem(value) {
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
        let parts = || value.split(|byte| *byte == b'|');
        let fold = |part: &[u8]| match pair.any_case {
            true => part.to_ascii_lowercase(),
            false => part.to_vec(),
        };
        Self {
            wanted,
            kind,
            or_empty: parts().any(<[u8]>::is_empty),
            alternatives: parts().filter(|part| !part.is_empty()).map(fold).collect(),
            any_case: pair.any_case,
        }
    }

    /// Whether the comparison holds for one value.
    pub(super) fn holds(&self, value: &[u8]) -> bool {
        let folded = match self.any_case {
            true => value.to_ascii_lowercase(),
            false => value.to_vec(),
        };
        let found = match self.kind {
            Kind::Empty => value.is_empty(),
            Kind::Subsystem => is_subsystem(&folded),
            _ if self.or_empty && value.is_empty() => true,
            Kind::Plain => self.alternatives.contains(&folded),
            Kind::Glob => {
                let mut patterns = self.alternatives.iter();
                patterns.any(|pattern| glob::matches(pattern, &folded))
            }
        };
        found == self.wanted
    }

    /// Whether the comparison holds for a list, as of tags: `==` if any is meant, `!=` if none is.
    /// A list of nothing is `!= ""` and with it `== "?*"`.
    pub(super) fn holds_for_list<'a>(&self, mut list: impl Iterator<Item = &'a [u8]>) -> bool {
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

    fn pattern(text: &str) -> Pattern {
        let pairs = pairs(text.as_bytes()).unwrap();
        Pattern::new(&pairs[0])
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
