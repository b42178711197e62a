//! The command: parse, log, run, report, exit.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser;
use libvirt_kvm_init::cli::{Cli, ExecOptions, InstallOptions, Options, Verb};
use libvirt_kvm_init::config::{self, Config, Format};
use libvirt_kvm_init::exit::{Usage, Verdict};
use libvirt_kvm_init::install::Installed;
use libvirt_kvm_init::report::{Report, plain};
use libvirt_kvm_init::sys::end_on_request;
#[cfg(feature = "watch")]
use libvirt_kvm_init::sys::end_well_on_request;
use libvirt_kvm_init::sys::privileges::{Job, reduce};
use libvirt_kvm_init::sys::progress::{self, Wait};
use libvirt_kvm_init::sys::root::read_here;
use libvirt_kvm_init::sys::supervise::{Ended, end_by, supervise};
use libvirt_kvm_init::{apply, check, exec, install, monitors, table};

/// musl's own allocator asks the kernel for memory at almost every turn, which is a third of the time
/// of a run that only reads some files.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Does the work in a process of its own, and reports in its place where that does not get on. `exec` sees to it itself: this process
/// becomes its command.
fn main() -> ExitCode {
    let verb = std::env::args_os().nth(1).unwrap_or_default();
    let job = job(&verb.to_string_lossy());
    job.into_iter().for_each(reduce);
    let code = match job {
        None => command(),
        Some(_) => match supervise(command) {
            Ok(Ended::Exited(code)) => code,
            Ok(Ended::Killed(signal)) => end_by(signal),
            Ok(Ended::Hung(text)) => report_hang(text),
            Ok(Ended::Lost(error)) => report_hang(error.to_string()),
            // No process is left (pids.max): the work counts more than its supervision.
            Err(_) => command(),
        },
    };
    ExitCode::from(code)
}

/// What a verb needs, for the process that supervises it.
fn job(verb: &str) -> Option<Job> {
    Some(match verb {
        "apply" => Job::Apply,
        "check" => Job::Check,
        "install" => Job::Install,
        "logs" => Job::Logs,
        "ready" => Job::Ready,
        "watch" => Job::Watch,
        _ => return None,
    })
}

/// The command line's work. Gives the exit code.
fn command() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers.
            if !error.use_stderr() {
                let _ = error.print();
                return 0;
            }
            // The rest repeats arguments.
            for line in error.to_string().lines() {
                let _ = writeln!(io::stderr(), "{}", plain(line));
            }
            return say(&Report::new(Verdict::Usage, why(&error)), None);
        }
    };
    match cli.verb {
        #[cfg(feature = "watch")]
        Verb::Watch(_) => end_well_on_request(),
        _ => end_on_request(),
    }
    match cli.verb {
        Verb::Apply(options) => run(&options, Job::Apply, apply::apply),
        Verb::Check(options) => run(&options, Job::Check, check::check),
        Verb::Exec(options) => exec(&options),
        Verb::Install(options) => install(&options),
        #[cfg(feature = "watch")]
        Verb::Watch(options) => watch(options),
        #[cfg(feature = "watch")]
        Verb::Ready(options) => {
            start_log(0, false);
            reduce(Job::Ready);
            say(&libvirt_kvm_init::ready::ready(&options.status_file), None)
        }
        #[cfg(feature = "logs")]
        Verb::Logs(options) => logs(&options),
    }
}

/// The report in the place of a worker that hangs.
fn report_hang(text: String) -> u8 {
    let env = |name: &str| std::env::var_os(name);
    let options = match Cli::try_parse().map(|cli| cli.verb) {
        Ok(Verb::Apply(options) | Verb::Check(options)) => Some(options),
        #[cfg(feature = "watch")]
        Ok(Verb::Watch(given)) => Some(given.options),
        Ok(Verb::Install(options)) => {
            let format = config::format(options.format.as_ref(), env);
            let report = Installed::failed(Verdict::Failed, &options.folder, text);
            return say_installed(&report, format.unwrap_or(Format::Table));
        }
        #[cfg(feature = "logs")]
        Ok(Verb::Logs(options)) => {
            let format = config::format(options.format.as_ref(), env);
            let report = libvirt_kvm_init::logs::report::LogReport::failed(Verdict::Failed, text);
            return say_found(&report, format.ok());
        }
        _ => None,
    };
    let format = match progress::note() {
        REPORTED => None,
        0 => options.and_then(|options| config::format(options.format.as_ref(), env).ok()),
        note => FORMATS
            .into_iter()
            .find(|format| *format as u64 + 1 == note),
    };
    say(&Report::new(Verdict::Failed, text), format)
}

const FORMATS: [Format; 4] = [Format::Table, Format::Json, Format::Npd, Format::Prometheus];

/// What a worker notes for the process that supervises it: in which format it will report, from 1 on, or that it has
/// reported.
const REPORTED: u64 = u64::MAX;

fn note_format(format: Format) {
    progress::set_note(format as u64 + 1);
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

/// A verb that looks at the device and reports on it.
fn run(options: &Options, job: Job, verb: impl Fn(&Config) -> Report) -> u8 {
    start_log(options.verbose, options.quiet);
    reduce(job);
    match resolve(options) {
        Ok(config) => {
            note_format(config.format);
            say(&verb(&config), Some(config.format))
        }
        Err(usage) => say(&Report::new(Verdict::Usage, usage.to_string()), None),
    }
}

fn resolve(options: &Options) -> Result<Config, Usage> {
    let read = |path: &std::path::Path| read_here(path).map_err(|error| error.to_string());
    Config::resolve(options, |name| std::env::var_os(name), read)
}

/// Aligns in a child, and becomes the command.
fn exec(options: &ExecOptions) -> u8 {
    let ending = exec::exec(&options.command, || align(&options.apply));
    if let Some(text) = ending.text {
        let line = plain(&format!("libvirt-kvm-init: {text}"));
        let _ = writeln!(io::stderr(), "{line}");
    }
    ending.code
}

/// The child's part: all is said on stderr, since stdout is the command's. Where nobody reads that, the
/// command is started all the same. Only this child gives up what it does not need.
fn align(options: &Options) -> u8 {
    end_on_request();
    start_log(options.verbose, options.quiet);
    reduce(Job::Apply);
    let (report, format) = match resolve(options).and_then(exec::configure) {
        Ok(config) => (apply::apply(&config), Some(config.format)),
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

fn install(options: &InstallOptions) -> u8 {
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
    say_installed(&report, format)
}

fn say_installed(report: &Installed, format: Format) -> u8 {
    let text = match format {
        Format::Json => report.to_json().unwrap_or_default(),
        _ => report.line(),
    };
    let closing = (report.verdict != Verdict::Ok).then(|| report.closing_line());
    finish(&text, report.exit_code, Verdict::Failed.code(), closing)
}

#[cfg(feature = "watch")]
fn watch(given: libvirt_kvm_init::cli::WatchOptions) -> u8 {
    let mut options = given.options;
    options.watch = given.watch;
    start_log(options.verbose, options.quiet);
    reduce(Job::Watch);
    let again = || match resolve(&options) {
        Ok(config) if config.dry_run => Err(Usage("watch has no --dry-run: see check".to_owned())),
        config => config,
    };
    match again() {
        Ok(config) => {
            let format = config.format;
            note_format(format);
            let told = |report: &Report| {
                let _ = say(report, Some(format));
            };
            say(&libvirt_kvm_init::watch::watch(config, again, told), None)
        }
        Err(usage) => {
            libvirt_kvm_init::watch::not_begun(&options, |name| std::env::var_os(name));
            say(&Report::new(Verdict::Usage, usage.to_string()), None)
        }
    }
}

#[cfg(feature = "logs")]
fn logs(options: &libvirt_kvm_init::cli::LogOptions) -> u8 {
    use libvirt_kvm_init::logs;
    start_log(options.verbose, options.quiet);
    reduce(Job::Logs);
    let format = config::format(options.format.as_ref(), |name| std::env::var_os(name));
    match format {
        Ok(format) => say_found(&logs::run(&options.paths, options.quiet), Some(format)),
        Err(usage) => {
            let report = logs::report::LogReport::failed(Verdict::Usage, usage.to_string());
            say_found(&report, None)
        }
    }
}

#[cfg(feature = "logs")]
fn say_found(report: &libvirt_kvm_init::logs::report::LogReport, format: Option<Format>) -> u8 {
    let text = match format {
        Some(Format::Json) => report.to_json().unwrap_or_default(),
        Some(_) => report.table(),
        None => String::new(),
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
        writeln!(out, "{level}: {}", plain(&record.args().to_string()))
    });
    builder.target(env_logger::Target::Pipe(Box::new(Stderr)));
    builder.init();
}

/// Standard error, whose reader may take their time.
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

/// The report on stdout, flushed; then, if something is wrong, one line on stderr that says what:
/// the last thing written, so that Kubernetes' FallbackToLogsOnError shows it.
fn say(report: &Report, format: Option<Format>) -> u8 {
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
fn finish(text: &str, mut code: u8, unwritten: u8, closing: Option<String>) -> u8 {
    progress::set_note(REPORTED);
    // Whoever reads it may take their time.
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
        // Whoever read the report has seen enough.
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
