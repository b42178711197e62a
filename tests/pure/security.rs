//! SECURITY.md says what the code does, and the tests that it names are there.

use std::fs;
use std::path::Path;

use libvirt_kvm_init::sys::privileges::{Job, NEEDS};

const PAGE: &str = include_str!("../../SECURITY.md");

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

/// The files of a test target, below a folder: each one's module and text.
fn sources(folder: &Path) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            let below = sources(&path).into_iter();
            all.extend(below.map(|(inner, text)| (format!("{module}::{inner}"), text)));
        } else {
            all.push((module.to_owned(), fs::read_to_string(&path).unwrap()));
        }
    }
    all
}

/// Every piece between backticks that begins with this word.
fn commands(word: &str) -> Vec<Vec<&'static str>> {
    let code = PAGE.split('`').skip(1).step_by(2);
    let code = code.map(|code| code.split(' ').collect::<Vec<_>>());
    code.filter(|words| words[0] == word).collect()
}

/// Of each test of these files: its name with its module, and its text.
fn tests(sources: &[(String, String)]) -> Vec<(String, &str)> {
    let mut all = Vec::new();
    for (module, text) in sources {
        for piece in text.split("#[test]\n").skip(1) {
            let (_, after) = piece.split_once("fn ").unwrap();
            let (name, _) = after.split_once('(').unwrap();
            let (body, _) = after.split_once("\n}\n").unwrap_or((after, ""));
            all.push((format!("{module}::{name}"), body));
        }
    }
    all
}

#[test]
fn each_test_that_is_named_is_there_and_its_command_runs_it() {
    let commands = commands("cargo");
    assert!(commands.len() > 20, "{commands:?}");
    for words in commands {
        let command = words.join(" ");
        let ["cargo", "test", "--test", binary, ref rest @ ..] = words[..] else {
            panic!("{command}: not the command of a test");
        };
        let at = rest.iter().position(|word| *word == "--");
        let (names, options) = rest.split_at(at.unwrap_or(rest.len()));
        let options = options.get(1..).unwrap_or_default();
        let shows = match options {
            [] => false,
            ["--nocapture"] => true,
            _ => panic!("{command}: an option that is not known"),
        };
        let sources = sources(&support::project("tests").join(binary));
        let all = tests(&sources);
        // As the test binary itself chooses.
        let meant = all.iter().filter(|(test, _)| match names {
            [] => true,
            [name] => test.contains(name),
            _ => panic!("{command}: one test or all of a module or target"),
        });
        let meant: Vec<_> = meant.collect();
        assert!(!meant.is_empty(), "{command}: no such test");
        assert!(
            names.iter().all(|name| name.ends_with("::")) || meant.len() == 1,
            "{command}: not the only one of this name"
        );
        for (test, body) in meant {
            assert!(
                shows || !body.contains("println!"),
                "{command}: {test} prints figures: --nocapture"
            );
            assert!(
                !shows || sources.iter().any(|(_, text)| text.contains("println!")),
                "{command}: nothing is printed"
            );
        }
    }
}

#[test]
fn each_make_command_is_a_target() {
    let commands = commands("make");
    assert!(commands.len() > 3, "{commands:?}");
    for words in commands {
        let target = format!("\n{}:\n", words[1]);
        assert!(
            include_str!("../../Makefile").contains(&target),
            "{words:?}"
        );
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
        assert!(
            row.contains("`cargo test ") || row.contains("`make "),
            "{row}"
        );
        count += 1;
    }
    assert!(count > 25);
}
