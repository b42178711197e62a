//! `ready`: the result of the last proof of a running `watch`, as exit code for a readiness probe.
//!
//! The exit code of `check` is not suitable: drift while QEMU can still open KVM is no reason to be unready. And an
//! image that contains only this binary has no shell to evaluate the status file.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Deserialize;

use crate::report::Report;
use crate::sys::claim::{Claim, claimed};
use crate::sys::root::open_here;
use crate::verdict::Verdict;

/// The parts of the report in the status file that `ready` uses.
#[derive(Deserialize)]
struct Status {
    summary: String,
    proof: Proof,
}

#[derive(Deserialize)]
struct Proof {
    result: String,
}

/// Attempts to read a file that is replaced while it is being read.
const ROUNDS: usize = 10;

/// [`Verdict::Ok`] if the last proof of a running `watch` was ok, [`Verdict::Unproven`] if it was not,
/// [`Verdict::Failed`] if the file is missing or invalid, or no `watch` maintains it.
pub fn ready(status_file: &Path) -> Report {
    let failed = |why| failed(status_file, why);
    let mut last = None;
    for _ in 0..ROUNDS {
        let (file, content) = match open_here(status_file) {
            Ok(opened) => opened,
            Err(error) => return failed(error.to_string()),
        };
        let shown = status_file.display();
        let claim = match claimed(&file) {
            Ok(claim) => claim,
            Err(errno) => return failed(format!("fcntl({shown}, F_OFD_GETLK): {}", errno.desc())),
        };
        // No lock: perhaps the file was replaced since it was opened. Retry with the new one.
        let inode = file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
        if claim == Claim::Nobodys && last != inode {
            last = inode;
            continue;
        }
        return evaluate(status_file, claim, &content);
    }
    failed(format!(
        "{} was replaced each time while it was read",
        status_file.display()
    ))
}

/// The report if the status file is missing, invalid or stale.
fn failed(status_file: &Path, why: String) -> Report {
    let next_step = format!(
        "check that `watch` is running with --status-file={}",
        status_file.display()
    );
    Report::new(Verdict::Failed, format!("{why}; {next_step}"))
}

/// The report for the content of a status file and the state of its lock.
fn evaluate(status_file: &Path, claim: Claim, content: &[u8]) -> Report {
    let shown = status_file.display();
    let failed = |why| failed(status_file, why);
    if claim == Claim::Nobodys {
        return failed(format!(
            "no running `watch` maintains {shown}: no process holds its lock"
        ));
    }
    // If the volume is full, the file is empty and only the lock carries the result.
    let status = match content.is_empty() {
        true => None,
        false => match serde_json::from_slice::<Status>(content) {
            Ok(status) => Some(status),
            Err(error) => return failed(format!("{shown} is not a status file: {error}")),
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
        _ => "QEMU could not open KVM at the last test of `watch`; see its log for the cause"
            .to_owned(),
    };
    Report::new(verdict, summary)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::sys::claim::claim;

    /// The verdict on a file with this content while a process holds its lock.
    fn verdict(content: &str, is_proven: bool) -> Verdict {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        claim(file.as_file(), is_proven).unwrap();
        let got = ready(file.path()).verdict;
        let path = file.into_temp_path();
        // A child that another test forks inherits the locked descriptor until its execve(2).
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while ready(&path).verdict != Verdict::Failed {
            assert!(std::time::Instant::now() < end, "the lock was not released");
        }
        got
    }

    fn status(verdict: Verdict, result: &str) -> String {
        let mut report = Report::new(verdict, "why");
        report.proof.result = result.to_owned().into();
        report.to_json().unwrap()
    }

    #[test]
    fn readiness_depends_on_the_proof_and_not_on_the_verdict() {
        for other in Verdict::ALL {
            assert_eq!(
                verdict(&status(other, "ok"), true),
                Verdict::Ok,
                "{other:?}"
            );
            assert_eq!(verdict(&status(other, "ok"), false), Verdict::Unproven);
            for result in ["EACCES", "off", "none", "mismatch"] {
                for is_proven in [false, true] {
                    let got = verdict(&status(other, result), is_proven);
                    assert_eq!(got, Verdict::Unproven, "{other:?} {result} {is_proven}");
                }
            }
        }
    }

    #[test]
    fn missing_and_invalid_files_are_not_ready() {
        for content in ["null", "{}", "{\"proof\":{\"result\":\"ok\"}", "ok\n"] {
            assert_eq!(verdict(content, true), Verdict::Failed, "{content}");
        }
        let missing = ready(Path::new("/does/not/exist"));
        assert_eq!(missing.verdict, Verdict::Failed);
        assert!(missing.summary.contains("ENOENT"), "{}", missing.summary);
    }

    #[test]
    fn the_lock_decides_if_the_file_is_empty_because_the_volume_is_full() {
        assert_eq!(verdict("", true), Verdict::Ok);
        assert_eq!(verdict("", false), Verdict::Unproven);
    }
}
