//! Evaluates comparisons: whether a value matches the pattern of a pair.

use super::glob;
use super::key::{Key, Op};
use super::pair::Pair;

impl Pair<'_> {
    /// Whether the comparison is true for one value.
    pub(super) fn holds(&self, value: &[u8]) -> bool {
        self.matches(value) == self.wanted()
    }

    /// Whether the comparison is true for a list, such as tags: `==` if any element matches, `!=` if none does.
    /// For an empty list, `!= ""` is true, and so is `== "?*"`.
    pub(super) fn holds_for_list<'v>(&self, mut list: impl Iterator<Item = &'v [u8]>) -> bool {
        list.any(|value| self.matches(value)) == self.wanted()
    }

    /// The result of [`Self::matches`] for which the comparison is true. udevd stores `== "?*"` as `!= ""`.
    fn wanted(&self) -> bool {
        (self.op == Op::Match) != (*self.value == *b"?*")
    }

    fn matches(&self, value: &[u8]) -> bool {
        let (mut pattern, mut value) = (&*self.value, value);
        let lower = self
            .any_case
            .then(|| (pattern.to_ascii_lowercase(), value.to_ascii_lowercase()));
        if let Some(lower) = &lower {
            (pattern, value) = (&lower.0, &lower.1);
        }
        if self.key == Key::Subsystem && is_subsystem(&self.value) {
            return is_subsystem(value);
        }
        if pattern.is_empty() || pattern == b"?*" {
            return value.is_empty();
        }
        let is_glob = glob::is_glob(pattern);
        let mut parts = pattern.split(|byte| *byte == b'|');
        parts.any(|part| match is_glob && !part.is_empty() {
            true => glob::matches(part, value),
            false => part == value,
        })
    }
}

/// Whether the value is `subsystem` or one of its old names, which `SUBSYSTEM` treats as equal.
fn is_subsystem(value: &[u8]) -> bool {
    [&b"subsystem"[..], b"bus", b"class"].contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(text: &str) -> Pair<'_> {
        Pair::read(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn compares_a_value_as_udevd_does() {
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
            assert_eq!(pair(text).holds(value.as_bytes()), want, "{text} {value}");
        }
    }

    #[test]
    fn compares_a_list_as_udevd_does() {
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
            assert_eq!(pair(text).holds_for_list(list), want, "{text}");
        }
    }
}
