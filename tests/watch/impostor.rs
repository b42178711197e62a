//! Processes that look like the libvirtd of a pod, and states in which `ready` must fail.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use crate::libvirtd::{Libvirtd, alone, bare_root, container, enter, follows};
use support::impostor::Impostor;
use support::watch::{PATIENCE, Watch, until, wait_for_repair, watch};
use support::{
    KVM, Scene, Tree, bind, command, go, in_namespace, mknod_kvm, mount_tmpfs, program,
    require_commands, scratch, set_owner, state,
};

const RIGHT: (u32, u32, u32) = (0, 108, 0o660);
/// Waits for two full checks of `watch`: it writes its status after each.
#[track_caller]
pub fn wait_for_two_checks(status: &Path) {
    for _ in 0..2 {
        let inode = || fs::metadata(status).map(|meta| meta.ino()).ok();
        let before = inode();
        assert!(until(PATIENCE, || inode().is_some_and(|now| Some(now) != before)));
    }
}

/// A file that only root can access.
fn victim(name: &str, text: &str) -> PathBuf {
    let path = scratch().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// Content, inode, owner and times of a file.
fn facts(path: &Path) -> support::State {
    state(&[path])
}

/// `watch` as the DaemonSet runs it, with a status file.
fn daemon_set(scene: &Scene) -> (Command, PathBuf) {
    let directory = scratch().join("state");
    fs::create_dir_all(&directory).unwrap();
    let status = directory.join("status.json");
    let mut cmd = alone(scene);
    cmd.args(["--recheck", "1s", "--status-file"]).arg(&status);
    (cmd, status)
}

fn ready(status: &Path) -> i32 {
    go(command(&program(), &["ready"]).arg(status)).code
}

#[track_caller]
fn becomes(status: &Path, code: i32) {
    let is = || ready(status) == code;
    assert!(
        until(PATIENCE, is),
        "ready ends with {}: {:?}",
        ready(status),
        fs::read_to_string(status)
    );
}

#[test]
fn unprivileged_process_named_libvirtd_causes_no_edit() {
    require_commands(&["nsenter", "setpriv", "unshare"]);
    in_namespace(|| {
        let scene = Scene::new();
        bare_root();
        let script = victim("script", "#!/bin/sh\necho backup\n");
        let secret = victim("secret", "root:$6$salt$hash:19000:0:99999:7:::\n");
        let before = (facts(&script), facts(&secret));
        let (mut cmd, status) = daemon_set(&scene);
        let watch = Watch::start(&mut cmd);
        for flips in [false, true] {
            let enter = enter(&watch);
            let _impostor = match flips {
                false => Impostor::start(&enter, &script),
                true => Impostor::flipping(&enter, &script, &secret),
            };
            (0..if flips { 2 } else { 1 }).for_each(|_| wait_for_two_checks(&status));
            assert!(
                (facts(&script), facts(&secret)) == before,
                "flips: {flips}\n{}{}\n{}",
                fs::read_to_string(&script).unwrap(),
                fs::read_to_string(&secret).unwrap(),
                watch.log()
            );
            // The impostor does not count as libvirtd, so there is none.
            assert_ne!(ready(&status), 0);
        }
        let texts = watch.log() + &fs::read_to_string(&status).unwrap();
        assert!(
            !texts.contains("hash") && !texts.contains("backup"),
            "{texts}"
        );
        wait_for_repair(RIGHT);
    });
}

#[test]
fn impostor_beside_the_real_libvirtd_is_ignored() {
    require_commands(&["nsenter", "setpriv", "unshare"]);
    in_namespace(|| {
        let scene = Scene::new();
        let second = Tree::pod(426);
        for tree in [&scene.pod, &second] {
            container(tree);
        }
        bare_root();
        let script = victim("script", "#!/bin/sh\necho backup\n");
        let before = facts(&script);
        let (mut cmd, status) = daemon_set(&scene);
        let watch = Watch::start(&mut cmd);
        let _impostor = Impostor::start(&enter(&watch), &script);
        let real = Libvirtd::start(&watch, &scene.pod);
        follows(&watch, &scene.pod, 108);
        becomes(&status, 0);
        // The real libvirtd is restarted, as in a new pod.
        drop(real);
        becomes(&status, 5);
        let _real = Libvirtd::start(&watch, &second);
        follows(&watch, &second, 108);
        becomes(&status, 0);
        scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
        follows(&watch, &second, 109);
        wait_for_repair((0, 109, 0o660));
        assert!(facts(&script) == before, "{}", watch.log());
    });
}

/// An unprivileged container with UID 0 may have its own libvirtd.
#[test]
fn libvirtd_of_an_ordinary_container_is_ignored() {
    in_namespace(|| {
        let scene = Scene::new();
        let (ordinary, private) = (Tree::pod(425), Tree::pod(426));
        for tree in [&scene.pod, &ordinary] {
            container(tree);
        }
        // One has the node's /dev but no CAP_SYS_ADMIN, the other all capabilities but a private /dev.
        mknod_kvm(&private.at("dev/kvm"), 0, 426, 0o660);
        container(&private);
        bare_root();
        let before = state(&[&ordinary.at("etc"), &private.at("etc")]);
        let (mut cmd, status) = daemon_set(&scene);
        let watch = Watch::start(&mut cmd);
        let _ordinary = Libvirtd::without_admin(&watch, &ordinary);
        let _private = Libvirtd::start(&watch, &private);
        wait_for_two_checks(&status);
        assert!(state(&[&ordinary.at("etc"), &private.at("etc")]) == before);
        assert_ne!(ready(&status), 0);
        let _real = Libvirtd::start(&watch, &scene.pod);
        follows(&watch, &scene.pod, 108);
        becomes(&status, 0);
        assert!(state(&[&ordinary.at("etc"), &private.at("etc")]) == before);
    });
}

/// The image of a libvirt container is not trusted either.
#[test]
fn only_valid_group_files_in_root_owned_directories_are_edited() {
    let victims = [
        (
            "passwd",
            "root:x:0:0:root:/root:/bin/sh\nnova:x:42424:42424::/:/bin/sh\n",
        ),
        ("script", "#!/bin/sh\nroot:x:0:\necho backup\n"),
        ("shadow", "root:$6$salt$hash:19000:0:99999:7:::\n"),
    ];
    for (what, text) in victims {
        in_namespace(|| {
            let scene = Scene::new();
            let file = victim(what, text);
            bind(&file, &scene.pod.at("etc/group"));
            container(&scene.pod);
            bare_root();
            let before = facts(&file);
            let (mut cmd, status) = daemon_set(&scene);
            let watch = Watch::start(&mut cmd);
            let _libvirtd = Libvirtd::start(&watch, &scene.pod);
            watch.wait_for_log("is not a group file");
            wait_for_two_checks(&status);
            assert!(facts(&file) == before, "{what}: {}", watch.log());
            assert_ne!(ready(&status), 0, "{what}");
        });
    }
    for (uid, mode) in [(1000, 0o755), (0, 0o777), (0, 0o775)] {
        in_namespace(|| {
            let scene = Scene::new();
            container(&scene.pod);
            bare_root();
            set_owner(&scene.pod.at("etc"), uid, 0, mode);
            let before = state(&[&scene.pod.at("etc")]);
            let (mut cmd, status) = daemon_set(&scene);
            let watch = Watch::start(&mut cmd);
            let _libvirtd = Libvirtd::start(&watch, &scene.pod);
            watch.wait_for_log("users other than root can change");
            assert!(state(&[&scene.pod.at("etc")]) == before);
            assert_ne!(ready(&status), 0);
        });
    }
}

/// A process of root that cannot be inspected could be the pod's libvirtd.
#[test]
fn uninspectable_libvirtd_prevents_edits_and_readiness() {
    in_namespace(|| {
        let scene = Scene::new();
        container(&scene.pod);
        bare_root();
        let directory = scratch().join("state");
        fs::create_dir(&directory).unwrap();
        let status = directory.join("status.json");
        let mut cmd = crate::libvirtd::alone_with(
            &scene,
            &[
                "setpriv",
                "--bounding-set=-all,+chown,+setuid,+setgid,+dac_override",
                "--inh-caps=-all",
            ],
        );
        cmd.args(["--recheck", "1s", "--status-file"]).arg(&status);
        let watch = Watch::start(&mut cmd);
        let before = state(&[&scene.pod.at("etc")]);
        let _libvirtd = Libvirtd::start(&watch, &scene.pod);
        watch.wait_for_log("cannot inspect libvirtd");
        wait_for_two_checks(&status);
        assert!(state(&[&scene.pod.at("etc")]) == before);
        assert_eq!(ready(&status), 5);
        wait_for_repair(RIGHT);
    });
}

/// Without libvirtd no guest can start, so `ready` must fail.
#[test]
fn watch_without_libvirtd_is_not_ready() {
    in_namespace(|| {
        let scene = Scene::new();
        bare_root();
        let (mut cmd, status) = daemon_set(&scene);
        let watch = Watch::start(&mut cmd);
        assert_eq!(watch.report["verdict"], "unproven", "{}", watch.report);
        wait_for_repair(RIGHT);
        assert_eq!(ready(&status), 5);
        wait_for_two_checks(&status);
        assert_eq!(ready(&status), 5);
        // Repairs do not make `watch` ready either while another process reverts them at once.
        for _ in 0..60 {
            set_owner(Path::new(KVM), 0, 424, 0o660);
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(ready(&status), 5);
        }
        for _ in 0..30 {
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(ready(&status), 5, "{:?}", fs::read_to_string(&status));
        }
        assert!(
            !watch.log().contains("can open /dev/kvm"),
            "{}",
            watch.log()
        );
    });
}

/// The status file of a killed `watch` stays, but no process maintains it.
#[test]
fn killed_watch_is_not_ready() {
    in_namespace(|| {
        let scene = Scene::settled();
        let directory = scratch().join("state");
        fs::create_dir(&directory).unwrap();
        let status = directory.join("status.json");
        let running = Watch::start(watch(&scene).arg("--status-file").arg(&status));
        assert_eq!(ready(&status), 0);
        running.signal(Signal::SIGKILL);
        running.end();
        assert!(status.exists());
        set_owner(Path::new(KVM), 0, 0, 0o600);
        let (code, why) = {
            let run = go(command(&program(), &["ready"]).arg(&status));
            (run.code, run.err)
        };
        assert_eq!(code, 4, "{why}");
        assert!(why.contains("no process holds its lock"), "{why}");
        // A read lock, which any reader can take, does not make it ready.
        let reader = fs::File::open(&status).unwrap();
        let lock = nix::libc::flock {
            l_type: nix::libc::F_RDLCK.try_into().unwrap(),
            l_whence: 0,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        assert_eq!(ready(&status), 4);
        // The next `watch` takes over.
        let _watch = Watch::start(watch(&scene).arg("--status-file").arg(&status));
        assert_eq!(ready(&status), 0);
    });
}

/// A full volume neither ends the readiness of a proven state nor makes an unproven one ready.
#[test]
fn full_status_volume_does_not_affect_readiness() {
    in_namespace(|| {
        let scene = Scene::settled();
        let directory = scratch().join("state");
        fs::create_dir(&directory).unwrap();
        mount_tmpfs(&directory, "size=64k,mode=755");
        let status = directory.join("status.json");
        let fill = || {
            use std::io::Write;
            let mut file = fs::File::create(directory.join("junk")).unwrap();
            while file.write_all(&[0; 4096]).is_ok() {}
        };
        let empty = || fs::remove_file(directory.join("junk")).unwrap();
        // The volume is full before the start.
        fill();
        let running = Watch::start(watch(&scene).arg("--status-file").arg(&status));
        assert_eq!(ready(&status), 0, "{}", running.log());
        running.wait_for_log("ENOSPC");
        empty();
        set_owner(Path::new(KVM), 0, 424, 0o660);
        wait_for_repair(RIGHT);
        let written = || fs::metadata(&status).is_ok_and(|meta| meta.size() > 0);
        assert!(until(PATIENCE, written));
        assert_eq!(ready(&status), 0);
        // The volume becomes full during the run.
        fill();
        set_owner(Path::new(KVM), 0, 424, 0o660);
        wait_for_repair(RIGHT);
        running.is_idle();
        assert_eq!(ready(&status), 0, "{}", running.log());
        // Without a successful proof `watch` is not ready.
        fs::remove_file(KVM).unwrap();
        becomes(&status, 5);
        mknod_kvm(Path::new(KVM), 0, 0, 0o600);
        wait_for_repair(RIGHT);
        becomes(&status, 0);
    });
}

/// libvirtd's /dev is the node's, mounted nodev: no guest can open the device.
#[test]
fn libvirtd_with_a_nodev_dev_is_not_ready() {
    in_namespace(|| {
        let scene = Scene::new();
        container(&scene.pod);
        bare_root();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NODEV;
        let none = None::<&str>;
        mount(none, &scene.pod.at("dev"), none, flags, none).unwrap();
        let (mut cmd, status) = daemon_set(&scene);
        let watch = Watch::start(&mut cmd);
        let _libvirtd = Libvirtd::start(&watch, &scene.pod);
        follows(&watch, &scene.pod, 108);
        watch.wait_for_log("option nodev");
        for _ in 0..40 {
            assert_eq!(ready(&status), 5, "{:?}", fs::read_to_string(&status));
            std::thread::sleep(Duration::from_millis(50));
        }
        // A repair does not make `watch` ready either.
        set_owner(Path::new(KVM), 0, 424, 0o660);
        wait_for_repair(RIGHT);
        wait_for_two_checks(&status);
        assert_eq!(ready(&status), 5);
    });
}

/// An attacker can start any number of such processes: each is rejected by its /proc/PID/status alone.
#[test]
fn many_processes_named_libvirtd_do_not_hide_the_real_one() {
    require_commands(&["nsenter", "prlimit", "python3", "setpriv", "unshare"]);
    in_namespace(|| {
        let scene = Scene::new();
        container(&scene.pod);
        bare_root();
        let directory = scratch().join("state");
        fs::create_dir(&directory).unwrap();
        let status = directory.join("status.json");
        // Few descriptors, instead of very many processes.
        let mut cmd = crate::libvirtd::alone_with(&scene, &["prlimit", "--nofile=64"]);
        cmd.args(["--recheck", "1s", "--status-file"]).arg(&status);
        let watch = Watch::start(&mut cmd);
        // Root without a capability, as in an ordinary container.
        let many = "
import os, time
for _ in range(150):
    if os.fork() == 0:
        os.setsid()
        open('/proc/self/comm', 'w').write('libvirtd')
        time.sleep(600)
        os._exit(0)
print('up', flush=True)
time.sleep(600)";
        let words = enter(&watch);
        let mut flood = Command::new(&words[0]);
        flood.args(&words[1..]);
        flood.args([
            "setpriv",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "python3",
            "-c",
            many,
        ]);
        let mut flood = flood.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut up = [0; 3];
        std::io::Read::read_exact(flood.stdout.as_mut().unwrap(), &mut up).unwrap();
        let _libvirtd = Libvirtd::start(&watch, &scene.pod);
        follows(&watch, &scene.pod, 108);
        becomes(&status, 0);
        scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
        follows(&watch, &scene.pod, 109);
        wait_for_repair((0, 109, 0o660));
        wait_for_two_checks(&status);
        assert_eq!(ready(&status), 0, "{}", watch.log());
        // They end with the PID namespace of `watch`.
        drop(watch);
        flood.wait().unwrap();
    });
}

/// With several libvirtds the GID of their group files is unknown, so the device keeps the GID that works.
#[test]
fn device_keeps_its_gid_while_several_libvirtds_run() {
    in_namespace(|| {
        // The pods have GID 424, the node has 108.
        let scene = Scene::new();
        let (one, other) = (Tree::pod(424), Tree::pod(424));
        for tree in [&one, &other] {
            container(tree);
        }
        bare_root();
        let (mut cmd, status) = daemon_set(&scene);
        let watch = Watch::start(&mut cmd);
        let _both = (
            Libvirtd::start(&watch, &one),
            Libvirtd::start(&watch, &other),
        );
        watch.wait_for_log("runs in several containers");
        // The device stays as it was when the second libvirtd started, whatever node and chart set.
        scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
        wait_for_two_checks(&status);
        assert_eq!(support::owner(Path::new(KVM)), RIGHT, "{}", watch.log());
        set_owner(Path::new(KVM), 0, 0, 0o600);
        wait_for_repair(RIGHT);
        assert_eq!(ready(&status), 5);
    });
}
