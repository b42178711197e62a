//! Directory trees that are used as file systems of pods and nodes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::namespace::{in_a_namespace, scratch_dir};

/// A directory that is used as the root of a pod or a node.
pub struct Tree {
    root: PathBuf,
    /// Removes the directory on drop; set only outside of a namespace.
    _own: Option<tempfile::TempDir>,
}

impl Tree {
    /// A tree with empty directories etc, usr and dev.
    pub fn new() -> Self {
        let tree = if in_a_namespace() {
            Self {
                root: scratch_dir(),
                _own: None,
            }
        } else {
            let own = tempfile::tempdir().unwrap();
            Self {
                root: own.path().to_owned(),
                _own: Some(own),
            }
        };
        fs::set_permissions(&tree.root, fs::Permissions::from_mode(0o755)).unwrap();
        tree.dir("etc").dir("usr").dir("dev");
        tree
    }

    /// A pod whose group kvm has this GID and the member nova (42424).
    pub fn pod(kvm_gid: u32) -> Self {
        let tree = Self::new();
        tree.file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnova:x:42424:42424::/var/lib/nova:/bin/sh\n",
        );
        tree.file(
            "etc/group",
            &format!("root:x:0:\nkvm:x:{kvm_gid}:nova\nnova:x:42424:\n"),
        );
        tree.file(
            "etc/libvirt/qemu.conf",
            "user = \"nova\"\ngroup = \"kvm\"\n",
        );
        tree
    }

    /// A node whose group kvm has this GID. It has the files that distinguish a whole root from a mount of single
    /// directories.
    pub fn host(kvm_gid: u32) -> Self {
        let tree = Self::new();
        tree.dir("usr/bin").dir("proc");
        tree.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        tree.file("etc/group", &format!("root:x:0:\nkvm:x:{kvm_gid}:\n"));
        tree
    }

    /// The path of the tree.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The path of `name` in the tree.
    pub fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Creates a directory with its parents.
    pub fn dir(&self, name: &str) -> &Self {
        fs::create_dir_all(self.at(name)).unwrap();
        self
    }

    /// Writes a file and creates its parents.
    pub fn file(&self, name: &str, text: &str) -> &Self {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        self
    }

    /// The content of a file.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap()
    }
}
