//! The command: parse, log, run, report, exit.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser;
use libvirt_kvm_init::cli::{Cli, Options, Verb};
use libvirt_kvm_init::config::{Config, Format};
use libvirt_kvm_init::exit::{Usage, Verdict};
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::sys::end_on_request;
use libvirt_kvm_init::sys::root::read_here;
use libvirt_kvm_init::{apply, check, monitors, table};

/// musl's own allocator asks the kernel for memory at almost every turn, which is a third of the time
/// of a run that only reads some files.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Help and version are answers.
            if !error.use_stderr() {
                return ExitCode::SUCCESS;
            }
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            let why = first.strip_prefix("error: ");
            let why = why.unwrap_or("a command is missing, see --help");
            return say(&Report::new(Verdict::Usage, why), None);
        }
    };
    end_on_request();
    match cli.verb {
        Verb::Apply(options) => run(&options, apply::apply),
        Verb::Check(options) => run(&options, check::check),
        #[cfg(feature = "watch")]
        Verb::Watch(options) => watch(options),
        #[cfg(feature = "watch")]
        Verb::Ready { status_file } => say(&libvirt_kvm_init::ready::ready(&status_file), None),
        #[cfg(feature = "logs")]
        Verb::Logs(options) => logs(&options),
    }
}

/// A verb that looks at the device and reports on it.
fn run(options: &Options, verb: impl Fn(&Config) -> Report) -> ExitCode {
    start_log(options.verbose, options.quiet);
    match resolve(options) {
        Ok(config) => say(&verb(&config), Some(config.format)),
        Err(usage) => say(&Report::new(Verdict::Usage, usage.to_string()), None),
    }
}

fn resolve(options: &Options) -> Result<Config, Usage> {
    let read = |path: &std::path::Path| read_here(path).map_err(|error| error.to_string());
    Config::resolve(options, |name| std::env::var_os(name), read)
}

#[cfg(feature = "watch")]
fn watch(given: libvirt_kvm_init::cli::WatchOptions) -> ExitCode {
    let mut options = given.options;
    options.watch = given.watch;
    start_log(options.verbose, options.quiet);
    let again = || resolve(&options);
    let config = match again() {
        Ok(config) if config.dry_run => Err(Usage("watch has no --dry-run: see check".to_owned())),
        config => config,
    };
    match config {
        Ok(config) => {
            let format = config.format;
            let told = |report: &Report| {
                let _ = say(report, Some(format));
            };
            say(&libvirt_kvm_init::watch::watch(config, again, told), None)
        }
        Err(usage) => say(&Report::new(Verdict::Usage, usage.to_string()), None),
    }
}

#[cfg(feature = "logs")]
fn logs(options: &libvirt_kvm_init::cli::LogOptions) -> ExitCode {
    use libvirt_kvm_init::{config, logs};
    start_log(options.verbose, options.quiet);
    let format = config::format(options.format.as_ref(), |name| std::env::var_os(name));
    let (report, text) = match format {
        Ok(format) => {
            let report = logs::run(&options.paths, options.quiet);
            let text = match format {
                Format::Json => report.to_json().unwrap_or_default(),
                _ => report.table(),
            };
            (report, text)
        }
        Err(usage) => {
            let report = logs::report::LogReport::failed(Verdict::Usage, usage.to_string());
            (report, String::new())
        }
    };
    let closing = (report.verdict != Verdict::Ok).then(|| report.closing_line());
    finish(&text, report.exit_code, Verdict::Failed.code(), closing)
}

/// Logs go to stderr as bare lines: container runtimes and journald add the time.
fn start_log(verbose: u8, quiet: bool) {
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
        writeln!(out, "{level}: {}", record.args())
    });
    builder.init();
}

/// The report on stdout, flushed; then, if something is wrong, one line on stderr that says what:
/// the last thing written, so that Kubernetes' FallbackToLogsOnError shows it.
fn say(report: &Report, format: Option<Format>) -> ExitCode {
    let text = match format {
        Some(Format::Table) => {
            let stdout = io::stdout();
            let colour = stdout.is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            table::table(report, colour)
        }
        Some(Format::Json) => report.to_json().unwrap_or_default(),
        Some(Format::Npd) => monitors::npd(report),
        Some(Format::Prometheus) => monitors::prometheus(report, SystemTime::now()),
        None => String::new(),
    };
    let (code, unwritten) = match format {
        Some(Format::Npd) => (monitors::npd_code(report), monitors::NPD_UNKNOWN),
        _ => (report.exit_code, Verdict::Failed.code()),
    };
    let closing = (report.verdict != Verdict::Ok).then(|| report.closing_line());
    finish(&text, code, unwritten, closing)
}

/// `unwritten` is the exit code for a report that could not be written.
fn finish(text: &str, mut code: u8, unwritten: u8, closing: Option<String>) -> ExitCode {
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
        // Whoever read the report has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => {
            let line = format!("libvirt-kvm-init: failed: write(stdout): {error}");
            let _ = writeln!(stderr, "{line}");
            code = unwritten;
        }
        Ok(()) => {}
    }
    ExitCode::from(code)
}
