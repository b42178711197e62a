//! How much of the node a host root shows, and whether something that is not found there may still be
//! on the node.
//!
//! A pod can mount the node's whole file system, or only the directories that are needed (its etc, usr/lib,
//! run/udev and so on). In the second case the container runtime makes the directories around them, so
//! that `usr` or `opt` below such a root says nothing about the node.

use crate::sys::Result;
use crate::sys::root::{Root, kind};
use nix::sys::stat::SFlag;

/// Directories that the root file system of every running Linux system has. No pod mounts them when it
/// mounts only a part of the node.
const OF_EVERY_ROOT: [&str; 2] = ["usr/bin", "proc"];

/// How many links are followed, as by the kernel (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// How much of the node a host root shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// The node's own root: what is not there is not on the node.
    #[default]
    Whole,
    /// Some directories of the node, mounted below a root that is not the node's.
    Partial,
}

/// Why a path that is not found below the host root may still be on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    /// The path on the node that is not shown, without `/` at its start.
    pub path: String,
    /// Whether a link that is shown leads there, so that it probably exists.
    pub linked: bool,
}

impl Hidden {
    /// The same in words, for what is below `root`.
    pub fn why(&self, root: &Root) -> String {
        let leads = match self.linked {
            true => format!("leads to /{}, which is", self.path),
            false => "is".to_owned(),
        };
        format!(
            "it {leads} not in the parts of the node that {} shows: mount that part there as well",
            root.path().display()
        )
    }
}

impl View {
    /// What this root shows.
    ///
    /// # Errors
    /// The call that failed.
    pub fn of(root: &Root) -> Result<Self> {
        for name in OF_EVERY_ROOT {
            if root.stat(name)?.is_none() {
                return Ok(Self::Partial);
            }
        }
        Ok(Self::Whole)
    }

    /// Of a path that leads to nothing below this root: what could still be on the node, or nothing if the
    /// node does not have it either.
    ///
    /// # Errors
    /// The call that failed.
    pub fn hides(self, root: &Root, name: &str) -> Result<Option<Hidden>> {
        if self == Self::Whole {
            return Ok(None);
        }
        // The path so far, and what is left of it, its next part last.
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
                    // What is missing in a directory of the node is missing on the node.
                    let above = at.split_last().map(|(_, above)| above.join("/"));
                    if root.is_below_a_mount(&above.unwrap_or_default())? {
                        return Ok(None);
                    }
                    // The rest as far as it can be told without its links.
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
        // It has come into being during the run.
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
    fn a_root_is_whole_if_it_has_what_every_root_has() {
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

    /// Nothing is mounted in these trees, so that nothing in them is known to be the node's.
    #[test]
    fn what_a_partial_view_does_not_show_may_be_there() {
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
        assert_eq!(hides("etc"), None, "it is there");
    }
}
