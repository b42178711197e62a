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
fn distinguishes_rules_files_whose_names_are_not_utf_8() {
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
fn refuses_more_than_8_mib_of_rules() {
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
fn reads_the_rules_files_that_udevd_would_read() {
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
fn finds_the_version_in_the_directories_of_all_distributions() {
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
        let systemd = udevd(&root, View::Whole).unwrap();
        assert_eq!(systemd.version, version, "{file}");
        // login.defs is read only for versions that may use it.
        let gid_max = if matches!(version, None | Some(258)) {
            499
        } else {
            999
        };
        let max = (systemd.system_uid_max, systemd.system_gid_max);
        assert_eq!(max, (999, gid_max));
    }
}

#[test]
fn finds_the_version_despite_more_than_10_000_libraries() {
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
fn refuses_a_directory_with_more_than_10_000_names() {
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
fn names_are_stale_if_they_changed_after_udevd_looked_them_up() {
    let table = [
        (100, Some(50), Some(90), false),
        (100, Some(50), Some(100), false),
        (100, Some(50), Some(110), true),
        // After a change of a rules file, udevd looks names up again at the next event.
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
