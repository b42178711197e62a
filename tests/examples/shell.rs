//! Tests of the shell scripts.

use std::process::Command;

use support::{ok, program, project, require_root};

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
        let story = ok(Command::new(project(SCRIPT))
            .arg(program())
            .env("NO_COLOR", "1"));
        let (start, cure) = story.split_once("3. The cure").unwrap();
        assert!(start.contains("exit code 1"), "{story}");
        let (cure, end) = cure.split_once("6. Somebody takes it away").unwrap();
        assert!(cure.contains("exit code 0"), "{story}");
        assert!(
            end.contains("healed: set-device-owner 0:0 -> 0:108"),
            "{story}"
        );
    }
}
