//! What a command writes: its log, its report, and one last line on stderr where something is wrong.
//!
//! Where the worker hangs, the process that supervises it reports in its place, in the format that the worker
//! noted.

use std::io::{self, IsTerminal, Write};
use std::time::SystemTime;

use crate::config::{self, Format};
use crate::report::{Report, monitors, table};
use crate::sys::progress::{self, Wait};
use crate::text::escape_control;
use crate::verdict::Verdict;

const FORMATS: [Format; 4] = [Format::Table, Format::Json, Format::Npd, Format::Prometheus];
/// What a worker notes for the process that supervises it: in which format it will report, from 1 on, or this once
/// it has reported.
const REPORTED: u64 = u64::MAX;

/// Notes in which format this process will report.
pub fn note_format(format: Format) {
    progress::set_note(format as u64 + 1);
}

/// In which format to report in the place of a worker; `None` after its own report. `asked` is what the command
/// line says, for a worker that has noted nothing.
pub fn noted_format(asked: Option<&String>) -> Option<Format> {
    match progress::note() {
        REPORTED => None,
        0 => config::format(asked, |name| std::env::var_os(name)).ok(),
        note => FORMATS
            .into_iter()
            .find(|format| *format as u64 + 1 == note),
    }
}

/// Logs go to stderr as bare lines: container runtimes and journald add the time.
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
        // What is logged may hold names from files of others.
        let text = escape_control(&record.args().to_string());
        writeln!(out, "{level}: {text}")
    });
    builder.target(env_logger::Target::Pipe(Box::new(Stderr)));
    builder.init();
}

/// Standard error, whose reader may take a long time.
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

/// Prints the report, and gives the exit code.
pub fn say(report: &Report, format: Option<Format>) -> u8 {
    let text = render(report, format, io::stdout().is_terminal());
    let (code, unwritten) = match format {
        Some(Format::Npd) => (monitors::npd_code(report), monitors::NPD_UNKNOWN),
        _ => (report.exit_code, Verdict::Failed.code()),
    };
    let closing = (report.verdict != Verdict::Ok).then(|| report.closing_line());
    finish(&text, code, unwritten, closing)
}

/// The report as text; nothing without a format.
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

/// The report on stdout, flushed; then, if something is wrong, one line on stderr that says what:
/// the last thing written, so that Kubernetes' FallbackToLogsOnError shows it. `unwritten` is the exit code for a
/// report that could not be written.
pub(super) fn finish(text: &str, mut code: u8, unwritten: u8, closing: Option<String>) -> u8 {
    progress::set_note(REPORTED);
    // Its reader may take a long time.
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
    // The last line says why the exit code is what it is.
    match written {
        // The reader of the report has seen enough.
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
