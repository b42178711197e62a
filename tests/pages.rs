//! CONTRIBUTING.md and CHANGELOG.md say what is so: the files and tests that they name are there, and the
//! version is the program's.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use libvirt_kvm_init::cli::Cli;

const CONTRIBUTING: &str = include_str!("../CONTRIBUTING.md");
const CHANGELOG: &str = include_str!("../CHANGELOG.md");

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether it is written as a path in the repository.
fn is_path(code: &str) -> bool {
    let ends = [".rs", ".md", ".toml", ".txt"];
    let folders = ["src/", "tests/", "fuzz/", "packaging/", "docs/", ".ci/"];
    !code.contains(' ')
        && (ends.iter().any(|end| code.ends_with(end))
            || folders.iter().any(|folder| code.starts_with(folder)))
}

#[test]
fn each_path_that_contributors_are_sent_to_is_there() {
    // Every other piece between backticks is code; a block has three.
    let prose = CONTRIBUTING.split("```").step_by(2);
    let codes = prose.flat_map(|text| text.split('`').skip(1).step_by(2));
    let paths: Vec<_> = codes.filter(|code| is_path(code)).collect();
    assert!(paths.len() > 50, "{paths:?}");
    for path in paths {
        assert!(repository().join(path).exists(), "{path}");
    }
    for (name, file) in [
        ("Cause", "src/report/words.rs"),
        ("Code", "src/report/words.rs"),
        ("Key", "src/udev/key.rs"),
    ] {
        let text = fs::read_to_string(repository().join(file)).unwrap();
        assert!(text.contains(&format!(" enum {name}")), "{file}: {name}");
    }
}

#[test]
fn each_command_that_contributors_are_given_finds_its_test() {
    let block = CONTRIBUTING.split("```").nth(1).unwrap();
    let commands = block.lines().filter_map(|line| line.strip_prefix("$ "));
    let mut seen = 0;
    for command in commands {
        let words: Vec<_> = command.split_whitespace().collect();
        let Some(test) = words.iter().position(|word| *word == "--test") else {
            continue;
        };
        let tests = repository().join("tests");
        let file = tests.join(words[test + 1]).with_extension("rs");
        let folder = tests.join(words[test + 1]);
        assert!(
            file.exists() || folder.join("main.rs").exists(),
            "{command}"
        );
        let name = words
            .get(test + 2)
            .filter(|word| !matches!(**word, "--" | "#"));
        if let Some(name) = name {
            let files = fs::read_dir(&folder)
                .unwrap()
                .map(|file| file.unwrap().path());
            let mut texts = files.map(|file| fs::read_to_string(file).unwrap());
            let head = format!("fn {name}()");
            assert!(texts.any(|text| text.contains(&head)), "{command}");
            seen += 1;
        }
    }
    assert_eq!(seen, 1);
}

#[test]
fn the_changelog_has_this_version_and_each_verb() {
    let headings: Vec<_> = CHANGELOG
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    assert_eq!(headings[0], "[Unreleased]");
    let version = format!("[{}] - ", env!("CARGO_PKG_VERSION"));
    assert!(headings[1].starts_with(&version), "{headings:?}");
    for heading in &headings[1..] {
        let (_, date) = heading.split_once(" - ").unwrap();
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let parts: Vec<_> = date
            .split('-')
            .map(|part| (part.len(), digits(part)))
            .collect();
        assert_eq!(parts, [(4, true), (2, true), (2, true)], "{heading}");
    }
    for verb in Cli::command().get_subcommands() {
        let verb = verb.get_name();
        let named = ["`", " "].map(|end| CHANGELOG.contains(&format!("- `{verb}{end}")));
        assert!(named.contains(&true), "{verb}");
    }
}
