//! Selects the files that udevd reads, in its order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::file::RuleFile;

/// Directories of rules files below the node's root, highest priority first. The last one counts only if
/// `lib` is not the same directory as `usr/lib`.
pub const RULE_DIRECTORIES: [&str; 5] = [
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/local/lib/udev/rules.d",
    "usr/lib/udev/rules.d",
    "lib/udev/rules.d",
];

/// A file that udevd may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the directory in [`RULE_DIRECTORIES`].
    pub directory: usize,
    pub name: OsString,
    /// Empty for an empty file and for a link to /dev/null, which mask files of the same name in later
    /// directories.
    pub content: Vec<u8>,
}

/// The files that udevd reads, in its order: sorted by name, and for each name the one in the directory
/// with the highest priority.
pub fn select(candidates: Vec<Candidate>) -> Vec<RuleFile> {
    let mut by_name: BTreeMap<OsString, (usize, Vec<u8>)> = BTreeMap::new();
    for Candidate {
        directory,
        name,
        content,
    } in candidates
    {
        let is_masked = by_name
            .get(&name)
            .is_some_and(|(other, _)| *other <= directory);
        let bytes = name.as_bytes();
        if bytes.ends_with(b".rules") && !bytes.starts_with(b".") && !is_masked {
            by_name.insert(name, (directory, content));
        }
    }
    let file = |(name, (directory, content)): (OsString, (usize, Vec<u8>))| {
        let path = format!("/{}/{}", RULE_DIRECTORIES.get(directory)?, name.display());
        (!content.is_empty()).then_some(RuleFile { path, content })
    };
    by_name.into_iter().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sorted_by_name_and_mask_those_in_later_directories() {
        let candidates = [
            (3, "99-b.rules", "usr"),
            (0, "99-b.rules", "etc"),
            (1, "99-b.rules", "run"),
            (3, "50-a.rules", "usr"),
            (4, "50-a.rules", "lib"),
            (3, "60-c.rules", "usr"),
            (1, "60-c.rules", ""),
            (1, "70-d.rules", "run"),
            (3, "70-d.rules", ""),
            (0, "README", "x"),
            (0, ".hidden.rules", "x"),
            (0, "9-e.rules", "etc"),
            (0, "Z.rules", "etc"),
        ];
        let candidates = candidates.map(|(directory, name, content)| Candidate {
            directory,
            name: name.into(),
            content: content.into(),
        });
        let files = select(candidates.into()).into_iter();
        let want = [
            "/usr/lib/udev/rules.d/50-a.rules",
            "/run/udev/rules.d/70-d.rules",
            "/etc/udev/rules.d/9-e.rules",
            "/etc/udev/rules.d/99-b.rules",
            "/etc/udev/rules.d/Z.rules",
        ];
        assert_eq!(files.map(|file| file.path).collect::<Vec<_>>(), want);
    }
}
