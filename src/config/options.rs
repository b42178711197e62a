//! The options of `apply`, `check`, `exec` and `watch`. Each row of the table defines an option's flag, environment
//! variable, YAML key, help and documentation.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches};

#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// For the flag `--name`, the key `name` and the variable `LIBVIRT_KVM_INIT_NAME`.
    pub name: &'static str,
    /// The metavariable in the help.
    value: &'static str,
    /// The help text, followed by the default.
    help: &'static str,
    /// The permitted values; empty if they cannot be listed.
    pub choices: &'static [&'static str],
    /// Whether the flag needs no value and then means `true`.
    is_switch: bool,
    /// Whether the option is a key of the configuration file.
    pub is_key: bool,
    /// Whether a suggested `apply` command has to repeat the flag to have the same effect.
    pub is_repeated: bool,
    /// Whether only `watch` has the flag. Every command accepts the variable and the key.
    pub only_watch: bool,
}

const fn value(name: &'static str, value: &'static str, help: &'static str) -> Spec {
    Spec {
        name,
        value,
        help,
        choices: &[],
        is_switch: false,
        is_key: true,
        is_repeated: true,
        only_watch: false,
    }
}

const fn switch(name: &'static str, help: &'static str) -> Spec {
    Spec {
        is_switch: true,
        choices: &["true", "false"],
        ..value(name, "BOOL", help)
    }
}

impl Spec {
    const fn one_of(self, choices: &'static [&'static str]) -> Self {
        Self { choices, ..self }
    }

    const fn not_repeated(self) -> Self {
        Self {
            is_repeated: false,
            ..self
        }
    }

    const fn of_watch(self) -> Self {
        Self {
            only_watch: true,
            ..self.not_repeated()
        }
    }

    pub(crate) fn arg(&self) -> Arg {
        let arg = Arg::new(self.name)
            .long(self.name)
            .help(self.help)
            .value_name(self.value)
            .action(ArgAction::Set);
        match self.is_switch {
            true => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
            false => arg,
        }
    }
}

/// All options, in the order of the help.
pub const OPTIONS: [Spec; 21] = [
    Spec {
        is_key: false,
        ..value(
            "config",
            "FILE",
            "Configuration file (YAML) with any of these options as keys",
        )
    },
    value(
        "device",
        "PATH",
        "Path of the device as libvirtd sees it [default: /dev/kvm]",
    ),
    value(
        "host-root",
        "DIR",
        "Mount point of the node's root file system [default: auto-detected]",
    ),
    value(
        "root",
        "DIR",
        "Root directory of libvirtd, with etc/passwd and etc/group [default: /]",
    ),
    value("group", "NAME", "Name of the device's group [default: kvm]"),
    value(
        "gid",
        "GID",
        "GID of the device and the group [default: the group's GID on the node]",
    ),
    value(
        "mode",
        "OCTAL",
        "Exact mode of the device [default: at least 0660]",
    ),
    value(
        "qemu-user",
        "USER",
        "User that QEMU runs as: name, UID or +UID [default: from qemu.conf]",
    ),
    value(
        "qemu-group",
        "GROUP",
        "Group that QEMU runs as: name, GID or +GID [default: from qemu.conf]",
    ),
    value(
        "qemu-conf",
        "FILE",
        "Path of libvirt's qemu.conf [default: ROOT/etc/libvirt/qemu.conf]",
    ),
    value(
        "group-file-out",
        "FILE",
        "Write the aligned group file here; do not change ROOT/etc/group",
    ),
    value(
        "proof",
        "MODE",
        "QEMU access test: api-version, create-vm or off [default: api-version]",
    )
    .one_of(&["api-version", "create-vm", "off"]),
    value(
        "missing",
        "MODE",
        "If the node has no KVM: fail, or skip (no error) [default: fail]",
    )
    .one_of(&["fail", "skip"]),
    value(
        "settle",
        "DURATION",
        "Maximum wait for the device to stop changing [default: 0s, no wait]",
    ),
    switch(
        "strict",
        "Refuse, not just warn, on GID conflicts or an unreadable host root",
    ),
    // Not repeated: advice adds `--persist` where it is needed.
    switch(
        "persist",
        "Also write a udev rule on the node if udev would undo the result",
    )
    .not_repeated(),
    value(
        "format",
        "FORMAT",
        "Report format: table, json, npd or prometheus [default: table]",
    )
    .one_of(&["table", "json", "npd", "prometheus"])
    .not_repeated(),
    switch("dry-run", "Show the planned changes without making them").not_repeated(),
    value(
        "recheck",
        "DURATION",
        "Check everything again after this long without an event [default: 5m]",
    )
    .of_watch(),
    value(
        "metrics-file",
        "FILE",
        "Write metrics to this file, in Prometheus text format",
    )
    .of_watch(),
    value(
        "status-file",
        "FILE",
        "Write the report to this file, as JSON",
    )
    .of_watch(),
];

/// The flags of a command line, unparsed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Flags(BTreeMap<&'static str, String>);

impl Flags {
    /// Pairs of names and values; unknown names are ignored.
    pub fn new<'a>(flags: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut found = Self::default();
        for (name, text) in flags {
            let known = OPTIONS.iter().filter(|option| option.name == name);
            found
                .0
                .extend(known.map(|option| (option.name, text.to_owned())));
        }
        found
    }

    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        // An error means that the command does not have the option.
        let text = |option: &Spec| matches.try_get_one::<String>(option.name).ok()?.cloned();
        let given = OPTIONS
            .iter()
            .filter_map(|option| Some((option.name, text(option)?)));
        Self(given.collect())
    }

    pub fn get(&self, name: &str) -> Option<&String> {
        self.0.get(name)
    }
}
