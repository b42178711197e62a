//! The program: parse, start the log, dispatch, print, exit.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use libvirt_kvm_init::cli::{self, Cli, Command};
use libvirt_kvm_init::commands::install::Installed;
#[cfg(feature = "logs")]
use libvirt_kvm_init::commands::logs;
use libvirt_kvm_init::commands::output::{noted_format, say, start_log};
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

/// musl's own allocator asks the kernel for memory at almost every turn, which is a third of the time
/// of a run that only reads some files.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Does the work in a process of its own, and reports in its place where that hangs. `exec` starts one itself: this
/// process becomes its command.
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
                    "the process that does the work was ended by SIGKILL; see `dmesg` on the node for an \
                     out-of-memory kill"
                        .to_owned(),
                );
            }
            end_by(signal)
        }
        Ok(Ended::Hung(text)) => report_failure(text),
        Ok(Ended::Lost(error)) => report_failure(error.to_string()),
        // No process is left (pids.max): the work counts more than its supervision.
        Err(error) => command(&reduced.with_warning(format!(
            "{error}: a file system that does not answer will keep this process from ending"
        ))),
    };
    code.into()
}

/// The command line's work. Gives the exit code.
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
            // Only this child gives up what it does not need.
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
            begin(options.0.verbose, options.0.quiet);
            watch::run(&options.0.flags)
        }
        #[cfg(feature = "watch")]
        Command::Ready(options) => {
            begin(0, false);
            say(&ready::ready(&options.status_file), None)
        }
        #[cfg(feature = "logs")]
        Command::Logs(options) => {
            begin(options.verbose, options.quiet);
            logs::run(&options.paths, options.format.as_ref(), options.quiet)
        }
    }
}

/// Answers a command line that cannot be parsed, or asks for help.
fn refuse(error: &clap::Error) -> u8 {
    // Its reader may take a long time.
    let _waits = Wait::begin();
    // Help and version are answers.
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    // The rest repeats arguments.
    for line in error.to_string().lines() {
        let _ = writeln!(io::stderr(), "{}", escape_control(line));
    }
    say(
        &Report::new(Verdict::Usage, cli::what_is_wrong(error)),
        None,
    )
}

/// The report in the place of a worker that cannot give one.
fn report_failure(text: String) -> u8 {
    let flags = match Cli::try_parse().map(|cli| cli.command) {
        Ok(Command::Install(options)) => {
            let report = Installed::failed(Verdict::Failed, &options.directory, text);
            return report.say(noted_format(options.format.as_ref()));
        }
        #[cfg(feature = "logs")]
        Ok(Command::Logs(options)) => {
            let report = logs::report::LogReport::failed(Verdict::Failed, text);
            return report.say(noted_format(options.format.as_ref()));
        }
        Ok(Command::Apply(options) | Command::Check(options)) => options.flags,
        #[cfg(feature = "watch")]
        Ok(Command::Watch(options)) => options.0.flags,
        _ => Flags::default(),
    };
    let format = noted_format(flags.get("format"));
    say(&Report::new(Verdict::Failed, text), format)
}
