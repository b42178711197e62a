//! Reads the input of the prediction in [`crate::formats::udev`]: rules files and the version of systemd. Also
//! detects a running udevd that cached older names.
//!
//! All files are read below the host root, without following links out of it; only `/proc` is this process'
//! own.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::formats::udev::own_rule::{self, Rules};
use crate::formats::udev::{
    Candidate, Diagnostic, RULE_DIRECTORIES, Udevd, login_defs, select, version_of,
};
use crate::observe::group_db;
use crate::observe::view::View;
use crate::sys::processes::Process;
use crate::sys::root::{ListedDir, Root, kind, kind_name};
use crate::sys::{ReadBudget, Result};

/// The rules files that udevd reads, and those of them that are not visible here.
#[derive(Debug)]
pub struct Seen {
    pub rules: Rules,
    /// Rules that the node probably has and that are not visible.
    pub unseen: Vec<Diagnostic>,
    /// Directories with rules on few nodes that are not visible.
    pub not_shown: Vec<&'static str>,
}

/// Reads the rules files that udevd reads, in its order.
///
/// # Errors
/// Any read error, because the rule that cannot be read could be the one that decides. `EFBIG` for more than
/// 8 MiB in total, which is a hundred times the size in distributions.
pub fn rules(root: &Root, view: View) -> Result<Seen> {
    let mut room = ReadBudget::new();
    let mut found: Vec<Candidate> = Vec::new();
    let mut unseen = Vec::new();
    for (directory, listed) in directories(root)? {
        for (name, is_file) in named_rules(&listed) {
            // A name can be any bytes. The path for messages and links is made only if it is needed.
            let path = || format!("{}/{}", RULE_DIRECTORIES[directory], name.display());
            let content = match is_file {
                true => listed.read(name)?,
                false => None,
            };
            let content = match content {
                None => other_content(root, &path())?,
                content => content,
            };
            let Some(content) = content else {
                continue;
            };
            room.take(&content, || root.path().join(path()))?;
            // A link to /dev/null, which is missing in a partial view, only masks files of its name.
            if content.is_empty()
                && let Some(hidden) = view.hides(root, &path())?
                && hidden.path != "dev/null"
                && !found.iter().any(|other| other.name == name)
            {
                let (rule, why) = (format!("/{}", path()), hidden.why(root));
                unseen.push(Diagnostic { rule, why });
            }
            let name = name.to_owned();
            found.push(Candidate {
                directory,
                name,
                content,
            });
        }
    }
    let mut not_shown = Vec::new();
    if view == View::Partial {
        let stock = |file: &Candidate| file.directory == USR && file.name == STOCK;
        let stock = found.iter().any(stock);
        missing_directories(root, stock, &mut unseen, &mut not_shown)?;
    }
    let is_masked = |file: &&Candidate| file.directory > 0 && file.name == own_rule::NAME;
    let hidden = select(found.iter().filter(is_masked).cloned().collect()).pop();
    let files = select(found);
    let rules = Rules { files, hidden };
    Ok(Seen {
        rules,
        unseen,
        not_shown,
    })
}

/// The index of usr/lib in [`RULE_DIRECTORIES`].
const USR: usize = 3;
/// systemd's own rules, which are in lib or usr/lib on every node with its udevd.
const STOCK: &str = "50-udev-default.rules";

/// Adds the directories of rules that a partial view does not show. `stock` is whether systemd's own rules
/// were found in usr/lib: then lib is the same directory, or has no rules.
fn missing_directories(
    root: &Root,
    stock: bool,
    unseen: &mut Vec<Diagnostic>,
    not_shown: &mut Vec<&'static str>,
) -> Result<()> {
    for name in RULE_DIRECTORIES {
        let Some(hidden) = View::Partial.hides(root, name)? else {
            continue;
        };
        let may_be_unused = match name {
            "run/udev/rules.d" | "usr/local/lib/udev/rules.d" => true,
            "lib/udev/rules.d" if stock => continue,
            _ => false,
        };
        if may_be_unused && !hidden.linked {
            not_shown.push(name);
        } else {
            let (rule, why) = (format!("/{name}"), hidden.why(root));
            unseen.push(Diagnostic { rule, why });
        }
    }
    Ok(())
}

/// The current state of the place for the rule of `--persist`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFileSlot {
    pub directory: RuleDirectory,
    pub existing: Existing,
}

/// Whether a file can be created in etc/udev/rules.d.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleDirectory {
    /// The mount is writable. The directory itself may be missing if etc/udev exists.
    Writable,
    /// The directory is on a mount that is read-only here.
    ReadOnly,
    /// etc/udev is missing as well, so the node probably has no udev.
    Missing,
}

/// The existing file at the path of that rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Existing {
    Nothing,
    /// Content of a file that this program wrote.
    Own(Vec<u8>),
    /// A description of any other file, for messages.
    Other(&'static str),
}

/// Inspects the place for the rule of `--persist`.
pub fn slot(root: &Root) -> Result<RuleFileSlot> {
    let mut directory = RuleDirectory::Missing;
    for name in [own_rule::DIRECTORY, "etc/udev"] {
        if let Some(read_only) = root.is_read_only(name)? {
            directory = match read_only {
                true => RuleDirectory::ReadOnly,
                false => RuleDirectory::Writable,
            };
            break;
        }
    }
    let name = own_rule::PATH.trim_start_matches('/');
    let existing = match root.stat(name)? {
        None => Existing::Nothing,
        Some(stat) if kind(&stat) == SFlag::S_IFREG => match root.read(name)? {
            Some(content) if own_rule::is_own(&content) => Existing::Own(content),
            Some(content) if content.is_empty() => {
                Existing::Other("an empty file, which masks rules files of that name")
            }
            Some(_) => Existing::Other("a file that this program did not write"),
            None => Existing::Nothing,
        },
        Some(stat) => Existing::Other(kind_name(kind(&stat))),
    };
    Ok(RuleFileSlot {
        directory,
        existing,
    })
}

/// Every existing directory of rules, with its index in [`RULE_DIRECTORIES`].
fn directories(root: &Root) -> Result<Vec<(usize, ListedDir)>> {
    let count = match libs_are_merged(root)? {
        true => RULE_DIRECTORIES.len() - 1,
        false => RULE_DIRECTORIES.len(),
    };
    let mut found = Vec::new();
    for (place, name) in RULE_DIRECTORIES.into_iter().enumerate().take(count) {
        found.extend(root.directory(name)?.map(|directory| (place, directory)));
    }
    Ok(found)
}

/// The names in a directory that end in `.rules`, and whether each is known to be a regular file.
fn named_rules(directory: &ListedDir) -> impl Iterator<Item = (&OsStr, bool)> {
    let entries = directory.entries.iter();
    let entries = entries.map(|(name, is_file)| (name.as_os_str(), *is_file));
    entries.filter(|(name, _)| name.as_bytes().ends_with(b".rules"))
}

/// Whether lib and usr/lib are the same directory.
fn libs_are_merged(root: &Root) -> Result<bool> {
    Ok(root.inode("lib")? == root.inode("usr/lib")?)
}

/// Content of a file that is not known to be regular, such as a link; `None` if it no longer exists.
fn other_content(root: &Root, name: &str) -> Result<Option<Vec<u8>>> {
    match root.read(name) {
        Ok(Some(content)) => Ok(Some(content)),
        // A dangling link masks files of its name as well.
        Ok(None) => Ok(root.stat(name)?.map(|_| Vec::new())),
        // A directory, a device, a link to one (/dev/null) or a link cycle has no content, but masks
        // files of its name.
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ELOOP) => {
            match root.stat(name)? {
                Some(stat) if kind(&stat) == SFlag::S_IFREG => Err(error),
                found => Ok(found.map(|_| Vec::new())),
            }
        }
        Err(error) => Err(error),
    }
}

/// Determines the version of the node's systemd from its files, and the range of system users and groups if
/// that version may use it.
pub fn udevd(root: &Root, view: View) -> Result<Udevd> {
    let libs: &[&str] = match libs_are_merged(root)? {
        true => &["usr/lib"],
        false => &["usr/lib", "lib"],
    };
    let mut udevd = Udevd {
        version: version(root, libs)?,
        ..Udevd::default()
    };
    if udevd.asks_for_the_range() {
        let defs = root.read("etc/login.defs")?;
        if defs.is_none() && view.hides(root, "etc/login.defs")?.is_some() {
            // Then it is unknown which IDs udevd accepts.
            return Ok(Udevd {
                version: None,
                system_uid_max: 0,
                system_gid_max: 0,
            });
        }
        let defs = defs.unwrap_or_default();
        let max = |key, usual| login_defs(&defs, key).unwrap_or(usual);
        udevd.system_uid_max = max("SYS_UID_MAX", udevd.system_uid_max);
        udevd.system_gid_max = max("SYS_GID_MAX", udevd.system_gid_max);
    }
    Ok(udevd)
}

/// The highest version of systemd with its library in one of these directories.
fn version(root: &Root, libs: &[&str]) -> Result<Option<u32>> {
    let here = format!("{}-linux-gnu", std::env::consts::ARCH);
    let mut version = version_in(root, "usr/lib64")?;
    for lib in libs {
        for directory in [(*lib).to_owned(), format!("{lib}/{here}")] {
            version = version.max(version_in(root, &directory)?);
        }
    }
    if version.is_some() {
        return Ok(version);
    }
    // The node has another architecture than this program, or uses another name for it.
    for lib in libs {
        let names = match root.list(lib) {
            Err(error) if error.errno == Errno::E2BIG => continue,
            names => names?,
        };
        let names = names.into_iter().map(OsString::into_string);
        for name in names.flatten().filter(|name| name.contains("-linux-")) {
            version = version.max(version_in(root, &format!("{lib}/{name}"))?);
        }
    }
    Ok(version)
}

fn version_in(root: &Root, lib: &str) -> Result<Option<u32>> {
    let names = root.list(&format!("{lib}/systemd"))?;
    let versions = names.iter().filter_map(|name| version_of(name.to_str()?));
    Ok(versions.max())
}

/// The process ID of the node's udevd, if it looked up names before they changed: until it is restarted or a
/// rules file changes, it uses the old IDs. `None` also if that cannot be determined.
pub fn stale(root: &Path, processes: &[Process]) -> Result<Option<u32>> {
    let mut udevds = processes
        .iter()
        .filter(|process| process.name == UDEVD)
        .peekable();
    if udevds.peek().is_none() {
        return Ok(None);
    }
    let root = &Root::open(root)?;
    let id = root.id()?;
    // The udevd with this root; one whose root cannot be read counts as well.
    let is_this = |process: &&Process| process.root.is_none_or(|other| other == id);
    let Some(Process { pid, started, .. }) = udevds.find(is_this) else {
        return Ok(None);
    };
    let changed = |name: &str| -> Result<_> { Ok(root.stat(name)?.map(|stat| stat.st_mtime)) };
    let (mut rules, mut names) = (None, None);
    for (place, listed) in directories(root)? {
        for (file, _) in named_rules(&listed) {
            rules = rules.max(changed(&format!(
                "{}/{}",
                RULE_DIRECTORIES[place],
                file.display()
            ))?);
        }
    }
    for directory in RULE_DIRECTORIES {
        rules = rules.max(changed(directory)?);
    }
    for file in group_db::FILES.into_iter().chain(["etc/passwd"]) {
        names = names.max(changed(file)?);
    }
    Ok(is_stale(*started, rules, names).then_some(*pid))
}

/// Whether names changed after udevd last looked them up, which it does when it starts and at the first event
/// after its rules changed. All times are Unix timestamps.
pub fn is_stale(started: i64, rules: Option<i64>, names: Option<i64>) -> bool {
    names.is_some_and(|names| names > started && rules.is_none_or(|rules| rules < names))
}

/// The process name of udevd.
pub const UDEVD: &str = "systemd-udevd";

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests;
