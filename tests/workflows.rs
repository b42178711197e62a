//! What may run when a change or a tag is pushed: the workflows in .github do what .ci/run does, with
//! pinned actions and no more rights than a job needs; and nothing is built but what the lock file says.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

#[path = "common/yaml.rs"]
mod yaml;

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every workflow: its file, its text, and what it says.
fn workflows() -> Vec<(String, String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/workflows");
    let files = fs::read_dir(folder).unwrap();
    let name = |file: fs::DirEntry| file.file_name().into_string().unwrap();
    let mut all: Vec<_> = files
        .map(|file| {
            let file = name(file.unwrap());
            let text = text(&format!(".github/workflows/{file}"));
            let value = yaml::parse(&text);
            (file, text, value)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn workflow(file: &str) -> Value {
    let mut all = workflows().into_iter();
    all.find(|(name, ..)| name == file).unwrap().2
}

fn jobs(workflow: &Value) -> impl Iterator<Item = (&String, &Value)> {
    workflow["jobs"].as_object().unwrap().iter()
}

fn steps(job: &Value) -> impl Iterator<Item = &Value> {
    job["steps"].as_array().into_iter().flatten()
}

#[test]
fn the_files_are_those_that_are_known() {
    let files: Vec<_> = workflows().into_iter().map(|(file, ..)| file).collect();
    assert_eq!(files, ["release.yml", "test.yml"]);
}

#[test]
fn actions_are_pinned_to_a_commit_that_is_named() {
    for (file, text, _) in workflows() {
        let uses = text
            .lines()
            .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: "));
        for used in uses.filter(|used| !used.starts_with("./")) {
            let (commit, version) = used.split_once('@').unwrap().1.split_once(" # v").unwrap();
            let hex = commit.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(commit.len() == 40 && hex, "{file}: {used}");
            assert!(version.split('.').count() == 3, "{file}: {used}");
            assert!(
                used.starts_with("actions/"),
                "{file}: {used} is somebody else's"
            );
        }
    }
}

#[test]
fn rights_are_the_least() {
    for (file, text, value) in workflows() {
        assert_eq!(
            value["permissions"],
            json!({ "contents": "read" }),
            "{file}"
        );
        assert!(!text.contains("pull_request_target"), "{file}");
        assert!(!text.contains("secrets."), "{file}");
        for (name, job) in jobs(&value) {
            let more = job["permissions"].as_object();
            let allowed = file == "release.yml" && name == "release";
            assert!(more.is_none() || allowed, "{file}: {name}");
            for step in steps(job) {
                let run = step["run"].as_str().unwrap_or_default();
                assert!(!run.contains("${{"), "{file}: give it as a variable: {run}");
                if step["uses"]
                    .as_str()
                    .is_some_and(|uses| uses.contains("/checkout@"))
                {
                    assert_eq!(step["with"]["persist-credentials"], false, "{file}");
                }
            }
        }
    }
    let more = &workflow("release.yml")["jobs"]["release"]["permissions"];
    let want = json!({
        "contents": "write", "packages": "write", "id-token": "write", "attestations": "write",
    });
    assert_eq!(*more, want);
    // Only a tag releases.
    assert_eq!(
        workflow("release.yml")["on"],
        json!({ "push": { "tags": ["v*"] } })
    );
}

#[test]
fn what_is_tested_is_what_ci_run_tests_and_nothing_is_released_without() {
    let test = workflow("test.yml");
    let runs: Vec<_> = steps(&test["jobs"]["test"])
        .filter_map(|step| step["run"].as_str())
        .collect();
    assert_eq!(runs.last(), Some(&"bash .ci/run"));
    let release = workflow("release.yml");
    assert_eq!(
        release["jobs"]["test"]["uses"],
        "./.github/workflows/test.yml"
    );
    assert_eq!(release["jobs"]["release"]["needs"], "test");
}

/// What is released is what anybody gets who builds it again.
#[test]
fn each_binary_of_a_release_was_built_again() {
    let release = workflow("release.yml");
    let runs = steps(&release["jobs"]["release"]).filter_map(|step| step["run"].as_str());
    let lines: Vec<_> = runs.flat_map(str::lines).collect();
    for arch in ["x86_64", "aarch64"] {
        let again = format!("tests/reproducible {arch} dist/libvirt-kvm-init-{arch}");
        assert!(lines.contains(&again.as_str()), "{again}");
    }
}

/// A tool that is installed anew each time is the one that was tried, not the latest.
#[test]
fn tools_that_are_installed_have_a_version() {
    let mut all = vec![(".ci/run".to_owned(), text(".ci/run"))];
    all.extend(workflows().into_iter().map(|(file, text, _)| (file, text)));
    let mut seen = 0;
    for (file, text) in all {
        for line in text.lines().filter(|line| line.contains("cargo install")) {
            assert!(line.contains(" --version "), "{file}: {line}");
            seen += 1;
        }
    }
    assert_eq!(seen, 4);
}

#[test]
fn the_compiler_is_the_one_that_the_manifest_asks_for() {
    let manifest = text("Cargo.toml");
    let asked = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "));
    let asked = asked.unwrap().trim_matches('"');
    for (file, _, value) in workflows() {
        for (name, job) in jobs(&value).filter(|(_, job)| job["uses"].is_null()) {
            assert!(job["timeout-minutes"].is_i64(), "{file}: {name}");
            let used = job["env"]["RUSTUP_TOOLCHAIN"].as_str().unwrap();
            assert!(
                used.starts_with(&format!("{asked}.")),
                "{file}: {name}: {used}"
            );
            if let Some(image) = job["container"]["image"].as_str() {
                assert!(
                    image.starts_with(&format!("rust:{used}-")),
                    "{file}: {image}"
                );
            }
        }
    }
}

#[test]
fn nothing_is_built_but_what_the_lock_file_says() {
    let scripts = [
        "Makefile",
        ".ci/run",
        "tests/run",
        "tests/deny",
        "tests/fuzz",
        "tests/sbom",
    ];
    let mut all: Vec<_> = scripts
        .iter()
        .map(|path| ((*path).to_owned(), text(path)))
        .collect();
    all.extend(workflows().into_iter().map(|(file, text, _)| (file, text)));
    let verbs = [
        "build", "test", "clippy", "doc", "install", "fetch", "metadata", "tree", "deny", "run",
        "deb",
    ];
    let mut seen = 0;
    for (file, text) in all {
        let joined = text.replace("\\\n", " ");
        let lines = joined
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with('#'));
        for line in lines {
            for (at, _) in line.match_indices("cargo ") {
                let command = &line[at + "cargo ".len()..];
                let verb = command.split(' ').next().unwrap();
                // The advisories' database, no crate.
                if !verbs.contains(&verb) || command.starts_with("deny fetch db") {
                    continue;
                }
                seen += 1;
                assert!(command.contains("--locked"), "{file}: {line}");
            }
        }
    }
    assert!(seen > 12, "{seen} commands");
}

/// Every file of a release is in SHA256SUMS: nothing is added behind it.
#[test]
fn each_file_of_a_release_has_a_checksum() {
    let release = workflow("release.yml");
    let runs = steps(&release["jobs"]["release"]).filter_map(|step| step["run"].as_str());
    let lines: Vec<_> = runs.flat_map(str::lines).map(str::trim).collect();
    let sums = lines
        .iter()
        .position(|line| line.starts_with("sha256sum -- * >SHA256SUMS"))
        .unwrap();
    let (before, after) = lines.split_at(sums);
    for files in [
        "/libvirt-kvm-init\" \"dist/",
        ".cdx.json\" dist/",
        ".deb dist/",
    ] {
        let copied = |line: &&str| line.starts_with("cp ") && line.contains(files);
        assert!(before.iter().any(copied), "{files}");
    }
    assert!(after.iter().all(|line| !line.starts_with("cp ")));
    assert!(after.iter().any(|line| line.ends_with(" dist/*")));
}
