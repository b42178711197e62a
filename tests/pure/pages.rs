//! Checks that links, paths, tests and make targets named in the documentation exist.

use std::fs;
use std::path::{Path, PathBuf};

use support::{project, read};

/// Every Markdown page of the project with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut pages: Vec<_> = ["README.md", "SECURITY.md", "CONTRIBUTING.md"]
        .map(project)
        .into();
    for directory in ["docs", "examples", "helm-patch"] {
        let entries = fs::read_dir(project(directory)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        pages.extend(paths.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    let with_text = |page: PathBuf| (page.clone(), fs::read_to_string(page).unwrap());
    pages.into_iter().map(with_text).collect()
}

/// Checks links to files and to headings.
#[test]
fn links_resolve() {
    let mut links = 0;
    for (page, text) in pages() {
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", page.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let found = text
                    .lines()
                    .any(|line| anchor(line).as_deref() == Some(heading));
                assert!(found, "{}: {link}", page.display());
            }
            links += 1;
        }
    }
    assert!(links > 20, "{links}");
}

/// The anchor that GitHub generates for a heading.
fn anchor(line: &str) -> Option<String> {
    let title = line
        .trim_start_matches('#')
        .strip_prefix(' ')
        .filter(|_| line.starts_with('#'))?;
    let kept = title
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

/// The text between backticks, and each line of a code block.
fn codes(text: &str) -> Vec<String> {
    let (mut codes, mut is_block) = (Vec::new(), false);
    for part in text.split("```") {
        if is_block {
            codes.extend(
                part.lines()
                    .map(|line| line.trim_start_matches("$ ").to_owned()),
            );
        } else {
            codes.extend(part.split('`').skip(1).step_by(2).map(str::to_owned));
        }
        is_block = !is_block;
    }
    codes
}

#[test]
fn paths_in_contributing_exist() {
    let text = read("CONTRIBUTING.md");
    let is_path = |code: &&String| {
        let starts = ["src/", "tests/", "fuzz/", "packaging/", "docs/", ".ci/"];
        let ends = [".rs", ".md", ".toml", ".txt"];
        let is = starts.iter().any(|start| code.starts_with(start))
            || ends.iter().any(|end| code.ends_with(end));
        is && !code.contains(' ')
    };
    let codes = codes(&text);
    let paths: Vec<_> = codes.iter().filter(is_path).collect();
    assert!(paths.len() > 20, "{paths:?}");
    for path in paths {
        assert!(project(path).exists(), "{path}");
    }
}

/// The name of each test below a directory, prefixed with its module path.
fn tests(directory: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
    {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap();
        let names = match path.is_dir() {
            true => tests(&path),
            false => {
                let text = fs::read_to_string(&path).unwrap();
                let pieces = text.split("#[test]\n").skip(1);
                let heads = pieces.filter_map(|piece| piece.split_once("fn ")?.1.split('(').next());
                heads.map(ToOwned::to_owned).collect()
            }
        };
        all.extend(names.iter().map(|name| format!("{module}::{name}")));
    }
    all
}

#[test]
fn named_tests_exist() {
    let mut seen = 0;
    for (page, text) in pages() {
        for code in codes(&text) {
            let words: Vec<_> = code.split_whitespace().collect();
            let ["cargo", "test", ref rest @ ..] = words[..] else {
                continue;
            };
            let at = format!("{}: {code}", page.display());
            let mut rest = rest.iter().skip_while(|word| **word != "--test").skip(1);
            let Some(target) = rest.next() else {
                continue;
            };
            let tests = tests(&project("tests").join(target));
            assert!(!tests.is_empty(), "{at}");
            seen += 1;
            if let Some(name) = rest.next().filter(|word| !word.starts_with(['-', '#'])) {
                let named = tests.iter().any(|test| test.contains(name));
                assert!(named, "{at}: no such test");
            }
        }
    }
    assert!(seen > 100, "{seen}");
}

/// Checks each claim in SECURITY.md, and that each make command there is a target.
#[test]
fn each_security_claim_names_a_test_or_make_target() {
    let (page, makefile) = (read("SECURITY.md"), read("Makefile"));
    let tables = page
        .split("| it must not | shown by |\n| --- | --- |\n")
        .skip(1);
    let rows = tables.flat_map(|part| part.lines().take_while(|line| line.starts_with('|')));
    let rows: Vec<_> = rows.collect();
    assert!(rows.len() > 25);
    for row in rows {
        let codes = codes(row);
        let is_shown = |code: &String| code.starts_with("cargo test ") || code.starts_with("make ");
        assert!(codes.iter().any(is_shown), "{row}");
    }
    for code in codes(&page) {
        if let Some(target) = code.strip_prefix("make ") {
            let target = target.split(' ').next().unwrap();
            assert!(makefile.contains(&format!("\n{target}:")), "{code}");
        }
    }
}

#[test]
fn changelog_has_this_version() {
    let text = read("CHANGELOG.md");
    let mut headings = text.lines().filter_map(|line| line.strip_prefix("## "));
    assert_eq!(headings.next(), Some("[Unreleased]"));
    let version = concat!("[", env!("CARGO_PKG_VERSION"), "] - ");
    assert!(headings.next().unwrap().starts_with(version));
}
