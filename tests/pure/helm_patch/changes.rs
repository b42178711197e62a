//! Changes that no patch may make. The changes that a patch does make are its golden, a diff.

use std::fs;

use support::golden::{Way, cases, directory, golden_name, golden_of};
use support::yaml;

/// A patch removes or replaces no line, so it reorders no list. The exception `env: null` equals a missing field.
#[test]
fn patches_only_add_lines() {
    for (fixture, way) in cases().filter(|(_, way)| *way != Way::Plain) {
        let diff = directory().join(format!("{}.diff", golden_name(fixture, way)));
        let diff = fs::read_to_string(diff).unwrap();
        let (mut added, mut removed) = (0, Vec::new());
        for line in diff.lines().skip(2) {
            added += usize::from(line.starts_with('+'));
            removed.extend(line.strip_prefix('-').map(str::trim));
        }
        assert!(added > 0, "{fixture} {way:?}");
        let is_null = |line: &&str| way == Way::Exec && *line == "env: null";
        assert!(removed.iter().all(is_null), "{fixture} {way:?}: {diff}");
    }
}

/// Neither other kinds of objects nor other DaemonSets change.
#[test]
fn patches_change_only_libvirt_daemonsets() {
    for (fixture, way) in cases() {
        let plain = yaml::documents(&golden_of(fixture, Way::Plain));
        let patched = yaml::documents(&golden_of(fixture, way));
        assert_eq!(plain.len(), patched.len(), "{fixture} {way:?}");
        for (old, new) in plain.iter().zip(&patched) {
            let name = old["metadata"]["name"].as_str().unwrap();
            assert_eq!(new["metadata"], old["metadata"], "{fixture} {way:?}");
            let changes = way != Way::Plain && name.starts_with("libvirt-libvirt-");
            assert_eq!(old != new, changes, "{fixture} {way:?} {name}");
        }
    }
}
