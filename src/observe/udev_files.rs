//! What the forecast in [`crate::formats::udev`] is made from: rules, the version of systemd, and whether the
//! running udevd still has older names in mind.
//!
//! Everything is read below the node's root, which it cannot leave; only `/proc` is this process' own.

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

/// The rules files that udevd reads, and those that it reads and that are not seen here.
#[derive(Debug)]
pub struct Seen {
    /// In udevd's order.
    pub rules: Rules,
    /// Rules that the node has, or may well have, and that are not seen.
    pub unseen: Vec<Diagnostic>,
    /// Directories that few nodes have rules in, and that are not seen.
    pub not_shown: Vec<&'static str>,
}

/// The rules files that udevd reads, in its order.
///
/// # Errors
/// The call that failed, with the file's name: a rule that cannot be read could be the one that
/// decides. `EFBIG` for more than 8 MiB altogether, a hundred times what distributions have.
pub fn rules(root: &Root, view: View) -> Result<Seen> {
    let mut room = ReadBudget::new();
    let mut found: Vec<Candidate> = Vec::new();
    let mut unseen = Vec::new();
    for (directory, listed) in directories(root)? {
        for (name, is_file) in named_rules(&listed) {
            // Names need not be text, and only of text is made a path to follow.
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
            // A link to /dev/null, which no partial view shows, only hides other files of its name.
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
    let hidden = |file: &&Candidate| file.directory > 0 && file.name == own_rule::NAME;
    let hidden = select(found.iter().filter(hidden).cloned().collect()).pop();
    let files = select(found);
    let rules = Rules { files, hidden };
    Ok(Seen {
        rules,
        unseen,
        not_shown,
    })
}

/// The place of usr/lib in [`RULE_DIRECTORIES`].
const USR: usize = 3;
/// systemd's own rules, which are in one of lib and usr/lib on every node that has its udevd.
const STOCK: &str = "50-udev-default.rules";

/// Of the directories of rules, those that a partial view does not show. `stock` is whether systemd's own
/// rules were found in usr/lib: then lib is the same directory, or nothing that counts.
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

/// Where a rule of this program's own goes, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFileSlot {
    /// Its directory.
    pub directory: RuleDirectory,
    /// What there is under the file's name.
    pub existing: Existing,
}

/// Whether a file can be made in etc/udev/rules.d.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleDirectory {
    /// As far as its mount goes. The directory itself may be missing where etc/udev is there.
    Writable,
    /// It is on a mount that is read-only here.
    ReadOnly,
    /// There is no etc/udev either: nothing shows that this node has a udev.
    Missing,
}

/// What there is where the own file belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Existing {
    /// Nothing.
    Nothing,
    /// A file that this program wrote, with its content.
    Own(Vec<u8>),
    /// Something else, in words.
    Other(&'static str),
}

/// Looks at where the own rule goes.
///
/// # Errors
/// The call that failed.
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
                Existing::Other("an empty file, which keeps rules of that name from being read")
            }
            Some(_) => Existing::Other("a file that this program has not written"),
            None => Existing::Nothing,
        },
        Some(stat) => Existing::Other(kind_name(kind(&stat))),
    };
    Ok(RuleFileSlot {
        directory,
        existing,
    })
}

/// Every directory that could have rules, with its place in [`RULE_DIRECTORIES`].
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

/// The names in a directory that could be rules files', and whether they are regular files for certain.
fn named_rules(directory: &ListedDir) -> impl Iterator<Item = (&OsStr, bool)> {
    let entries = directory.entries.iter();
    let entries = entries.map(|(name, is_file)| (name.as_os_str(), *is_file));
    entries.filter(|(name, _)| name.as_bytes().ends_with(b".rules"))
}

/// Whether lib and usr/lib are the same directory.
fn libs_are_merged(root: &Root) -> Result<bool> {
    Ok(root.inode("lib")? == root.inode("usr/lib")?)
}

/// What is there and is no regular file for certain, a link perhaps; nothing if it went away.
fn other_content(root: &Root, name: &str) -> Result<Option<Vec<u8>>> {
    match root.read(name) {
        Ok(Some(content)) => Ok(Some(content)),
        // A link to nowhere takes the name as well.
        Ok(None) => Ok(root.stat(name)?.map(|_| Vec::new())),
        // A directory, a device, and a link to one (/dev/null) or in a circle: nothing to read, but
        // the name is taken.
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ELOOP) => {
            match root.stat(name)? {
                Some(stat) if kind(&stat) == SFlag::S_IFREG => Err(error),
                found => Ok(found.map(|_| Vec::new())),
            }
        }
        Err(error) => Err(error),
    }
}

/// What can be learned about the node's systemd from its files. The range of system users and groups
/// is only looked up where such a version may ask for it.
///
/// # Errors
/// The call that failed.
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
            // Then it is not known which numbers such a version takes.
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

/// The largest version of systemd that has its library in one of these directories.
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
    // A node of another architecture than this program's, or with another name for it.
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

/// The process ID of a running udevd that looked up names before they changed, where that can be
/// seen: until it is restarted, or a rules file changes, it goes on with the old numbers.
///
/// # Errors
/// The call on the node's files that failed.
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
    // The one whose root is this one, as far as that can be read.
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

/// Whether names changed after udevd last looked them up: when it started, or at the first event
/// after its rules changed. All in seconds since 1970.
pub fn is_stale(started: i64, rules: Option<i64>, names: Option<i64>) -> bool {
    names.is_some_and(|names| names > started && rules.is_none_or(|rules| rules < names))
}

/// The name of udevd's process.
pub const UDEVD: &str = "systemd-udevd";

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests;
