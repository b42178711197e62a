//! Texts of the manual pages that are not part of the program's help.

use libvirt_kvm_init::config::options::OPTIONS;
use libvirt_kvm_init::verdict::Verdict;

pub const NAME: &str = "libvirt-kvm-init";

/// The DESCRIPTION of the overview page, one item per paragraph.
pub const ABOUT: [&str; 4] = [
    "If libvirtd runs in a container, the group kvm can have different GIDs in the image and on the node. Even \
     if the device has the pod's GID, the next udev event on the node sets the node's GID again, and guests \
     then fail to start: \"Could not access KVM kernel module: Permission denied\".",
    "This program takes the GID that the node uses for kvm, sets the pod's group kvm to that GID, adds the QEMU \
     user to the group, and corrects owner, mode and ACL of the device if needed. It then opens the device \
     with the credentials that libvirt will give to QEMU. Correct settings are left untouched, and success is \
     reported only after the device was opened (unless --proof=off).",
    "On a node (not in a container), apply changes only the device and, with --persist, a udev rule. The program \
     refuses to change anything if the device is not character device 10:232, if the target GID belongs to another \
     group of the node or to a privileged group such as disk (unless --gid confirms it), or if no source sets a \
     valid GID.",
    "Each command has its own page.",
];

/// The last paragraph of the DESCRIPTION of a command.
pub const REPORT: &str = "The report goes to standard output. On failure, the last line on standard error \
     contains the reason and the next step.";

/// The same for `ready`, which has no report.
pub const NO_REPORT: &str = "Prints nothing on success. On failure, one line on standard error contains the reason \
     and the next step.";

/// Help of the two options of the program itself.
pub const HELP: &str = "Print help; after a command, the help of that command.";
pub const VERSION: &str = "Print the version.";

/// Introduction to the exit codes on the overview page.
pub const EXITS: &str = "These exit codes apply to apply and check. Exceptions: logs exits with 1 if it found failures; \
     watch exits with 0 when a signal ends it; exec exits with the code of the command that it started; \
     --format=npd has codes of its own. The page of each command lists its codes.";

pub fn exit(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => {
            "The state is correct and QEMU can open KVM. With --proof=off or --missing=skip, this code does not \
             imply that QEMU can open KVM."
        }
        Verdict::Drift => {
            "QEMU cannot open KVM and apply would repair it; or QEMU can open KVM, but the file of \
             --group-file-out is missing or out of date, or the node's next event or the chart's libvirt.sh will \
             deny access."
        }
        Verdict::Usage => {
            "Invalid flag, environment variable or configuration; nothing was changed."
        }
        Verdict::Refused => "Refused by a safety check; nothing was changed.",
        Verdict::Failed => {
            "A system call failed (the message contains the call with its arguments), or the proof could not be \
             run."
        }
        Verdict::Unproven => {
            "The state is correct but QEMU cannot open KVM, or this container lacks the privilege to open the \
             device."
        }
        Verdict::Absent => "No KVM on this node; nothing was changed.",
    }
}

/// Introduction to the environment variables on the overview page.
pub const ENVIRONMENT: &str = "Every option of apply, check, exec and watch except -v and -q can also be \
     set by an environment variable (--host-root: LIBVIRT_KVM_INIT_HOST_ROOT). Flags override variables, and \
     variables override the file of --config. Empty variables are treated as unset; variables with unknown \
     names are ignored.";

/// The exit codes of `--format npd`.
pub const NPD: &str = "With --format=npd the exit codes are those of node-problem-detector: 0 no problem, \
     1 problem, 2 unknown.";

/// Environment variables that do not correspond to an option: name, commands that read it, description.
pub const VARIABLES: [(&str, &[&str], &str); 3] = [
    (
        "RUST_LOG",
        &LOGGING,
        "Log level on standard error if neither -v nor -q is set: error, warn, info or debug.",
    ),
    (
        "NO_COLOR",
        &DEVICE,
        "If set and not empty, the table has no colors on a terminal.",
    ),
    (
        "KUBERNETES_SERVICE_HOST, container",
        &DEVICE,
        "If one of them is set, the program assumes that it runs in a container.",
    ),
];

/// Commands that log.
const LOGGING: [&str; 5] = ["apply", "check", "exec", "watch", "logs"];

/// Commands that inspect the device.
pub const DEVICE: [&str; 4] = ["apply", "check", "exec", "watch"];

/// Commands whose exit codes are verdicts.
pub const ALIGN: [&str; 2] = ["apply", "check"];

/// Files: path, commands that use it, description.
pub const FILES: [(&str, &[&str], &str); 9] = [
    (
        "/dev/kvm",
        &DEVICE,
        "The KVM device, character device 10:232 (--device).",
    ),
    (
        "/etc/group, /etc/passwd",
        &DEVICE,
        "Below the pod root (--root): the groups and users that libvirtd uses. In a container, apply, exec and \
         watch edit the group kvm in etc/group, unless --group-file-out is set.",
    ),
    (
        "/etc/libvirt/qemu.conf",
        &DEVICE,
        "Below the pod root (--qemu-conf): the user and group that QEMU runs as.",
    ),
    (
        "/etc/group, /usr/lib/group, /usr/share/baselayout/group",
        &DEVICE,
        "Below the host root (--host-root): the node's groups (userdb records are read as well). Read only.",
    ),
    (
        "/etc/udev/rules.d, /run/udev/rules.d, /usr/local/lib/udev/rules.d, /usr/lib/udev/rules.d",
        &DEVICE,
        "Below the host root: the rules that determine owner, group and mode of the device after the next udev \
         event.",
    ),
    (
        "/etc/udev/rules.d/99-libvirt-kvm-init.rules",
        &DEVICE,
        "Below the host root: the rule that --persist writes.",
    ),
    (
        "/mnt/host-rootfs, /host, /proc/1/root",
        &DEVICE,
        "Where the program, in a container, searches for the host root if --host-root is not set.",
    ),
    (
        "/etc/default/libvirt-kvm-init",
        &["apply"],
        "Environment variables of libvirt-kvm-init.service, such as LIBVIRT_KVM_INIT_MISSING=skip.",
    ),
    (
        "/var/log/libvirt, /var/log/nova, /var/log/kolla/nova",
        &["logs"],
        "Logs that are read if no path is given.",
    ),
];

/// Related manual pages.
pub const SEE_ALSO: [(&str, u8); 5] = [
    ("group", 5),
    ("qemu", 1),
    ("udev", 7),
    ("udevadm", 8),
    ("libvirtd", 8),
];

/// The permitted values of an option, if they can be listed.
pub fn values(command: &str, option: &str) -> Option<&'static [&'static str]> {
    if option == "format" && !DEVICE.contains(&command) {
        return Some(&["table", "json"]);
    }
    let known = OPTIONS.iter().find(|known| known.name == option)?;
    Some(known.choices).filter(|choices| !choices.is_empty())
}
