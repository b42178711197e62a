//! The program: parses the command line, starts the log, runs the command, prints its report and exits.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use libvirt_kvm_init::cli::{self, Cli, Command};
use libvirt_kvm_init::commands::install::Installed;
#[cfg(feature = "logs")]
use libvirt_kvm_init::commands::logs;
use libvirt_kvm_init::commands::output::{noted_format, print_report, start_log};
use libvirt_kvm_init::commands::{apply, check, exec, install, run};
#[cfg(feature = "watch")]
use libvirt_kvm_init::commands::{ready, watch};
use libvirt_kvm_init::config::options::Flags;
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::sys::end_on_request;
#[cfg(feature = "watch")]
use libvirt_kvm_init::sys::end_well_on_request;
use libvirt_kvm_init::sys::privileges::{Job, Reduced, reduce};
use libvirt_kvm_init::sys::progress::Wait;
use libvirt_kvm_init::sys::supervise::{Ended, end_by, end_with_code, supervise};
use libvirt_kvm_init::text::escape_control;
use libvirt_kvm_init::verdict::Verdict;
use nix::sys::signal::Signal;

/// musl's own allocator makes a system call for almost every allocation, which takes a third of the time of a run that
/// only reads some files.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Runs the command in a child process, and reports in its place if that child hangs or is killed. `exec` forks by
/// itself, because this process has to become its command.
fn main() -> ExitCode {
    let name = std::env::args_os().nth(1).unwrap_or_default();
    let Some(job) = name.to_str().and_then(Job::of_command) else {
        return command(&Reduced::default()).into();
    };
    let reduced = reduce(job);
    let code = match supervise(|| command(&reduced)) {
        Ok(Ended::Exited(code)) => end_with_code(code),
        Ok(Ended::Killed(signal)) => {
            if signal == Signal::SIGKILL {
                report_failure(
                    "the worker process was killed by SIGKILL; check `dmesg` on the node for an out-of-memory \
                     kill"
                        .to_owned(),
                );
            }
            end_by(signal)
        }
        Ok(Ended::Hung(text)) => report_failure(text),
        Ok(Ended::Lost(error)) => report_failure(error.to_string()),
        // fork(2) failed, for example at pids.max: work without supervision.
        Err(error) => command(&reduced.with_warning(format!(
            "{error}; this run has no supervision: a file system that does not respond can block it forever"
        ))),
    };
    code.into()
}

/// Runs the command of the command line and returns the exit code.
fn command(reduced: &Reduced) -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match cli.command {
        #[cfg(feature = "watch")]
        Command::Watch(_) => end_well_on_request(),
        _ => end_on_request(),
    }
    let begin = |verbose, quiet| {
        start_log(verbose, quiet);
        reduced.log();
    };
    match cli.command {
        Command::Apply(options) => {
            begin(options.verbose, options.quiet);
            run(&options.flags, apply::apply)
        }
        Command::Check(options) => {
            begin(options.verbose, options.quiet);
            run(&options.flags, check::check)
        }
        Command::Exec(options) => exec::exec(&options.command, || {
            // In the child only, so that the command inherits all privileges of this process.
            end_on_request();
            start_log(options.apply.verbose, options.apply.quiet);
            reduce(Job::Apply).log();
            exec::align(&options.apply.flags, options.apply.quiet)
        }),
        Command::Install(options) => {
            begin(0, false);
            install::run(&options.directory, options.format.as_ref())
        }
        #[cfg(feature = "watch")]
        Command::Watch(options) => {
            begin(options.verbose, options.quiet);
            watch::run(&options.flags)
        }
        #[cfg(feature = "watch")]
        Command::Ready(options) => {
            begin(0, false);
            print_report(&ready::ready(&options.status_file), None)
        }
        #[cfg(feature = "logs")]
        Command::Logs(options) => {
            begin(options.verbose, options.quiet);
            logs::run(&options.paths, options.format.as_ref(), options.quiet)
        }
    }
}

/// Prints help or version if requested, else the reason why the command line cannot be parsed. Returns the exit
/// code.
fn refuse(error: &clap::Error) -> u8 {
    // A slow reader of stderr or stdout is not a hang.
    let _waits = Wait::begin();
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    if cli::is_without_command(error) {
        // The usage line contains argv[0].
        for line in error.to_string().lines() {
            let _ = writeln!(io::stderr(), "{}", escape_control(line));
        }
    }
    let args: Vec<_> = std::env::args_os().collect();
    let summary = cli::usage_error(error, &args);
    print_report(&Report::new(Verdict::Usage, summary), None)
}

/// Prints a `failed` report on behalf of a worker that hangs or was killed, and returns the exit code.
fn report_failure(text: String) -> u8 {
    let flags = match Cli::try_parse().map(|cli| cli.command) {
        Ok(Command::Install(options)) => {
            let report = Installed::failed(Verdict::Failed, &options.directory, text);
            return report.print(noted_format(options.format.as_ref()));
        }
        #[cfg(feature = "logs")]
        Ok(Command::Logs(options)) => {
            let report = logs::report::LogReport::failed(Verdict::Failed, text);
            return report.print(noted_format(options.format.as_ref()));
        }
        Ok(Command::Apply(options) | Command::Check(options)) => options.flags,
        #[cfg(feature = "watch")]
        Ok(Command::Watch(options)) => options.flags,
        _ => Flags::default(),
    };
    let format = noted_format(flags.get("format"));
    print_report(&Report::new(Verdict::Failed, text), format)
}
