//! The scripts.

use std::process::Command;

use support::{ok, program, project, require_root};

const SCRIPT: &str = "examples/incident.sh";
const RECORDER: &str = "docs/record";

#[test]
fn shellcheck_has_nothing_to_say() {
    for script in [
        SCRIPT,
        RECORDER,
        "benches/run",
        "benches/chart-lines.sh",
        "benches/whole-job.sh",
    ] {
        let mut cmd = Command::new("shellcheck");
        // What a script sources is named from the project's root.
        cmd.arg("-x").current_dir(project("."));
        assert_eq!(ok(cmd.arg(script)), "");
    }
}

/// What needs root and KVM.
mod on_a_node {
    use super::*;

    /// It makes a namespace of its own.
    #[test]
    fn the_incident_is_told_to_its_end() {
        require_root();
        let story = ok(Command::new(project(SCRIPT))
            .arg(program())
            .env("NO_COLOR", "1"));
        let (start, cure) = story.split_once("3. The repair").unwrap();
        assert!(start.contains("exit code 1"), "{story}");
        let (cure, end) = cure.split_once("6. Another process changes").unwrap();
        assert!(cure.contains("exit code 0"), "{story}");
        assert!(
            end.contains("repaired: set-device-owner 0:0 -> 0:108"),
            "{story}"
        );
    }
}
