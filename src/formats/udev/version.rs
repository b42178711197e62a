//! Differences between versions of systemd, and the node's version as far as it is known.
//!
//! Only 252 was tested. The behaviour of other versions is taken from their release notes and from
//! users' reports, and is unverified: 258 and 259 drop the whole line if its OWNER or GROUP is unknown
//! or outside the range of system IDs, and 260 accepts the latter again, with a warning. For changes
//! between 252 and 258, the exact version is not known here; rules that depend on one are reported
//! as unclear.

use super::key::{Key, Op};
use super::lines::{is_space, trim};
use super::pair::Pair;

/// The last version that was tested.
const TESTED: u32 = 252;
/// The first version that drops lines with unknown names or with IDs outside the system range.
const STRICT: u32 = 258;
/// The first version that drops lines only for unknown names.
const LENIENT: u32 = 260;

/// The node's systemd, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udevd {
    /// The major version; `None` if it cannot be determined.
    pub version: Option<u32>,
    /// The largest UID of a system user (`SYS_UID_MAX`).
    pub system_uid_max: u32,
    /// The largest GID of a system group (`SYS_GID_MAX`).
    pub system_gid_max: u32,
}

impl Default for Udevd {
    fn default() -> Self {
        Self {
            version: None,
            system_uid_max: 999,
            system_gid_max: 999,
        }
    }
}

/// Whether udevd accepts a value; otherwise the reason why it does not, or why that is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepted {
    Yes,
    No(&'static str),
    Unknown(&'static str),
}

impl Udevd {
    /// Whether this version may drop lines with IDs outside the system range.
    pub fn asks_for_the_range(&self) -> bool {
        self.version
            .is_none_or(|version| (STRICT..LENIENT).contains(&version))
    }

    /// Whether udevd accepts this UID or GID; `max` is the largest one in the system range.
    pub(super) fn accepts_id(&self, id: u32, max: u32) -> Accepted {
        match self.version {
            _ if id <= max => Accepted::Yes,
            Some(STRICT..LENIENT) => Accepted::No(
                "outside the range of system IDs; systemd 258 and 259 drop such a rule",
            ),
            Some(_) => Accepted::Yes,
            None => Accepted::Unknown(
                "it sets an ID outside the range of system IDs; systemd 258 and 259 drop such a rule, \
                 and the node's systemd version is unknown",
            ),
        }
    }

    /// Whether udevd accepts a line with an unknown user or group, and ignores only that value.
    pub(super) fn accepts_unknown(&self) -> Accepted {
        match self.version {
            Some(STRICT..) => Accepted::No("it names an unknown user or group"),
            Some(_) => Accepted::Yes,
            None => Accepted::Unknown(
                "it names an unknown user or group; whether udevd drops the whole line depends on the \
                 systemd version, which is unknown",
            ),
        }
    }

    /// Whether udevd accepts syntax that only some versions support: `i"…"`, `SYMLINK-=`, `CONST{cvm}` and some
    /// built-in commands.
    pub(super) fn accepts(&self, pair: &Pair<'_>) -> Accepted {
        if pair.any_case {
            return self.since_some_version("not every systemd version supports the prefix 'i'");
        }
        match (pair.key, &*pair.attr) {
            (Key::Symlink, _) if pair.op == Op::Remove => {
                self.since_some_version("not every systemd version supports SYMLINK-=")
            }
            (Key::Const, b"cvm") => {
                const WHY: &str = "not every systemd version supports CONST{cvm}";
                match self.version {
                    Some(254..) => Accepted::Yes,
                    Some(_) => Accepted::No(WHY),
                    None => Accepted::Unknown(WHY),
                }
            }
            (Key::Import | Key::Run, b"builtin") => self.has_builtin(&pair.value),
            _ => Accepted::Yes,
        }
    }

    /// Whether udevd has such a built-in command. It selects the first one whose name begins with the command's
    /// first word, so it accepts `k` for `kmod`, and also an empty word.
    fn has_builtin(&self, command: &[u8]) -> Accepted {
        const TESTED: &str =
            "blkid btrfs hwdb input_id keyboard kmod net_id net_setup_link path_id uaccess usb_id";
        const LATER: &str = "net_driver dissect_image factory_reset tpm2_id";
        let mut words = trim(command).split(|byte| is_space(*byte));
        let name = words.next().unwrap_or_default();
        let matches = |known: &str| known.as_bytes().starts_with(name);
        if TESTED.split(' ').any(matches) {
            Accepted::Yes
        } else if LATER.split(' ').any(matches) {
            self.since_some_version("not every systemd version has this built-in command")
        } else {
            Accepted::No("unknown built-in command")
        }
    }

    /// Whether udevd keeps the rules before a line of more than 16384 bytes. Later versions may discard the
    /// whole file.
    pub(super) fn keeps_what_was_read(&self) -> bool {
        self.version.is_some_and(|version| version <= TESTED)
    }

    fn since_some_version(&self, what: &'static str) -> Accepted {
        match self.version {
            Some(..=TESTED) => Accepted::No(what),
            Some(STRICT..) => Accepted::Yes,
            _ => Accepted::Unknown(what),
        }
    }
}

/// The version in the name of systemd's private library, `libsystemd-shared-252.so`.
pub fn version_of(file: &str) -> Option<u32> {
    let rest = file.strip_prefix("libsystemd-shared-")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest.get(digits..)?.contains(".so").then_some(())?;
    rest.get(..digits)?.parse().ok()
}

/// A number from login.defs(5), such as `SYS_GID_MAX`; the last line of that name counts. systemd reads
/// this file if it was built with `compat-mutable-uid-boundaries` (as in Debian and Fedora).
pub fn login_defs(file: &[u8], key: &str) -> Option<u32> {
    let text = String::from_utf8_lossy(file);
    let mut values = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == key).then_some(())?;
        words.next()?.parse().ok()
    });
    values.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_258_and_259_reject_ids_outside_the_system_range() {
        for (version, id, want) in [
            (Some(249), 929_292, "Yes"),
            (Some(257), 929_292, "Yes"),
            (Some(258), 929_292, "No"),
            (Some(259), 1000, "No"),
            (Some(259), 999, "Yes"),
            (Some(260), 929_292, "Yes"),
            (None, 929_292, "Unknown"),
            (None, 108, "Yes"),
        ] {
            let udevd = Udevd {
                version,
                ..Udevd::default()
            };
            let got = format!("{:?}", udevd.accepts_id(id, 999));
            assert!(got.starts_with(want), "{version:?} {id}: {got}");
        }
    }

    #[test]
    fn finds_the_version_in_the_name_of_the_library() {
        for (name, want) in [
            ("libsystemd-shared-252.so", Some(252)),
            ("libsystemd-shared-257.9-1.fc42.so", Some(257)),
            ("libsystemd-shared-258~rc1-1.fc43.so", Some(258)),
            ("libsystemd-core-252.so", None),
            ("libsystemd-shared-.so", None),
            ("libsystemd-shared-252", None),
        ] {
            assert_eq!(version_of(name), want, "{name}");
        }
    }

    #[test]
    fn reads_the_last_value_from_login_defs() {
        let file = b"# SYS_GID_MAX 5\n#SYS_GID_MAX\t999\nGID_MIN 1000\nSYS_GID_MAX\t 499\n";
        assert_eq!(login_defs(file, "SYS_GID_MAX"), Some(499));
        assert_eq!(login_defs(b"#SYS_GID_MAX 999\n", "SYS_GID_MAX"), None);
    }
}
