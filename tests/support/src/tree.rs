//! Folders that stand for file systems.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::namespace::{in_a_namespace, scratch_dir};

/// A folder that stands for the root of a pod or of a node.
pub struct Tree {
    root: PathBuf,
    /// Outside of a namespace, the folder is removed with the value.
    _own: Option<tempfile::TempDir>,
}

impl Tree {
    /// With nothing in it but etc, usr and dev.
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

    /// A pod whose image numbers kvm `kvm_gid` and has nova (42424) as its member.
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

    /// A node whose group database numbers kvm `kvm_gid`, as a whole: it has what tells its root from
    /// some of its directories.
    pub fn host(kvm_gid: u32) -> Self {
        let tree = Self::new();
        tree.dir("usr/bin").dir("proc");
        tree.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        tree.file("etc/group", &format!("root:x:0:\nkvm:x:{kvm_gid}:\n"));
        tree
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where `name` in it is.
    pub fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes a folder, with its parents.
    pub fn dir(&self, name: &str) -> &Self {
        fs::create_dir_all(self.at(name)).unwrap();
        self
    }

    /// Writes a file, with its parents.
    pub fn file(&self, name: &str, text: &str) -> &Self {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        self
    }

    /// What a file says.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap()
    }
}
