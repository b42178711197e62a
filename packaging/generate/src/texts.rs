//! What the help does not say, and a manual page should.

use libvirt_kvm_init::config::options::OPTIONS;
use libvirt_kvm_init::verdict::Verdict;

/// The program.
pub const NAME: &str = "libvirt-kvm-init";

/// What the program is for, a paragraph each.
pub const ABOUT: [&str; 4] = [
    "Where libvirtd runs in a container, the image and the node may give the group kvm different numbers. \
     The device then belongs to one of them only until the node's udev handles its next event, and from \
     there on guests fail to start: \"Could not access KVM kernel module: Permission denied\".",
    "This program takes the number that the node uses, gives it to the pod's group kvm, makes QEMU's user a \
     member, corrects owner, mode and ACL of the device where they are wrong, and then opens KVM as libvirt \
     will start QEMU. What is right already is not written to, and nothing is called right that was not tried.",
    "On a node itself nothing but the device is changed, and with --persist a udev rule. A device that is not \
     character device 10:232, a number that would give QEMU or others too much, and whatever else is doubtful \
     is refused before anything is changed.",
    "Each verb has a page of its own.",
];

/// Where the report goes, of verbs that have one.
pub const REPORT: &str = "The report goes to standard output. When something is wrong, the last line on \
     standard error says what, and what to do next.";

/// The two options of the program itself.
pub const HELP: &str = "Print help; after a verb, the verb's.";
/// See [`HELP`].
pub const VERSION: &str = "Print the version.";

/// How far exit codes are common to all verbs.
pub const EXITS: &str = "The same for every verb, as far as it has them; of logs, 1 says that failures were \
     found, and of exec, codes that are not listed here are the command's.";

/// What a verdict's exit code means.
pub fn exit(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => {
            "The state is right, and QEMU can open KVM (or --proof=off, or --missing=skip)."
        }
        Verdict::Drift => {
            "QEMU cannot open KVM and apply would mend it, or it can and the node's next event or the \
             chart's own lines take it away."
        }
        Verdict::Usage => {
            "A flag, variable or configuration that cannot be meant; nothing was changed."
        }
        Verdict::Refused => "A safety rule said no; nothing was changed.",
        Verdict::Failed => {
            "A system call or file operation failed; the text names it with its arguments."
        }
        Verdict::Unproven => {
            "The state is right and QEMU still cannot open KVM, or this container may not ask."
        }
        Verdict::Absent => "No KVM on this node; nothing was changed.",
    }
}

/// How options become variables.
pub const ENVIRONMENT: &str = "Every option of apply, check, exec and watch but -v and -q is also a \
     variable: --host-root is LIBVIRT_KVM_INIT_HOST_ROOT. A flag beats the variable, which beats the file \
     of --config. An empty variable counts as not set, and one of another name is ignored.";

/// `--format npd` has exit codes of its own.
pub const NPD: &str = "With --format=npd they are those of node-problem-detector instead: 0 fine, \
     1 a problem, 2 unknown.";

/// Variables that are no options: which verbs read them, and what for.
pub const VARIABLES: [(&str, &[&str], &str); 3] = [
    (
        "RUST_LOG",
        &LOGGING,
        "What is logged on standard error where neither -v nor -q is given: error, warn, info or debug.",
    ),
    (
        "NO_COLOR",
        &DEVICE,
        "Set to anything, it keeps colours out of the table on a terminal.",
    ),
    (
        "KUBERNETES_SERVICE_HOST, container",
        &DEVICE,
        "Where one of them is set, this is a container and not the node.",
    ),
];

/// The verbs that log.
const LOGGING: [&str; 5] = ["apply", "check", "exec", "watch", "logs"];

/// The verbs that look at the device.
pub const DEVICE: [&str; 4] = ["apply", "check", "exec", "watch"];

/// Of these, those whose exit codes are verdicts.
pub const ALIGN: [&str; 2] = ["apply", "check"];

/// Files: which verbs use them, and how.
pub const FILES: [(&str, &[&str], &str); 9] = [
    (
        "/dev/kvm",
        &DEVICE,
        "The device, character device 10:232 (--device).",
    ),
    (
        "/etc/group, /etc/passwd",
        &DEVICE,
        "Below the pod's root (--root): the groups and users that libvirtd knows. apply, exec and watch write \
         the group kvm, in a container alone.",
    ),
    (
        "/etc/libvirt/qemu.conf",
        &DEVICE,
        "Below the pod's root (--qemu-conf): whom QEMU runs as.",
    ),
    (
        "/etc/group, /usr/lib/group, /usr/share/baselayout/group",
        &DEVICE,
        "Below the node's root (--host-root): what the node calls kvm. Also records of userdb. Only read.",
    ),
    (
        "/etc/udev/rules.d, /run/udev/rules.d, /usr/local/lib/udev/rules.d, /usr/lib/udev/rules.d",
        &DEVICE,
        "Below the node's root: what its udev will give the device at its next event.",
    ),
    (
        "/etc/udev/rules.d/99-libvirt-kvm-init.rules",
        &DEVICE,
        "Below the node's root: the rule that --persist writes.",
    ),
    (
        "/mnt/host-rootfs, /host, /proc/1/root",
        &DEVICE,
        "Where the node's root is looked for, in a container that was not told (--host-root).",
    ),
    (
        "/etc/default/libvirt-kvm-init",
        &["apply"],
        "Variables for libvirt-kvm-init.service, such as LIBVIRT_KVM_INIT_MISSING=skip.",
    ),
    (
        "/var/log/libvirt, /var/log/nova, /var/log/kolla/nova",
        &["logs"],
        "What is read where no path is given.",
    ),
];

/// Other manual pages of use.
pub const SEE_ALSO: [(&str, u8); 5] = [
    ("group", 5),
    ("qemu", 1),
    ("udev", 7),
    ("udevadm", 8),
    ("libvirtd", 8),
];

/// What the value of an option may be, where it is one of a few.
pub fn values(verb: &str, option: &str) -> Option<&'static [&'static str]> {
    if option == "format" && !DEVICE.contains(&verb) {
        return Some(&["table", "json"]);
    }
    let known = OPTIONS.iter().find(|known| known.name == option)?;
    Some(known.choices).filter(|choices| !choices.is_empty())
}
