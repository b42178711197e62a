//! What `--help` of each command says below its options: where they come from, examples, exit codes.

pub(super) const APPLY: &str = "\
Every option but -v and -q can also be given as an environment variable
(--host-root as LIBVIRT_KVM_INIT_HOST_ROOT) and, but for --config, as a key of
the --config file (host-root). A flag beats the environment, which beats the
file. BOOL is true or false.

Examples:
  libvirt-kvm-init apply
      in the libvirt image, before libvirtd; by hand on a node
  libvirt-kvm-init apply --host-root /mnt/host-rootfs --settle 30s
      after a step that reloads the KVM module
  libvirt-kvm-init apply --dry-run --format json
      what would be changed, for a program

Exit codes: 0 ok, 1 drift (--dry-run), 2 usage, 3 refused, 4 failed, 5 unproven,
6 absent";

pub(super) const CHECK: &str = "\
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

Exit codes: 0 ok, 1 drift, 2 usage, 3 refused, 4 failed, 5 unproven, 6 absent";

pub(super) const EXEC: &str = "\
Takes apply's options but --dry-run, in the same three ways. Stdout is the
command's: the report goes to stderr. The command is only started once apply
ended with 0, and finds itself as if it had been started without this program.

Examples:
  libvirt-kvm-init exec -- /tmp/libvirt.sh
      before the command of the libvirt container
  libvirt-kvm-init exec --host-root /mnt/host-rootfs --settle 30s -- libvirtd -l
      with apply's options

Exit codes: apply's, and 126 for a command that cannot run, 127 for one that
is not there; else the command's";

pub(super) const INSTALL: &str = "\
The binary becomes DIR/libvirt-kvm-init, owned by root, mode 0755. It is left
alone if it is there already.

Examples:
  libvirt-kvm-init install /pod-shared
      as an init container, from this project's image

Exit codes: 0 ok, 2 usage, 4 failed";

#[cfg(feature = "watch")]
pub(super) const WATCH: &str = "\
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

Exit codes: 0 ended by a signal, 2 usage, 4 cannot watch";

#[cfg(feature = "watch")]
pub(super) const READY: &str = "\
Reads the file that watch keeps with --status-file, and asks whether that watch
still runs: it holds a lock on the file.

Example:
  libvirt-kvm-init ready /run/kvm-init/status.json
      as a probe, in an image without a shell as well

Exit codes: 0 QEMU can open KVM, 5 it cannot, 2 usage, 4 the file does not say,
or no watch keeps it up to date";

#[cfg(feature = "logs")]
pub(super) const LOGS: &str = "\
Without PATH it reads those of /var/log/libvirt, /var/log/nova and
/var/log/kolla/nova that exist. Folders are read with all below them, gzip is
unpacked, links in directories are not followed.

Examples:
  libvirt-kvm-init logs
      on a node, or in its libvirt pod
  kubectl logs ds/nova-compute-default -c nova-compute | libvirt-kvm-init logs -
      what a pod said
  libvirt-kvm-init logs --format json /var/log/nova | jq '.guests[].instance'
      for a program

Exit codes: 0 none found, 1 found, 2 usage, 4 none found and not all was read";
