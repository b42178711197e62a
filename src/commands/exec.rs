//! `exec`, the entrypoint wrapper: runs `apply` on this container's files, then executes the command.
//!
//! `apply` runs in a child. The process that executes the command stays unmodified, so that the command has the
//! environment, streams, signals, capabilities, umask and descriptors that the container runtime set up, and can be
//! PID 1.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::apply::apply;
use super::output::render;
use crate::config::options::Flags;
use crate::error::Error;
use crate::pipeline::Request;
use crate::report::Report;
use crate::sys::become_program;
use crate::sys::supervise::{Ended, end_by, supervise};
use crate::text::escape_control;
use crate::verdict::Verdict;

/// The search path if PATH is not set, as in the C library (`_CS_PATH`).
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// A shell's exit code for a command that was found but cannot be run.
const CANNOT_RUN: u8 = 126;
/// A shell's exit code for a command that was not found.
const NOT_FOUND: u8 = 127;

/// Why the command was not started.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ending {
    code: u8,
    /// The message to print; none if the child has printed one.
    text: Option<String>,
}

impl Ending {
    fn failed(text: String) -> Self {
        Self {
            code: Verdict::Failed.code(),
            text: Some(format!("failed: {text}")),
        }
    }
}

/// Adapts the request to `exec`: a private /dev causes a warning instead of a refusal.
///
/// # Errors
/// [`Error::Usage`] for a dry run, which contradicts starting the command.
fn configure(mut request: Request) -> Result<Request, Error> {
    if request.dry_run {
        let text = "--dry-run cannot be used with exec; use `check`";
        return Err(Error::Usage(text.to_owned()));
    }
    request.policy.allow_private_device = true;
    Ok(request)
}

/// Runs `apply`, which prints its report and returns its exit code, in a child, then executes `command`.
///
/// Returns only if the command was not started: `apply` failed, or the command cannot be executed. The return value is
/// the exit code.
pub fn exec(command: &[OsString], apply: impl FnOnce() -> u8) -> u8 {
    let ending = apply_and_become(command, apply);
    if let Some(text) = ending.text {
        let line = escape_control(&format!("libvirt-kvm-init: {text}"));
        let _ = writeln!(io::stderr(), "{line}");
    }
    ending.code
}

/// Runs `apply` in the child and returns the exit code. The report goes to stderr, because stdout belongs to the
/// command; if stderr cannot be written, the command is started anyway.
pub fn align(flags: &Flags, quiet: bool) -> u8 {
    let resolved = super::resolve(flags)
        .and_then(|(request, output)| configure(request).map(|request| (request, output.format)));
    let (report, format) = match resolved {
        Ok((request, format)) => (apply(&request), Some(format)),
        Err(usage) => (Report::new(Verdict::Usage, usage.to_string()), None),
    };
    let mut text = String::new();
    let ok = report.verdict == Verdict::Ok;
    if !(ok && quiet) {
        text = render(&report, format, io::stderr().is_terminal());
    }
    if !ok {
        text = format!("{text}{}\n", report.closing_line());
    }
    let _ = io::stderr().write_all(text.as_bytes());
    report.exit_code
}

fn apply_and_become(command: &[OsString], apply: impl FnOnce() -> u8) -> Ending {
    match supervise(apply) {
        Ok(Ended::Exited(0)) => start(command),
        Ok(Ended::Exited(code)) => Ending { code, text: None },
        Ok(Ended::Hung(text)) => Ending::failed(text),
        // These signals request the end of this process.
        Ok(Ended::Killed(
            signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT),
        )) => end_by(signal),
        Ok(Ended::Killed(signal)) => Ending::failed(format!(
            "apply was killed by {signal}, so the command was not started; for SIGKILL, check `dmesg` on \
             the node for an out-of-memory kill"
        )),
        Err(error) if error.errno == Errno::EAGAIN => {
            Ending::failed(format!("{error}; check the limit of processes (pids.max)"))
        }
        Ok(Ended::Lost(error)) | Err(error) => Ending::failed(error.to_string()),
    }
}

fn start(command: &[OsString]) -> Ending {
    // Arguments of this process cannot contain NUL.
    let args = command.iter().map(|arg| CString::new(arg.as_bytes()));
    let args: Vec<_> = args.filter_map(Result::ok).collect();
    let name = command.first().map(OsString::as_os_str).unwrap_or_default();
    let mut denied = None;
    for path in candidates(name, std::env::var_os("PATH").as_deref()) {
        match become_program(&path, &args) {
            // Try the next directory of PATH.
            errno if is_not_found(name, errno) => {}
            Errno::EACCES => denied = denied.or(Some((path, Errno::EACCES))),
            errno => return cannot(name, Some((path, errno))),
        }
    }
    cannot(name, denied)
}

/// Whether this errno of execve(2) means that the command is not at this path. A directory of PATH that cannot be
/// searched (a circular link, a name that is too long, a network share that does not respond) is skipped; for a command
/// with a slash in its name, these errors are reported.
fn is_not_found(name: &OsStr, errno: Errno) -> bool {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => true,
        Errno::ELOOP
        | Errno::ENAMETOOLONG
        | Errno::ESTALE
        | Errno::ENODEV
        | Errno::ETIMEDOUT
        | Errno::EIO => !name.as_bytes().contains(&b'/'),
        _ => false,
    }
}

/// The paths to try, as in execvp(3): one per directory of PATH, or the name itself if it contains a slash. An empty
/// directory in PATH is the current directory.
fn candidates(name: &OsStr, path: Option<&OsStr>) -> Vec<CString> {
    let name = name.as_bytes();
    let paths: Vec<Vec<u8>> = if name.is_empty() {
        Vec::new()
    } else if name.contains(&b'/') {
        vec![name.to_vec()]
    } else {
        let path = path.map_or(DEFAULT_PATH, OsStr::as_bytes);
        let directories = path.split(|byte| *byte == b':');
        directories
            .map(|directory| match directory {
                [] => name.to_vec(),
                _ => [directory, b"/", name].concat(),
            })
            .collect()
    };
    let paths = paths.into_iter().map(CString::new);
    paths.filter_map(Result::ok).collect()
}

/// The exit code of a shell, and a message. `failure` is the path that was found and the errno of execve(2).
fn cannot(name: &OsStr, failure: Option<(CString, Errno)>) -> Ending {
    let name = name.display();
    let Some((path, errno)) = failure else {
        let why = "not found (or its interpreter does not exist)";
        return Ending {
            code: NOT_FOUND,
            text: Some(format!("{name}: {why}")),
        };
    };
    let advice = match errno {
        Errno::EACCES => {
            "check that it is a file with execute permission, on a mount without noexec"
        }
        Errno::ENOEXEC => "use a program for this architecture, or a script that begins with #!",
        Errno::E2BIG => "shorten its arguments or environment",
        _ => "see execve(2)",
    };
    let path = path.to_string_lossy();
    let errno = format!("{errno:?} ({})", errno.desc());
    Ending {
        code: CANNOT_RUN,
        text: Some(format!("{name}: execve({path}): {errno}; {advice}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(name: &str, path: Option<&str>) -> Vec<String> {
        let paths = candidates(OsStr::new(name), path.map(OsStr::new));
        let text = |path: CString| path.into_string().unwrap();
        paths.into_iter().map(text).collect()
    }

    #[test]
    fn searches_path_like_execvp() {
        assert_eq!(paths("sh", Some("/a:/b/")), ["/a/sh", "/b//sh"]);
        assert_eq!(paths("sh", Some(":/a:")), ["sh", "/a/sh", "sh"]);
        assert_eq!(paths("sh", Some("")), ["sh"]);
        assert_eq!(paths("sh", None), ["/bin/sh", "/usr/bin/sh"]);
        assert_eq!(paths("./sh", Some("/a")), ["./sh"]);
        assert_eq!(paths("/x/sh", None), ["/x/sh"]);
        assert!(paths("", Some("/a")).is_empty());
    }

    #[test]
    fn commands_that_cannot_be_run_have_the_exit_codes_of_a_shell() {
        let name = OsStr::new("x");
        assert_eq!(cannot(name, None).code, 127);
        for errno in [Errno::EACCES, Errno::ENOEXEC, Errno::E2BIG, Errno::ENOMEM] {
            let ending = cannot(name, Some((c"/x".into(), errno)));
            assert_eq!(ending.code, 126);
            assert!(ending.text.unwrap().contains(errno.desc()));
        }
    }
}
