//! SECURITY.md says what the code does, and the tests that it names are there.
#![cfg(feature = "logs")]
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::path::Path;

use libvirt_kvm_init::sys::privileges::{Job, NEEDS};

const PAGE: &str = include_str!("../SECURITY.md");

fn verbs(job: Job) -> &'static [&'static str] {
    match job {
        Job::Apply => &["apply", "exec"],
        Job::Check => &["check"],
        Job::Install => &["install"],
        Job::Logs => &["logs"],
        Job::Ready => &["ready"],
        Job::Watch => &["watch"],
    }
}

#[test]
fn the_table_of_capabilities_is_the_codes() {
    let rows = NEEDS.iter().map(|need| {
        let verbs = need.jobs.iter().flat_map(|job| verbs(*job));
        let verbs: Vec<_> = verbs.map(|verb| format!("`{verb}`")).collect();
        format!(
            "| {} | `{}` | {} |",
            verbs.join(", "),
            need.capability,
            need.why
        )
    });
    let want: Vec<_> = rows.collect();
    let (_, after) = PAGE
        .split_once("| verb | capability | why |\n| --- | --- | --- |\n")
        .unwrap();
    let rows = after.lines().take_while(|line| line.starts_with('|'));
    let got: Vec<_> = rows.collect();
    assert_eq!(got, want, "the rows should be:\n{}", want.join("\n"));
}

/// The text of a test binary's own files.
fn sources(binary: &str) -> String {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut text = fs::read_to_string(tests.join(binary).with_extension("rs")).unwrap_or_default();
    for entry in fs::read_dir(tests.join(binary)).into_iter().flatten() {
        text += &fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    text
}

#[test]
fn each_test_that_is_named_is_there_and_its_command_runs_it() {
    // Every other piece between backticks is code.
    let commands = PAGE.split('`').skip(1).step_by(2);
    let commands: Vec<_> = commands.filter(|code| code.starts_with("cargo")).collect();
    assert!(commands.len() > 20, "{commands:?}");
    for command in commands {
        let words: Vec<_> = command.split(' ').collect();
        let ["cargo", "test", "--test", binary, name, ref ignored @ ..] = words[..] else {
            panic!("{command}: not the command of one test");
        };
        assert!(matches!(ignored, [] | ["--", "--ignored"]), "{command}");
        let text = sources(binary);
        let head = format!("fn {name}(");
        let lines: Vec<_> = text.lines().map(str::trim_start).collect();
        let is_head = |line: &&&str| line.starts_with(&head);
        assert_eq!(
            lines.iter().filter(is_head).count(),
            1,
            "{command}: no such test, or not the only one in tests/{binary}"
        );
        let before = lines.iter().rev().skip_while(|line| !is_head(line)).skip(1);
        let attributes = before.take_while(|line| line.starts_with('#') || line.starts_with("//"));
        let attributes: Vec<_> = attributes.copied().collect();
        assert!(attributes.contains(&"#[test]"), "{command}: no test");
        let is_ignored = attributes.iter().any(|line| line.starts_with("#[ignore"));
        assert_eq!(is_ignored, !ignored.is_empty(), "{command}: --ignored");
    }
}

#[test]
fn each_claim_names_what_shows_it() {
    let rows = PAGE
        .split("| it must not | shown by |\n| --- | --- |\n")
        .skip(1);
    let rows = rows.flat_map(|part| part.lines().take_while(|line| line.starts_with('|')));
    let mut count = 0;
    for row in rows {
        assert!(row.contains("`cargo test "), "{row}");
        count += 1;
    }
    assert!(count > 15);
}
