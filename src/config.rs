//! Flags, environment and YAML, in this order of precedence, made into one [`Config`].
//!
//! Each value keeps where it came from, so that a bad one is named by its flag, its variable, or
//! its file and line.
#![forbid(unsafe_code)]

mod again;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Gid;

use crate::cli::Options;
use crate::exit::Usage;
use crate::sys::{self, root::Root};

use values::Parser;
pub use values::is_id;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `--name`
    Flag(&'static str),
    /// What worked last, which `watch` goes back to.
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

/// The root of another process, held open: this directory, whatever stands at its path by now.
#[derive(Debug, Clone)]
pub struct Held(Arc<Root>);

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Held {}

/// How long `watch` trusts silence.
const RECHECK: Duration = Duration::from_secs(300);

/// Everything that `apply` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The device as libvirtd sees it.
    pub device: PathBuf,
    /// Whether the device was named, not assumed.
    pub device_given: bool,
    /// Whether a device that is not the node's is a warning, not a refusal.
    pub private_ok: bool,
    /// Where the node's file system is seen, if that was said.
    pub host_root: Option<PathBuf>,
    /// The pod root.
    pub root: PathBuf,
    /// The pod root, where it is another process': held from the first look on.
    pub held: Option<Held>,
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
    /// qemu.conf, if not the pod root's.
    pub qemu_conf: Option<PathBuf>,
    /// Where the aligned group file goes, if not over the pod root's.
    pub group_file_out: Option<PathBuf>,
    /// How far the proof goes.
    pub proof: ProofKind,
    /// What a node without KVM means.
    pub missing: Missing,
    /// How long to wait for the device to hold still.
    pub settle: Duration,
    /// Whether doubts are refusals.
    pub strict: bool,
    /// How the report is written.
    pub format: Format,
    /// Whether the node gets a udev rule where its udev would undo the state.
    pub persist: bool,
    /// Whether nothing may be changed.
    pub dry_run: bool,
    /// The flags that the next command needs to mean the same, each after a blank.
    pub again: String,
    /// `watch`: the number with which QEMU could open the device last.
    pub kept: Option<Gid>,
    /// `watch`: whether the group file was the node's own when the node was seen last.
    pub was_nodes: bool,
    /// Whether this is `watch`: then another container may hold the inode of `group_file_out`.
    pub watching: bool,
    /// `watch`: whether the group file is left as it is, for it cannot be written.
    pub sealed: bool,
    /// `watch`: when all is looked at again though nothing happened.
    pub recheck: Duration,
    /// `watch`: where the metrics go.
    pub metrics_file: Option<PathBuf>,
    /// `watch`: where the report goes.
    pub status_file: Option<PathBuf>,
}

impl Config {
    /// Puts flags, environment and the YAML file together. `env` answers for a variable's name,
    /// `read` for the configuration file's content.
    ///
    /// # Errors
    /// [`Usage`] for the first value that cannot be meant, and for a configuration file that
    /// cannot be read.
    pub fn resolve(
        flags: &Options,
        env: impl Fn(&str) -> Option<std::ffi::OsString>,
        read: impl FnOnce(&Path) -> Result<Vec<u8>, String>,
    ) -> Result<Self, Usage> {
        let mut layers = Layers {
            values: BTreeMap::new(),
        };
        let config_file = flag_or_env("config", flags.config.as_ref(), &env)?;
        if let Some(Given { text, origin }) = config_file {
            let content = read(Path::new(&text)).map_err(|error| {
                Usage(format!(
                    "{origin}: {error}; mount the file there, or leave the option out"
                ))
            })?;
            layers.add_yaml(&text, &content)?;
        }
        for (name, flag) in flags.named() {
            if let Some(given) = flag_or_env(name, flag, &env)? {
                layers.values.insert(name, given);
            }
        }
        let again = again::again(flags);
        Ok(Self {
            again,
            ..layers.config()?
        })
    }

    /// The pod root, open.
    ///
    /// # Errors
    /// What open(2) answers.
    pub fn open_root(&self) -> sys::Result<Root> {
        match &self.held {
            Some(Held(root)) => root.again(),
            None => Root::open(&self.root),
        }
    }

    /// The same with the root of another process as the pod root.
    pub fn with_root(mut self, root: Root) -> Self {
        root.path().clone_into(&mut self.root);
        self.held = Some(Held(Arc::new(root)));
        self
    }

    /// The command that does what this one is about, as it is to be typed.
    pub fn command(&self, persist: bool) -> String {
        let persist = if persist { " --persist" } else { "" };
        format!("`libvirt-kvm-init apply{persist}{}`", self.again)
    }
}

/// The format of a verb that takes no other option: flag, then environment, then the table.
///
/// # Errors
/// [`Usage`] for a word that is no format.
pub fn format(
    flag: Option<&String>,
    env: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<Format, Usage> {
    let given = flag_or_env("format", flag, env)?;
    let values = given.map(|given| ("format", given)).into_iter().collect();
    let format = Layers { values }.value("format", values::log_format)?;
    Ok(format.unwrap_or(Format::Table))
}

impl Options {
    /// Every option that has a variable and a key, with the flag's text.
    fn named(&self) -> [(&'static str, Option<&String>); 20] {
        [
            ("device", self.device.as_ref()),
            ("host-root", self.host_root.as_ref()),
            ("root", self.root.as_ref()),
            ("group", self.group.as_ref()),
            ("gid", self.gid.as_ref()),
            ("mode", self.mode.as_ref()),
            ("qemu-user", self.qemu_user.as_ref()),
            ("qemu-group", self.qemu_group.as_ref()),
            ("qemu-conf", self.qemu_conf.as_ref()),
            ("group-file-out", self.group_file_out.as_ref()),
            ("proof", self.proof.as_ref()),
            ("missing", self.missing.as_ref()),
            ("settle", self.settle.as_ref()),
            ("strict", self.strict.as_ref()),
            ("persist", self.persist.as_ref()),
            ("format", self.format.as_ref()),
            ("dry-run", self.dry_run.as_ref()),
            ("recheck", self.watch.recheck.as_ref()),
            ("metrics-file", self.watch.metrics_file.as_ref()),
            ("status-file", self.watch.status_file.as_ref()),
        ]
    }
}

/// The largest configuration file, in bytes.
const MAX_SIZE: usize = 64 << 10;

/// Whether lists or keys may be nested deeper than the YAML parser's stack bears: it limits `[` and
/// `{`, but not `- - -` and `? ? ?`, which cost two bytes a level.
fn nested_on_one_line(text: &str) -> bool {
    const MAX_LEVELS: usize = 256;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let level = |pair: &&[u8]| matches!(pair, [b'-' | b'?', b' ' | b'\t']);
    let levels = lines.map(|line| line.as_bytes().windows(2).filter(level).count());
    levels.sum::<usize>() > MAX_LEVELS
}

/// The first character that a YAML file may not hold, and its line: a control character, a line end of
/// other alphabets, or a byte order mark within the text. To the parser NUL is the end of the file, and a
/// lone carriage return the end of a line that no editor shows.
fn control_character(text: &str) -> Option<(usize, char)> {
    let mut line = 1;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\n' => line += 1,
            '\t' => {}
            '\r' if chars.peek() == Some(&'\n') => {}
            '\u{2028}' | '\u{2029}' | '\u{feff}' => return Some((line, char)),
            control if control.is_control() => return Some((line, char)),
            _ => {}
        }
    }
    None
}

/// The line at which a second YAML document begins.
fn second_document(text: &str) -> Option<usize> {
    let mut begun = false;
    for (index, line) in text.lines().enumerate() {
        let marker = line.starts_with("---");
        if marker && begun {
            return Some(index + 1);
        }
        begun |= !line.trim().is_empty() && !line.starts_with('#');
    }
    None
}

/// The first line after the parsed document that holds more than a comment or the document's end (`...`):
/// the parser stops there and reports nothing.
fn text_after(document: &marked_yaml::Span, text: &str) -> Option<usize> {
    let at = |marker: Option<&marked_yaml::Marker>| {
        let index = marker.map_or(0, marked_yaml::Marker::character);
        let start = text.char_indices().nth(index);
        &text[start.map_or(text.len(), |(start, _)| start)..]
    };
    let mut rest = at(document.end());
    // The end of `{...}` is marked by its last character or by a comma before it, that of lines by what
    // follows them.
    if at(document.start()).starts_with('{') {
        rest = rest.trim_start_matches([',', ' ', '\t', '\r', '\n']);
        while let Some(comment) = rest.strip_prefix('#') {
            rest = comment.split_once('\n').map_or("", |(_, next)| next);
            rest = rest.trim_start_matches([',', ' ', '\t', '\r', '\n']);
        }
        rest = rest.strip_prefix('}').unwrap_or(rest);
    }
    let is_nothing = |line: &str| {
        let line = line.trim();
        let end = line.strip_prefix("... ").map(str::trim_start);
        line.is_empty() || line == "..." || end.unwrap_or(line).starts_with('#')
    };
    let first = rest.lines().position(|line| !is_nothing(line))?;
    let before = &text[..text.len() - rest.len()];
    Some(before.matches('\n').count() + first + 1)
}

fn flag_or_env(
    name: &'static str,
    flag: Option<&String>,
    env: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<Option<Given>, Usage> {
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
            Err(raw) => Err(Usage(format!("{origin}: {} is not UTF-8", raw.display()))),
        },
        None => Ok(None),
    }
}

/// The value of each option that was given anywhere, the strongest layer's.
struct Layers {
    values: BTreeMap<&'static str, Given>,
}

impl Layers {
    fn add_yaml(&mut self, file: &str, content: &[u8]) -> Result<(), Usage> {
        let Ok(text) = std::str::from_utf8(content) else {
            return Err(Usage(format!("{file}: not UTF-8, expected YAML")));
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if let Some((line, char)) = control_character(text) {
            let char = char.escape_unicode();
            return Err(Usage(format!(
                "{file}:{line}: the control character {char}, expected text; a value can be quoted and \
                 have it as an escape"
            )));
        }
        if text.len() > MAX_SIZE || nested_on_one_line(text) {
            let why = "longer or deeper than any configuration";
            return Err(Usage(format!(
                "{file}: {why}, expected `option: value` lines"
            )));
        }
        if let Some(line) = second_document(text) {
            let why = "a second document, expected one";
            return Err(Usage(format!("{file}:{line}: {why}")));
        }
        let options = marked_yaml::LoaderOptions::default()
            .error_on_duplicate_keys(true)
            .prevent_coercion(true);
        let node = match marked_yaml::parse_yaml_with_options(0, text, options) {
            Ok(node) => node,
            Err(error) => return self.yaml_error(file, text, &error),
        };
        let line_of = |span: &marked_yaml::Span| span.start().map_or(1, marked_yaml::Marker::line);
        let Some(mapping) = node.as_mapping() else {
            let line = line_of(node.span());
            return Err(Usage(format!(
                "{file}:{line}: expected `option: value` lines"
            )));
        };
        if let Some(line) = text_after(node.span(), text) {
            let why = "text after the end of the document, expected none";
            return Err(Usage(format!("{file}:{line}: {why}")));
        }
        for (name, value) in mapping.iter() {
            let line = line_of(name.span());
            let names = Options::default().named().map(|(name, _)| name);
            let Some(key) = names.into_iter().find(|known| *known == name.as_str()) else {
                let known = names.join(", ");
                let name = name.as_str();
                return Err(Usage(format!(
                    "{file}:{line}: unknown key `{name}`, expected one of: {known}"
                )));
            };
            let Some(scalar) = value.as_scalar() else {
                return Err(Usage(format!(
                    "{file}:{line}: {key}: expected one value, not a list or mapping"
                )));
            };
            let null = ["", "~", "null", "Null", "NULL"].contains(&scalar.as_str());
            if scalar.as_str().is_empty() || null && scalar.may_coerce() {
                continue;
            }
            let file = file.to_owned();
            let origin = Origin::File { file, line, key };
            let text = scalar.as_str().to_owned();
            self.values.insert(key, Given { text, origin });
        }
        Ok(())
    }

    /// A file of nothing but comments is an empty configuration, everything else is an error.
    fn yaml_error(
        &self,
        file: &str,
        text: &str,
        error: &marked_yaml::LoadError,
    ) -> Result<(), Usage> {
        let mut lines = text.lines().map(str::trim);
        if lines.all(|line| line.is_empty() || line.starts_with('#') || line == "---") {
            return Ok(());
        }
        if let marked_yaml::LoadError::DuplicateKey(inner) = error {
            let line = inner
                .key
                .span()
                .start()
                .map_or(1, marked_yaml::Marker::line);
            let key = inner.key.as_str();
            return Err(Usage(format!(
                "{file}:{line}: the key `{key}` is there twice, expected each once"
            )));
        }
        Err(Usage(format!(
            "{file}:{error}: expected `option: value` lines"
        )))
    }

    fn config(&self) -> Result<Config, Usage> {
        let path = |name| self.value(name, values::path);
        let output = |name| self.value(name, values::output);
        Ok(Config {
            // A slash at the end would ask for a folder.
            device: path("device")?
                .map(|path| path.components().collect())
                .unwrap_or_else(|| PathBuf::from("/dev/kvm")),
            device_given: self.values.contains_key("device"),
            private_ok: self.values.contains_key("device"),
            host_root: path("host-root")?,
            root: path("root")?.unwrap_or_else(|| PathBuf::from("/")),
            held: None,
            group: self
                .value("group", values::group)?
                .unwrap_or_else(|| "kvm".to_owned()),
            gid: self
                .value("gid", values::gid)?
                .zip(self.values.get("gid").map(|given| given.origin.clone())),
            mode: self.value("mode", values::mode)?,
            qemu_user: self.values.get("qemu-user").cloned(),
            qemu_group: self.values.get("qemu-group").cloned(),
            qemu_conf: path("qemu-conf")?,
            group_file_out: output("group-file-out")?,
            proof: self
                .value("proof", values::proof)?
                .unwrap_or(ProofKind::ApiVersion),
            missing: self
                .value("missing", values::missing)?
                .unwrap_or(Missing::Fail),
            settle: self.value("settle", values::duration)?.unwrap_or_default(),
            strict: self.value("strict", values::bool)?.unwrap_or(false),
            persist: self.value("persist", values::bool)?.unwrap_or(false),
            format: self
                .value("format", values::format)?
                .unwrap_or(Format::Table),
            dry_run: self.value("dry-run", values::bool)?.unwrap_or(false),
            again: String::new(),
            kept: None,
            was_nodes: false,
            watching: false,
            sealed: false,
            recheck: self.value("recheck", values::recheck)?.unwrap_or(RECHECK),
            metrics_file: output("metrics-file")?,
            status_file: output("status-file")?,
        })
    }

    fn value<T>(&self, name: &str, parse: Parser<T>) -> Result<Option<T>, Usage> {
        let Some(Given { text, origin }) = self.values.get(name) else {
            return Ok(None);
        };
        match parse(text) {
            Ok(value) => Ok(Some(value)),
            Err(expected) => Err(Usage(format!(
                "{origin}: bad value `{text}`, expected {expected}"
            ))),
        }
    }
}
