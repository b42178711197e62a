//! The memberships that `watch` adds while the GID changes, and how it escapes names in log and status.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use support::watch::{PATIENCE, Watch, until, wait_for_repair, watch};
use support::{ALIGNED, KVM, Scene, in_namespace, owner, scratch, set_owner};

const GROUPS: &str = "root:x:0:\nkvm:x:108:\ndisk:x:6:\n";

#[test]
fn event_rule_adds_no_guarded_group() {
    in_namespace(|| {
        let scene = Scene::new();
        scene.host.file("etc/group", GROUPS);
        let rule = "ACTION==\"change\", KERNEL==\"kvm\", GROUP=\"disk\"\n";
        let watch = Watch::start(&mut watch(&scene));
        assert_eq!(scene.pod.read("etc/group"), ALIGNED);
        // Added while `watch` runs.
        scene.host.file("etc/udev/rules.d/99-x.rules", rule);
        watch.is_idle();
        set_owner(Path::new(KVM), 0, 6, 0o660);
        wait_for_repair((0, 108, 0o660));
        watch.is_idle();
        assert_eq!(scene.pod.read("etc/group"), ALIGNED, "{}", watch.log());
    });
}

/// GID 6 is permitted only as long as the configuration sets it, and is not kept as a membership.
#[test]
fn guarded_old_gid_of_the_device_is_not_kept_as_membership() {
    in_namespace(|| {
        let scene = Scene::new();
        scene.host.file("etc/group", GROUPS);
        let config = scratch().join("c.yaml");
        fs::write(&config, "gid: 6\n").unwrap();
        let status = scratch().join("status.json");
        let watch = Watch::start(
            watch(&scene)
                .arg("--config")
                .arg(&config)
                .arg("--status-file")
                .arg(&status),
        );
        assert_eq!(watch.report["verdict"], "ok", "{}", watch.report);
        assert_eq!(owner(Path::new(KVM)), (0, 6, 0o660));
        fs::write(&config, "gid: 108\n").unwrap();
        watch.signal(Signal::SIGHUP);
        wait_for_repair((0, 108, 0o660));
        let done = || fs::read_to_string(&status).is_ok_and(|text| text.contains("guarded-group"));
        assert!(until(PATIENCE, done));
        assert_eq!(scene.pod.read("etc/group"), ALIGNED, "{}", watch.log());
    });
}

#[test]
fn control_characters_in_names_are_escaped_in_log_and_status() {
    in_namespace(|| {
        let name = "no\u{1b}[2J\u{9b}2J\u{7f}\u{202e}va";
        let scene = Scene::new();
        let passwd = format!("root:x:0:0:root:/root:/bin/sh\n{name}:x:42424:42424::/:/bin/sh\n");
        scene.pod.file("etc/passwd", &passwd);
        let conf = "user = \"+42424\"\ngroup = \"kvm\"\n";
        scene.pod.file("etc/libvirt/qemu.conf", conf);
        let group = format!("root:x:0:\nkvm:x:108:{name}\n");
        scene.pod.file("etc/group", &group);
        let status = scratch().join("status.json");
        let metrics = scratch().join("metrics");
        let watch = Watch::start(
            watch(&scene)
                .arg("--status-file")
                .arg(&status)
                .arg("--metrics-file")
                .arg(&metrics),
        );
        assert_eq!(watch.report["verdict"], "ok", "{}", watch.report);
        // First refused and then ok again, which is logged with the name.
        let other = "root:x:0:\ngames:x:108:\n";
        let right = scene.host.read("etc/group");
        scene.host.file("etc/group", other);
        watch.wait_for_log("refused");
        scene.host.file("etc/group", &right);
        watch.wait_for_log("can open /dev/kvm");
        let files = [status, metrics].map(|path| fs::read_to_string(path).unwrap());
        for text in files.into_iter().chain([watch.log()]) {
            let hidden = |c: &char| c.is_control() && *c != '\n' || *c == '\u{202e}';
            assert_eq!(text.chars().find(hidden), None, "{text}");
        }
        assert_eq!(scene.pod.read("etc/group"), group);
    });
}
