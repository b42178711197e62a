//! What the forecast in [`crate::udev`] is made from: rules, the version of systemd, and whether the
//! running udevd still has older names in mind.
//!
//! Everything is read below the node's root, which it cannot leave; only `/proc` is this process' own.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::hostdb;
use crate::sys::processes::Process;
use crate::sys::root::{Folder, Root, kind, kind_name};
use crate::sys::{Inode, Result, Room};
use crate::udev::own::{self, Rules};
use crate::udev::{FOLDERS, Found, Udevd, login_defs, select, version_of};

/// The rules files that udevd reads, in its order.
///
/// # Errors
/// The call that failed, with the file's name: a rule that cannot be read could be the one that
/// decides. `EFBIG` for more than 8 MiB altogether, a hundred times what distributions have.
pub fn rules(root: &Root, libs: Libs) -> Result<Rules> {
    let mut room = Room::new();
    let mut found = Vec::new();
    for (rank, name, folder) in folders(root, libs)? {
        for (file, is_file) in named_rules(&folder) {
            let content = match is_file {
                true => folder.read(file)?.map(found_content),
                false => None,
            };
            // Names need not be text, and only of text is made a path to follow.
            let path = || format!("{name}/{}", file.display());
            let content = match content {
                None => other_content(root, &path())?,
                content => content,
            };
            if let Some(Found::Content(content)) = &content {
                room.take(content, || root.path().join(path()))?;
            }
            if let Some(content) = content {
                found.push((rank, name.to_owned(), file.to_owned(), content));
            }
        }
    }
    let hidden = |(rank, _, name, _): &&(usize, _, OsString, _)| *rank > 0 && name == own::NAME;
    let hidden = select(found.iter().filter(hidden).cloned().collect()).pop();
    let files = select(found);
    Ok(Rules { files, hidden })
}

/// Where a rule of this program's own goes, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// The folder.
    pub folder: SpotFolder,
    /// What stands under the file's name.
    pub stands: Stands,
}

/// Whether a file can be made in etc/udev/rules.d.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpotFolder {
    /// As far as its mount goes. The folder itself may be missing where etc/udev is there.
    Writable,
    /// It is on a mount that is read-only here.
    ReadOnly,
    /// There is no etc/udev either: nothing says that this node has a udev.
    Missing,
}

/// What stands where the own file belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stands {
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
pub fn spot(root: &Root) -> Result<Spot> {
    let mut folder = SpotFolder::Missing;
    for name in [own::FOLDER, "etc/udev"] {
        if let Some(read_only) = root.is_read_only(name)? {
            folder = match read_only {
                true => SpotFolder::ReadOnly,
                false => SpotFolder::Writable,
            };
            break;
        }
    }
    let name = own::PATH.trim_start_matches('/');
    let stands = match root.stat(name)? {
        None => Stands::Nothing,
        Some(stat) if kind(&stat) == SFlag::S_IFREG => match root.read(name)? {
            Some(content) if own::is_own(&content) => Stands::Own(content),
            Some(content) if content.is_empty() => {
                Stands::Other("an empty file, which keeps rules of that name from being read")
            }
            Some(_) => Stands::Other("a file that this program has not written"),
            None => Stands::Nothing,
        },
        Some(stat) => Stands::Other(kind_name(kind(&stat))),
    };
    Ok(Spot { folder, stands })
}

/// Place and name of every folder that could have rules, and what is in it.
fn folders(root: &Root, libs: Libs) -> Result<Vec<(usize, &'static str, Folder)>> {
    let mut found = Vec::new();
    for (rank, name) in FOLDERS.into_iter().enumerate() {
        if name.starts_with("lib/") && libs == Libs::Merged {
            continue;
        }
        found.extend(root.folder(name)?.map(|folder| (rank, name, folder)));
    }
    Ok(found)
}

/// The names in a folder that could be rules files', and whether they are regular files for certain.
fn named_rules(folder: &Folder) -> impl Iterator<Item = (&OsStr, bool)> {
    let entries = folder.entries.iter();
    let entries = entries.map(|(name, is_file)| (name.as_os_str(), *is_file));
    entries.filter(|(name, _)| name.as_bytes().ends_with(b".rules"))
}

fn found_content(content: Vec<u8>) -> Found {
    match content.is_empty() {
        true => Found::Masked,
        false => Found::Content(content),
    }
}

/// The node's folders of libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libs {
    /// lib and usr/lib are the same folder.
    Merged,
    /// They are two.
    Apart,
}

/// Looks at the node's folders of libraries.
///
/// # Errors
/// The call that failed.
pub fn libs(root: &Root) -> Result<Libs> {
    Ok(match root.inode("lib")? == root.inode("usr/lib")? {
        true => Libs::Merged,
        false => Libs::Apart,
    })
}

/// What stands there, a link perhaps; nothing if it went away.
fn other_content(root: &Root, name: &str) -> Result<Option<Found>> {
    match root.read(name) {
        Ok(Some(content)) => Ok(Some(found_content(content))),
        // A link to nowhere takes the name as well.
        Ok(None) => Ok(root.stat(name)?.map(|_| Found::Masked)),
        // A folder, a device, and a link to one (/dev/null) or in a circle: nothing to read, but
        // the name is taken.
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ELOOP) => {
            match root.stat(name)? {
                Some(stat) if kind(&stat) == SFlag::S_IFREG => Err(error),
                found => Ok(found.map(|_| Found::Masked)),
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
pub fn udevd(root: &Root, libs: Libs) -> Result<Udevd> {
    let libs: &[&str] = match libs {
        Libs::Merged => &["usr/lib"],
        Libs::Apart => &["usr/lib", "lib"],
    };
    let mut udevd = Udevd {
        version: version(root, libs)?,
        ..Udevd::default()
    };
    if udevd.asks_for_the_range() {
        let defs = root.read("etc/login.defs")?.unwrap_or_default();
        let max = |key, usual| login_defs(&defs, key).unwrap_or(usual);
        udevd.system_uid_max = max("SYS_UID_MAX", udevd.system_uid_max);
        udevd.system_gid_max = max("SYS_GID_MAX", udevd.system_gid_max);
    }
    Ok(udevd)
}

/// The largest version of systemd that has its library in one of these folders.
fn version(root: &Root, libs: &[&str]) -> Result<Option<u32>> {
    let here = format!("{}-linux-gnu", std::env::consts::ARCH);
    let mut version = version_in(root, "usr/lib64")?;
    for lib in libs {
        for folder in [(*lib).to_owned(), format!("{lib}/{here}")] {
            version = version.max(version_in(root, &folder)?);
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
    if !processes.iter().any(is_udevd) {
        return Ok(None);
    }
    let root = &Root::open(root)?;
    let Some((pid, started)) = running(root.id()?, processes) else {
        return Ok(None);
    };
    let mut changed = (None, None);
    for (_, name, folder) in folders(root, libs(root)?)? {
        for (file, _) in named_rules(&folder) {
            let file = root.stat(&format!("{name}/{}", file.display()))?;
            changed.0 = changed.0.max(file.map(|stat| stat.st_mtime));
        }
    }
    for folder in FOLDERS {
        changed.0 = changed.0.max(root.stat(folder)?.map(|stat| stat.st_mtime));
    }
    for file in hostdb::FILES.into_iter().chain(["etc/passwd"]) {
        changed.1 = changed.1.max(root.stat(file)?.map(|stat| stat.st_mtime));
    }
    let (rules, names) = changed;
    Ok(is_stale(started, rules, names).then_some(pid))
}

/// Whether names changed after udevd last looked them up: when it started, or at the first event
/// after its rules changed. All in seconds since 1970.
pub fn is_stale(started: i64, rules: Option<i64>, names: Option<i64>) -> bool {
    names.is_some_and(|names| names > started && rules.is_none_or(|rules| rules < names))
}

/// The name of udevd's process.
pub const UDEVD: &str = "systemd-udevd";

fn is_udevd(process: &Process) -> bool {
    process.name == UDEVD
}

/// The udevd whose root is this one, as far as that can be read, and when it started.
fn running(root: Inode, processes: &[Process]) -> Option<(u32, i64)> {
    let mut found = processes.iter().filter(|process| is_udevd(process));
    let found = found.find(|process| process.root.is_none_or(|its| its == root))?;
    Some((found.pid, found.started))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::fs;

    use super::*;
    use crate::udev::RuleFile;

    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match text.strip_prefix("-> ") {
                Some(to) => std::os::unix::fs::symlink(to, path).unwrap(),
                None => fs::write(path, text).unwrap(),
            }
        }
        let root = Root::open(folder.path()).unwrap();
        (folder, root)
    }

    fn rules_in(root: &Root) -> Result<Rules> {
        rules(root, libs(root)?)
    }

    fn udevd_in(root: &Root) -> Result<Udevd> {
        udevd(root, libs(root)?)
    }

    fn rules_of(files: &[(&str, &str)]) -> Vec<String> {
        let (_own, root) = node(files);
        let rules = rules_in(&root).unwrap().files.into_iter();
        let show = |file: RuleFile| format!("{} {}", file.path, file.content.escape_ascii());
        rules.map(show).collect()
    }

    #[test]
    fn a_rules_files_name_may_be_any_bytes() {
        let (own, root) = node(&[("etc/udev/rules.d/x", "")]);
        let folder = own.path().join("etc/udev/rules.d");
        fs::write(folder.join(OsStr::from_bytes(b"99-\xff.rules")), "a").unwrap();
        let rules = rules_in(&root).unwrap().files;
        assert_eq!(rules[0].path, "/etc/udev/rules.d/99-\u{fffd}.rules");
        assert_eq!(rules[0].content, b"a");
    }

    #[test]
    fn names_that_only_look_alike_are_two() {
        let (own, root) = node(&[("etc/udev/rules.d/x", "")]);
        let folder = own.path().join("etc/udev/rules.d");
        for (name, text) in [(b"99-\xfe.rules", "a"), (b"99-\xff.rules", "b")] {
            fs::write(folder.join(OsStr::from_bytes(name)), text).unwrap();
        }
        let rules = rules_in(&root).unwrap().files;
        let texts: Vec<_> = rules.iter().map(|file| &file.content[..]).collect();
        assert_eq!(texts, [b"a", b"b"]);
    }

    #[test]
    fn more_rules_than_any_node_has_are_not_taken_in() {
        let text = format!("{}\n", "# ".repeat(2 << 20));
        let (_own, root) = node(&[
            ("etc/udev/rules.d/50-a.rules", &text),
            ("etc/udev/rules.d/60-b.rules", &text),
        ]);
        let error = rules_in(&root).unwrap_err();
        assert!(error.to_string().contains("b.rules, and those"), "{error}");
        assert!(error.advice().unwrap().contains("8 MiB"));
    }

    #[test]
    fn rules_are_found_below_the_root() {
        let files = [
            ("usr/lib/udev/rules.d/50-a.rules", "a"),
            ("usr/lib/udev/rules.d/60-b.rules", "b"),
            ("usr/lib/udev/rules.d/70-c.rules", "c"),
            ("usr/lib/udev/rules.d/80-d.rules/x", ""),
            ("etc/udev/rules.d/60-b.rules", "-> /dev/null"),
            ("run/udev/rules.d/70-c.rules", ""),
            ("etc/udev/rules.d/90-e.rules", "-> /usr/share/e"),
            ("usr/share/e", "e"),
        ];
        let mut want = vec![
            "/usr/lib/udev/rules.d/50-a.rules a".to_owned(),
            "/etc/udev/rules.d/90-e.rules e".to_owned(),
        ];
        let merged = [&files[..], &[("lib", "-> usr/lib")]].concat();
        assert_eq!(rules_of(&merged), want);

        let own = [
            ("lib/udev/rules.d/50-a.rules", "x"),
            ("lib/udev/rules.d/99-f.rules", "f"),
        ];
        want.push("/lib/udev/rules.d/99-f.rules f".to_owned());
        assert_eq!(rules_of(&[&files[..], &own].concat()), want);
        assert_eq!(rules_of(&[]), Vec::<String>::new());
    }

    #[test]
    fn the_version_is_found_wherever_distributions_put_it() {
        let table = [
            ("usr/lib/systemd/libsystemd-shared-249.so", Some(249)),
            (
                "usr/lib/systemd/libsystemd-shared-258.2-1.fc43.so",
                Some(258),
            ),
            ("usr/lib64/systemd/libsystemd-shared-254.so", Some(254)),
            ("lib/systemd/libsystemd-shared-247.so", Some(247)),
            (
                "usr/lib/aarch64-linux-gnu/systemd/libsystemd-shared-257.so",
                Some(257),
            ),
            ("usr/lib/other", None),
        ];
        for (file, version) in table {
            let (_own, root) = node(&[(file, ""), ("etc/login.defs", "SYS_GID_MAX 499\n")]);
            let found = udevd_in(&root).unwrap();
            assert_eq!(found.version, version, "{file}");
            // Only where it makes a difference.
            let gid_max = if matches!(version, None | Some(258)) {
                499
            } else {
                999
            };
            assert_eq!((found.system_uid_max, found.system_gid_max), (999, gid_max));
        }
    }

    #[test]
    fn a_folder_of_very_many_libraries_does_not_hide_the_version() {
        let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
        for at in ["usr/lib/systemd", &format!("usr/lib/{triple}/systemd")] {
            let library = format!("{at}/libsystemd-shared-258.so");
            let (own, root) = node(&[(&library, "")]);
            for number in 0..10_001 {
                fs::write(own.path().join(format!("usr/lib/{number}.so")), "").unwrap();
            }
            assert_eq!(udevd_in(&root).unwrap().version, Some(258), "{at}");
        }
    }

    #[test]
    fn a_folder_of_very_many_rules_is_not_read() {
        let (own, root) = node(&[]);
        let folder = own.path().join("etc/udev/rules.d");
        fs::create_dir_all(&folder).unwrap();
        for number in 0..=10_000 {
            fs::write(folder.join(format!("{number}.rules")), "").unwrap();
        }
        let error = rules_in(&root).unwrap_err();
        assert_eq!(error.errno, Errno::E2BIG);
        assert!(error.advice().unwrap().contains("10,000 names"));
    }

    #[test]
    fn names_are_stale_when_they_changed_after_they_were_looked_up() {
        let table = [
            (100, Some(50), Some(90), false),
            (100, Some(50), Some(100), false),
            (100, Some(50), Some(110), true),
            // A changed rules file makes udevd look again, at the next event.
            (100, Some(120), Some(110), false),
            (100, Some(105), Some(110), true),
            (100, None, Some(110), true),
            (100, Some(50), None, false),
        ];
        for (started, rules, names, want) in table {
            assert_eq!(
                is_stale(started, rules, names),
                want,
                "{started} {rules:?} {names:?}"
            );
        }
    }
}
