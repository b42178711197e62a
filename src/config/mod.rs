//! Combines flags, environment and YAML, in this order of precedence, into [`Sources`], [`Policy`], [`ProofKind`]
//! and [`Output`].
//!
//! Each value keeps its [`Origin`], so that an error message names the flag, the variable, or file and line.
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

/// The place where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `--name`
    Flag(&'static str),
    /// `watch`: the GID that it keeps on the device because QEMU could not use the new one.
    Kept,
    /// `LIBVIRT_KVM_INIT_NAME`
    Env(&'static str),
    /// A key of the configuration file.
    File {
        file: String,
        /// Counted from 1.
        line: usize,
        key: &'static str,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Kept => f.write_str("watch (kept GID)"),
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofKind {
    /// Open the device and query the API version.
    ApiVersion,
    /// Also create a virtual machine (KVM_CREATE_VM).
    CreateVm,
    Off,
}

/// The value of `--missing`: the result on a node without KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Exit code 6.
    Fail,
    /// Exit code 0: guests on this node run without KVM.
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Table,
    Json,
    /// For node-problem-detector: one line of at most 80 characters, and exit codes of its own.
    Npd,
    /// The text exposition format of Prometheus.
    Prometheus,
}

/// The unparsed value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    pub text: String,
    pub origin: Origin,
}

/// Default interval after which `watch` checks everything again without an event.
const RECHECK: Duration = Duration::from_secs(300);

/// The paths and options of the observation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The device as libvirtd sees it.
    pub device: PathBuf,
    /// Whether `--device` was set.
    pub device_explicit: bool,
    /// Mount point of the node's file system, if `--host-root` was set.
    pub host_root: Option<PathBuf>,
    /// Whether the host root of `--host-root` may be missing. `watch` sets this after its start: an unmount later does
    /// not change the node's GID.
    pub host_root_optional: bool,
    pub pod_root: PodRoot,
    /// Path of qemu.conf, if it is not below the pod root.
    pub qemu_conf: Option<PathBuf>,
    /// Output path of the aligned group file; none to edit the one below the pod root.
    pub group_file_out: Option<PathBuf>,
    /// Whether to inspect the file that `--persist` writes.
    pub rule_slot: bool,
    pub libvirtd: Libvirtd,
}

/// The libvirtd that the pod root belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Libvirtd {
    /// The libvirtd of this container or of the node; also if no search was made.
    Own,
    /// The libvirtd of another container, which can have another device.
    Container,
    /// No libvirtd runs with the node's device. The process ID is that of a libvirtd with a private /dev, if any.
    Missing(Option<u32>),
    /// Several libvirtd run, or one that cannot be inspected; the text is the reason.
    Unclear(String),
}

/// The target state and the safety options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub group: String,
    /// The target GID of `--gid`.
    pub gid: Option<(Gid, Origin)>,
    /// The exact mode of `--mode`.
    pub mode: Option<u16>,
    /// Overrides `user` of qemu.conf.
    pub qemu_user: Option<Given>,
    /// Overrides `group` of qemu.conf.
    pub qemu_group: Option<Given>,
    /// Whether collisions, disagreements and an unknown host root are refused.
    pub strict: bool,
    /// Whether to write a udev rule on the node if its udev would undo the result.
    pub persist: bool,
    pub missing: Missing,
    /// Whether a device that is not the node's causes a warning instead of a refusal.
    pub allow_private_device: bool,
    /// The flags to repeat in suggested commands, each preceded by a space.
    pub replay_flags: String,
}

impl Policy {
    /// The `apply` command to suggest in advice, with the flags of this run, in backticks.
    pub fn command(&self, persist: bool) -> String {
        let persist = if persist { " --persist" } else { "" };
        format!("`libvirt-kvm-init apply{persist}{}`", self.replay_flags)
    }
}

/// Format and destinations of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub format: Format,
    /// `watch`: destination of the metrics.
    pub metrics_file: Option<PathBuf>,
    /// `watch`: destination of the report.
    pub status_file: Option<PathBuf>,
    /// `watch`: interval after which everything is checked again without an event.
    pub recheck: Duration,
}

/// For each option that is set, the value with the highest precedence.
#[derive(Debug, Default)]
pub struct Values {
    given: BTreeMap<&'static str, Given>,
    replay_flags: String,
}

impl Values {
    /// Combines flags, environment and the YAML file. `env` returns the value of a variable, `read` the content of the
    /// configuration file.
    ///
    /// # Errors
    /// [`Error::Usage`] if a value is not UTF-8, or if the configuration file cannot be read or parsed.
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
                    "{origin}: cannot read the file: {error}; mount it there, or remove the option"
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

    /// The [`Sources`] that these values set.
    ///
    /// # Errors
    /// [`Error::Usage`] for the first invalid value.
    pub fn sources(&self) -> Result<Sources, Error> {
        let path = |name| self.value(name, values::path);
        let device = path("device")?;
        Ok(Sources {
            device_explicit: device.is_some(),
            // Without a trailing slash, with which open(2) expects a directory.
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

    /// The [`Policy`] that these values set.
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

    /// The proof to run; [`ProofKind::ApiVersion`] by default.
    ///
    /// # Errors
    /// As [`Values::sources`].
    pub fn proof(&self) -> Result<ProofKind, Error> {
        let proof = self.value("proof", values::proof)?;
        Ok(proof.unwrap_or(ProofKind::ApiVersion))
    }

    /// Maximum time to wait for the device to stop changing.
    ///
    /// # Errors
    /// As [`Values::sources`].
    pub fn settle(&self) -> Result<Duration, Error> {
        Ok(self.value("settle", values::duration)?.unwrap_or_default())
    }

    /// Whether to show the planned changes without making them.
    ///
    /// # Errors
    /// As [`Values::sources`].
    pub fn dry_run(&self) -> Result<bool, Error> {
        self.switch("dry-run")
    }

    /// The [`Output`] that these values set.
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
                "{origin}: invalid value `{text}`, expected {expected}"
            ))),
        }
    }
}

/// The report format of `install` and `logs`, which have no configuration file: from the flag, else from the
/// environment, else the table.
///
/// # Errors
/// [`Error::Usage`] if the format is not `table` or `json`.
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
        // A template with an unset value results in an empty variable.
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => match text.into_string() {
            Ok(text) => Ok(Some(Given { text, origin })),
            Err(raw) => Err(Error::Usage(format!(
                "{origin}: `{}` is not valid UTF-8",
                raw.display()
            ))),
        },
        None => Ok(None),
    }
}
