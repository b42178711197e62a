//! The pod root: a path, or the root directory of another process, held open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sys::Result;
use crate::sys::root::Root;

/// The root directory whose etc/passwd, etc/group and etc/libvirt/qemu.conf libvirtd uses.
#[derive(Debug, Clone)]
pub struct PodRoot {
    path: PathBuf,
    /// The open root directory of another process: valid even if the path now leads elsewhere.
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
    /// The directory at this path, looked up when it is opened.
    pub fn at(path: PathBuf) -> Self {
        Self { path, held: None }
    }

    pub fn of_process(root: Root) -> Self {
        Self {
            path: root.path().to_owned(),
            held: Some(Arc::new(root)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the root of another process, which usually is in another container.
    pub fn is_of_process(&self) -> bool {
        self.held.is_some()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn open(&self) -> Result<Root> {
        match &self.held {
            Some(root) => root.again(),
            None => Root::open(&self.path),
        }
    }
}
