//! Tests of the shell scripts.

use std::process::Command;

use support::{ok, program, project, read, require_commands, require_root};

const SCRIPT: &str = "examples/incident.sh";
const RECORDER: &str = "docs/record";

#[test]
fn scripts_pass_shellcheck() {
    for script in [
        SCRIPT,
        RECORDER,
        "benches/run",
        "benches/chart-lines.sh",
        "benches/whole-job.sh",
    ] {
        let mut cmd = Command::new("shellcheck");
        // Paths of sourced files are relative to the project's root.
        cmd.arg("-x").current_dir(project("."));
        assert_eq!(ok(cmd.arg(script)), "");
    }
}

/// Tests that need root and KVM.
mod on_a_node {
    use super::*;

    /// The script creates its own namespace.
    #[test]
    fn incident_script_runs_to_its_end() {
        require_root();
        assert_complete(&ok(Command::new(project(SCRIPT))
            .arg(program())
            .env("NO_COLOR", "1")));
    }

    /// The commands of README.md's "Try it". The second one is what CI runs in a fresh clone, so only the first one is
    /// run here.
    #[test]
    fn readme_commands_work_in_a_fresh_clone() {
        require_root();
        require_commands(&["git", "make", "rustup", "cc"]);
        let readme = read("README.md");
        let (_, section) = readme.split_once("\n## Try it\n").unwrap();
        let block = section.split("```").nth(1).unwrap();
        let lines = block.lines().filter_map(|line| line.strip_prefix("$ "));
        let commands: Vec<_> = lines
            .map(|line| line.split('#').next().unwrap().trim())
            .collect();
        assert_eq!(commands, ["make run", "make test"]);
        assert!(read(".ci/run").lines().any(|line| line == commands[1]));

        let clone = tempfile::tempdir().unwrap();
        let mut git = Command::new("git");
        // The checkout may belong to another user than root.
        git.args(["-c", "safe.directory=*", "clone", "--quiet"])
            .arg(project("."))
            .arg(clone.path());
        ok(&mut git);
        let mut make = Command::new("sh");
        make.args(["-c", commands[0]]).current_dir(clone.path());
        // cargo sets these for its tests, and a new user has none of them.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let is_cargos = name.starts_with("CARGO") && name != "CARGO_HOME";
            if is_cargos || name.starts_with("RUSTUP_TOOLCHAIN") || name.starts_with("KVM_INIT") {
                make.env_remove(name);
            }
        }
        assert_complete(&ok(make.env("NO_COLOR", "1")));
    }

    /// Checks that the script printed each of its steps with the expected result.
    fn assert_complete(story: &str) {
        let (start, repair) = story.split_once("3. The repair").unwrap();
        assert!(start.contains("exit code 1"), "{story}");
        let (repair, end) = repair.split_once("6. Another process changes").unwrap();
        assert!(repair.contains("exit code 0"), "{story}");
        assert!(
            end.contains("repaired: set-device-owner 0:0 -> 0:108"),
            "{story}"
        );
    }
}
