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
                let _ = writeln!(io::stderr(), "{}", plain(line));
            }
            return ExitCode::from(say(&Report::new(Verdict::Usage, why(&error)), None));
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
            let work = || say(&libvirt_kvm_init::ready::ready(&options.status_file), None);
            supervised(work, |text| say(&Report::new(Verdict::Failed, text), None))
        }
        #[cfg(feature = "logs")]
        Verb::Logs(options) => logs(&options),
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

/// A verb that looks at the device and reports on it.
fn run(options: &Options, job: Job, verb: impl Fn(&Config) -> Report) -> ExitCode {
    start_log(options.verbose, options.quiet);
    reduce(job);
    let work = || match resolve(options) {
        Ok(config) => {
            note_format(config.format);
            say(&verb(&config), Some(config.format))
        }
        Err(usage) => say(&Report::new(Verdict::Usage, usage.to_string()), None),
    };
    supervised(work, |text| report_hang(options, text))
}

/// Does `work` in a process of its own. Where that one does not get on, `failed` reports the reason in its place.
fn supervised(work: impl Fn() -> u8, failed: impl FnOnce(String) -> u8) -> ExitCode {
    let code = match supervise(&work) {
        Ok(Ended::Exited(code)) => code,
        Ok(Ended::Killed(signal)) => end_by(signal),
        Ok(Ended::Hung(text)) => failed(text),
        Ok(Ended::Lost(error)) => failed(error.to_string()),
        // No process is left (pids.max): what may wait for ever is better than nothing.
        Err(error) => {
            log::debug!("{error}: nothing supervises this run");
            work()
        }
    };
    ExitCode::from(code)
}

/// The report in the place of a worker that hangs. Where that one has written its own (`watch`), only the last line.
fn report_hang(options: &Options, text: String) -> u8 {
    let report = Report::new(Verdict::Failed, text);
    let noted = FORMATS.get(usize::try_from(progress::note()).unwrap_or(usize::MAX));
    let format = match noted {
        Some(Some(format)) => Some(*format),
        Some(None) => config::format(options.format.as_ref(), |name| std::env::var_os(name)).ok(),
        None => None,
    };
    say(&report, format)
}

/// What the worker notes for the process that supervises it, by its place here: in which format it will report. Any other
/// number: that it has reported.
const FORMATS: [Option<Format>; 5] = [
    None,
    Some(Format::Table),
    Some(Format::Json),
    Some(Format::Npd),
    Some(Format::Prometheus),
];

fn note_format(format: Format) {
    let place = FORMATS.iter().position(|known| *known == Some(format));
    progress::set_note(place.map_or(0, |place| place as u64));
}

fn resolve(options: &Options) -> Result<Config, Usage> {
    let read = |path: &std::path::Path| read_here(path).map_err(|error| error.to_string());
    Config::resolve(options, |name| std::env::var_os(name), read)
}

/// Aligns in a child, and becomes the command.
fn exec(options: &ExecOptions) -> ExitCode {
    let ending = exec::exec(&options.command, || align(&options.apply));
    if let Some(text) = ending.text {
        let line = plain(&format!("libvirt-kvm-init: {text}"));
        let _ = writeln!(io::stderr(), "{line}");
    }
    ExitCode::from(ending.code)
}

/// The child's part: all is said on stderr, since stdout is the command's. Where nobody reads that, the
/// command is started all the same. Only this child gives up what it does not need.
fn align(options: &Options) -> u8 {
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

fn install(options: &InstallOptions) -> ExitCode {
    start_log(0, false);
    reduce(Job::Install);
    let format = config::format(options.format.as_ref(), |name| std::env::var_os(name));
    let failed = |verdict, text| Installed::failed(verdict, &options.folder, text);
    match format {
        Ok(format) => supervised(
            || say_installed(&install::install(&options.folder), format),
            |text| say_installed(&failed(Verdict::Failed, text), format),
        ),
        Err(usage) => {
            let report = failed(Verdict::Usage, usage.to_string());
            ExitCode::from(say_installed(&report, Format::Table))
        }
    }
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
fn watch(given: libvirt_kvm_init::cli::WatchOptions) -> ExitCode {
    let mut options = given.options;
    options.watch = given.watch;
    start_log(options.verbose, options.quiet);
    reduce(Job::Watch);
    let again = || match resolve(&options) {
        Ok(config) if config.dry_run => Err(Usage("watch has no --dry-run: see check".to_owned())),
        config => config,
    };
    let work = || match again() {
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
    };
    supervised(work, |text| report_hang(&options, text))
}

#[cfg(feature = "logs")]
fn logs(options: &libvirt_kvm_init::cli::LogOptions) -> ExitCode {
    use libvirt_kvm_init::logs::{self, report::LogReport};
    start_log(options.verbose, options.quiet);
    reduce(Job::Logs);
    let say = |report: &LogReport, format: Option<Format>| {
        let text = match format {
            Some(Format::Json) => report.to_json().unwrap_or_default(),
            Some(_) => report.table(),
            None => String::new(),
        };
        let closing = (report.verdict != Verdict::Ok).then(|| report.closing_line());
        finish(&text, report.exit_code, Verdict::Failed.code(), closing)
    };
    let failed = LogReport::failed;
    match config::format(options.format.as_ref(), |name| std::env::var_os(name)) {
        Ok(format) => supervised(
            || say(&logs::run(&options.paths, options.quiet), Some(format)),
            |text| say(&failed(Verdict::Failed, text), Some(format)),
        ),
        Err(usage) => ExitCode::from(say(&failed(Verdict::Usage, usage.to_string()), None)),
    }
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
    progress::set_note(u64::MAX);
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
