//! The commands in README.md that need no cluster: each is run as it is printed there, in this order, and prints what
//! README.md shows. With `KVM_INIT_WRITE_DOCS=1` the test writes the output into README.md, otherwise it compares.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use support::{Scene, bind, command, copy, mount_tmpfs, program, project, read, run, scratch};

/// The output of a command is compared as a terminal shows stdout; the last line on stderr repeats its verdict.
#[test]
fn commands_print_what_the_readme_shows() {
    support::in_namespace(|| {
        let scene = pod_on_a_node();
        let old = read("README.md");
        let mut new = String::new();
        let mut codes = Vec::new();
        let mut rest = old.as_str();
        while let Some((before, after)) = rest.split_once("```console\n$ libvirt-kvm-init ") {
            let (block, after) = after.split_once("```").unwrap();
            let line = block.lines().next().unwrap();
            let (code, out, err) = run(&mut shell(&format!("libvirt-kvm-init {line}")));
            assert!(
                (0..=1).contains(&code),
                "{line}: exit code {code}\n{out}{err}"
            );
            codes.push(code);
            let shown = format!("{before}```console\n$ libvirt-kvm-init {line}\n{out}```");
            new.push_str(&shown);
            rest = after;
        }
        new.push_str(rest);
        assert_eq!(codes, [1, 1, 0], "check, logs, apply");
        // The state after the repair, as README.md describes it.
        let (code, out, _) = run(&mut shell(
            "libvirt-kvm-init check --host-root=/mnt/host-rootfs",
        ));
        assert_eq!(code, 0, "{out}");
        assert!(scene.pod.read("etc/group").contains("\nkvm:x:108:nova\n"));
        if std::env::var_os("KVM_INIT_WRITE_DOCS").is_some() {
            fs::write(project("README.md"), &new).unwrap();
        } else {
            assert!(
                old == new,
                "README.md shows other output; `KVM_INIT_WRITE_DOCS=1 cargo test --test root readme::` writes:\n{new}"
            );
        }
    });
}

/// The pod's files are in /etc, the node's below /mnt/host-rootfs, and the program is in PATH.
fn pod_on_a_node() -> Scene {
    let scene = Scene::with_device(0, 108, 0o660);
    let rule = "SUBSYSTEM==\"misc\", KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";
    scene
        .host
        .file("usr/lib/udev/rules.d/50-udev-default.rules", rule)
        .file("usr/lib/systemd/libsystemd-shared-257.so", "")
        .dir("run/udev");
    mount_tmpfs(Path::new("/mnt"), "mode=755");
    fs::create_dir("/mnt/host-rootfs").unwrap();
    bind(scene.host.path(), Path::new("/mnt/host-rootfs"));
    bind(Path::new("/dev"), Path::new("/mnt/host-rootfs/dev"));
    mount_tmpfs(Path::new("/var/log"), "mode=755");
    fs::create_dir("/var/log/nova").unwrap();
    copy(&project("tests/data/logs/nova"), Path::new("/var/log/nova"));
    let bin = scratch().join("bin");
    fs::create_dir(&bin).unwrap();
    symlink(program(), bin.join("libvirt-kvm-init")).unwrap();
    // The last, since what the test itself needs is in the machine's own /etc.
    bind(&scene.pod.at("etc"), Path::new("/etc"));
    scene
}

/// A line of the pod's shell.
fn shell(line: &str) -> Command {
    let mut cmd = command(Path::new("/bin/sh"), &["-c", line]);
    let path = format!("{}:/usr/bin:/bin", scratch().join("bin").display());
    cmd.env("PATH", path)
        .env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    cmd
}
