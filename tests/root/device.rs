//! The device is repaired through one descriptor, and no other file is changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;

use support::{
    KVM, Scene, Tree, bind_read_only, fresh_dev, go, in_namespace, inode, mknod_char, mknod_kvm,
    ok, owner, report, require_commands, require_kvm, set_owner, state, warnings, without_call,
};

fn kvm() -> &'static Path {
    Path::new(KVM)
}

#[test]
fn drifted_device_is_repaired_on_the_inode_of_pod_and_node() {
    in_namespace(|| {
        let scene = Scene::new();
        for (uid, gid, mode) in [
            (0, 424, 0o660),
            (0, 0, 0o600),
            (0, 0, 0o660),
            (5, 108, 0o660),
            (0, 108, 0o640),
            (42424, 777, 0o000),
        ] {
            set_owner(kvm(), uid, gid, mode);
            let before = inode(kvm());
            let (code, report) = report(&mut scene.apply());
            assert_eq!(code, 0, "{uid}:{gid} {mode:o}: {report}");
            assert_eq!(inode(kvm()), before);
            assert_eq!(inode(&scene.host.at("dev/kvm")), before);
            assert_eq!(owner(kvm()), (0, 108, 0o660), "{uid}:{gid} {mode:o}");
            assert_eq!(report["device"]["same_inode_as_host"], true);
            assert_eq!(report["proof"]["result"], "ok");
        }
    });
}

#[test]
fn second_apply_writes_nothing() {
    in_namespace(|| {
        let scene = Scene::new();
        go(&mut scene.apply()).code(0);
        let before = scene.state();
        let (code, report) = report(&mut scene.apply());
        assert_eq!((code, &report["changes"]), (0, &serde_json::json!([])));
        assert_eq!(scene.state(), before);
    });
}

#[test]
fn mode_bits_for_others_stay_without_the_mode_option() {
    in_namespace(|| {
        let scene = Scene::new();
        for (now, asked, then) in [
            (0o666, None, 0o666),
            (0o606, None, 0o666),
            (0o604, None, 0o664),
            (0o600, None, 0o660),
            (0o1660, None, 0o1660),
            (0o666, Some("0660"), 0o660),
            (0o777, Some("660"), 0o660),
            (0o600, Some("0o666"), 0o666),
        ] {
            set_owner(kvm(), 0, 424, now);
            let mut cmd = scene.apply();
            cmd.args(asked.map(|mode| format!("--mode={mode}")));
            go(&mut cmd).code(0);
            assert_eq!(owner(kvm()), (0, 108, then), "{now:o} {asked:?}");
        }
    });
}

#[test]
fn file_that_is_not_the_kvm_device_is_refused_with_advice() {
    in_namespace(|| {
        let scene = Scene::without_device();
        mknod_kvm(Path::new("/dev/real"), 0, 424, 0o660);
        type Make = fn(&Path);
        let table: [(&str, Make); 8] = [
            ("symbolic link", |at| symlink("/dev/real", at).unwrap()),
            ("symbolic link", |at| symlink("nowhere", at).unwrap()),
            ("directory", |at| fs::create_dir(at).unwrap()),
            ("regular file", |at| fs::write(at, "").unwrap()),
            ("fifo", |at| mkfifo(at, Mode::S_IRWXU).unwrap()),
            ("character device 1:3", |at| {
                mknod_char(at, (1, 3), 0, 0, 0o666)
            }),
            ("block device 10:232", |at| {
                mknod(at, SFlag::S_IFBLK, Mode::S_IRWXU, makedev(10, 232)).unwrap();
            }),
            ("socket", |at| drop(UnixListener::bind(at).unwrap())),
        ];
        for (what, make) in table {
            make(kvm());
            let before = scene.state();
            let run = go(&mut scene.apply()).code(3);
            let advice = match what {
                "symbolic link" | "directory" => "remove it",
                _ => "rm /dev/kvm && mknod -m 600 /dev/kvm c 10 232",
            };
            let run = run.last_line_has(&["refused: ", KVM, what, advice]);
            assert_eq!(scene.state(), before, "{run}");
            let (_, report) = report(&mut scene.apply());
            assert_eq!(report["proof"]["cause"], "not-kvm", "{what}");
            if kvm().is_dir() {
                fs::remove_dir(kvm()).unwrap();
            } else {
                fs::remove_file(kvm()).unwrap();
            }
        }
    });
}

#[test]
fn read_only_dev_fails_only_if_the_device_needs_a_change() {
    in_namespace(|| {
        let scene = Scene::settled();
        let directory = scene.pod.at("dev");
        bind_read_only(Path::new("/dev"), &directory);
        let device = directory.join("kvm");
        let run = || go(scene.apply().arg("--device").arg(&device));
        run().code(0);
        for (gid, mode, call) in [(424, 0o660, "fchownat("), (108, 0o600, "fchmodat(")] {
            set_owner(kvm(), 0, gid, mode);
            run().code(4).last_line_has(&[
                "failed: ",
                call,
                &device.display().to_string(),
                "EROFS",
                "mount the node's /dev writable",
            ]);
            assert_eq!(owner(kvm()), (0, gid, mode));
        }
    });
}

#[test]
fn apply_works_without_fchmodat2() {
    /// This system call has the same number on every architecture.
    const FCHMODAT2: libc::c_long = 452;
    in_namespace(|| {
        let scene = Scene::new();
        for errno in [libc::ENOSYS, libc::EPERM] {
            set_owner(kvm(), 0, 424, 0o600);
            go(without_call(&mut scene.apply(), FCHMODAT2, errno)).code(0);
            assert_eq!(owner(kvm()), (0, 108, 0o660));
        }
        // The device stays unchanged if the fallback fails too.
        set_owner(kvm(), 0, 108, 0o600);
        let directory = scene.pod.at("dev");
        bind_read_only(Path::new("/dev"), &directory);
        let mut cmd = scene.apply();
        cmd.arg("--device").arg(directory.join("kvm"));
        let run = go(without_call(&mut cmd, FCHMODAT2, libc::ENOSYS)).code(4);
        run.last_line_has(&["fchmodat(", "EROFS"]);
    });
}

fn acl(path: &Path) -> String {
    let text = ok(Command::new("getfacl")
        .args(["--omit-header", "-npE"])
        .arg(path));
    text.split_whitespace().collect::<Vec<_>>().join(",")
}

fn set_acl(entries: &str) {
    ok(Command::new("setfacl").args(["-n", "-m", entries]).arg(KVM));
}

#[test]
fn acl_that_denies_the_group_is_repaired_without_raising_other_entries() {
    require_commands(&["getfacl", "setfacl"]);
    in_namespace(|| {
        let scene = Scene::settled();
        // Permissions that the mask withheld stay withheld.
        for (mode, entries, then) in [
            (
                0o660,
                "u:1234:rw,m::r",
                "user::rw-,user:1234:r--,group::rw-,mask::rw-,other::---",
            ),
            (
                0o600,
                "u:1234:rw,g:7:rwx,m::-",
                "user::rw-,user:1234:---,group::rw-,group:7:---,mask::rw-,other::---",
            ),
            (
                // setfacl on a 0600 device and chmod 660 after it: ls shows rw-, but the group entry is ---.
                0o600,
                "u:1234:rw,m::rw",
                "user::rw-,user:1234:rw-,group::rw-,mask::rw-,other::---",
            ),
            (
                0o664,
                "u:1234:r,m::r",
                "user::rw-,user:1234:r--,group::rw-,mask::rw-,other::r--",
            ),
        ] {
            fs::remove_file(kvm()).unwrap();
            mknod_kvm(kvm(), 0, 424, mode);
            set_acl(entries);
            let (code, report) = report(&mut scene.apply());
            assert_eq!(code, 0, "{entries}: {report}");
            assert_eq!(acl(kvm()), then, "{entries}");
            assert_eq!(owner(kvm()), (0, 108, mode | 0o660));
            let before = scene.state();
            go(&mut scene.apply()).code(0);
            assert_eq!(scene.state(), before, "{entries}");
        }
    });
}

#[test]
fn acl_that_denies_the_qemu_user_is_reported_and_kept() {
    require_commands(&["getfacl", "setfacl"]);
    in_namespace(|| {
        let scene = Scene::settled();
        set_acl("u:42424:---,m::rw");
        let before = acl(kvm());
        let (code, report) = report(&mut scene.apply());
        assert_eq!((code, &report["proof"]["cause"]), (5, &"acl".into()));
        assert_eq!(acl(kvm()), before);
        go(&mut scene.apply())
            .code(5)
            .last_line_has(&["setfacl", "nova", KVM]);
    });
}

#[test]
fn private_dev_is_refused_without_the_device_option() {
    in_namespace(|| {
        require_kvm();
        fresh_dev();
        let (host, pod) = (Tree::host(108), Tree::pod(424));
        mknod_kvm(kvm(), 0, 424, 0o660);
        mknod_kvm(&host.at("dev/kvm"), 0, 108, 0o660);
        let apply = || support::program_command("apply", pod.path(), host.path());
        let everything = || state(&[host.path(), pod.path(), Path::new("/dev")]);
        let before = everything();
        go(&mut apply()).code(3).last_line_has(&[
            "refused: ",
            "0:424 0660",
            "0:108 0660",
            "mount the node's /dev",
        ]);
        assert_eq!(everything(), before);
        let hosts = state(&[host.path()]);
        let (code, report) = report(apply().args(["--device", KVM]));
        assert_eq!(code, 0, "{report}");
        assert_eq!(warnings(&report), ["private-device"]);
        assert_eq!(report["device"]["same_inode_as_host"], false);
        assert_eq!(owner(kvm()), (0, 108, 0o660));
        assert_eq!(state(&[host.path()]), hosts);
        // No device in this /dev, but one on the node.
        fs::remove_file(kvm()).unwrap();
        go(&mut apply())
            .code(3)
            .last_line_has(&["mount the node's /dev"]);
    });
}
