//! Which files udevd reads, and in what order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::RuleFile;

/// Where rules are, strongest first, below the node's root. The last one counts only where `lib` is
/// a folder of its own.
pub const FOLDERS: [&str; 5] = [
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/local/lib/udev/rules.d",
    "usr/lib/udev/rules.d",
    "lib/udev/rules.d",
];

/// What stands under a file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A file with something in it.
    Content(Vec<u8>),
    /// An empty file or a link to /dev/null: it hides files of its name in later folders.
    Masked,
}

/// The files that count, in the order in which they are read: of each name the one in the strongest
/// folder, sorted by name. `found` holds the folder's place in [`FOLDERS`], its path, the file's name
/// and what was found.
pub fn select(found: Vec<(usize, String, OsString, Found)>) -> Vec<RuleFile> {
    let mut by_name: BTreeMap<OsString, (usize, String, Found)> = BTreeMap::new();
    for (rank, folder, name, content) in found {
        let hidden = by_name.get(&name).is_some_and(|(other, ..)| *other <= rank);
        let bytes = name.as_bytes();
        if bytes.ends_with(b".rules") && !bytes.starts_with(b".") && !hidden {
            by_name.insert(name, (rank, folder, content));
        }
    }
    let file = |(name, (_, folder, found)): (OsString, (usize, String, Found))| match found {
        Found::Masked => None,
        Found::Content(content) => {
            let path = format!("/{folder}/{}", name.display());
            Some(RuleFile { path, content })
        }
    };
    by_name.into_iter().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_folder_decides_and_names_are_sorted() {
        let content = |text: &str| Found::Content(text.into());
        let found = [
            (3, "99-b.rules", content("usr")),
            (0, "99-b.rules", content("etc")),
            (1, "99-b.rules", content("run")),
            (3, "50-a.rules", content("usr")),
            (4, "50-a.rules", content("lib")),
            (3, "60-c.rules", content("usr")),
            (1, "60-c.rules", Found::Masked),
            (1, "70-d.rules", content("run")),
            (3, "70-d.rules", Found::Masked),
            (0, "README", content("x")),
            (0, ".hidden.rules", content("x")),
            (0, "9-e.rules", content("etc")),
            (0, "Z.rules", content("etc")),
        ];
        let folder = |rank: usize| FOLDERS[rank].to_owned();
        let found = found.map(|(rank, name, found)| (rank, folder(rank), name.into(), found));
        let paths: Vec<_> = select(found.into())
            .into_iter()
            .map(|file| file.path)
            .collect();
        let want = [
            "/usr/lib/udev/rules.d/50-a.rules",
            "/run/udev/rules.d/70-d.rules",
            "/etc/udev/rules.d/9-e.rules",
            "/etc/udev/rules.d/99-b.rules",
            "/etc/udev/rules.d/Z.rules",
        ];
        assert_eq!(paths, want);
    }
}
