//! The command line: verbs and options as text. What they mean is decided in `config`.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand};

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
    pub verb: Verb,
}

/// What the program can be asked to do.
///
/// Derived, each verb's options would be described to clap at every start, all seven times. So they are
/// when they are asked for: a tenth of the time of a run that finds all in order.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Verb {
    /// Align pod and device with the node's kvm GID.
    Apply(Options),
    /// The same without writing.
    Check(Options),
    /// Align, then become a command.
    Exec(ExecOptions),
    /// Put this binary into a volume.
    Install(InstallOptions),
    /// Apply, then keep it so.
    #[cfg(feature = "watch")]
    Watch(WatchOptions),
    /// Whether QEMU could open KVM when `watch` last tried.
    #[cfg(feature = "watch")]
    Ready(ReadyOptions),
    /// Find guests that could not start for want of KVM in logs.
    #[cfg(feature = "logs")]
    Logs(LogOptions),
}

/// A verb of this name, line in the list, and page of help.
fn verb<T: Args>(name: &'static str, about: &'static str, page: &'static str) -> Command {
    let verb = Command::new(name).about(about).after_help(page);
    verb.defer(arguments::<T>)
}

/// Describes the options. The description of the type that holds them is not the verb's.
fn arguments<T: Args>(verb: Command) -> Command {
    let about = verb.get_about().cloned();
    T::augment_args(verb).about(about.unwrap_or_default())
}

/// One whose options are too many for a column beside them.
fn wide<T: Args>(name: &'static str, about: &'static str, page: &'static str) -> Command {
    verb::<T>(name, about, page).next_line_help(true)
}

impl Subcommand for Verb {
    fn augment_subcommands(command: Command) -> Command {
        let command = command
            .subcommand_required(true)
            .arg_required_else_help(true);
        let command = command.subcommands([
            wide::<Options>(
                "apply",
                "Align pod and device with the node's kvm GID: the init step",
                help::APPLY,
            ),
            wide::<Options>(
                "check",
                "The same without writing: what is, what should be, what comes next",
                help::CHECK,
            ),
            wide::<ExecOptions>(
                "exec",
                "Align this container, then become a command: an entrypoint wrapper",
                help::EXEC,
            ),
            verb::<InstallOptions>(
                "install",
                "Put this binary into a volume, for images that do not contain it",
                help::INSTALL,
            ),
        ]);
        #[cfg(feature = "watch")]
        let command = command.subcommands([
            wide::<WatchOptions>(
                "watch",
                "Apply, then keep it so: heal drift when it happens",
                help::WATCH,
            ),
            verb::<ReadyOptions>(
                "ready",
                "Whether QEMU could open KVM when `watch` last tried: for probes",
                help::READY,
            ),
        ]);
        #[cfg(feature = "logs")]
        let command = command.subcommand(verb::<LogOptions>(
            "logs",
            "Find guests that could not start for want of KVM in logs",
            help::LOGS,
        ));
        command
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        Self::augment_subcommands(Command::new(""))
            .find_subcommand(name)
            .is_some()
    }
}

impl FromArgMatches for Verb {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Self::from_arg_matches_mut(&mut matches.clone())
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
        let Some((name, mut given)) = matches.remove_subcommand() else {
            return Err(clap::Error::new(ErrorKind::MissingSubcommand));
        };
        let given = &mut given;
        match name.as_str() {
            "apply" => Options::from_arg_matches_mut(given).map(Self::Apply),
            "check" => Options::from_arg_matches_mut(given).map(Self::Check),
            "exec" => ExecOptions::from_arg_matches_mut(given).map(Self::Exec),
            "install" => InstallOptions::from_arg_matches_mut(given).map(Self::Install),
            #[cfg(feature = "watch")]
            "watch" => WatchOptions::from_arg_matches_mut(given).map(Self::Watch),
            #[cfg(feature = "watch")]
            "ready" => ReadyOptions::from_arg_matches_mut(given).map(Self::Ready),
            #[cfg(feature = "logs")]
            "logs" => LogOptions::from_arg_matches_mut(given).map(Self::Logs),
            _ => Err(clap::Error::new(ErrorKind::InvalidSubcommand)),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The options of `exec`.
#[derive(Debug, Default, Args)]
#[allow(missing_docs, reason = "the help texts below are the documentation")]
pub struct ExecOptions {
    #[command(flatten)]
    pub apply: Options,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// The options of `install`.
#[derive(Debug, Default, Args)]
#[allow(missing_docs, reason = "the help texts below are the documentation")]
pub struct InstallOptions {
    /// The folder, in the volume
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// The report: table or json [default: table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// The options of `logs`.
#[cfg(feature = "logs")]
#[derive(Debug, Default, Args)]
#[allow(missing_docs, reason = "the help texts below are the documentation")]
pub struct LogOptions {
    /// Files and folders, or - for standard input
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
#[derive(Debug, Default, Args)]
#[allow(missing_docs, reason = "the help text below is the documentation")]
pub struct ReadyOptions {
    /// What watch was given as --status-file
    #[arg(value_name = "STATUS-FILE")]
    pub status_file: PathBuf,
}

/// The options of `watch`.
#[cfg(feature = "watch")]
#[derive(Debug, Default, Args)]
#[allow(missing_docs, reason = "the help texts below are the documentation")]
pub struct WatchOptions {
    #[command(flatten)]
    pub options: Options,
    #[command(flatten)]
    pub watch: WatchFlags,
}

/// The options that only `watch` has.
#[derive(Debug, Default, Clone, Args)]
#[allow(missing_docs, reason = "the help texts below are the documentation")]
pub struct WatchFlags {
    /// Look at everything again after this long without an event [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub recheck: Option<String>,
    /// Keep the state here, in Prometheus' text format
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<String>,
    /// Keep the report here, as JSON
    #[arg(long, value_name = "FILE")]
    pub status_file: Option<String>,
}

/// The options of `apply`. All are text here, and unset where the command line says nothing.
#[derive(Debug, Default, Args)]
#[allow(missing_docs, reason = "the help texts below are the documentation")]
pub struct Options {
    /// YAML file with any of these options as keys
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
    /// The device as libvirtd sees it [default: /dev/kvm]
    #[arg(long, value_name = "PATH")]
    pub device: Option<String>,
    /// Where the node's file system is seen [default: found]
    #[arg(long, value_name = "DIR")]
    pub host_root: Option<String>,
    /// The root whose passwd, group and qemu.conf libvirtd uses [default: /]
    #[arg(long, value_name = "DIR")]
    pub root: Option<String>,
    /// The group that shall own the device [default: kvm]
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// The number for it [default: what the node uses]
    #[arg(long, value_name = "GID")]
    pub gid: Option<String>,
    /// The device's exact mode [default: at least 0660]
    #[arg(long, value_name = "OCTAL")]
    pub mode: Option<String>,
    /// QEMU's user: a name, number or +number [default: from qemu.conf]
    #[arg(long, value_name = "USER")]
    pub qemu_user: Option<String>,
    /// QEMU's group: a name, number or +number [default: from qemu.conf]
    #[arg(long, value_name = "GROUP")]
    pub qemu_group: Option<String>,
    /// libvirt's qemu.conf [default: ROOT/etc/libvirt/qemu.conf]
    #[arg(long, value_name = "FILE")]
    pub qemu_conf: Option<String>,
    /// Write the aligned group file here and leave ROOT/etc/group alone
    #[arg(long, value_name = "FILE")]
    pub group_file_out: Option<String>,
    /// The proof: api-version, create-vm or off [default: api-version]
    #[arg(long, value_name = "HOW")]
    pub proof: Option<String>,
    /// What a node without KVM is: fail, or skip (exit 0) [default: fail]
    #[arg(long, value_name = "HOW")]
    pub missing: Option<String>,
    /// Wait up to this long for the device to hold still [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub settle: Option<String>,
    /// Refuse on collisions, disagreements and an unknown host root
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub strict: Option<String>,
    /// Also write a udev rule on the node where its udev would undo the state
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub persist: Option<String>,
    /// The report: table, json, npd or prometheus [default: table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Show what would be changed, and change nothing
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub dry_run: Option<String>,
    /// Say more on stderr
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say less on stderr
    #[arg(short, long)]
    pub quiet: bool,
    /// What `watch` has beyond these; as keys and variables every verb knows them.
    #[arg(skip)]
    pub watch: WatchFlags,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
