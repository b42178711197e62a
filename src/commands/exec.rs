//! The entrypoint wrapper: `apply` in this container's own files, then become the command that was
//! given.
//!
//! `apply` is done in a child. The process that becomes the command changes nothing of itself, so that
//! the command finds what the container's runtime set up: environment, streams, signals, capabilities,
//! umask, descriptors, and that it is the first process of its PID namespace.

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

/// Where commands are looked for without a PATH, as the C library does (`_CS_PATH`).
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// What a shell gives for a command that was found and cannot run.
const CANNOT_RUN: u8 = 126;
/// What a shell gives for a command that was not found.
const NOT_FOUND: u8 = 127;

/// Why the command does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ending {
    /// The exit code.
    code: u8,
    /// What is still to be said; nothing where the child has said it.
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

/// What `apply` is to do here: a container with a /dev of its own is told so, and goes on.
///
/// # Errors
/// [`Error::Usage`] for a dry run, after which there would be nothing to become.
fn configure(mut request: Request) -> Result<Request, Error> {
    if request.dry_run {
        let text = "exec changes and starts something, so dry-run cannot be meant: use `check`";
        return Err(Error::Usage(text.to_owned()));
    }
    request.policy.allow_private_device = true;
    Ok(request)
}

/// Does `apply`, which reports and gives its exit code, in a child, and then becomes `command`.
///
/// Only returns where that did not happen: `apply` said no, or there is no such command. Gives the exit code.
pub fn exec(command: &[OsString], apply: impl FnOnce() -> u8) -> u8 {
    let ending = apply_and_become(command, apply);
    if let Some(text) = ending.text {
        let line = escape_control(&format!("libvirt-kvm-init: {text}"));
        let _ = writeln!(io::stderr(), "{line}");
    }
    ending.code
}

/// The child's part: all is said on stderr, since stdout is the command's. Where nobody reads that, the
/// command is started all the same. Gives the exit code.
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
        // Who sent one of these asked for just that.
        Ok(Ended::Killed(
            signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT),
        )) => end_by(signal),
        Ok(Ended::Killed(signal)) => Ending::failed(format!(
            "the child that does the work was ended by {signal}, so the command was not started; for \
             SIGKILL see `dmesg` on the node for an out-of-memory kill"
        )),
        Err(error) if error.errno == Errno::EAGAIN => Ending::failed(format!(
            "{error}; the limit of processes (pids.max) may be reached"
        )),
        Ok(Ended::Lost(error)) | Err(error) => Ending::failed(error.to_string()),
    }
}

fn start(command: &[OsString]) -> Ending {
    // An argument of a process holds no NUL.
    let args = command.iter().map(|arg| CString::new(arg.as_bytes()));
    let args: Vec<_> = args.filter_map(Result::ok).collect();
    let name = command.first().map(OsString::as_os_str).unwrap_or_default();
    let mut denied = None;
    for path in places(name, std::env::var_os("PATH").as_deref()) {
        match become_program(&path, &args) {
            // Nothing here, but maybe further on.
            errno if is_nowhere(name, errno) => {}
            Errno::EACCES => denied = denied.or(Some((path, Errno::EACCES))),
            errno => return cannot(name, Some((path, errno))),
        }
    }
    cannot(name, denied)
}

/// Whether execve(2) says that there is nothing. A directory of PATH that cannot be walked (a link that goes
/// in a circle, a name that is too long, a share that does not answer) has nothing for anybody; of a
/// command that says itself where it is, that has to be told.
fn is_nowhere(name: &OsStr, errno: Errno) -> bool {
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

/// Where a command may be: each directory of PATH, unless its name says where. An empty directory is the current
/// one.
fn places(name: &OsStr, path: Option<&OsStr>) -> Vec<CString> {
    let name = name.as_bytes();
    let places: Vec<Vec<u8>> = if name.is_empty() {
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
    let places = places.into_iter().map(CString::new);
    places.filter_map(Result::ok).collect()
}

/// The code and the line of a shell.
fn cannot(name: &OsStr, found: Option<(CString, Errno)>) -> Ending {
    let name = name.display();
    let Some((path, errno)) = found else {
        let why = "not found; a script or program whose interpreter is missing is not found either";
        return Ending {
            code: NOT_FOUND,
            text: Some(format!("{name}: {why}")),
        };
    };
    let advice = match errno {
        Errno::EACCES => "it must be a file that may be executed (mode, noexec mount)",
        Errno::ENOEXEC => {
            "it must be a program for this architecture, or a script that begins with #!"
        }
        Errno::E2BIG => "its arguments and environment are too long",
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

    fn found(name: &str, path: Option<&str>) -> Vec<String> {
        let places = places(OsStr::new(name), path.map(OsStr::new));
        let text = |place: CString| place.into_string().unwrap();
        places.into_iter().map(text).collect()
    }

    #[test]
    fn commands_are_looked_for_as_a_shell_does() {
        assert_eq!(found("sh", Some("/a:/b/")), ["/a/sh", "/b//sh"]);
        assert_eq!(found("sh", Some(":/a:")), ["sh", "/a/sh", "sh"]);
        assert_eq!(found("sh", Some("")), ["sh"]);
        assert_eq!(found("sh", None), ["/bin/sh", "/usr/bin/sh"]);
        assert_eq!(found("./sh", Some("/a")), ["./sh"]);
        assert_eq!(found("/x/sh", None), ["/x/sh"]);
        assert!(found("", Some("/a")).is_empty());
    }

    #[test]
    fn what_cannot_run_has_the_codes_of_a_shell() {
        let name = OsStr::new("x");
        assert_eq!(cannot(name, None).code, 127);
        for errno in [Errno::EACCES, Errno::ENOEXEC, Errno::E2BIG, Errno::ENOMEM] {
            let ending = cannot(name, Some((c"/x".into(), errno)));
            assert_eq!(ending.code, 126);
            assert!(ending.text.unwrap().contains(errno.desc()));
        }
    }
}
