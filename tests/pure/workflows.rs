//! Rules for the workflows in .github that zizmor and actionlint (tests/lint-workflows) do not check: jobs that build
//! cannot publish, a release requires the tests, and builds use only the versions in the lock files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use support::yaml;

#[derive(Deserialize)]
struct Workflow {
    on: serde_json::Value,
    jobs: BTreeMap<String, Job>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Job {
    uses: Option<String>,
    needs: Option<String>,
    #[serde(default)]
    permissions: BTreeMap<String, String>,
    container: Option<BTreeMap<String, String>>,
    timeout_minutes: Option<u32>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    uses: Option<String>,
    #[serde(default)]
    run: String,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

impl Job {
    fn may_write(&self) -> bool {
        self.permissions.values().any(|right| right == "write")
    }

    /// The lines of all scripts of the job.
    fn lines(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().flat_map(|step| step.run.lines())
    }
}

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn workflow(name: &str) -> Workflow {
    let value = yaml::parse(&text(&format!(".github/workflows/{name}.yml")));
    serde_json::from_value(value).unwrap()
}

/// Each job of each workflow.
fn jobs() -> impl Iterator<Item = (String, Job)> {
    ["release", "test"].into_iter().flat_map(|name| {
        let jobs = workflow(name).jobs.into_iter();
        jobs.map(move |(job, value)| (format!("{name}: {job}"), value))
    })
}

/// A build script, macro or tool could change any job that builds, so such a job has no write permission and no token.
/// The job that publishes runs no such code and does not check out the repository.
#[test]
fn job_with_write_permission_builds_nothing() {
    /// Commands that the publishing job may run, besides the shell itself.
    const TOOLS: [&str; 14] = [
        "base64",
        "cat",
        "cd",
        "diff",
        "echo",
        "find",
        "gh",
        "mkdir",
        "sed",
        "sha256sum",
        "skopeo",
        "sort",
        "tar",
        "test",
    ];
    let mut writers = Vec::new();
    for (at, job) in jobs() {
        if !job.may_write() {
            for step in &job.steps {
                let given = step.env.values().chain([&step.run]);
                let mut words =
                    given.flat_map(|text| ["github.token", "secrets."].map(|it| (text, it)));
                assert!(words.all(|(text, word)| !text.contains(word)), "{at}");
            }
            continue;
        }
        assert!(job.uses.is_none() && job.container.is_none(), "{at}");
        for step in &job.steps {
            let uses = step.uses.as_deref().unwrap_or("actions/attest-");
            let known = ["actions/download-artifact@", "actions/attest-"];
            assert!(known.iter().any(|it| uses.starts_with(it)), "{at}: {uses}");
            for tool in commands(&step.run) {
                assert!(
                    TOOLS.contains(&tool.as_str()),
                    "{at}: {tool} in {}",
                    step.run
                );
            }
        }
        writers.push(at);
    }
    assert_eq!(writers, ["release: publish"]);
    let tags = serde_json::json!({ "push": { "tags": ["v*"] } });
    assert_eq!(workflow("release").on, tags);
}

/// The first word of each command of a script: on each line, after each pipe and in each substitution.
fn commands(script: &str) -> Vec<String> {
    let joined = script.replace("\\\n", " ");
    let split = joined.replace("$(", "\n").replace("<(", "\n");
    let starts = split.split(['\n', '|', ';', '&']).map(str::trim);
    let first = |part: &str| {
        let word = part.split([' ', ')']).next()?;
        // Skip assignments and the rest of a substitution.
        let sets = word.contains('=') || word.starts_with(['"', '\'']);
        (!word.is_empty() && !sets).then(|| word.to_owned())
    };
    starts.filter_map(first).collect()
}

#[test]
fn commands_finds_every_command_of_a_script() {
    let script = "a --x <<<\"$Y\" | b\nv=1\nc \\\n    d >\"$(e f)\"\ndiff <(g) <(h | i)\n";
    assert_eq!(
        commands(script),
        ["a", "b", "c", "e", "diff", "g", "h", "i"]
    );
}

#[test]
fn release_requires_the_tests() {
    let (test, release) = (workflow("test"), workflow("release"));
    assert_eq!(test.jobs["test"].lines().last(), Some("bash .ci/run"));
    let uses = release.jobs["test"].uses.as_deref();
    assert_eq!(uses, Some("./.github/workflows/test.yml"));
    assert_eq!(release.jobs["build"].needs.as_deref(), Some("test"));
    assert_eq!(release.jobs["publish"].needs.as_deref(), Some("build"));
    // The released binary must equal a second build.
    for arch in ["x86_64", "aarch64"] {
        let again = format!("tests/reproducible {arch} dist/libvirt-kvm-init-{arch}");
        assert!(
            release.jobs["build"].lines().any(|line| line == again),
            "{again}"
        );
    }
}

/// Runs the check on the unchanged build, then with each file changed or added.
#[test]
fn publish_check_detects_changed_or_added_files() {
    let release = workflow("release");
    let run = |job: &str, part: &str| {
        let mut runs = release.jobs[job].steps.iter().map(|step| &step.run);
        runs.find(|run| run.contains(part)).unwrap()
    };
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let bash = |script: &str, sums: &str| {
        let mut bash = std::process::Command::new("bash");
        let bash = bash.args(["-e", "-o", "pipefail", "-c", script]);
        let bash = bash.current_dir(directory.path()).env("SUMS", sums);
        bash.env("GITHUB_OUTPUT", at("output")).output().unwrap()
    };
    fs::create_dir(at("dist")).unwrap();
    for name in ["libvirt-kvm-init-x86_64", "a.deb"] {
        fs::write(at("dist").join(name), name).unwrap();
    }
    fs::write(at("image.tar"), "image").unwrap();
    let listed = bash("cd dist; sha256sum -- * >SHA256SUMS", "");
    assert!(listed.status.success());
    assert!(bash(run("build", "image.tar | tee"), "").status.success());
    let output = fs::read_to_string(at("output")).unwrap();
    let sums = output.trim().strip_prefix("sums=").unwrap();
    let check = run("publish", "--decode");
    let passes = || bash(check, sums).status.success();
    assert!(passes(), "{:?}", bash(check, sums));
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
    // A changed file whose checksum was changed too.
    fs::write(at("dist/a.deb"), "changed").unwrap();
    assert!(
        bash("cd dist; sha256sum -- [al]* >SHA256SUMS", "")
            .status
            .success()
    );
    assert!(!passes());
    assert!(!bash(check, "").status.success(), "no sums at all");
}

/// Tools have a fixed version, and the compiler is the one in Cargo.toml.
#[test]
fn tools_and_compiler_are_pinned() {
    let files = [".ci/run", ".github/workflows/release.yml"].map(text);
    let installs = files.iter().flat_map(|text| text.lines());
    let installs =
        installs.filter(|line| line.contains("cargo install") || line.contains("pip install"));
    let installs: Vec<_> = installs.collect();
    assert!(installs.len() >= 5, "{installs:?}");
    for line in installs {
        let is_fixed = line.contains(" --version ") || line.contains("==");
        assert!(is_fixed, "{line}");
    }
    let manifest = text("Cargo.toml");
    let mut lines = manifest.lines();
    let asked = lines.find_map(|line| line.strip_prefix("rust-version = \""));
    let asked = asked.unwrap().replace('"', ".");
    for (at, job) in jobs().filter(|(_, job)| job.uses.is_none()) {
        assert!(job.timeout_minutes.is_some(), "{at}");
        if !job.may_write() {
            let used = &job.env["RUSTUP_TOOLCHAIN"];
            assert!(used.starts_with(&asked), "{at}: {used}");
            let image = job.container.map(|container| container["image"].clone());
            let is_same = |image: String| image.starts_with(&format!("rust:{used}-"));
            assert!(image.is_none_or(is_same), "{at}");
        }
    }
}

#[test]
fn every_cargo_command_uses_locked() {
    const SUBCOMMANDS: [&str; 11] = [
        "build", "test", "clippy", "doc", "install", "fetch", "metadata", "tree", "deny", "run",
        "deb",
    ];
    let files = [
        "Makefile",
        ".ci/run",
        ".github/workflows/release.yml",
        "tests/run",
        "tests/deny",
        "tests/fuzz",
        "tests/sbom",
    ];
    let mut seen = 0;
    for file in files {
        let joined = text(file).replace("\\\n", " ");
        for line in joined.lines().filter(|line| !line.trim().starts_with('#')) {
            for command in line.split("cargo ").skip(1) {
                let subcommand = command.split(' ').next().unwrap();
                // `deny fetch db` downloads only the advisory database, no crate.
                if SUBCOMMANDS.contains(&subcommand) && !command.starts_with("deny fetch db") {
                    seen += 1;
                    assert!(command.contains("--locked"), "{file}: {line}");
                }
            }
        }
    }
    assert!(seen > 12, "{seen} commands");
}

/// A skipped check is printed, and is a failure in CI if it could have been run.
#[test]
fn skipped_dependency_check_fails_in_ci() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
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
        deny.arg(script).env_clear().env("PATH", directory.path());
        if ci {
            deny.env("CI", "true");
        }
        let output = deny.output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), text)
    };
    // No tool is installed.
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
    // The first check fails.
    tool("cargo-deny", "exit 9");
    tool("cargo", "exit 4");
    assert_eq!((deny(false).0, deny(true).0), (4, 4));
    // All checks pass; the rest depends on whether the advisory database can be fetched and whether git reaches it.
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
        (None, 1, "git is needed to find the cause"),
        (Some("exit 0"), 1, "cargo deny fetch db failed although"),
        (Some("exit 128"), 0, "cannot reach"),
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
