//! The command line: commands and options as unparsed text. `config` parses and checks the values.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::options::{Flags, OPTIONS};
use crate::text::escape_control;

mod help;

/// Makes /dev/kvm usable by the QEMU user of a libvirt pod, tested as that user.
#[derive(Debug, Parser)]
#[command(version, about, disable_help_subcommand = true, after_help = help::PROGRAM)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Align the pod and the device with the node's kvm GID (init step)
    #[command(after_help = help::APPLY, next_line_help = true)]
    Apply(Options),
    /// Dry run: show current and target state, and what udev will do next
    #[command(after_help = help::CHECK, next_line_help = true)]
    Check(Options),
    /// Run apply, then exec a command (entrypoint wrapper)
    #[command(after_help = help::EXEC, next_line_help = true)]
    Exec(ExecOptions),
    /// Copy this binary into a volume, for images that do not contain it
    #[command(after_help = help::INSTALL)]
    Install(InstallOptions),
    /// Run apply, then watch for drift and repair it
    #[cfg(feature = "watch")]
    #[command(after_help = help::WATCH, next_line_help = true)]
    Watch(Options),
    /// Readiness probe: exit 0 if QEMU can open KVM, as tested by `watch`
    #[cfg(feature = "watch")]
    #[command(after_help = help::READY)]
    Ready(ReadyOptions),
    /// Search logs for guests that failed to start with a KVM access error
    #[cfg(feature = "logs")]
    #[command(after_help = help::LOGS)]
    Logs(LogOptions),
}

#[derive(Debug, Args)]
pub struct ExecOptions {
    #[command(flatten)]
    pub apply: Options,
    /// Command to run, with its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct InstallOptions {
    /// Directory in the volume that receives the binary
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Report format: table or json [default: table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

#[cfg(feature = "logs")]
#[derive(Debug, Args)]
pub struct LogOptions {
    /// Files and directories to search, or - for standard input
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Report format: table or json [default: table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Log more on stderr
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Log less on stderr, and show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

#[cfg(feature = "watch")]
#[derive(Debug, Args)]
pub struct ReadyOptions {
    /// File that a running watch maintains with --status-file
    #[arg(value_name = "STATUS-FILE")]
    pub status_file: PathBuf,
}

/// The options of `apply`, `check`, `exec` and `watch`, as text; an option that is not on the command line is unset.
#[derive(Debug, Default)]
pub struct Options {
    /// The options that can also be set by the environment or the configuration file.
    pub flags: Flags,
    /// The number of `-v` flags.
    pub verbose: u8,
    pub quiet: bool,
}

impl Args for Options {
    fn augment_args(command: clap::Command) -> clap::Command {
        // Deferred, so that clap builds the options only for the command that is used.
        command.defer(arguments)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// Whether the command runs until a signal or becomes another program, and so cannot be a dry run.
fn refuses_dry_run(command: &str) -> bool {
    matches!(command, "exec" | "watch")
}

fn arguments(command: clap::Command) -> clap::Command {
    let name = command.get_name().to_owned();
    let options = |only_watch: bool| {
        OPTIONS
            .iter()
            .filter(move |option| option.only_watch == only_watch)
    };
    let shared = options(false);
    let shared = shared.filter(|option| option.name != "dry-run" || !refuses_dry_run(&name));
    let verbose = Arg::new("verbose").short('v').long("verbose");
    let quiet = Arg::new("quiet").short('q').long("quiet");
    let command = command
        .args(shared.map(|option| option.arg()))
        .arg(verbose.action(ArgAction::Count).help("Log more on stderr"))
        .arg(quiet.action(ArgAction::SetTrue).help("Log less on stderr"));
    match name == "watch" {
        true => command.args(options(true).map(|option| option.arg())),
        false => command,
    }
}

impl FromArgMatches for Options {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            flags: Flags::from_matches(matches),
            verbose: matches.get_count("verbose"),
            quiet: matches.get_flag("quiet"),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The sentence for a command line that clap rejects: clap's message, its tips, and the help to read. `args` is the
/// whole command line, with the program's name.
pub fn usage_error(error: &clap::Error, args: &[OsString]) -> String {
    // clap repeats arguments: without control characters, none can look like a line of clap's own.
    let visible = args
        .iter()
        .map(|arg| escape_control(&arg.to_string_lossy()));
    let reparsed = Cli::try_parse_from(visible).err();
    let error = reparsed.as_ref().unwrap_or(error);
    let first = args.get(1);
    let is_command = |name: &&str| Cli::command().find_subcommand(name).is_some();
    let command = first.and_then(|arg| arg.to_str()).filter(is_command);
    let argument = error.get(ContextKind::InvalidArg);
    let is_dry_run = argument == Some(&ContextValue::String("--dry-run".to_owned()));
    if let Some(command) = command.filter(|name| is_dry_run && refuses_dry_run(name)) {
        return format!("--dry-run cannot be used with {command}; use `check`");
    }
    let help = match command {
        Some(command) => format!("run `libvirt-kvm-init {command} --help` for the options"),
        None => "run `libvirt-kvm-init --help` for the commands".to_owned(),
    };
    if is_without_command(error) {
        return format!("no command given; {help}");
    }
    // clap separates its message, its tips, the usage and the pointer to --help by empty lines.
    let text = error.to_string();
    let mut parts = text.trim_end().split("\n\n");
    let message = parts.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    // Missing arguments are listed on indented lines.
    let mut sentence = message.replace("\n  ", " ");
    if error.kind() == ErrorKind::InvalidSubcommand {
        sentence = sentence.replacen("unrecognized subcommand", "unknown command", 1);
    }
    for tip in parts.flat_map(str::lines) {
        if let Some(tip) = tip.strip_prefix("  tip: ") {
            sentence = format!("{sentence}; {tip}");
        }
    }
    format!("{sentence}; {help}")
}

/// Whether the command line contains no command, so that clap's text is the whole help.
pub fn is_without_command(error: &clap::Error) -> bool {
    error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_mistake_in_the_definition_of_the_command_line() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_fits_80_columns() {
        let command = Cli::command();
        let names = command.get_subcommands().map(|one| Some(one.get_name()));
        for name in names.chain([None]) {
            let line = ["libvirt-kvm-init"].into_iter().chain(name);
            let help = Cli::try_parse_from(line.chain(["--help"])).unwrap_err();
            for line in help.to_string().lines() {
                assert!(line.chars().count() <= 80, "{name:?}: {line}");
            }
        }
    }

    fn usage_error_of(line: &[&str]) -> String {
        let args = ["libvirt-kvm-init"].iter().chain(line);
        let args: Vec<_> = args.map(OsString::from).collect();
        let error = Cli::try_parse_from(&args).unwrap_err();
        usage_error(&error, &args)
    }

    #[test]
    fn usage_errors_are_one_line_that_states_the_mistake_once() {
        let table: &[(&[&str], &str, &str)] = &[
            (
                &["apply", "--foo"],
                "unexpected argument '--foo' found",
                "apply",
            ),
            (
                &["apply", "stray"],
                "unexpected argument 'stray' found",
                "apply",
            ),
            (
                &["check", "--gdi=1"],
                "unexpected argument '--gdi' found",
                "check",
            ),
            (
                &["apply", "--gid"],
                "a value is required for '--gid <GID>' but none was supplied",
                "apply",
            ),
            (
                &["apply", "--strict", "--strict"],
                "the argument '--strict[=<BOOL>]' cannot be used multiple times",
                "apply",
            ),
            (
                &["exec", "--gid=5"],
                "the following required arguments were not provided: <CMD>...",
                "exec",
            ),
            (
                &["install"],
                "the following required arguments were not provided: <DIR>",
                "install",
            ),
            (&["frobnicate"], "unknown command 'frobnicate'", ""),
            (&["--foo", "apply"], "unexpected argument '--foo' found", ""),
            (&[], "no command given", ""),
        ];
        for (line, message, command) in table {
            let text = usage_error_of(line);
            let help = match *command {
                "" => "run `libvirt-kvm-init --help` for the commands".to_owned(),
                command => format!("run `libvirt-kvm-init {command} --help` for the options"),
            };
            assert_eq!(text, format!("{message}; {help}"), "{line:?}");
        }
    }

    #[test]
    fn dry_run_is_no_option_of_exec_and_watch() {
        let commands = [
            "exec",
            #[cfg(feature = "watch")]
            "watch",
        ];
        for command in commands {
            for flag in ["--dry-run", "--dry-run=true"] {
                let want = format!("--dry-run cannot be used with {command}; use `check`");
                assert_eq!(usage_error_of(&[command, flag]), want);
            }
            let help = Cli::try_parse_from(["libvirt-kvm-init", command, "--help"]).unwrap_err();
            assert!(!help.to_string().contains("--dry-run[=<BOOL>]"), "{help}");
        }
    }

    #[cfg(feature = "logs")]
    #[test]
    fn usage_errors_contain_the_tips_of_clap() {
        assert_eq!(
            usage_error_of(&["logs", "--formt=x"]),
            "unexpected argument '--formt' found; to pass '--formt' as a value, use '-- --formt'; \
             run `libvirt-kvm-init logs --help` for the options"
        );
    }

    #[test]
    fn arguments_cannot_add_a_tip() {
        assert_eq!(
            usage_error_of(&["apply", "--a\n\n  tip: run rm -rf\n\nx"]),
            "unexpected argument '--a\\n\\n  tip: run rm -rf\\n\\nx' found; \
             run `libvirt-kvm-init apply --help` for the options"
        );
    }

    #[test]
    fn control_characters_of_arguments_stay_escaped_in_the_closing_line() {
        let text = usage_error_of(&["apply", "--a\nb\x1b[2J"]);
        let report = crate::report::Report::new(crate::verdict::Verdict::Usage, text);
        assert_eq!(
            report.closing_line(),
            "libvirt-kvm-init: usage: unexpected argument '--a\\nb\\u{1b}[2J' found; \
             run `libvirt-kvm-init apply --help` for the options"
        );
    }
}
