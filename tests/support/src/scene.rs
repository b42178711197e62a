//! A node and a pod that share one /dev.

use std::path::Path;
use std::process::Command;

use crate::{State, Tree, bind, fresh_dev, mknod_kvm, require_kvm, state};

/// The device of every scene.
pub const KVM: &str = "/dev/kvm";

/// A node whose kvm has GID 108 and a pod whose kvm has GID 424, with one shared /dev.
pub struct Scene {
    /// The node's root.
    pub host: Tree,
    /// The pod's root.
    pub pod: Tree,
}

impl Scene {
    /// The state of the incident: the device is 0:424.
    pub fn new() -> Self {
        Self::with_device(0, 424, 0o660)
    }

    /// A scene whose device has this owner, group and mode.
    pub fn with_device(uid: u32, gid: u32, mode: u32) -> Self {
        let scene = Self::without_device();
        mknod_kvm(Path::new(KVM), uid, gid, mode);
        scene
    }

    /// A pod that is aligned with the node, and a device in the target state.
    pub fn settled() -> Self {
        let scene = Self::with_device(0, 108, 0o660);
        scene.pod.file("etc/group", ALIGNED);
        scene
    }

    /// A node with the KVM driver and without a device.
    pub fn without_device() -> Self {
        require_kvm();
        fresh_dev();
        let (host, pod) = (Tree::host(108), Tree::pod(424));
        bind(Path::new("/dev"), &host.at("dev"));
        Self { host, pod }
    }

    /// `apply` for this pod on this node.
    pub fn apply(&self) -> Command {
        self.command("apply")
    }

    /// `exec` for this pod on this node, up to the command.
    pub fn exec(&self, options: &[&str]) -> Command {
        let mut cmd = self.command("exec");
        cmd.args(options).arg("--");
        cmd
    }

    /// A command of the program for this pod on this node.
    pub fn command(&self, name: &str) -> Command {
        crate::program_command(name, self.pod.path(), self.host.path())
    }

    /// The state of all files that a refused run must not change.
    pub fn state(&self) -> State {
        state(&[self.host.path(), self.pod.path(), Path::new("/dev")])
    }
}

/// The group file of [`Tree::pod`] after alignment with a node whose kvm has GID 108.
pub const ALIGNED: &str = "root:x:0:\nkvm:x:108:nova\nnova:x:42424:\n";
