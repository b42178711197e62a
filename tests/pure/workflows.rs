//! What may run when a change or a tag is pushed: the workflows in .github do what .ci/run does, with
//! pinned actions and no more rights than a job needs; and nothing is built but what the lock file says.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::yaml;

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
            let own = &job["permissions"];
            let least = own.is_null() || *own == json!({ "contents": "read" });
            let allowed = file == "release.yml" && name == "publish";
            assert!(least || allowed, "{file}: {name}");
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
    let more = &workflow("release.yml")["jobs"]["publish"]["permissions"];
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
    assert_eq!(release["jobs"]["build"]["needs"], "test");
    assert_eq!(release["jobs"]["publish"]["needs"], "build");
}

/// Whether a job may write anything, or sign.
fn may_write(job: &Value) -> bool {
    let rights = job["permissions"].as_object();
    let mut rights = rights.into_iter().flatten();
    job["permissions"] == "write-all" || rights.any(|(_, right)| right == "write")
}

/// A job that can publish runs no build script and no macro of any crate, and nothing that the repository could
/// have run: it has no copy of it.
#[test]
fn what_can_write_builds_nothing() {
    /// What such a job may run, besides the shell itself.
    const TOOLS: [&str; 15] = [
        "base64",
        "cat",
        "cd",
        "diff",
        "echo",
        "gh",
        "grep",
        "ls",
        "mkdir",
        "sed",
        "sha256sum",
        "skopeo",
        "sort",
        "tar",
        "test",
    ];
    let mut seen = 0;
    for (file, _, value) in workflows() {
        for (name, job) in jobs(&value).filter(|(_, job)| may_write(job)) {
            seen += 1;
            let at = format!("{file}: {name}");
            assert!(job["uses"].is_null(), "{at} runs another workflow");
            assert!(job["container"].is_null(), "{at} runs in an image");
            for step in steps(job) {
                let uses = step["uses"].as_str().unwrap_or("actions/attest-");
                let known = ["actions/download-artifact@", "actions/attest-"];
                assert!(known.iter().any(|it| uses.starts_with(it)), "{at}: {uses}");
                let run = step["run"].as_str().unwrap_or_default();
                for tool in commands(run) {
                    assert!(TOOLS.contains(&tool.as_str()), "{at}: {tool} in {run}");
                }
            }
            let text = job.to_string();
            for word in ["cargo", "rustup", "rustc", "tests/", ".ci/", "Makefile"] {
                assert!(!text.contains(word), "{at}: {word}");
            }
        }
    }
    assert_eq!(seen, 1);
}

/// The first word of each command of a script: of each line, behind each pipe, and in each substitution.
fn commands(script: &str) -> Vec<String> {
    let joined = script.replace("\\\n", " ");
    let split = joined.replace("$(", "\n").replace("<(", "\n");
    let starts = split.split(['\n', '|', ';', '&']).map(str::trim);
    let first = |part: &str| {
        let word = part.split([' ', ')']).next()?;
        // A variable is set, or the rest of a substitution is left.
        let sets = word.contains('=') || word.starts_with(['"', '\'']);
        (!word.is_empty() && !sets).then(|| word.to_owned())
    };
    starts.filter_map(first).collect()
}

#[test]
fn commands_are_found_where_a_shell_finds_them() {
    let script = "a --x <<<\"$Y\" | b\nv=1\nc \\\n    d >\"$(e f)\"\ndiff <(g) <(h | i)\n";
    assert_eq!(
        commands(script),
        ["a", "b", "c", "e", "diff", "g", "h", "i"]
    );
}

/// What runs the code of every crate and tool has nothing that it could write with.
#[test]
fn what_builds_can_write_nothing() {
    let mut seen = 0;
    for (file, _, value) in workflows() {
        for (name, job) in jobs(&value) {
            let runs: String = steps(job)
                .filter_map(|step| step["run"].as_str())
                .flat_map(|run| [run, "\n"])
                .collect();
            let builds = ["cargo", "make ", "rustup", "tests/", ".ci/"];
            if !builds.iter().any(|word| runs.contains(word)) {
                continue;
            }
            seen += 1;
            let at = format!("{file}: {name}");
            assert!(!may_write(job), "{at}");
            let text = job.to_string();
            for word in [
                "github.token",
                "secrets",
                "id-token",
                "GITHUB_TOKEN",
                "GH_TOKEN",
            ] {
                assert!(!text.contains(word), "{at}: {word}");
            }
        }
    }
    assert_eq!(seen, 2);
    let build = &workflow("release.yml")["jobs"]["build"];
    assert_eq!(build["permissions"], json!({ "contents": "read" }));
}

/// Another job of the same run could replace what was left between the two, so that its checksum goes another
/// way.
#[test]
fn what_is_published_is_what_was_built() {
    let release = workflow("release.yml");
    assert_eq!(release["defaults"], json!({ "run": { "shell": "bash" } }));
    let build = &release["jobs"]["build"];
    assert_eq!(
        build["outputs"],
        json!({ "sums": "${{ steps.sums.outputs.sums }}" })
    );
    let all: Vec<_> = steps(build).collect();
    let position = |part: &str| all.iter().position(|step| step.to_string().contains(part));
    let sums = position("sha256sum -- dist/SHA256SUMS image.tar").unwrap();
    assert_eq!(all[sums]["id"], "sums");
    let left = all.last().unwrap();
    assert!(
        left["uses"]
            .as_str()
            .unwrap()
            .starts_with("actions/upload-artifact@")
    );
    assert_eq!(left["with"]["path"], "dist\nimage.tar\n");

    let publish: Vec<_> = steps(&release["jobs"]["publish"]).collect();
    assert!(
        publish[0]["uses"]
            .as_str()
            .unwrap()
            .starts_with("actions/download-artifact@")
    );
    assert_eq!(publish[0]["with"]["name"], left["with"]["name"]);
    assert_eq!(
        publish[1]["env"],
        json!({ "SUMS": "${{ needs.build.outputs.sums }}" })
    );
    let checks: Vec<_> = publish[1]["run"].as_str().unwrap().lines().collect();
    assert_eq!(
        checks[0],
        "base64 --decode <<<\"$SUMS\" | sha256sum --check --strict"
    );
    assert_eq!(checks[2], "sha256sum --check --strict SHA256SUMS");
    assert!(checks[3].starts_with("diff "));
}

/// The check does what it is for: it is run on what was built, on what was changed, and on what was added.
#[test]
fn the_check_before_publishing_finds_what_was_changed_or_added() {
    let release = workflow("release.yml");
    let run = |job: &str, part: &str| {
        let mut steps = steps(&release["jobs"][job]).filter_map(|step| step["run"].as_str());
        steps.find(|run| run.contains(part)).unwrap().to_owned()
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bash = |script: &str, sums: &str| {
        let mut bash = std::process::Command::new("bash");
        let bash = bash.args(["-e", "-o", "pipefail", "-c", script]);
        let bash = bash.current_dir(folder.path()).env("SUMS", sums);
        bash.env("GITHUB_OUTPUT", at("output")).output().unwrap()
    };
    fs::create_dir(at("dist")).unwrap();
    for name in ["libvirt-kvm-init-x86_64", "a.deb"] {
        fs::write(at("dist").join(name), name).unwrap();
    }
    fs::write(at("image.tar"), "image").unwrap();
    let listed = bash("cd dist; sha256sum -- * >SHA256SUMS", "");
    assert!(listed.status.success());
    assert!(bash(&run("build", "image.tar | tee"), "").status.success());
    let output = fs::read_to_string(at("output")).unwrap();
    let sums = output.trim().strip_prefix("sums=").unwrap();
    let check = run("publish", "--decode");
    let passes = || bash(&check, sums).status.success();
    assert!(passes(), "{:?}", bash(&check, sums));
    for name in [
        "dist/a.deb",
        "dist/SHA256SUMS",
        "image.tar",
        "dist/added",
        "dist/.added",
    ] {
        let before = fs::read(at(name)).ok();
        fs::write(at(name), "changed").unwrap();
        assert!(!passes(), "{name}");
        match before {
            Some(content) => fs::write(at(name), content).unwrap(),
            None => fs::remove_file(at(name)).unwrap(),
        }
        assert!(passes(), "{name}");
    }
    // A changed file with its changed sum.
    fs::write(at("dist/a.deb"), "changed").unwrap();
    assert!(
        bash("cd dist; sha256sum -- [al]* >SHA256SUMS", "")
            .status
            .success()
    );
    assert!(!passes());
    assert!(!bash(&check, "").status.success(), "no sums at all");
}

/// What is released is what anybody gets who builds it again.
#[test]
fn each_binary_of_a_release_was_built_again() {
    let release = workflow("release.yml");
    let runs = steps(&release["jobs"]["build"]).filter_map(|step| step["run"].as_str());
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
            if may_write(job) {
                continue;
            }
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
    let runs = steps(&release["jobs"]["build"]).filter_map(|step| step["run"].as_str());
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
    let published = steps(&release["jobs"]["publish"]).filter_map(|step| step["run"].as_str());
    let mut published = published.flat_map(str::lines);
    assert!(published.any(|line| line.ends_with(" dist/*")));
}

/// What is not checked is said, and where it could have been checked it is a failure in CI.
#[test]
fn a_check_of_dependencies_that_is_not_run_fails_in_ci() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let path = std::env::var_os("PATH").unwrap();
    for name in ["bash", "dirname", "env", "timeout"] {
        let mut all = std::env::split_paths(&path).map(|dir| dir.join(name));
        symlink(all.find(|file| file.is_file()).unwrap(), at(name)).unwrap();
    }
    let tool = |name: &str, text: &str| {
        fs::write(at(name), format!("#!/usr/bin/env bash\n{text}\n")).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    let deny = |ci: bool| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deny");
        let mut deny = std::process::Command::new(at("bash"));
        deny.arg(script).env_clear().env("PATH", folder.path());
        if ci {
            deny.env("CI", "true");
        }
        let output = deny.output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), text)
    };
    // Nothing is installed.
    let (code, text) = deny(false);
    assert!(
        code == 0 && text.contains("NOT RUN: cargo-deny"),
        "{code} {text}"
    );
    let (code, text) = deny(true);
    assert!(
        code == 1 && text.contains("NOT RUN: cargo-deny"),
        "{code} {text}"
    );
    // The first check finds something.
    tool("cargo-deny", "exit 9");
    tool("cargo", "exit 4");
    assert_eq!((deny(false).0, deny(true).0), (4, 4));
    // All is well, up to the advisories: what of the database, git, and which code in CI.
    let fetch = |works: bool| {
        let code = if works { 0 } else { 1 };
        tool(
            "cargo",
            &format!("case $* in *'fetch db') exit {code} ;; *) echo ran $* ;; esac"),
        );
    };
    fetch(true);
    let (code, text) = deny(true);
    assert!(
        code == 0 && text.contains("--disable-fetch advisories"),
        "{text}"
    );
    assert!(!text.contains("NOT RUN"), "{text}");
    fetch(false);
    for (git, in_ci, why) in [
        (None, 1, "without git it is not known why"),
        (Some("exit 0"), 1, "answers, and cargo deny fetch db failed"),
        (Some("exit 128"), 0, "does not reach"),
    ] {
        if let Some(git) = git {
            tool("git", git);
        }
        for (ci, expected) in [(false, 0), (true, in_ci)] {
            let (code, text) = deny(ci);
            assert_eq!(code, expected, "{git:?}: {text}");
            assert!(
                text.contains("advisories NOT RUN") && text.contains(why),
                "{git:?}: {text}"
            );
        }
    }
}
