//! The pod root: a path, or the root directory of another process, held open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sys::Result;
use crate::sys::root::Root;

/// The root directory whose etc/passwd, etc/group and etc/libvirt/qemu.conf libvirtd uses.
#[derive(Debug, Clone)]
pub struct PodRoot {
    path: PathBuf,
    /// Where it is another process': this directory, whatever stands at its path by now.
    held: Option<Arc<Root>>,
}

impl PartialEq for PodRoot {
    fn eq(&self, other: &Self) -> bool {
        let held = match (&self.held, &other.held) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        held && self.path == other.path
    }
}

impl Eq for PodRoot {}

impl PodRoot {
    /// The directory at this path, whichever that is when it is opened.
    pub fn at(path: PathBuf) -> Self {
        Self { path, held: None }
    }

    /// The root of another process.
    pub fn of_process(root: Root) -> Self {
        Self {
            path: root.path().to_owned(),
            held: Some(Arc::new(root)),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the root of another process, and so another container's as a rule.
    pub fn is_of_process(&self) -> bool {
        self.held.is_some()
    }

    /// The path of something below it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens it.
    ///
    /// # Errors
    /// What open(2) answers.
    pub fn open(&self) -> Result<Root> {
        match &self.held {
            Some(root) => root.again(),
            None => Root::open(&self.path),
        }
    }
}
