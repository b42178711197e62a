//! The command `logs`: which guests failed to start because KVM was unavailable, when, and why.
//!
//! ```text
//! paths -> open all -> become nobody -> input -> scan -> stream -> aggregate -> report
//!                                                (patterns, lines, time)  (causes)
//! ```
//!
//! Guests control some of the log content. So nothing is read before the process has become UID 65534
//! without capabilities, and memory is bounded, however much is read.

pub mod aggregate;
pub mod causes;
mod incident;
mod input;
pub mod lines;
mod open;
pub mod patterns;
pub mod report;
pub mod scan;
pub mod stream;
pub mod time;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::config;
use crate::sys::identity::{DropStep, become_nobody};
use crate::sys::progress::{self, Wait};
use crate::verdict::Verdict;
use aggregate::Aggregator;
use input::{Progress, errno_text, error_text};
use lines::printable;
use open::{Log, Logs, raise_file_limit};
use report::{LogReport, Read, Unreadable};
use scan::Scanner;
use stream::Stream;

/// The default directories: where Nova and libvirt write their logs.
pub const PLACES: [&str; 3] = ["/var/log/libvirt", "/var/log/nova", "/var/log/kolla/nova"];

/// Reads `paths`, or [`PLACES`], and prints the report in the format that a flag or the environment sets.
/// Returns the exit code.
pub fn run(paths: &[PathBuf], format: Option<&String>, quiet: bool) -> u8 {
    match config::format(format, |name| std::env::var_os(name)) {
        Ok(format) => read(paths, quiet).print(Some(format)),
        Err(usage) => LogReport::failed(Verdict::Usage, usage.to_string()).print(None),
    }
}

fn read(paths: &[PathBuf], quiet: bool) -> LogReport {
    let defaults = PLACES.map(PathBuf::from);
    let paths: Vec<_> = match paths {
        [] => defaults.iter().filter(|path| is_directory(path)).collect(),
        paths => paths.iter().collect(),
    };
    if paths.is_empty() {
        let text = format!(
            "no PATH is specified, and none of {} exists: specify files or directories, or - for standard \
             input",
            PLACES.join(", ")
        );
        return LogReport::failed(Verdict::Usage, text);
    }
    raise_file_limit();
    let mut logs = Logs::default();
    if paths.iter().any(|path| is_stdin(path)) {
        logs.add_stdin();
    }
    let named = paths.into_iter().filter(|path| !is_stdin(path));
    named.for_each(|path| logs.add(path));
    if let Err((step, errno)) = become_nobody() {
        let call = match step {
            DropStep::Gid => "setresgid(65534)",
            DropStep::Groups => "setgroups()",
            DropStep::Uid => "setresuid(65534)",
            DropStep::Capabilities => "capset(nothing)",
            DropStep::Verify => "getresuid() returned other IDs",
        };
        let text = format!(
            "cannot drop privileges before reading logs: {call}: {}; run this command as an unprivileged \
             user, or as root with CAP_SETUID and CAP_SETGID",
            errno_text(errno)
        );
        return LogReport::failed(Verdict::Failed, text);
    }
    read_all(logs, !quiet)
}

fn is_directory(place: &Path) -> bool {
    progress::at(&[place.as_ref()]);
    place.is_dir()
}

/// Describes an errno of open(2), followed by the next step if there is a typical one.
fn with_advice(errno: Errno) -> String {
    let text = errno_text(errno);
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => format!("{text}; check the path"),
        Errno::EACCES | Errno::EPERM => format!("{text}; run this command as root"),
        Errno::EMFILE => {
            format!("{text}; specify fewer files, or raise the limit on open files (ulimit -n)")
        }
        _ => text,
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn read_all(logs: Logs, progress: bool) -> LogReport {
    let total = logs.open.iter().map(|log| log.size).sum();
    let mut run = Run {
        scanner: Scanner::default(),
        aggregator: Aggregator::default(),
        files: 0,
        unreadable: Vec::new(),
        progress: Progress::new(progress, total),
    };
    for (path, errno) in &logs.unreadable {
        run.unreadable(path, with_advice(*errno));
    }
    logs.open.into_iter().for_each(|log| run.read(&log));
    run.progress.clear();
    let read = Read {
        files: run.files,
        bytes: run.progress.bytes,
        skipped: logs.skipped,
    };
    LogReport::new(run.aggregator.finish(), read, run.unreadable)
}

struct Run {
    scanner: Scanner,
    aggregator: Aggregator,
    files: u64,
    unreadable: Vec<Unreadable>,
    progress: Progress,
}

impl Run {
    fn unreadable(&mut self, path: &Path, error: String) {
        let path = printable(path.as_os_str().as_bytes());
        self.unreadable.push(Unreadable { path, error });
    }

    fn read(&mut self, log: &Log) {
        progress::at(&[log.path.as_ref()]);
        // A pipe may block until another process writes to it: the supervisor must not count that as a hang.
        let is_file = log.file.metadata().is_ok_and(|meta| meta.is_file());
        let _waits = (!is_file).then(Wait::begin);
        let number = u32::try_from(self.files).unwrap_or(u32::MAX);
        self.files += 1;
        let mut stream = Stream::new(number, &log.path, log.modified, &mut self.aggregator);
        let (scanner, progress) = (&mut self.scanner, &mut self.progress);
        let on_match = |line: scan::Match<'_>| stream.take(line);
        let done = input::scan(scanner, &log.file, log.size, progress, on_match);
        stream.end();
        if let Err(error) = done {
            self.unreadable(&log.path, error_text(&error));
        }
    }
}
