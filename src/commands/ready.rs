//! `ready`: what a `watch` that lives found last, as an exit code for a probe.
//!
//! Drift that QEMU can live with for now is no reason to be unready, so that the exit code of `check`
//! would not do; and an image that holds nothing but this binary has no shell to read a file with.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Deserialize;

use crate::report::Report;
use crate::sys::claim::{Claim, claimed};
use crate::sys::root::open_here;
use crate::verdict::Verdict;

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

/// How often a file is opened again that was replaced while it was read.
const ROUNDS: usize = 10;

/// [`Verdict::Ok`] if a `watch` that lives could open KVM as QEMU when it tried last, [`Verdict::Unproven`] if it
/// could not, [`Verdict::Failed`] where the file does not say, or nobody keeps it up to date.
pub fn ready(status_file: &Path) -> Report {
    let failed = |why: String| Report::new(Verdict::Failed, format!("{why}; {WATCH}"));
    let mut last = None;
    for _ in 0..ROUNDS {
        let (file, content) = match open_here(status_file) {
            Ok(found) => found,
            Err(error) => return failed(error.to_string()),
        };
        let shown = status_file.display();
        let claim = match claimed(&file) {
            Ok(claim) => claim,
            Err(errno) => return failed(format!("fcntl({shown}, F_OFD_GETLK): {}", errno.desc())),
        };
        // The file that was opened may have been replaced since: then nobody claims it any more.
        let which = file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
        if claim == Claim::Nobodys && last != which {
            last = which;
            continue;
        }
        return said(status_file, claim, &content);
    }
    failed(format!(
        "{} is replaced again and again",
        status_file.display()
    ))
}

/// What a file says whose lock says that.
fn said(status_file: &Path, claim: Claim, content: &[u8]) -> Report {
    let shown = status_file.display();
    let failed = |why: String| Report::new(Verdict::Failed, format!("{why}; {WATCH}"));
    if claim == Claim::Nobodys {
        return failed(format!(
            "no `watch` keeps {shown} up to date: no process holds its lock"
        ));
    }
    // Where the volume is full there is nothing but the lock.
    let status = match content.is_empty() {
        true => None,
        false => match serde_json::from_slice::<Status>(content) {
            Ok(status) => Some(status),
            Err(error) => return failed(format!("{shown} is no status file: {error}")),
        },
    };
    let is_ok = status
        .as_ref()
        .is_none_or(|status| status.proof.result == "ok");
    let verdict = match claim == Claim::Proven && is_ok {
        true => Verdict::Ok,
        false => Verdict::Unproven,
    };
    let summary = match status {
        Some(status) if is_ok == (verdict == Verdict::Ok) => status.summary,
        _ if verdict == Verdict::Ok => "QEMU can open KVM".to_owned(),
        _ => format!("`watch` runs, and its proof is not ok; its log says why, {shown} does not"),
    };
    Report::new(verdict, summary)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::sys::claim::claim;

    /// What is said of a file with this content while somebody claims it.
    fn verdict(content: &str, is_proven: bool) -> Verdict {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        claim(file.as_file(), is_proven).unwrap();
        let got = ready(file.path()).verdict;
        let path = file.into_temp_path();
        // A program that another test is starting holds every open file until its execve(2).
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while ready(&path).verdict != Verdict::Failed {
            assert!(std::time::Instant::now() < end, "nobody claims it");
        }
        got
    }

    fn status(verdict: Verdict, result: &str) -> String {
        let mut report = Report::new(verdict, "why");
        report.proof.result = result.to_owned().into();
        report.to_json().unwrap()
    }

    #[test]
    fn the_proof_counts_and_nothing_else() {
        for seen in Verdict::ALL {
            assert_eq!(verdict(&status(seen, "ok"), true), Verdict::Ok, "{seen:?}");
            assert_eq!(verdict(&status(seen, "ok"), false), Verdict::Unproven);
            for result in ["EACCES", "off", "none", "mismatch"] {
                for is_proven in [false, true] {
                    let got = verdict(&status(seen, result), is_proven);
                    assert_eq!(got, Verdict::Unproven, "{seen:?} {result} {is_proven}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_says_nothing_is_no_yes() {
        for content in ["null", "{}", "{\"proof\":{\"result\":\"ok\"}", "ok\n"] {
            assert_eq!(verdict(content, true), Verdict::Failed, "{content}");
        }
        let missing = ready(Path::new("/does/not/exist"));
        assert_eq!(missing.verdict, Verdict::Failed);
        assert!(missing.summary.contains("ENOENT"), "{}", missing.summary);
    }

    /// The volume was full.
    #[test]
    fn of_an_empty_file_only_the_lock_counts() {
        assert_eq!(verdict("", true), Verdict::Ok);
        assert_eq!(verdict("", false), Verdict::Unproven);
    }
}
