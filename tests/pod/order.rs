//! Tests in the chart's order of events: the module is reloaded, the node's udev handles the event later, the steps
//! run, the chart's own script changes the device, and libvirtd starts a guest. Then the node handles a udev event,
//! and only the libvirt container is restarted.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::kubelet::{HOST, Pod, STEP, script};
use crate::node::{self, DEVICE, Node, Running, on_a_node};
use support::guest::{IMAGE, Identity, NODE, NOVA};
use support::udevd;
use support::{in_namespace, mknod_kvm, mount_tmpfs};

const NODES: (u32, u32, u32) = (0, NODE, 0o660);

/// The identity of QEMU in a pod that follows its node.
fn aligned() -> Identity {
    Identity {
        uid: NOVA,
        gid: NODE,
        groups: vec![NODE, NOVA],
    }
}

/// The image's group file with the node's GID for kvm.
fn expected(pod: &Pod) -> String {
    let image = pod.image.read("etc/group");
    let old = format!("\nkvm:x:{IMAGE}:nova\n");
    assert!(image.contains(&old));
    image.replace(&old, &format!("\nkvm:x:{NODE}:nova\n"))
}

/// The checks that every way must pass after its init containers have run.
fn guests_start_after_event_and_restart(pod: &mut Pod) {
    pod.start();
    assert_eq!(pod.guest.starts("after the steps"), aligned());
    assert_eq!(
        node::device(),
        NODES,
        "the chart's kvm must have the node's GID"
    );
    assert_eq!(pod.group(), expected(pod));

    pod.node.event();
    assert_eq!(node::device(), NODES);
    pod.guest.starts("after a udev event on the node");

    let mounts = pod.spec.containers[0].volume_mounts.iter().flatten();
    let seen = mounts.filter(|mount| mount.mount_path.starts_with(HOST));
    if seen.count() > 0 {
        let check = ["libvirt-kvm-init", "check", "--host-root", HOST];
        let (code, stdout, stderr) = pod.exec(&check);
        assert_eq!(code, 0, "{stdout}{stderr}");
        // The mounted directories suffice; the rest of the node's root is not mounted.
        let (code, listed, stderr) = pod.exec(&["ls", HOST]);
        assert_eq!((code, listed.as_str()), (0, "etc\nrun\nusr\n"), "{stderr}");
        let report: serde_json::Value = {
            let check = [&check[..], &["--format=json"]].concat();
            serde_json::from_str(&pod.exec(&check).1).unwrap()
        };
        assert_eq!(report["target"]["gid"], NODE, "{report:#}");
        assert_eq!(report["host"]["kvm_gid"], NODE, "{report:#}");
    } else {
        // PID 1 of the container's PID namespace is not the node's, so the host root cannot be found.
        let (code, stdout, stderr) = pod.exec(&["libvirt-kvm-init", "check"]);
        assert_eq!(code, 0, "{stdout}{stderr}");
        assert!(stdout.contains("host-root-unknown"), "{stdout}");
    }

    pod.stop();
    pod.start();
    assert_eq!(
        pod.guest.starts("after a restart of the container"),
        aligned()
    );
    assert_eq!(pod.group(), expected(pod));
    pod.node.event();
    pod.guest
        .starts("after the restart and a udev event on the node");
    pod.stop();
}

/// Runs the init containers, while the node's udev handles the event of the module step.
fn init(pod: &Pod) {
    let before = fs::metadata(DEVICE).unwrap();
    let answer = pod
        .node
        .answers(&pod.volume("etc-modprobe-d").join("loaded"));
    if let Err((step, ended)) = pod.init() {
        panic!("{step}: {ended:?}");
    }
    assert!(answer.end().success(), "the node's event handling failed");
    // The default termination message path is in /dev, which is the node's.
    assert!(!Path::new("/dev/termination-log").exists());
    assert_ne!(fs::metadata(DEVICE).unwrap().ino(), before.ino());
}

#[test]
fn guests_start_with_mounted_group_file() {
    let _turn = udevd::turn();
    in_namespace(|| {
        let node = Node::with_udevd();
        let mut pod = Pod::new(&node, "genestack-base-kustomize");
        init(&pod);
        assert_eq!(node::device(), NODES);
        guests_start_after_event_and_restart(&mut pod);
    });
}

#[test]
fn guests_start_with_entrypoint_wrapper() {
    on_a_node(|node| {
        let mut pod = Pod::new(node, "chart-2026.1-exec");
        init(&pod);
        guests_start_after_event_and_restart(&mut pod);
    });
}

#[test]
fn guests_start_with_daemon_hook() {
    on_a_node(|node| {
        let mut pod = Pod::new(node, "genestack-talos-values-hooks");
        pod.with_hook();
        init(&pod);
        guests_start_after_event_and_restart(&mut pod);
    });
}

/// The step is the module script. Nested virtualization is already configured, so it loads no module.
#[test]
fn guests_start_with_module_script() {
    on_a_node(|node| {
        mount_tmpfs(&node.at("run"), "mode=755");
        let pod = &mut Pod::new(node, "genestack-base-values-init-modules");
        pod.with_program();
        let text = script("init-modules.yaml", "/conf/init_modules/script");
        let place = pod.volume("libvirt-bin").join("libvirt-init-modules.sh");
        fs::write(place, text).unwrap();
        let known = pod.volume("etc-modprobe-d").join("qemu-system-x86.conf");
        fs::write(known, "# nested=1\n").unwrap();
        fs::remove_file(DEVICE).unwrap();
        mknod_kvm(Path::new(DEVICE), 0, 0, 0o600);
        if let Err((step, ended)) = pod.init() {
            panic!("{step}: {ended:?}");
        }
        assert_eq!(node::device(), NODES);
        guests_start_after_event_and_restart(pod);
    });
}

/// The problem that the patches solve: the chart's chown works only until the node's next udev event.
#[test]
fn without_patch_the_next_event_breaks_guests() {
    on_a_node(|node| {
        let mut pod = Pod::new(node, "genestack-base-plain");
        init(&pod);
        pod.start();
        assert_eq!(pod.guest.starts("after the chart's chown").gid, IMAGE);
        assert_eq!(node::device(), (0, IMAGE, 0o660));
        node.event();
        pod.guest.fails("after a udev event on the node");
        pod.stop();
    });
}

/// The module is reloaded while the step runs, and the step waits for the new device.
#[test]
fn step_waits_for_the_device() {
    on_a_node(|node| {
        let pod = Pod::new(node, "genestack-base-kustomize");
        let install = pod.step("libvirt-kvm-init-install");
        assert_eq!(install.code, 0, "{install:?}");
        fs::remove_file(DEVICE).unwrap();
        let note = node.at("run/loaded");
        let answer = node.answers(&note);
        let load = "sleep 1; mknod -m 600 /dev/kvm c 10 232; : >\"$1\"";
        let mut module = Command::new("sh");
        let module = Running::start(module.args(["-ec", load, "sh"]).arg(&note));
        let step = pod.step(STEP);
        assert!(module.end().success());
        assert_eq!(step.code, 0, "{step:?}");
        assert_eq!(node::device(), NODES);
        assert!(answer.end().success());
        assert_eq!(node::device(), NODES);
        // udev had handled the event before the step continued, so the step changed nothing.
        assert!(!step.stdout.contains("set-device-owner"), "{step:?}");
    });
}
