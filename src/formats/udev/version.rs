//! What differs between versions of systemd, and what is known of the node's.
//!
//! Everything here was run against 252 only. What it says of other versions comes from their
//! release notes and from reports of their users, and is unverified: 258 and 259 drop a whole
//! line whose OWNER or GROUP is unknown or outside of the system's range, and 260 takes the latter
//! again, with a warning. Between 252 and 258 things changed at versions that are not known here;
//! rules that hang on one are said to be unclear.

use super::key::{Key, Op};
use super::lines::{is_blank, trim};
use super::pair::Pair;

/// The last version whose behaviour was seen.
const SEEN: u32 = 252;
/// The first version that is strict about names and numbers.
const STRICT: u32 = 258;
/// The first version that is strict about names only.
const LENIENT: u32 = 260;

/// What is known of the node's systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udevd {
    /// Its version, if that could be found.
    pub version: Option<u32>,
    /// The largest UID of the system's range.
    pub system_uid_max: u32,
    /// The largest GID of the system's range.
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

/// Whether udevd accepts something, or why it does not, or why that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepted {
    Yes,
    No(&'static str),
    Unknown(&'static str),
}

impl Udevd {
    /// Whether it makes a difference to this version what the system's range is.
    pub fn asks_for_the_range(&self) -> bool {
        self.version
            .is_none_or(|version| (STRICT..LENIENT).contains(&version))
    }

    /// Whether it accepts this UID or GID; `max` is the largest of the system's range.
    pub(super) fn accepts_id(&self, id: u32, max: u32) -> Accepted {
        match self.version {
            _ if id <= max => Accepted::Yes,
            Some(STRICT..LENIENT) => {
                Accepted::No("outside of the system's range, dropped by systemd 258 and 259")
            }
            Some(_) => Accepted::Yes,
            None => Accepted::Unknown(
                "a number outside of the system's range, which systemd 258 and 259 drop, and the \
                 node's version is not known",
            ),
        }
    }

    /// Whether it accepts a line with a name that the node does not know, and only leaves the name out.
    pub(super) fn accepts_unknown(&self) -> Accepted {
        match self.version {
            Some(STRICT..) => Accepted::No("the node does not know a name in it"),
            Some(_) => Accepted::Yes,
            None => Accepted::Unknown(
                "the node does not know a name in it, and what follows differs by version",
            ),
        }
    }

    /// Whether it knows what only some versions know: `i"…"`, `SYMLINK-=`, `CONST{cvm}` and some built-in
    /// commands.
    pub(super) fn accepts(&self, pair: &Pair<'_>) -> Accepted {
        if pair.any_case {
            return self.since_some_version("the prefix 'i' is not known to every systemd");
        }
        match (pair.key, &*pair.attr) {
            (Key::Symlink, _) if pair.op == Op::Remove => {
                self.since_some_version("SYMLINK-= is not known to every systemd")
            }
            (Key::Const, b"cvm") => {
                const WHY: &str = "CONST{cvm} is not known to every systemd";
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

    /// Whether there is such a built-in command. udevd takes the first whose name begins with the command's
    /// first word, so that `k` is enough for `kmod`, and the empty word is accepted, too.
    fn has_builtin(&self, command: &[u8]) -> Accepted {
        const SEEN: &str =
            "blkid btrfs hwdb input_id keyboard kmod net_id net_setup_link path_id uaccess usb_id";
        const LATER: &str = "net_driver dissect_image factory_reset tpm2_id";
        let mut words = trim(command).split(|byte| is_blank(*byte));
        let name = words.next().unwrap_or_default();
        let is_meant = |known: &str| known.as_bytes().starts_with(name);
        if SEEN.split(' ').any(is_meant) {
            Accepted::Yes
        } else if LATER.split(' ').any(is_meant) {
            self.since_some_version("its built-in command is not known to every systemd")
        } else {
            Accepted::No("no built-in command that udev knows")
        }
    }

    /// Whether a line of more than 16384 bytes ends only the reading of its file. Later versions may
    /// give up all of the file.
    pub(super) fn keeps_what_was_read(&self) -> bool {
        self.version.is_some_and(|version| version <= SEEN)
    }

    fn since_some_version(&self, what: &'static str) -> Accepted {
        match self.version {
            Some(..=SEEN) => Accepted::No(what),
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

/// A number of login.defs(5), such as `SYS_GID_MAX`: the last one counts. systemd asks that file
/// where it was built to (`compat-mutable-uid-boundaries`, as Debian and Fedora do).
pub fn login_defs(file: &[u8], key: &str) -> Option<u32> {
    let text = String::from_utf8_lossy(file);
    let mut found = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == key).then_some(())?;
        words.next()?.parse().ok()
    });
    found.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_of_the_range_are_taken_by_most() {
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
    fn the_version_is_in_the_librarys_name() {
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
    fn login_defs_may_move_the_boundary() {
        let file = b"# SYS_GID_MAX 5\n#SYS_GID_MAX\t999\nGID_MIN 1000\nSYS_GID_MAX\t 499\n";
        assert_eq!(login_defs(file, "SYS_GID_MAX"), Some(499));
        assert_eq!(login_defs(b"#SYS_GID_MAX 999\n", "SYS_GID_MAX"), None);
    }
}
