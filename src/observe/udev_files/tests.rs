use std::fs;

use super::*;
use crate::formats::udev::RuleFile;

fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match text.strip_prefix("-> ") {
            Some(to) => std::os::unix::fs::symlink(to, path).unwrap(),
            None => fs::write(path, text).unwrap(),
        }
    }
    let root = Root::open(directory.path()).unwrap();
    (directory, root)
}

fn rules_in(root: &Root) -> Result<Rules> {
    let seen = rules(root, View::Whole)?;
    assert_eq!((&seen.unseen, &seen.not_shown), (&Vec::new(), &Vec::new()));
    Ok(seen.rules)
}

fn rules_of(files: &[(&str, &str)]) -> Vec<String> {
    let (_own, root) = node(files);
    let rules = rules_in(&root).unwrap().files.into_iter();
    let show = |file: RuleFile| format!("{} {}", file.path, file.content.escape_ascii());
    rules.map(show).collect()
}

#[test]
fn names_of_rules_files_may_be_any_bytes_and_are_not_mixed_up() {
    let (own, root) = node(&[("etc/udev/rules.d/x", "")]);
    let directory = own.path().join("etc/udev/rules.d");
    for (name, text) in [(b"99-\xfe.rules", "a"), (b"99-\xff.rules", "b")] {
        fs::write(directory.join(OsStr::from_bytes(name)), text).unwrap();
    }
    let rules = rules_in(&root).unwrap().files;
    let texts: Vec<_> = rules.iter().map(|file| &file.content[..]).collect();
    assert_eq!(texts, [b"a", b"b"]);
    assert_eq!(rules[1].path, "/etc/udev/rules.d/99-\u{fffd}.rules");
}

#[test]
fn more_rules_than_any_node_has_are_not_taken_in() {
    let text = format!("{}\n", "# ".repeat(2 << 20));
    let (_own, root) = node(&[
        ("etc/udev/rules.d/50-a.rules", &text),
        ("etc/udev/rules.d/60-b.rules", &text),
    ]);
    let error = rules_in(&root).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("b.rules, and the files before it"),
        "{error}"
    );
    assert!(error.advice().unwrap().contains("8 MiB"));
}

#[test]
fn rules_are_found_below_the_root() {
    let files = [
        ("usr/lib/udev/rules.d/50-a.rules", "a"),
        ("usr/lib/udev/rules.d/60-b.rules", "b"),
        ("usr/lib/udev/rules.d/70-c.rules", "c"),
        ("usr/lib/udev/rules.d/80-d.rules/x", ""),
        ("etc/udev/rules.d/60-b.rules", "-> /dev/null"),
        ("run/udev/rules.d/70-c.rules", ""),
        ("etc/udev/rules.d/90-e.rules", "-> /usr/share/e"),
        ("usr/share/e", "e"),
    ];
    let mut want = vec![
        "/usr/lib/udev/rules.d/50-a.rules a".to_owned(),
        "/etc/udev/rules.d/90-e.rules e".to_owned(),
    ];
    let merged = [&files[..], &[("lib", "-> usr/lib")]].concat();
    assert_eq!(rules_of(&merged), want);

    let own = [
        ("lib/udev/rules.d/50-a.rules", "x"),
        ("lib/udev/rules.d/99-f.rules", "f"),
    ];
    want.push("/lib/udev/rules.d/99-f.rules f".to_owned());
    assert_eq!(rules_of(&[&files[..], &own].concat()), want);
    assert_eq!(rules_of(&[]), Vec::<String>::new());
}

#[test]
fn the_version_is_found_wherever_distributions_put_it() {
    let table = [
        ("usr/lib/systemd/libsystemd-shared-249.so", Some(249)),
        (
            "usr/lib/systemd/libsystemd-shared-258.2-1.fc43.so",
            Some(258),
        ),
        ("usr/lib64/systemd/libsystemd-shared-254.so", Some(254)),
        ("lib/systemd/libsystemd-shared-247.so", Some(247)),
        (
            "usr/lib/aarch64-linux-gnu/systemd/libsystemd-shared-257.so",
            Some(257),
        ),
        ("usr/lib/other", None),
    ];
    for (file, version) in table {
        let (_own, root) = node(&[(file, ""), ("etc/login.defs", "SYS_GID_MAX 499\n")]);
        let found = udevd(&root, View::Whole).unwrap();
        assert_eq!(found.version, version, "{file}");
        // Only where it makes a difference.
        let gid_max = if matches!(version, None | Some(258)) {
            499
        } else {
            999
        };
        assert_eq!((found.system_uid_max, found.system_gid_max), (999, gid_max));
    }
}

#[test]
fn a_directory_of_very_many_libraries_does_not_hide_the_version() {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    for at in ["usr/lib/systemd", &format!("usr/lib/{triple}/systemd")] {
        let library = format!("{at}/libsystemd-shared-258.so");
        let (own, root) = node(&[(&library, "")]);
        for number in 0..10_001 {
            fs::write(own.path().join(format!("usr/lib/{number}.so")), "").unwrap();
        }
        assert_eq!(
            udevd(&root, View::Whole).unwrap().version,
            Some(258),
            "{at}"
        );
    }
}

#[test]
fn a_directory_of_very_many_rules_is_not_read() {
    let (own, root) = node(&[]);
    let directory = own.path().join("etc/udev/rules.d");
    fs::create_dir_all(&directory).unwrap();
    for number in 0..=10_000 {
        fs::write(directory.join(format!("{number}.rules")), "").unwrap();
    }
    let error = rules_in(&root).unwrap_err();
    assert_eq!(error.errno, Errno::E2BIG);
    assert!(error.advice().unwrap().contains("10,000 names"));
}

#[test]
fn names_are_stale_when_they_changed_after_they_were_looked_up() {
    let table = [
        (100, Some(50), Some(90), false),
        (100, Some(50), Some(100), false),
        (100, Some(50), Some(110), true),
        // A changed rules file makes udevd look again, at the next event.
        (100, Some(120), Some(110), false),
        (100, Some(105), Some(110), true),
        (100, None, Some(110), true),
        (100, Some(50), None, false),
    ];
    for (started, rules, names, want) in table {
        assert_eq!(
            is_stale(started, rules, names),
            want,
            "{started} {rules:?} {names:?}"
        );
    }
}
