//! The command: parse, log, run, report, exit.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser;
use libvirt_kvm_init::cli::{Cli, Options, Verb};
use libvirt_kvm_init::config::{Config, Format};
use libvirt_kvm_init::exit::Verdict;
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::sys::end_on_request;
use libvirt_kvm_init::sys::root::read_here;
use libvirt_kvm_init::{apply, check, monitors, table};

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
    let options = cli.verb.options();
    start_log(options);
    end_on_request();
    let read = |path: &std::path::Path| read_here(path).map_err(|error| error.to_string());
    let config = match Config::resolve(options, |name| std::env::var_os(name), read) {
        Ok(config) => config,
        Err(usage) => return say(&Report::new(Verdict::Usage, usage.to_string()), None),
    };
    let report = match cli.verb {
        Verb::Apply(_) => apply::apply(&config),
        Verb::Check(_) => check::check(&config),
    };
    say(&report, Some(config.format))
}

/// Logs go to stderr as bare lines: container runtimes and journald add the time.
fn start_log(options: &Options) {
    let level = match (options.quiet, options.verbose) {
        (true, _) => log::LevelFilter::Error,
        (false, 0) => log::LevelFilter::Info,
        (false, _) => log::LevelFilter::Debug,
    };
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level);
    if options.verbose == 0 && !options.quiet {
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
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    drop(stdout);
    let mut code = match format {
        Some(Format::Npd) => monitors::npd_code(report),
        _ => report.exit_code,
    };
    let mut stderr = io::stderr().lock();
    match written {
        // Whoever read the report has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => {
            let line = format!("libvirt-kvm-init: failed: write(stdout): {error}");
            let _ = writeln!(stderr, "{line}");
            code = Verdict::Failed.code();
        }
        Ok(()) => {}
    }
    if report.verdict != Verdict::Ok {
        let _ = writeln!(stderr, "{}", report.closing_line());
    }
    ExitCode::from(code)
}
