//! What differs between versions of systemd, and what is known of the node's.
//!
//! Everything here was run against 252 only. What it says of other versions comes from their
//! release notes and from reports of their users, and is unverified: 258 and 259 drop a whole
//! line whose OWNER or GROUP is unknown or outside of the system's range, and 260 takes the latter
//! again, with a warning. Between 252 and 258 things changed at versions that are not known here;
//! rules that hang on one are said to be unclear.

use super::Udevd;

/// The last version whose behaviour was seen.
const SEEN: u32 = 252;
/// The first version that is strict about names and numbers.
const STRICT: u32 = 258;
/// The first version that is strict about names only.
const LENIENT: u32 = 260;

/// Whether udevd takes a rule with this owner or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
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
}

/// Whether udevd takes this number; `max` is the largest of the system's range.
pub(super) fn takes_id(node: &Udevd, id: u32, max: u32) -> Taken {
    if id <= max {
        return Taken::Yes;
    }
    match node.version {
        Some(STRICT..LENIENT) => {
            Taken::No("outside of the system's range, dropped by systemd 258 and 259")
        }
        Some(_) => Taken::Yes,
        None => Taken::Unknown(
            "a number outside of the system's range, which systemd 258 and 259 drop, and the \
             node's version is not known",
        ),
    }
}

/// Whether a name that the node does not know makes udevd drop the line, or only the name.
pub(super) fn drops_unknown(node: &Udevd) -> Option<bool> {
    node.version.map(|version| version >= STRICT)
}

/// Whether `i"…"` is known: an error if not, a text where that is not known here.
pub(super) fn takes_any_case(node: &Udevd) -> Result<Option<&'static str>, &'static str> {
    since_some_version(node, "the prefix 'i' is not known to every systemd")
}

/// Whether `SYMLINK-=` is known.
pub(super) fn removes_links(node: &Udevd) -> Result<Option<&'static str>, &'static str> {
    since_some_version(node, "SYMLINK-= is not known to every systemd")
}

/// Whether `CONST{cvm}` is known, which came with 254.
pub(super) fn has_cvm(node: &Udevd) -> Result<Option<&'static str>, &'static str> {
    const WHY: &str = "CONST{cvm} is not known to every systemd";
    match node.version {
        Some(254..) => Ok(None),
        Some(_) => Err(WHY),
        None => Ok(Some(WHY)),
    }
}

/// Whether there is such a built-in command. The first that begins with what is written is taken, so that
/// `k` will do, and nothing at all.
pub(super) fn has_builtin(node: &Udevd, name: &[u8]) -> Result<Option<&'static str>, &'static str> {
    let seen: [&[u8]; 11] = [
        b"blkid",
        b"btrfs",
        b"hwdb",
        b"input_id",
        b"keyboard",
        b"kmod",
        b"net_id",
        b"net_setup_link",
        b"path_id",
        b"uaccess",
        b"usb_id",
    ];
    let later: [&[u8]; 4] = [
        b"net_driver",
        b"dissect_image",
        b"factory_reset",
        b"tpm2_id",
    ];
    let is_meant = |known: &&[u8]| known.starts_with(name);
    if seen.iter().any(is_meant) {
        return Ok(None);
    }
    if later.iter().any(is_meant) {
        return since_some_version(node, "its built-in command is not known to every systemd");
    }
    Err("no built-in command that udev knows")
}

/// Whether a line of more than 16384 bytes ends only the reading of its file. Later versions may
/// give up all of the file.
pub(super) fn keeps_what_was_read(node: &Udevd) -> bool {
    node.version.is_some_and(|version| version <= SEEN)
}

fn since_some_version(
    node: &Udevd,
    what: &'static str,
) -> Result<Option<&'static str>, &'static str> {
    match node.version {
        Some(..=SEEN) => Err(what),
        Some(STRICT..) => Ok(None),
        _ => Ok(Some(what)),
    }
}

/// Properties that the kernel and udevd set themselves; a rule that tries is dropped.
pub(super) fn is_fixed_property(name: &[u8]) -> bool {
    let fixed: [&[u8]; 11] = [
        b"ACTION",
        b"DEVLINKS",
        b"DEVNAME",
        b"DEVPATH",
        b"DEVTYPE",
        b"DRIVER",
        b"IFINDEX",
        b"MAJOR",
        b"MINOR",
        b"SUBSYSTEM",
        b"TAGS",
    ];
    fixed.contains(&name)
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

    fn node(version: Option<u32>) -> Udevd {
        Udevd {
            version,
            ..Udevd::default()
        }
    }

    #[test]
    fn numbers_outside_of_the_range_are_taken_by_most() {
        let table = [
            (Some(249), 929_292, "yes"),
            (Some(252), 929_292, "yes"),
            (Some(257), 929_292, "yes"),
            (Some(258), 929_292, "no"),
            (Some(259), 42427, "no"),
            (Some(259), 1000, "no"),
            (Some(259), 999, "yes"),
            (Some(258), 0, "yes"),
            (Some(260), 929_292, "yes"),
            (None, 929_292, "unknown"),
            (None, 108, "yes"),
        ];
        for (version, id, want) in table {
            let got = match takes_id(&node(version), id, 999) {
                Taken::Yes => "yes",
                Taken::No(_) => "no",
                Taken::Unknown(_) => "unknown",
            };
            assert_eq!(got, want, "{version:?} {id}");
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
