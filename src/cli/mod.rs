//! The command line: commands and options as text. What they mean is decided in `config`.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand};

use crate::config::options::{Flags, OPTIONS};

mod help;

/// Makes /dev/kvm usable by the QEMU user of a libvirt pod, and proves it.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 ok, 1 drift, 2 usage, 3 refused, 4 failed, 5 unproven, 6 absent"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can be asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Align pod and device with the node's kvm GID: the init step
    #[command(after_help = help::APPLY, next_line_help = true)]
    Apply(Options),
    /// The same without writing: what is, what should be, what comes next
    #[command(after_help = help::CHECK, next_line_help = true)]
    Check(Options),
    /// Align this container, then become a command: an entrypoint wrapper
    #[command(after_help = help::EXEC, next_line_help = true)]
    Exec(ExecOptions),
    /// Put this binary into a volume, for images that do not contain it
    #[command(after_help = help::INSTALL)]
    Install(InstallOptions),
    /// Apply, then keep it so: heal drift when it happens
    #[cfg(feature = "watch")]
    #[command(after_help = help::WATCH, next_line_help = true)]
    Watch(WatchOptions),
    /// Whether QEMU could open KVM when `watch` last tried: for probes
    #[cfg(feature = "watch")]
    #[command(after_help = help::READY)]
    Ready(ReadyOptions),
    /// Find guests that could not start for want of KVM in logs
    #[cfg(feature = "logs")]
    #[command(after_help = help::LOGS)]
    Logs(LogOptions),
}

/// The options of `exec`.
#[derive(Debug, Args)]
pub struct ExecOptions {
    #[command(flatten)]
    pub apply: Options,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// The options of `install`.
#[derive(Debug, Args)]
pub struct InstallOptions {
    /// The directory, in the volume
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The report: table or json [default: table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// The options of `logs`.
#[cfg(feature = "logs")]
#[derive(Debug, Args)]
pub struct LogOptions {
    /// Files and directories, or - for standard input
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// The report: table or json [default: table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Say more on stderr
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say less on stderr, and show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// The argument of `ready`.
#[cfg(feature = "watch")]
#[derive(Debug, Args)]
pub struct ReadyOptions {
    /// What watch was given as --status-file
    #[arg(value_name = "STATUS-FILE")]
    pub status_file: PathBuf,
}

/// The options of `apply`, from their table. All are text here, and unset where the command line says nothing.
#[derive(Debug, Default)]
pub struct Options {
    /// Those that have a variable and a key as well.
    pub flags: Flags,
    /// How often more on stderr was asked for.
    pub verbose: u8,
    /// Whether less on stderr was asked for.
    pub quiet: bool,
}

impl Args for Options {
    fn augment_args(command: clap::Command) -> clap::Command {
        // Only made for the command that is used.
        command.defer(|command| arguments(command, false))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn arguments(command: clap::Command, of_watch: bool) -> clap::Command {
    let given = |only_watch: bool| {
        OPTIONS
            .iter()
            .filter(move |option| option.only_watch == only_watch)
    };
    let verbose = Arg::new("verbose").short('v').long("verbose");
    let quiet = Arg::new("quiet").short('q').long("quiet");
    let command = command
        .args(given(false).map(|option| option.arg()))
        .arg(verbose.action(ArgAction::Count).help("Say more on stderr"))
        .arg(quiet.action(ArgAction::SetTrue).help("Say less on stderr"));
    match of_watch {
        true => command.args(given(true).map(|option| option.arg())),
        false => command,
    }
}

impl FromArgMatches for Options {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            flags: Flags::given(matches),
            verbose: matches.get_count("verbose"),
            quiet: matches.get_flag("quiet"),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The options of `watch`: those of `apply`, and its own.
#[cfg(feature = "watch")]
#[derive(Debug, Default)]
pub struct WatchOptions(pub Options);

#[cfg(feature = "watch")]
impl Args for WatchOptions {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.defer(|command| arguments(command, true))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

#[cfg(feature = "watch")]
impl FromArgMatches for WatchOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Options::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

/// What is wrong with the command line, in one line.
pub fn what_is_wrong(error: &clap::Error) -> String {
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
