//! The command: parse, log, run, report, exit.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser;
use libvirt_kvm_init::cli::{Cli, Command, ExecOptions, InstallOptions, Options};
use libvirt_kvm_init::commands::install::Installed;
use libvirt_kvm_init::commands::{apply, check, exec, install};
use libvirt_kvm_init::config::{self, Format, Output};
#[cfg(feature = "watch")]
use libvirt_kvm_init::error::Error;
use libvirt_kvm_init::error::Result;
use libvirt_kvm_init::pipeline::Request;
use libvirt_kvm_init::report::{Report, monitors, table};
use libvirt_kvm_init::sys::end_on_request;
#[cfg(feature = "watch")]
use libvirt_kvm_init::sys::end_well_on_request;
use libvirt_kvm_init::sys::privileges::{Job, reduce};
use libvirt_kvm_init::sys::root::read_here;
use libvirt_kvm_init::text::escape_control;
use libvirt_kvm_init::verdict::Verdict;

/// musl's own allocator asks the kernel for memory at almost every turn, which is a third of the time
/// of a run that only reads some files.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers.
            if !error.use_stderr() {
                let _ = error.print();
                return ExitCode::SUCCESS;
            }
            // The rest repeats arguments.
            for line in error.to_string().lines() {
                let _ = writeln!(io::stderr(), "{}", escape_control(line));
            }
            return say(&Report::new(Verdict::Usage, why(&error)), None);
        }
    };
    match cli.command {
        #[cfg(feature = "watch")]
        Command::Watch(_) => end_well_on_request(),
        _ => end_on_request(),
    }
    match cli.command {
        Command::Apply(options) => run(&options, Job::Apply, apply::apply),
        Command::Check(options) => run(&options, Job::Check, check::check),
        Command::Exec(options) => exec(&options),
        Command::Install(options) => install(&options),
        #[cfg(feature = "watch")]
        Command::Watch(options) => watch(&options.0),
        #[cfg(feature = "watch")]
        Command::Ready(options) => {
            start_log(0, false);
            reduce(Job::Ready);
            say(
                &libvirt_kvm_init::commands::ready::ready(&options.status_file),
                None,
            )
        }
        #[cfg(feature = "logs")]
        Command::Logs(options) => logs(&options),
    }
}

/// What is wrong with the command line, in one line.
fn why(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines();
    let first = lines.next().and_then(|line| line.strip_prefix("error: "));
    match first {
        None => "a command is missing, see --help".to_owned(),
        // What is missing is on the next line.
        Some(first) if first.ends_with(':') => {
            format!("{first} {}", lines.next().unwrap_or_default().trim())
        }
        Some(first) => first.to_owned(),
    }
}

/// A command that looks at the device and reports on it.
fn run(options: &Options, job: Job, command: impl Fn(&Request) -> Report) -> ExitCode {
    start_log(options.verbose, options.quiet);
    reduce(job);
    match resolve(options) {
        Ok((request, output)) => say(&command(&request), Some(output.format)),
        Err(usage) => say(&Report::new(Verdict::Usage, usage.to_string()), None),
    }
}

fn resolve(options: &Options) -> Result<(Request, Output)> {
    let read = |path: &std::path::Path| read_here(path).map_err(|error| error.to_string());
    Request::resolve(&options.flags, |name| std::env::var_os(name), read)
}

/// Aligns in a child, and becomes the command.
fn exec(options: &ExecOptions) -> ExitCode {
    let ending = exec::exec(&options.command, || align(&options.apply));
    if let Some(text) = ending.text {
        let line = escape_control(&format!("libvirt-kvm-init: {text}"));
        let _ = writeln!(io::stderr(), "{line}");
    }
    ExitCode::from(ending.code)
}

/// The child's part: all is said on stderr, since stdout is the command's. Where nobody reads that, the
/// command is started all the same. Only this child gives up what it does not need.
fn align(options: &Options) -> u8 {
    start_log(options.verbose, options.quiet);
    reduce(Job::Apply);
    let resolved = resolve(options).and_then(|(request, output)| {
        exec::configure(request).map(|request| (request, output.format))
    });
    let (report, format) = match resolved {
        Ok((request, format)) => (apply::apply(&request), Some(format)),
        Err(usage) => (Report::new(Verdict::Usage, usage.to_string()), None),
    };
    let mut text = String::new();
    let ok = report.verdict == Verdict::Ok;
    if !(ok && options.quiet) {
        text = render(&report, format, io::stderr().is_terminal());
    }
    if !ok {
        text = format!("{text}{}\n", report.closing_line());
    }
    let _ = io::stderr().write_all(text.as_bytes());
    report.exit_code
}

fn install(options: &InstallOptions) -> ExitCode {
    start_log(0, false);
    reduce(Job::Install);
    let format = config::format(options.format.as_ref(), |name| std::env::var_os(name));
    let (report, format) = match format {
        Ok(format) => (install::install(&options.folder), format),
        Err(usage) => {
            let usage = usage.to_string();
            let report = Installed::failed(Verdict::Usage, &options.folder, usage);
            (report, Format::Table)
        }
    };
    let text = match format {
        Format::Json => report.to_json().unwrap_or_default(),
        _ => report.line(),
    };
    let closing = (report.verdict != Verdict::Ok).then(|| report.closing_line());
    finish(&text, report.exit_code, Verdict::Failed.code(), closing)
}

#[cfg(feature = "watch")]
fn watch(options: &Options) -> ExitCode {
    start_log(options.verbose, options.quiet);
    reduce(Job::Watch);
    let again = || match resolve(options) {
        Ok((request, _)) if request.dry_run => {
            Err(Error::Usage("watch has no --dry-run: see check".to_owned()))
        }
        resolved => resolved,
    };
    match again() {
        Ok((request, output)) => {
            let format = output.format;
            let told = |report: &Report| {
                let _ = say(report, Some(format));
            };
            say(
                &libvirt_kvm_init::commands::watch::watch(request, output, again, told),
                None,
            )
        }
        Err(usage) => {
            libvirt_kvm_init::commands::watch::not_begun(&options.flags, |name| {
                std::env::var_os(name)
            });
            say(&Report::new(Verdict::Usage, usage.to_string()), None)
        }
    }
}

#[cfg(feature = "logs")]
fn logs(options: &libvirt_kvm_init::cli::LogOptions) -> ExitCode {
    use libvirt_kvm_init::commands::logs;
    start_log(options.verbose, options.quiet);
    reduce(Job::Logs);
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
        // What is logged may hold names from files of others.
        writeln!(
            out,
            "{level}: {}",
            escape_control(&record.args().to_string())
        )
    });
    builder.init();
}

/// The report on stdout, flushed; then, if something is wrong, one line on stderr that says what:
/// the last thing written, so that Kubernetes' FallbackToLogsOnError shows it.
fn say(report: &Report, format: Option<Format>) -> ExitCode {
    let text = render(report, format, io::stdout().is_terminal());
    let (code, unwritten) = match format {
        Some(Format::Npd) => (monitors::npd_code(report), monitors::NPD_UNKNOWN),
        _ => (report.exit_code, Verdict::Failed.code()),
    };
    let closing = (report.verdict != Verdict::Ok).then(|| report.closing_line());
    finish(&text, code, unwritten, closing)
}

fn render(report: &Report, format: Option<Format>, terminal: bool) -> String {
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
