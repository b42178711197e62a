//! A pod root and host roots for one benchmark, with this machine's own files and a private /dev.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::tool;
use support::{
    KVM, Tree, bind, fresh_dev, mknod_char, mknod_kvm, ok, program, scratch, udev_directory,
};

/// The roots and the device. The pod's etc is also mounted at /etc, so that shell scripts inspect the same files as
/// `apply`, and neither has to change anything.
pub struct Stage {
    pub pod: Tree,
    /// A host root without udev rules.
    pub bare: Tree,
    /// A host root with the distribution's udev rules, if they are available.
    pub ruled: Option<Tree>,
    /// The number of these rules files.
    pub rules: usize,
}

impl Stage {
    /// Creates the stage. Call it only in a private mount namespace.
    pub fn new() -> Self {
        fresh_dev();
        mknod_kvm(Path::new(KVM), 0, 108, 0o660);
        // virt-host-validate also checks these devices.
        mknod_char(Path::new("/dev/vhost-net"), (10, 238), 0, 0, 0o600);
        fs::create_dir("/dev/net").unwrap();
        mknod_char(Path::new("/dev/net/tun"), (10, 200), 0, 0, 0o666);

        let pod = Tree::new();
        let files = |path: &str| fs::read_to_string(path).unwrap_or_default();
        ok(Command::new("cp")
            .arg("-a")
            .arg("/etc/.")
            .arg(pod.at("etc")));
        let others = |text: &str| -> String {
            let ours = |line: &str| {
                let mut fields = line.split(':');
                let name = fields.next().unwrap_or_default();
                let id = fields.nth(1).unwrap_or_default();
                ["kvm", "nova"].contains(&name) || ["108", "42424"].contains(&id)
            };
            let lines = text.lines().filter(|line| !ours(line));
            lines.map(|line| format!("{line}\n")).collect()
        };
        let group = others(&files("/etc/group"));
        let passwd = others(&files("/etc/passwd"));
        pod.file(
            "etc/group",
            &format!("{group}kvm:x:108:nova\nnova:x:42424:\n"),
        );
        pod.file(
            "etc/passwd",
            &format!("{passwd}nova:x:42424:42424::/var/lib/nova:/bin/sh\n"),
        );
        pod.file(
            "etc/libvirt/qemu.conf",
            "user = \"nova\"\ngroup = \"kvm\"\n",
        );
        bind(&pod.at("etc"), Path::new("/etc"));

        let node = || {
            let node = Tree::new();
            node.file("etc/group", &format!("{group}kvm:x:108:\n"));
            node.file("etc/passwd", &passwd);
            node.file("etc/login.defs", &files("/etc/login.defs"));
            node.file("etc/os-release", &files("/etc/os-release"));
            // The program reads the node's systemd version from the name of this file.
            node.file("usr/lib/systemd/libsystemd-shared-252.so", "");
            symlink("usr/lib", node.at("lib")).unwrap();
            bind(Path::new("/dev"), &node.at("dev"));
            node
        };
        let bare = node();
        let mut rules = 0;
        let ruled = udev_directory().map(|udev| {
            let node = node();
            node.dir(RULES);
            for entry in fs::read_dir(udev.join("lib/udev/rules.d"))
                .unwrap()
                .flatten()
            {
                fs::copy(entry.path(), node.at(RULES).join(entry.file_name())).unwrap();
                rules += 1;
            }
            node
        });
        Self {
            pod,
            bare,
            ruled,
            rules,
        }
    }

    /// The command line of `command` for this pod and one of the host roots.
    pub fn words(&self, command: &str, node: &Tree) -> Vec<String> {
        let shown = |path: &Path| path.to_str().unwrap().to_owned();
        vec![
            shown(&program()),
            command.to_owned(),
            "--root".to_owned(),
            shown(self.pod.path()),
            "--host-root".to_owned(),
            shown(node.path()),
        ]
    }
}

/// The directory of the distribution's rules, below a host root.
pub const RULES: &str = "usr/lib/udev/rules.d";

/// The path of a script in benches/.
pub fn script(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    directory.join(name).to_str().unwrap().to_owned()
}

/// Builds static programs that only return. Returns the compiler and the path of each; C, with the
/// distribution's C library, comes before Rust.
pub fn baselines() -> Vec<(String, PathBuf)> {
    let directory = scratch();
    let mut all = Vec::new();
    let c = directory.join("baseline.c");
    fs::write(&c, "int main(void) { return 0; }\n").unwrap();
    let rust = directory.join("baseline.rs");
    fs::write(&rust, "fn main() {}\n").unwrap();
    let mut build = |name: &str, file: &str, cmd: &mut Command| {
        let program = directory.join(file);
        let built = cmd.arg("-o").arg(&program).output();
        if built.is_ok_and(|out| out.status.success()) {
            all.push((name.to_owned(), program));
        }
    };
    if let Some(cc) = tool("cc") {
        let mut cmd = Command::new(cc);
        build(
            "C (the distribution's libc)",
            "baseline-c",
            cmd.args(["-O2", "-static"]).arg(&c),
        );
    }
    if let Some(rustc) = tool("rustc") {
        let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
        let mut cmd = Command::new(rustc);
        cmd.args([
            "-O",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
            "--target",
            &target,
        ]);
        build("Rust (musl)", "baseline-rust", cmd.arg(&rust));
    }
    assert!(
        !all.is_empty(),
        "neither cc nor rustc can build a static program"
    );
    all
}
