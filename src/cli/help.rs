//! The text below the options in each command's `--help`: sources of the options, examples, exit codes.

pub(super) const PROGRAM: &str = "\
Exit codes: 0 ok, 1 drift (apply can repair or prevent the failure),
2 usage error, 3 refused by a safety check, 4 failed,
5 unproven (no proof that QEMU can open KVM), 6 absent (no KVM on the node)";

pub(super) const APPLY: &str = "\
Every option except -v and -q can also be set by an environment variable
(--host-root: LIBVIRT_KVM_INIT_HOST_ROOT) and, except --config, by a key of the
--config file (host-root). Flags override the environment, which overrides the
file. BOOL is true or false.

Examples:
  libvirt-kvm-init apply
      in a container of the libvirt image, before libvirtd; or on a node
  libvirt-kvm-init apply --host-root /mnt/host-rootfs --settle 30s
      if an earlier step reloads the KVM module
  libvirt-kvm-init apply --dry-run --format json
      planned changes in machine-readable form

Exit codes: 0 ok, 1 drift (only with --dry-run),
2 usage error, 3 refused by a safety check, 4 failed,
5 unproven (no proof that QEMU can open KVM), 6 absent (no KVM on the node)";

pub(super) const CHECK: &str = "\
Takes the options of apply, as flags, environment variables or keys of the
--config file, and shows what apply would do with them. It writes nothing: with
--persist and --group-file-out it only shows the pending change; --settle and
--dry-run have no effect.

On a node where libvirtd runs in a container, it inspects the files of that
container, so that the report shows both the node and the pod.

Examples:
  libvirt-kvm-init check
      first step in an incident, in the libvirt container or on the node
  libvirt-kvm-init check --format npd
      as a custom plugin of node-problem-detector
  libvirt-kvm-init check --format prometheus > FILE
      for the textfile collector of the node exporter

Exit codes: 0 ok, 1 drift (apply can repair or prevent the failure),
2 usage error, 3 refused by a safety check, 4 failed,
5 unproven (no proof that QEMU can open KVM), 6 absent (no KVM on the node)";

pub(super) const EXEC: &str = "\
Takes the options of apply except --dry-run, as flags, environment variables or
keys of the --config file. The report goes to stderr; stdout is left to the
command, which is started only if apply succeeds. The command inherits an
unmodified environment, as if it had been started directly.

Examples:
  libvirt-kvm-init exec -- /tmp/libvirt.sh
      before the command of the libvirt container
  libvirt-kvm-init exec --host-root /mnt/host-rootfs --settle 30s -- libvirtd -l
      with options of apply

Exit codes: those of apply; 126 if the command cannot be run, 127 if it is not
found; otherwise the exit code of the command";

pub(super) const INSTALL: &str = "\
Writes the binary to DIR/libvirt-kvm-init, owned by root, mode 0755. A file
that is already identical is not rewritten.

Examples:
  libvirt-kvm-init install /pod-shared
      as an init container that runs this project's image

Exit codes: 0 installed or already there, 2 usage error,
3 refused because other users can write to DIR, 4 failed";

#[cfg(feature = "watch")]
pub(super) const WATCH: &str = "\
Takes the options of apply except --dry-run, and three more, as flags,
environment variables or keys of the --config file. Runs until SIGTERM or SIGINT
(exit code 0). SIGHUP reloads the configuration. Without --root and
--group-file-out, it edits the group file of a libvirtd in another container, if
that process is visible (hostPID, shareProcessNamespace).

Examples:
  libvirt-kvm-init watch --group-file-out /var/lib/pod-shared/group
      as a sidecar, after the init step that writes the same file
  libvirt-kvm-init watch --metrics-file /textfile/libvirt-kvm-init.prom
      for the textfile collector of the node exporter
  libvirt-kvm-init watch --recheck 30s -v
      on a terminal: check every 30 s, with a verbose log

Exit codes: 0 ended by a signal, 2 usage error, 3 refused by a safety check,
4 could not start or continue";

#[cfg(feature = "watch")]
pub(super) const READY: &str = "\
Reads the status file that watch maintains with --status-file, and checks that
watch is still running, by the lock that watch holds on the file.

Example:
  libvirt-kvm-init ready /run/kvm-init/status.json
      as a readiness probe, also in an image without a shell

Exit codes: 0 QEMU can open KVM, 2 usage error, 4 no valid status file or no
running watch, 5 QEMU cannot open KVM";

#[cfg(feature = "logs")]
pub(super) const LOGS: &str = "\
Without PATH it reads those of /var/log/libvirt, /var/log/nova and
/var/log/kolla/nova that exist. Directories are searched recursively (symlinks
in them are not followed); gzip files are decompressed.

Examples:
  libvirt-kvm-init logs
      on a node, or in its libvirt pod
  kubectl logs ds/nova-compute-default -c nova-compute | libvirt-kvm-init logs -
      the log of a pod
  libvirt-kvm-init logs --format json /var/log/nova | jq '.guests[].instance'
      UUIDs of the affected Nova instances

Exit codes: 0 no failures found, 1 failures found, 2 usage error,
4 no failures found, but some input could not be read";
