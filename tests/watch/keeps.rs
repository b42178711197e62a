//! If the group file cannot be aligned the device keeps the GID that works.

use std::fs;
use std::path::Path;
use std::time::Duration;

use support::watch::{PATIENCE, Watch, until, wait_for_repair, watch};
use support::{
    KVM, Scene, bind, detach, in_namespace, make_read_only, ok, owner, scratch, set_owner,
};

const RIGHT: (u32, u32, u32) = (0, 108, 0o660);

fn make_etc_read_only(scene: &Scene) {
    let etc = scene.pod.at("etc");
    bind(&etc, &etc);
    make_read_only(&etc);
}

#[test]
fn device_keeps_the_working_gid_if_the_group_file_is_read_only() {
    in_namespace(|| {
        let scene = Scene::settled();
        let status = scratch().join("status.json");
        let watch = Watch::start(watch(&scene).arg("--status-file").arg(&status));
        make_etc_read_only(&scene);
        scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
        watch.wait_for_log("the device keeps GID 108, which QEMU can use");
        assert_eq!(owner(Path::new(KVM)), RIGHT);
        let drift =
            || fs::read_to_string(&status).is_ok_and(|text| text.contains("\"verdict\":\"drift\""));
        assert!(until(PATIENCE, drift));

        // The node's udev changes the device anyway.
        watch.is_idle();
        set_owner(Path::new(KVM), 0, 109, 0o660);
        wait_for_repair(RIGHT);
        watch.is_idle();
        assert!(drift(), "the verdict is no longer drift");

        // The file becomes writable, which `watch` finds in a later check without an event.
        detach(&scene.pod.at("etc"));
        wait_for_repair((0, 109, 0o660));
        assert!(scene.pod.read("etc/group").contains("kvm:x:109:nova\n"));
        watch.wait_for_log("info: QEMU as nova (42424:109) can open /dev/kvm");
        let log = watch.log();
        assert_eq!(log.matches("the device keeps").count(), 1, "{log}");
    });
}

/// At the start the working GID is the one with which QEMU can open the device.
#[test]
fn device_keeps_the_working_gid_from_the_start_on() {
    in_namespace(|| {
        let scene = Scene::new();
        // QEMU can open the device only by the group of qemu.conf: the missing membership cannot be added either.
        scene
            .pod
            .file("etc/group", "root:x:0:\nkvm:x:424:\nnova:x:42424:\n");
        make_etc_read_only(&scene);
        let watch = Watch::start(&mut watch(&scene));
        assert_eq!(watch.report["verdict"], "drift", "{}", watch.report);
        assert_eq!(owner(Path::new(KVM)), (0, 424, 0o660));
        set_owner(Path::new(KVM), 0, 108, 0o660);
        wait_for_repair((0, 424, 0o660));
    });
}

/// The group file is complete and aligned before the device is changed.
#[test]
fn group_file_is_aligned_before_the_device() {
    in_namespace(|| {
        let scene = Scene::settled();
        let out = scratch().join("group");
        let mut apply = scene.apply();
        ok(apply.arg("--group-file-out").arg(&out));
        let _watch = Watch::start(watch(&scene).arg("--group-file-out").arg(&out));
        let may = |gid: u32| {
            let text = fs::read_to_string(&out).unwrap();
            let gid = gid.to_string();
            text.lines().any(|line| {
                let fields: Vec<_> = line.split(':').collect();
                fields.len() == 4
                    && fields[2] == gid
                    && fields[3].split(',').any(|name| name == "nova")
            })
        };
        let mut checks = 0_u32;
        for gid in [109, 110, 108] {
            scene
                .host
                .file("etc/group", &format!("root:x:0:\nkvm:x:{gid}:\n"));
            let done = || {
                // Nothing is asserted if the device changes between the two reads.
                let before = owner(Path::new(KVM)).1;
                let allowed = may(before);
                let after = owner(Path::new(KVM)).1;
                checks += 1;
                assert!(
                    allowed || before != after,
                    "{before} in {}",
                    fs::read_to_string(&out).unwrap()
                );
                after == gid
            };
            assert!(until(PATIENCE, done));
            let end = std::time::Instant::now() + Duration::from_millis(1200);
            while std::time::Instant::now() < end {
                assert!(may(gid));
                checks += 1;
            }
        }
        println!("{checks} checks");
    });
}
