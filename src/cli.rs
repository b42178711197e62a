//! The command line: verbs and options as text. What they mean is decided in `config`.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Verb {
    /// Align pod and device with the node's kvm GID: the init step
    #[command(
        next_line_help = true,
        after_help = "\
Every option can also be given as an environment variable (--host-root as
LIBVIRT_KVM_INIT_HOST_ROOT) and as a key of the --config file (host-root).
A flag beats the environment, which beats the file.

Examples:
  libvirt-kvm-init apply
      in the libvirt image, before libvirtd; by hand on a node
  libvirt-kvm-init apply --host-root /mnt/host-rootfs --settle 30s
      after a step that reloads the KVM module
  libvirt-kvm-init apply --dry-run --format json
      what would be changed, for a program

Exit codes: 0 ok, 1 drift (--dry-run), 2 usage, 3 refused, 4 failed, 5 unproven,
6 absent"
    )]
    Apply(Options),
    /// The same without writing: what is, what should be, what comes next
    #[command(
        next_line_help = true,
        after_help = "\
Takes apply's options, in the same three ways. On a node where libvirtd runs in
a container it looks at that container's files, so that the report shows the
node's view and the pod's.

Examples:
  libvirt-kvm-init check
      first thing in an incident: in the libvirt container, or on the node
  libvirt-kvm-init check --format npd
      as a custom plugin of node-problem-detector
  libvirt-kvm-init check --format prometheus > FILE
      for the textfile collector

Exit codes: 0 ok, 1 drift, 2 usage, 3 refused, 4 failed, 5 unproven, 6 absent"
    )]
    Check(Options),
    /// Align this container, then become a command: an entrypoint wrapper
    #[command(
        next_line_help = true,
        after_help = "\
Takes apply's options but --dry-run, in the same three ways. Stdout is the
command's: the report goes to stderr. The command is only started once apply
ended with 0, and finds itself as if it had been started without this program.

Examples:
  libvirt-kvm-init exec -- /tmp/libvirt.sh
      before the command of the libvirt container
  libvirt-kvm-init exec --host-root /mnt/host-rootfs --settle 30s -- libvirtd -l
      with apply's options

Exit codes: apply's, and 126 for a command that cannot run, 127 for one that
is not there; else the command's"
    )]
    Exec(ExecOptions),
    /// Put this binary into a volume, for images that do not contain it
    #[command(after_help = "\
The binary becomes DIR/libvirt-kvm-init, owned by root, mode 0755. It is left
alone if it is there already.

Examples:
  libvirt-kvm-init install /pod-shared
      as an init container, from this project's image

Exit codes: 0 ok, 2 usage, 4 failed")]
    Install(InstallOptions),
    /// Apply, then keep it so: heal drift when it happens
    #[cfg(feature = "watch")]
    #[command(
        next_line_help = true,
        after_help = "\
Takes apply's options, in the same three ways, and three of its own. It runs
until SIGTERM or SIGINT ends it (exit code 0); SIGHUP makes it read its
configuration again. Where no --root is given and a libvirtd runs in another
container that can be seen (hostPID, shareProcessNamespace), the files are that
container's.

Examples:
  libvirt-kvm-init watch --group-file-out /var/lib/pod-shared/group
      as a sidecar, behind the init step that makes the same file
  libvirt-kvm-init watch --metrics-file /textfile/libvirt-kvm-init.prom
      for the textfile collector
  libvirt-kvm-init watch --recheck 30s -v
      by hand

Exit codes: 0 ended by a signal, 2 usage, 4 cannot watch"
    )]
    Watch(WatchOptions),
    /// Whether QEMU could open KVM when `watch` last tried: for probes
    #[cfg(feature = "watch")]
    #[command(after_help = "\
Reads the file that watch keeps with --status-file, and nothing else.

Example:
  libvirt-kvm-init ready /run/kvm-init/status.json

Exit codes: 0 it could, 5 it could not, 2 usage, 4 the file does not say")]
    Ready {
        /// What watch was given as --status-file
        #[arg(value_name = "STATUS-FILE")]
        status_file: std::path::PathBuf,
    },
    /// Find guests that could not start for want of KVM in logs
    #[cfg(feature = "logs")]
    #[command(after_help = "\
Without PATH it reads those of /var/log/libvirt, /var/log/nova and
/var/log/kolla/nova that exist. Folders are read with all below them, gzip is
unpacked, links in folders are not followed.

Examples:
  libvirt-kvm-init logs
      on a node, or in its libvirt pod
  kubectl logs ds/nova-compute-default -c nova-compute | libvirt-kvm-init logs -
      what a pod said
  libvirt-kvm-init logs --format json /var/log/nova | jq '.guests[].instance'
      for a program

Exit codes: 0 none found, 1 found, 2 usage, 4 none found and not all was read")]
    Logs(LogOptions),
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
