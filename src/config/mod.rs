//! Flags, environment and YAML, in this order of precedence, made into what each stage takes: [`Sources`],
//! [`Policy`], [`ProofKind`] and [`Output`].
//!
//! Each value keeps where it came from, so that a bad one is named by its flag, its variable, or
//! its file and line.
#![forbid(unsafe_code)]

pub mod options;
mod pod_root;
mod replay_flags;
mod values;
mod yaml;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Gid;

use crate::error::Error;
use options::{Flags, OPTIONS};

pub use pod_root::PodRoot;
use values::Parser;
pub use values::is_id;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `--name`
    Flag(&'static str),
    /// The GID that worked last, which `watch` goes back to.
    Kept,
    /// `LIBVIRT_KVM_INIT_NAME`
    Env(&'static str),
    /// Line and key of the configuration file.
    File {
        /// The file as it was named.
        file: String,
        /// Counted from 1.
        line: usize,
        /// The option's name.
        key: &'static str,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Kept => f.write_str("what is kept"),
            Self::Env(name) => f.write_str(&variable(name)),
            Self::File { file, line, key } => write!(f, "{file}:{line}: {key}"),
        }
    }
}

/// The environment variable of an option.
pub fn variable(option: &str) -> String {
    let name = option.to_ascii_uppercase().replace('-', "_");
    format!("LIBVIRT_KVM_INIT_{name}")
}

/// How far the proof goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofKind {
    /// Open the device and ask for the API version.
    ApiVersion,
    /// Also create a virtual machine.
    CreateVm,
    /// No proof.
    Off,
}

/// What a node without KVM means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Exit code 6.
    Fail,
    /// Exit code 0: guests run without KVM here.
    Skip,
}

/// How the report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For node-problem-detector: one line of at most 80 characters, and its own exit codes.
    Npd,
    /// For Prometheus: the text exposition format.
    Prometheus,
}

/// A text and where it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// As it was written.
    pub text: String,
    /// Where.
    pub origin: Origin,
}

/// How long `watch` trusts silence.
const RECHECK: Duration = Duration::from_secs(300);

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The device as libvirtd sees it.
    pub device: PathBuf,
    /// Whether the device was named, not assumed.
    pub device_explicit: bool,
    /// Where the node's file system is seen, if that was said.
    pub host_root: Option<PathBuf>,
    /// Whether a host root that was named may be missing: `watch` saw it when it began, and an unmount
    /// changes no GID.
    pub host_root_optional: bool,
    /// The pod root.
    pub pod_root: PodRoot,
    /// qemu.conf, if not the pod root's.
    pub qemu_conf: Option<PathBuf>,
    /// Where the aligned group file goes, if not over the pod root's.
    pub group_file_out: Option<PathBuf>,
    /// Whether to look at the place of the rule of `--persist`.
    pub rule_slot: bool,
    /// Whose libvirtd the pod root belongs to.
    pub libvirtd: Libvirtd,
}

/// Whose libvirtd the pod root belongs to, as far as that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Libvirtd {
    /// That of this container or of the node, or nobody looked for one.
    Own,
    /// That of another container, whose device may be another one.
    Container,
    /// None runs with the node's device; perhaps one (its process ID) with a /dev of its own.
    Missing(Option<u32>),
    /// It cannot be told from others, or may not be looked at: why.
    Unclear(String),
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The group's name.
    pub group: String,
    /// An explicit target.
    pub gid: Option<(Gid, Origin)>,
    /// An exact mode.
    pub mode: Option<u16>,
    /// QEMU's user instead of qemu.conf's.
    pub qemu_user: Option<Given>,
    /// QEMU's group instead of qemu.conf's.
    pub qemu_group: Option<Given>,
    /// Whether doubts are refusals.
    pub strict: bool,
    /// Whether the node gets a udev rule where its udev would undo the state.
    pub persist: bool,
    /// What a node without KVM means.
    pub missing: Missing,
    /// Whether a device that is not the node's is a warning, not a refusal.
    pub allow_private_device: bool,
    /// The flags that the next command needs to mean the same, each after a space.
    pub replay_flags: String,
}

impl Policy {
    /// The command that does what this one is about, as it is to be typed.
    pub fn command(&self, persist: bool) -> String {
        let persist = if persist { " --persist" } else { "" };
        format!("`libvirt-kvm-init apply{persist}{}`", self.replay_flags)
    }
}

/// Where the report goes, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How the report is written.
    pub format: Format,
    /// `watch`: where the metrics go.
    pub metrics_file: Option<PathBuf>,
    /// `watch`: where the report goes.
    pub status_file: Option<PathBuf>,
    /// `watch`: when all is looked at again though nothing happened.
    pub recheck: Duration,
}

/// The value of each option that was given anywhere, the strongest layer's.
#[derive(Debug, Default)]
pub struct Values {
    given: BTreeMap<&'static str, Given>,
    replay_flags: String,
}

impl Values {
    /// Puts flags, environment and the YAML file together. `env` answers for a variable's name,
    /// `read` for the configuration file's content.
    ///
    /// # Errors
    /// [`Error::Usage`] for a value that is not text, and for a configuration file that cannot be read.
    pub fn collect(
        flags: &Flags,
        env: impl Fn(&str) -> Option<OsString>,
        read: impl FnOnce(&Path) -> Result<Vec<u8>, String>,
    ) -> Result<Self, Error> {
        let mut values = Self {
            replay_flags: replay_flags::replay_flags(flags),
            ..Self::default()
        };
        if let Some(Given { text, origin }) = flag_or_env("config", flags.get("config"), &env)? {
            let content = read(Path::new(&text)).map_err(|error| {
                Error::Usage(format!(
                    "{origin}: {error}; mount the file there, or leave the option out"
                ))
            })?;
            values.add_yaml(&text, &content)?;
        }
        for option in OPTIONS.iter().filter(|option| option.is_key) {
            let given = flag_or_env(option.name, flags.get(option.name), &env)?;
            values.given.extend(given.map(|given| (option.name, given)));
        }
        Ok(values)
    }

    /// What to look at.
    ///
    /// # Errors
    /// [`Error::Usage`] for the first value that is not what it may be, here and below.
    pub fn sources(&self) -> Result<Sources, Error> {
        let path = |name| self.value(name, values::path);
        let device = path("device")?;
        Ok(Sources {
            device_explicit: device.is_some(),
            // A slash at the end would ask for a directory.
            device: device
                .map(|path| path.components().collect())
                .unwrap_or_else(|| PathBuf::from("/dev/kvm")),
            host_root: path("host-root")?,
            host_root_optional: false,
            pod_root: PodRoot::at(path("root")?.unwrap_or_else(|| PathBuf::from("/"))),
            qemu_conf: path("qemu-conf")?,
            group_file_out: self.value("group-file-out", values::output)?,
            rule_slot: self.switch("persist")?,
            libvirtd: Libvirtd::Own,
        })
    }

    /// What is wanted.
    ///
    /// # Errors
    /// As [`Values::sources`].
    pub fn policy(&self) -> Result<Policy, Error> {
        let group = self.value("group", values::group)?;
        let gid = self.value("gid", values::gid)?;
        let missing = self.value("missing", values::missing)?;
        Ok(Policy {
            group: group.unwrap_or_else(|| "kvm".to_owned()),
            gid: gid.zip(self.given.get("gid").map(|given| given.origin.clone())),
            mode: self.value("mode", values::mode)?,
            qemu_user: self.given.get("qemu-user").cloned(),
            qemu_group: self.given.get("qemu-group").cloned(),
            strict: self.switch("strict")?,
            persist: self.switch("persist")?,
            missing: missing.unwrap_or(Missing::Fail),
            allow_private_device: self.given.contains_key("device"),
            replay_flags: self.replay_flags.clone(),
        })
    }

    /// How far the proof goes.
    ///
    /// # Errors
    /// As [`Values::sources`].
    pub fn proof(&self) -> Result<ProofKind, Error> {
        let proof = self.value("proof", values::proof)?;
        Ok(proof.unwrap_or(ProofKind::ApiVersion))
    }

    /// How long to wait for the device to hold still.
    ///
    /// # Errors
    /// As [`Values::sources`].
    pub fn settle(&self) -> Result<Duration, Error> {
        Ok(self.value("settle", values::duration)?.unwrap_or_default())
    }

    /// Whether nothing may be changed.
    ///
    /// # Errors
    /// As [`Values::sources`].
    pub fn dry_run(&self) -> Result<bool, Error> {
        self.switch("dry-run")
    }

    /// Where the report goes, and when.
    ///
    /// # Errors
    /// As [`Values::sources`].
    pub fn output(&self) -> Result<Output, Error> {
        let format = self.value("format", values::format)?;
        let recheck = self.value("recheck", values::recheck)?;
        Ok(Output {
            format: format.unwrap_or(Format::Table),
            metrics_file: self.value("metrics-file", values::output)?,
            status_file: self.value("status-file", values::output)?,
            recheck: recheck.unwrap_or(RECHECK),
        })
    }

    fn switch(&self, name: &str) -> Result<bool, Error> {
        Ok(self.value(name, values::bool)?.unwrap_or(false))
    }

    fn value<T>(&self, name: &str, parse: Parser<T>) -> Result<Option<T>, Error> {
        let Some(Given { text, origin }) = self.given.get(name) else {
            return Ok(None);
        };
        match parse(text) {
            Ok(value) => Ok(Some(value)),
            Err(expected) => Err(Error::Usage(format!(
                "{origin}: bad value `{text}`, expected {expected}"
            ))),
        }
    }
}

/// The format of a command that takes no other option: flag, then environment, then the table.
///
/// # Errors
/// [`Error::Usage`] for a word that is no format.
pub fn format(
    flag: Option<&String>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Format, Error> {
    let given = flag_or_env("format", flag, env)?;
    let values = Values {
        given: given.map(|given| ("format", given)).into_iter().collect(),
        ..Values::default()
    };
    let format = values.value("format", values::log_format)?;
    Ok(format.unwrap_or(Format::Table))
}

fn flag_or_env(
    name: &'static str,
    flag: Option<&String>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Given>, Error> {
    if let Some(text) = flag {
        let (text, origin) = (text.clone(), Origin::Flag(name));
        return Ok(Some(Given { text, origin }));
    }
    let origin = Origin::Env(name);
    match env(&variable(name)) {
        // Templates leave variables empty that nobody filled in.
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => match text.into_string() {
            Ok(text) => Ok(Some(Given { text, origin })),
            Err(raw) => Err(Error::Usage(format!(
                "{origin}: {} is not UTF-8",
                raw.display()
            ))),
        },
        None => Ok(None),
    }
}
