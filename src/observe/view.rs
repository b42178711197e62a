//! Determines whether the host root is the node's whole file system, and whether a path that is missing there
//! can exist on the node.
//!
//! A pod can mount the node's whole file system, or only the directories that are needed (etc, usr/lib,
//! run/udev and so on). In the second case the container runtime creates the directories above them, so
//! the content of `usr` or `opt` below such a root differs from the node's.

use crate::sys::Result;
use crate::sys::root::{Root, kind};
use nix::sys::stat::SFlag;

/// Directories that exist on every running Linux system. A pod that mounts only parts of the node does not
/// mount them.
const OF_EVERY_ROOT: [&str; 2] = ["usr/bin", "proc"];

/// The most links that are followed, as in the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The extent of the node's file system below a host root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// The node's own root: a path that is missing there does not exist on the node.
    #[default]
    Whole,
    /// Some directories of the node, mounted below another root.
    Partial,
}

/// Why a path that is missing below the host root may still exist on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    /// The path on the node that is not mounted, without a leading `/`.
    pub path: String,
    /// Whether a visible link leads there, so that the path probably exists.
    pub linked: bool,
}

impl Hidden {
    /// The explanation for messages; `root` is the host root.
    pub fn why(&self, root: &Root) -> String {
        let missing = match self.linked {
            true => format!("it leads to /{}, which is not mounted", self.path),
            false => "it is not mounted".to_owned(),
        };
        let root = root.path().display();
        format!("{missing} below {root}; mount that part of the node there as well")
    }
}

impl View {
    /// Determines the extent of this host root.
    pub fn of(root: &Root) -> Result<Self> {
        for name in OF_EVERY_ROOT {
            if root.stat(name)?.is_none() {
                return Ok(Self::Partial);
            }
        }
        Ok(Self::Whole)
    }

    /// For a path that is missing below this root: the part of it that may exist on the node. `None` if it does
    /// not exist there either.
    pub fn hides(self, root: &Root, name: &str) -> Result<Option<Hidden>> {
        if self == Self::Whole {
            return Ok(None);
        }
        // The resolved part of the path, and the remaining components in reverse order.
        let mut at: Vec<String> = Vec::new();
        let mut rest: Vec<String> = parts(name).rev().collect();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == ".." {
                at.pop();
                continue;
            }
            at.push(part);
            let path = at.join("/");
            match root.stat(&path)?.map(|stat| kind(&stat)) {
                None => {
                    // A path that is missing in a mounted directory of the node is missing on the node.
                    let above = at.split_last().map(|(_, above)| above.join("/"));
                    if root.is_below_a_mount(&above.unwrap_or_default())? {
                        return Ok(None);
                    }
                    // Appends the rest of the path without resolving its links, which are not visible.
                    for part in rest.into_iter().rev() {
                        if part == ".." {
                            at.pop();
                        } else {
                            at.push(part);
                        }
                    }
                    return Ok(Some(Hidden {
                        path: at.join("/"),
                        linked: links > 0,
                    }));
                }
                Some(SFlag::S_IFLNK) => {
                    links += 1;
                    let Some(target) = root.link(&path)?.filter(|_| links <= MOST_LINKS) else {
                        return Ok(None);
                    };
                    let Ok(target) = target.into_string() else {
                        return Ok(Some(Hidden { path, linked: true }));
                    };
                    at.pop();
                    if target.starts_with('/') {
                        at.clear();
                    }
                    rest.extend(parts(&target).rev());
                }
                Some(_) => {}
            }
        }
        // The path was created during the run.
        Ok(None)
    }
}

fn parts(path: &str) -> impl DoubleEndedIterator<Item = String> {
    let parts = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    parts.map(str::to_owned)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(directories: &[&str], links: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        for name in directories {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        for (name, to) in links {
            symlink(to, directory.path().join(name)).unwrap();
        }
        let root = Root::open(directory.path()).unwrap();
        (directory, root)
    }

    #[test]
    fn a_root_is_whole_if_it_has_usr_bin_and_proc() {
        for (directories, view) in [
            (&["etc", "usr/bin", "usr/lib", "proc"][..], View::Whole),
            (&["etc", "usr/lib", "run/udev"], View::Partial),
            (&["etc", "usr/bin", "usr/lib"], View::Partial),
            (&["etc", "usr/lib", "proc"], View::Partial),
            (&[], View::Partial),
        ] {
            let (_own, root) = tree(directories, &[]);
            assert_eq!(View::of(&root).unwrap(), view, "{directories:?}");
        }
    }

    /// Nothing is mounted in these trees, so no directory in them counts as the node's own.
    #[test]
    fn a_partial_view_may_hide_missing_paths() {
        let links = [
            ("etc/a", "/opt/vendor/a"),
            ("etc/b", "../../dev/null"),
            ("etc/c", "a"),
            ("etc/d", "/usr/share/../local/d"),
            ("etc/circle", "circle"),
            ("etc/udev", "static/udev"),
            ("etc/static", "/nix/store/static"),
        ];
        let (_own, root) = tree(&["etc", "usr/lib"], &links);
        let hides = |name| {
            let hidden = View::Partial.hides(&root, name).unwrap();
            assert_eq!(View::Whole.hides(&root, name).unwrap(), None);
            hidden.map(|hidden| (hidden.path, hidden.linked))
        };
        for (name, path, linked) in [
            ("etc/a", "opt/vendor/a", true),
            ("etc/b", "dev/null", true),
            ("etc/c", "opt/vendor/a", true),
            ("etc/d", "usr/local/d", true),
            ("etc/udev/rules.d", "nix/store/static/udev/rules.d", true),
            ("usr/local/lib", "usr/local/lib", false),
            ("etc/missing", "etc/missing", false),
        ] {
            assert_eq!(hides(name), Some((path.to_owned(), linked)), "{name}");
        }
        assert_eq!(hides("etc/circle"), None);
        assert_eq!(hides("etc"), None, "etc exists");
    }
}
