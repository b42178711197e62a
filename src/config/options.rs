//! The options of `apply`, `check`, `exec` and `watch`, each declared once: its flag, its variable, its YAML
//! key, its help and the tables of the documentation follow from its row.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches};

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Its name: `--name`, the key `name`, the variable `LIBVIRT_KVM_INIT_NAME`.
    pub name: &'static str,
    /// What the help calls its value.
    value: &'static str,
    /// Its help, with the default.
    help: &'static str,
    /// What its value may be, where that is a list.
    pub choices: &'static [&'static str],
    /// Whether the flag may stand without a value, which then is `true`.
    is_switch: bool,
    /// Whether the configuration file knows it.
    pub is_key: bool,
    /// Whether `apply` needs it to mean the same when it is run again.
    pub is_repeated: bool,
    /// Whether only `watch` has it as a flag. Every command knows its variable and its key.
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

    /// As clap takes it.
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

/// All of them, in the order of the help.
pub const OPTIONS: [Spec; 21] = [
    Spec {
        is_key: false,
        ..value(
            "config",
            "FILE",
            "YAML file with any of these options as keys",
        )
    },
    value(
        "device",
        "PATH",
        "The device as libvirtd sees it [default: /dev/kvm]",
    ),
    value(
        "host-root",
        "DIR",
        "Where the node's file system is seen [default: found]",
    ),
    value(
        "root",
        "DIR",
        "The root whose passwd, group and qemu.conf libvirtd uses [default: /]",
    ),
    value(
        "group",
        "NAME",
        "The group that shall own the device [default: kvm]",
    ),
    value(
        "gid",
        "GID",
        "The number for it [default: what the node uses]",
    ),
    value(
        "mode",
        "OCTAL",
        "The device's exact mode [default: at least 0660]",
    ),
    value(
        "qemu-user",
        "USER",
        "QEMU's user: a name, number or +number [default: from qemu.conf]",
    ),
    value(
        "qemu-group",
        "GROUP",
        "QEMU's group: a name, number or +number [default: from qemu.conf]",
    ),
    value(
        "qemu-conf",
        "FILE",
        "libvirt's qemu.conf [default: ROOT/etc/libvirt/qemu.conf]",
    ),
    value(
        "group-file-out",
        "FILE",
        "Write the aligned group file here and leave ROOT/etc/group alone",
    ),
    value(
        "proof",
        "HOW",
        "The proof: api-version, create-vm or off [default: api-version]",
    )
    .one_of(&["api-version", "create-vm", "off"]),
    value(
        "missing",
        "HOW",
        "What a node without KVM is: fail, or skip (exit 0) [default: fail]",
    )
    .one_of(&["fail", "skip"]),
    value(
        "settle",
        "DURATION",
        "Wait up to this long for the device to hold still [default: 0s]",
    ),
    switch(
        "strict",
        "Refuse on collisions, disagreements and an unknown host root",
    ),
    // Whether it is needed is for the report to say.
    switch(
        "persist",
        "Also write a udev rule on the node where its udev would undo the state",
    )
    .not_repeated(),
    value(
        "format",
        "FORMAT",
        "The report: table, json, npd or prometheus [default: table]",
    )
    .one_of(&["table", "json", "npd", "prometheus"])
    .not_repeated(),
    switch("dry-run", "Show what would be changed, and change nothing").not_repeated(),
    value(
        "recheck",
        "DURATION",
        "Look at everything again after this long without an event [default: 5m]",
    )
    .of_watch(),
    value(
        "metrics-file",
        "FILE",
        "Keep the state here, in Prometheus' text format",
    )
    .of_watch(),
    value("status-file", "FILE", "Keep the report here, as JSON").of_watch(),
];

/// The flags of a command line, as text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Flags(BTreeMap<&'static str, String>);

impl Flags {
    /// Flags with these names and texts.
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

    /// What clap has parsed. An option that the command does not have is not given.
    pub(crate) fn given(matches: &ArgMatches) -> Self {
        let text = |option: &Spec| matches.try_get_one::<String>(option.name).ok()?.cloned();
        let given = OPTIONS
            .iter()
            .filter_map(|option| Some((option.name, text(option)?)));
        Self(given.collect())
    }

    /// The text of one of them.
    pub fn get(&self, name: &str) -> Option<&String> {
        self.0.get(name)
    }
}
