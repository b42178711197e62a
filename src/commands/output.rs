//! Output of the commands: log, report, and after a failure the closing line on stderr.
//!
//! If the worker hangs, the supervising process prints a report in its place, in the format that the worker noted.

use std::io::{self, IsTerminal, Write};
use std::time::SystemTime;

use crate::config::{self, Format};
use crate::report::{Report, monitors, table};
use crate::sys::progress::{self, Wait};
use crate::text::escape_control;
use crate::verdict::Verdict;

const FORMATS: [Format; 4] = [Format::Table, Format::Json, Format::Npd, Format::Prometheus];
/// The note of a worker that has printed its report. Before that, the note is the format of the report plus one.
const REPORTED: u64 = u64::MAX;

/// Notes the report format of this process, for the supervising process.
pub fn note_format(format: Format) {
    progress::set_note(format as u64 + 1);
}

/// The format for a report in the place of a worker; `None` if the worker has printed one. `flag` is the value of
/// `--format`, used if the worker has noted nothing.
pub fn noted_format(flag: Option<&String>) -> Option<Format> {
    match progress::note() {
        REPORTED => None,
        0 => config::format(flag, |name| std::env::var_os(name)).ok(),
        note => FORMATS
            .into_iter()
            .find(|format| *format as u64 + 1 == note),
    }
}

/// Starts logging to stderr, without timestamps: container runtimes and journald add them.
pub fn start_log(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => log::LevelFilter::Error,
        (false, 0) => log::LevelFilter::Info,
        (false, _) => log::LevelFilter::Debug,
    };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level);
    if verbose == 0 && !quiet {
        builder.parse_default_env();
    }
    builder.format(|out, record| {
        let level = record.level().as_str().to_ascii_lowercase();
        // Messages can contain names from files that are not trusted.
        let text = escape_control(&record.args().to_string());
        writeln!(out, "{level}: {text}")
    });
    builder.target(env_logger::Target::Pipe(Box::new(Stderr)));
    builder.init();
}

/// Standard error. A slow reader is not a hang.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _waits = Wait::begin();
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints the report and returns the exit code.
pub fn print_report(report: &Report, format: Option<Format>) -> u8 {
    let text = render(report, format, io::stdout().is_terminal());
    let (code, unwritten) = match format {
        Some(Format::Npd) => (monitors::npd_code(report), monitors::NPD_UNKNOWN),
        _ => (report.exit_code, Verdict::Failed.code()),
    };
    let closing = (report.verdict != Verdict::Ok).then(|| report.closing_line());
    finish(&text, code, unwritten, closing)
}

/// The report as text; empty without a format.
pub(super) fn render(report: &Report, format: Option<Format>, terminal: bool) -> String {
    match format {
        Some(Format::Table) => {
            let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            table::table(report, colour)
        }
        Some(Format::Json) => report.to_json().unwrap_or_default(),
        Some(Format::Npd) => monitors::npd(report),
        Some(Format::Prometheus) => monitors::prometheus(report, SystemTime::now()),
        None => String::new(),
    }
}

/// Writes the report to stdout and flushes it, then the closing line to stderr: as the last output, so that
/// Kubernetes' FallbackToLogsOnError shows it. `unwritten` is the exit code if the report cannot be written.
pub(super) fn finish(text: &str, mut code: u8, unwritten: u8, closing: Option<String>) -> u8 {
    progress::set_note(REPORTED);
    // A slow reader is not a hang.
    let _waits = Wait::begin();
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    drop(stdout);
    let mut stderr = io::stderr().lock();
    if let Some(line) = closing {
        let _ = writeln!(stderr, "{line}");
    }
    // The last line must explain the exit code.
    match written {
        // The reader closed the pipe on purpose, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => {
            let line = format!("libvirt-kvm-init: failed: write(stdout): {error}");
            let _ = writeln!(stderr, "{line}");
            code = unwritten;
        }
        Ok(()) => {}
    }
    code
}
