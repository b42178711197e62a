//! Where no root is named: the files of a libvirtd in another container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::{Tree, bind, in_namespace, program, scratch};
use crate::process::{Watch, healed, until};
use crate::support::{KVM, Scene, command, owner};

/// A process of that name below that root, as far as /proc tells.
struct Libvirtd(Child);

impl Libvirtd {
    fn start(tree: &Tree) -> Self {
        let root = tree.path();
        for name in ["usr/bin", "lib", "lib64", "usr/lib", "proc"] {
            tree.dir(name);
        }
        let stand_in = root.join("usr/bin/libvirtd");
        if !stand_in.exists() {
            fs::copy("/bin/sleep", &stand_in).unwrap();
            for folder in ["lib", "lib64", "usr/lib"] {
                let from = Path::new("/").join(folder);
                if from.is_dir() {
                    bind(&from.canonicalize().unwrap(), &root.join(folder));
                }
            }
            bind(Path::new("/dev"), &root.join("dev"));
        }
        let child = Command::new("chroot")
            .arg(root)
            .args(["/usr/bin/libvirtd", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let comm = format!("/proc/{}/comm", child.id());
        let renamed = || fs::read_to_string(&comm).is_ok_and(|name| name == "libvirtd\n");
        assert!(until(Duration::from_secs(5), renamed));
        Self(child)
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `watch` in a PID namespace in which there are no other libvirtds of this machine than those that are
/// started after it, and in a container that has only the program.
fn alone(scene: &Scene) -> (Command, PathBuf) {
    let status = scratch().join("status.json");
    let mut cmd = command(&program(), &["watch"]);
    cmd.arg("--host-root")
        .arg(scene.host.path())
        .arg("--status-file")
        .arg(&status);
    (cmd, status)
}

/// Whether some other libvirtd runs on this machine, which this would find as well.
fn others() -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        fs::read_to_string(entry.path().join("comm"))
            .is_ok_and(|name| ["libvirtd\n", "virtqemud\n"].contains(&name.as_str()))
    })
}

fn group(tree: &Tree) -> String {
    tree.read("etc/group")
}

#[test]
#[ignore = "tier: root"]
fn the_files_of_the_one_in_another_container_are_kept() {
    in_namespace(|| {
        let scene = Scene::new();
        if others() {
            println!("not shown: another libvirtd runs on this machine");
            return;
        }
        let (mut cmd, status) = alone(&scene);
        let libvirtd = Libvirtd::start(&scene.pod);
        let watch = Watch::start(&mut cmd);
        assert_eq!(watch.report["verdict"], "ok", "{}", watch.report);
        assert!(group(&scene.pod).contains("kvm:x:108:nova\n"));
        healed((0, 108, 0o660));

        // A second one: the first stays the one that is meant.
        let other = Tree::pod(425);
        let second = Libvirtd::start(&other);
        scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
        healed((0, 109, 0o660));
        assert!(group(&scene.pod).contains("kvm:x:109:nova\n"));
        assert!(group(&other).contains("kvm:x:425:nova\n"));

        // The first ends, and the pod is made anew.
        std::thread::sleep(Duration::from_secs(1));
        drop(libvirtd);
        let followed = || group(&other).contains("kvm:x:109:nova\n");
        assert!(until(Duration::from_secs(10), followed), "{}", watch.log());
        drop(second);
        std::thread::sleep(Duration::from_secs(1));
        let third = Tree::pod(426);
        let _libvirtd = Libvirtd::start(&third);
        let followed = || group(&third).contains("kvm:x:109:nova\n");
        assert!(until(Duration::from_secs(20), followed), "{}", watch.log());
        assert_eq!(owner(Path::new(KVM)), (0, 109, 0o660));
        assert!(fs::read_to_string(status).unwrap().contains("schema"));
    });
}

#[test]
#[ignore = "tier: root"]
fn the_nodes_own_and_one_of_many_are_left_alone() {
    in_namespace(|| {
        let scene = Scene::new();
        if others() {
            println!("not shown: another libvirtd runs on this machine");
            return;
        }
        let before = group(&scene.host);
        let nodes = Libvirtd::start(&scene.host);
        let (mut cmd, _) = alone(&scene);
        cmd.args(["--qemu-user", "65534", "--qemu-group", "+65534"]);
        fs::write(scratch().join("group"), fs::read("/etc/group").unwrap()).unwrap();
        bind(&scratch().join("group"), Path::new("/etc/group"));
        let watch = Watch::start(&mut cmd);
        assert_eq!(group(&scene.host), before, "{}", watch.report);
        drop((watch, nodes));

        let (one, other) = (Tree::pod(425), Tree::pod(426));
        let _both = (Libvirtd::start(&one), Libvirtd::start(&other));
        let watch = Watch::start(&mut cmd);
        assert!(group(&one).contains("kvm:x:425:nova\n"));
        assert!(group(&other).contains("kvm:x:426:nova\n"));
        let warnings = watch.report["warnings"].to_string();
        assert!(
            warnings.contains("libvirt runs in several containers")
                || warnings.contains("libvirtd runs in several"),
            "{warnings}"
        );
    });
}
