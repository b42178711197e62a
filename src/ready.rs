//! `ready`: what `watch` found last, as an exit code for a probe.
//!
//! Drift that QEMU can live with for now is no reason to be unready, so that the exit code of `check`
//! would not do; and an image that holds nothing but this binary has no shell to read a file with.
#![forbid(unsafe_code)]

use std::path::Path;

use serde::Deserialize;

use crate::exit::Verdict;
use crate::report::Report;
use crate::sys::root::read_here;

/// What to do where the file does not say.
const WATCH: &str = "see whether `watch` runs, with --status-file and this path";

/// What counts of the report that `--status-file` keeps.
#[derive(Deserialize)]
struct Status {
    summary: String,
    proof: Proof,
}

#[derive(Deserialize)]
struct Proof {
    result: String,
}

/// [`Verdict::Ok`] if QEMU could open KVM when `watch` tried it last, [`Verdict::Unproven`] if not,
/// [`Verdict::Failed`] where the file does not say.
pub fn ready(status_file: &Path) -> Report {
    let content = match read_here(status_file) {
        Ok(content) => content,
        Err(error) => return Report::new(Verdict::Failed, format!("{error}; {WATCH}")),
    };
    match serde_json::from_slice::<Status>(&content) {
        Ok(status) if status.proof.result == "ok" => Report::new(Verdict::Ok, status.summary),
        Ok(status) => Report::new(Verdict::Unproven, status.summary),
        Err(error) => {
            let shown = status_file.display();
            Report::new(
                Verdict::Failed,
                format!("{shown} is no status file: {error}; {WATCH}"),
            )
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;

    fn verdict(content: &str) -> Verdict {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        ready(file.path()).verdict
    }

    fn status(verdict: Verdict, result: &str) -> String {
        let mut report = Report::new(verdict, "why");
        report.proof.result = result.to_owned();
        report.to_json().unwrap()
    }

    #[test]
    fn the_proof_counts_and_nothing_else() {
        for seen in Verdict::ALL {
            assert_eq!(verdict(&status(seen, "ok")), Verdict::Ok, "{seen:?}");
            for result in ["EACCES", "off", "none", "mismatch"] {
                let got = verdict(&status(seen, result));
                assert_eq!(got, Verdict::Unproven, "{seen:?} {result}");
            }
        }
    }

    #[test]
    fn a_file_that_says_nothing_is_no_yes() {
        for content in ["", "null", "{}", "{\"proof\":{\"result\":\"ok\"}", "ok\n"] {
            assert_eq!(verdict(content), Verdict::Failed, "{content}");
        }
        let missing = ready(Path::new("/does/not/exist"));
        assert_eq!(missing.verdict, Verdict::Failed);
        assert!(missing.summary.contains("ENOENT"), "{}", missing.summary);
    }
}
