//! The device, its directory and the directories of the node's files disappear and come back.
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use support::watch::{PATIENCE, Watch, until, wait_for_repair, watch};
use support::{
    ALIGNED, KVM, Scene, bind, detach, in_namespace, mknod_kvm, mount_tmpfs, owner, scratch,
    set_owner,
};

const RIGHT: (u32, u32, u32) = (0, 108, 0o660);
const MOMENT: Duration = Duration::from_millis(700);

/// ioctl(2) with an integer argument.
pub fn ioctl(file: &fs::File, request: libc::c_ulong, number: u32) -> i32 {
    // SAFETY: these requests take a number and no memory.
    #[allow(clippy::unnecessary_cast)]
    unsafe {
        libc::ioctl(file.as_raw_fd(), request as _, libc::c_ulong::from(number))
    }
}

fn moment() {
    std::thread::sleep(MOMENT);
}

#[test]
fn removed_and_recreated_device_is_repaired() {
    in_namespace(|| {
        let scene = Scene::settled();
        let mut watch = Watch::start(&mut watch(&scene));
        fs::remove_file(KVM).unwrap();
        watch.wait_for_log("absent");
        mknod_kvm(Path::new(KVM), 0, 0, 0o600);
        wait_for_repair(RIGHT);
        watch.wait_for_log("can open /dev/kvm");
        // A link is never followed.
        mknod_kvm(Path::new("/dev/other"), 0, 0, 0o600);
        fs::remove_file(KVM).unwrap();
        symlink("/dev/other", KVM).unwrap();
        watch.wait_for_log("symbolic link");
        assert_eq!(owner(Path::new("/dev/other")), (0, 0, 0o600));
        assert!(watch.runs());
        fs::rename("/dev/other", KVM).unwrap();
        wait_for_repair(RIGHT);
    });
}

#[test]
fn watch_started_without_a_device_waits_for_it() {
    in_namespace(|| {
        let scene = Scene::without_device();
        let watch = Watch::start(&mut watch(&scene));
        assert_eq!(watch.report["verdict"], "absent");
        mknod_kvm(Path::new(KVM), 0, 0, 0o600);
        wait_for_repair(RIGHT);
        assert_eq!(scene.pod.read("etc/group"), ALIGNED);
    });
}

#[test]
fn moved_recreated_or_mounted_over_device_directory_is_followed() {
    in_namespace(|| {
        let scene = Scene::settled();
        let directory = scratch().join("far/away");
        let device = directory.join("kvm");
        let right = || fs::metadata(&device).is_ok() && owner(&device) == RIGHT;
        let soon = |what: &str| assert!(until(PATIENCE, right), "{what}");
        let watch = Watch::start(watch(&scene).arg("--device").arg(&device));
        assert_eq!(watch.report["verdict"], "absent");

        fs::create_dir_all(&directory).unwrap();
        mknod_kvm(&device, 0, 0, 0o600);
        soon("the directory was created");
        moment();
        fs::rename(&directory, scratch().join("elsewhere")).unwrap();
        moment();
        fs::create_dir(&directory).unwrap();
        mknod_kvm(&device, 0, 424, 0o600);
        soon("the directory was moved and recreated");
        moment();
        fs::remove_dir_all(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        mknod_kvm(&device, 0, 424, 0o600);
        soon("the directory was removed and recreated");
        moment();
        mount_tmpfs(&directory, "mode=755");
        mknod_kvm(&device, 0, 0, 0o600);
        soon("the directory was mounted over");
        moment();
        detach(&directory);
        set_owner(&device, 0, 0, 0o600);
        soon("the directory was unmounted");
        // The old directories are no longer watched.
        moment();
        let before = watch.wakeups();
        fs::write(scratch().join("elsewhere/kvm2"), "").unwrap();
        moment();
        assert_eq!(watch.wakeups(), before);
    });
}

#[test]
fn device_in_a_private_dev_is_left_alone() {
    in_namespace(|| {
        let scene = Scene::settled();
        let watch = Watch::start(&mut watch(&scene));
        mount_tmpfs(Path::new("/dev"), "mode=755");
        mknod_kvm(Path::new(KVM), 0, 0, 0o600);
        watch.wait_for_log("this container's /dev is not the node's");
        assert_eq!(owner(Path::new(KVM)), (0, 0, 0o600));
        assert_eq!(owner(&scene.host.at("dev/kvm")), RIGHT);
        nix::mount::umount("/dev").unwrap();
        watch.wait_for_log("info: QEMU as nova (42424:108) can open /dev/kvm");
    });
}

/// Without the host root `watch` cannot compare the files, but still does not edit the node's.
#[test]
fn node_group_file_is_not_edited_when_the_host_root_disappears() {
    in_namespace(|| {
        let scene = Scene::settled();
        let pods = scene.pod.at("etc/group");
        bind(&scene.host.at("etc/group"), &pods);
        let before = scene.pod.read("etc/group");
        let watch = Watch::start(&mut watch(&scene));
        mount_tmpfs(scene.host.path(), "mode=755");
        set_owner(Path::new(KVM), 0, 0, 0o600);
        wait_for_repair(RIGHT);
        assert_eq!(scene.pod.read("etc/group"), before);
        let changed = before.replace(":108:", ":109:");
        assert_ne!(changed, before);
        fs::write(&pods, &changed).unwrap();
        moment();
        set_owner(Path::new(KVM), 0, 0, 0o600);
        moment();
        let now = scene.pod.read("etc/group");
        assert_eq!(now, changed, "{}", watch.log());
    });
}

/// The node's GID changes by its group file, by a rule in a new directory, and back.
#[test]
fn changes_of_the_nodes_group_file_and_rules_are_followed() {
    in_namespace(|| {
        let scene = Scene::settled();
        let _watch = Watch::start(&mut watch(&scene));
        let group = |gid: u32| {
            scene
                .host
                .file("etc/group.new", &format!("root:x:0:\nkvm:x:{gid}:\n"));
            fs::rename(scene.host.at("etc/group.new"), scene.host.at("etc/group")).unwrap();
        };
        group(109);
        wait_for_repair((0, 109, 0o660));
        let pods = scene.pod.read("etc/group");
        assert!(pods.contains("kvm:x:109:nova\n"), "{pods}");
        // The old GID worked until the device was changed, so it stays as a membership.
        assert!(pods.contains("kvm-108:x:108:nova\n"), "{pods}");
        moment();
        let rule = "KERNEL==\"kvm\", GROUP=\"555\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";
        scene.host.file("etc/udev/rules.d/99-kvm.rules", rule);
        wait_for_repair((0, 555, 0o660));
        moment();
        fs::remove_file(scene.host.at("etc/udev/rules.d/99-kvm.rules")).unwrap();
        wait_for_repair((0, 109, 0o660));
        moment();
        group(108);
        wait_for_repair(RIGHT);
        let pods = scene.pod.read("etc/group");
        assert!(pods.contains("kvm:x:108:nova\n"), "{pods}");
    });
}

/// While the node's files are not readable the last target GID is kept.
#[test]
fn target_gid_is_kept_while_the_host_root_is_unmounted() {
    in_namespace(|| {
        let scene = Scene::settled();
        let place = scratch().join("host-rootfs");
        fs::create_dir(&place).unwrap();
        bind(scene.host.path(), &place);
        let mut cmd = support::program_command("watch", scene.pod.path(), &place);
        // The output is made from the image's file, which has another GID.
        scene
            .pod
            .file("etc/group", "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n");
        let out = scene.pod.at("aligned");
        let _watch = Watch::start(cmd.arg("--group-file-out").arg(&out));
        assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED);
        detach(&place);
        moment();
        fs::remove_file(KVM).unwrap();
        moment();
        mknod_kvm(Path::new(KVM), 0, 0, 0o600);
        wait_for_repair(RIGHT);
        moment();
        assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED);
        bind(scene.host.path(), &place);
        scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
        wait_for_repair((0, 109, 0o660));
    });
}
