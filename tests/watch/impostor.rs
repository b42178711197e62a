//! Processes that are not the libvirtd of a pod and look like it, and a status that says more than there is.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use crate::libvirtd::{Libvirtd, alone, bare_root, container, enter, follows};
use support::impostor::Impostor;
use support::watch::{PATIENCE, Watch, healed, until, watch};
use support::{
    KVM, Scene, Tree, bind, command, go, in_namespace, mknod_kvm, mount_tmpfs, program,
    require_commands, scratch, set_owner, state,
};

const RIGHT: (u32, u32, u32) = (0, 108, 0o660);
/// Waits until `watch` has looked at everything twice: it writes its status after each look.
#[track_caller]
pub fn looks(status: &Path) {
    for _ in 0..2 {
        let inode = || fs::metadata(status).map(|meta| meta.ino()).ok();
        let before = inode();
        assert!(until(PATIENCE, || inode().is_some_and(|now| Some(now) != before)));
    }
}

/// A file of root's, for root alone.
fn victim(name: &str, text: &str) -> PathBuf {
    let path = scratch().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// Bytes, inode, owner and all times.
fn facts(path: &Path) -> support::State {
    state(&[path])
}

/// `watch` as the DaemonSet runs it, with a status file.
fn daemon_set(scene: &Scene) -> (Command, PathBuf) {
    let folder = scratch().join("state");
    fs::create_dir_all(&folder).unwrap();
    let status = folder.join("status.json");
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
        "ready is {}: {:?}",
        ready(status),
        fs::read_to_string(status)
    );
}

#[test]
fn a_name_gives_no_unprivileged_process_roots_hand() {
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
            (0..if flips { 2 } else { 1 }).for_each(|_| looks(&status));
            assert!(
                (facts(&script), facts(&secret)) == before,
                "flips: {flips}\n{}{}\n{}",
                fs::read_to_string(&script).unwrap(),
                fs::read_to_string(&secret).unwrap(),
                watch.log()
            );
            // It is no libvirtd, so that there is none.
            assert_ne!(ready(&status), 0);
        }
        let told = watch.log() + &fs::read_to_string(&status).unwrap();
        assert!(!told.contains("hash") && !told.contains("backup"), "{told}");
        healed(RIGHT);
    });
}

#[test]
fn an_impostor_beside_the_real_one_captures_nothing() {
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
        // The real one is restarted, as a pod is.
        drop(real);
        becomes(&status, 5);
        let _real = Libvirtd::start(&watch, &second);
        follows(&watch, &second, 108);
        becomes(&status, 0);
        scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
        follows(&watch, &second, 109);
        healed((0, 109, 0o660));
        assert!(facts(&script) == before, "{}", watch.log());
    });
}

/// A root container without privileges may have a libvirtd of its own.
#[test]
fn an_ordinary_containers_libvirtd_is_left_alone_and_blocks_nothing() {
    in_namespace(|| {
        let scene = Scene::new();
        let (ordinary, private) = (Tree::pod(425), Tree::pod(426));
        for tree in [&scene.pod, &ordinary] {
            container(tree);
        }
        // One has the node's /dev and no CAP_SYS_ADMIN, the other all rights and a /dev of its own.
        mknod_kvm(&private.at("dev/kvm"), 0, 426, 0o660);
        container(&private);
        bare_root();
        let before = state(&[&ordinary.at("etc"), &private.at("etc")]);
        let (mut cmd, status) = daemon_set(&scene);
        let watch = Watch::start(&mut cmd);
        let _ordinary = Libvirtd::without_admin(&watch, &ordinary);
        let _private = Libvirtd::start(&watch, &private);
        looks(&status);
        assert!(state(&[&ordinary.at("etc"), &private.at("etc")]) == before);
        assert_ne!(ready(&status), 0);
        let _real = Libvirtd::start(&watch, &scene.pod);
        follows(&watch, &scene.pod, 108);
        becomes(&status, 0);
        assert!(state(&[&ordinary.at("etc"), &private.at("etc")]) == before);
    });
}

/// The image of a libvirt container is not trusted, either.
#[test]
fn only_a_group_file_in_a_directory_of_roots_is_edited_in_another_container() {
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
            watch.says("is not a group file");
            looks(&status);
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
            watch.says("users other than root can change");
            assert!(state(&[&scene.pod.at("etc")]) == before);
            assert_ne!(ready(&status), 0);
        });
    }
}

/// A process of root's that may not be looked at could be the one.
#[test]
fn a_libvirtd_that_may_not_be_looked_at_makes_it_unclear() {
    in_namespace(|| {
        let scene = Scene::new();
        container(&scene.pod);
        bare_root();
        let folder = scratch().join("state");
        fs::create_dir(&folder).unwrap();
        let status = folder.join("status.json");
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
        watch.says("cannot inspect libvirtd");
        looks(&status);
        assert!(state(&[&scene.pod.at("etc")]) == before);
        assert_eq!(ready(&status), 5);
        healed(RIGHT);
    });
}

/// Nobody starts guests there, so that there is nothing to be ready for.
#[test]
fn without_any_libvirtd_it_is_not_ready() {
    in_namespace(|| {
        let scene = Scene::new();
        bare_root();
        let (mut cmd, status) = daemon_set(&scene);
        let watch = Watch::start(&mut cmd);
        assert_eq!(watch.report["verdict"], "unproven", "{}", watch.report);
        healed(RIGHT);
        assert_eq!(ready(&status), 5);
        looks(&status);
        assert_eq!(ready(&status), 5);
        // Nor does it become ready by what it heals, while another process undoes it at once again and again.
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

/// Its file stays behind, and nobody keeps it up to date.
#[test]
fn a_killed_watch_is_not_ready() {
    in_namespace(|| {
        let scene = Scene::settled();
        let folder = scratch().join("state");
        fs::create_dir(&folder).unwrap();
        let status = folder.join("status.json");
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
        // Somebody who can only read it cannot make it look alive.
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
        // The next one takes over.
        let _watch = Watch::start(watch(&scene).arg("--status-file").arg(&status));
        assert_eq!(ready(&status), 0);
    });
}

/// Whoever fills a volume takes no readiness from what was proven, and gives none to what was not.
#[test]
fn a_full_status_volume_says_what_was_proven() {
    in_namespace(|| {
        let scene = Scene::settled();
        let folder = scratch().join("state");
        fs::create_dir(&folder).unwrap();
        mount_tmpfs(&folder, "size=64k,mode=755");
        let status = folder.join("status.json");
        let fill = || {
            use std::io::Write;
            let mut file = fs::File::create(folder.join("junk")).unwrap();
            while file.write_all(&[0; 4096]).is_ok() {}
        };
        let empty = || fs::remove_file(folder.join("junk")).unwrap();
        // It was full before.
        fill();
        let running = Watch::start(watch(&scene).arg("--status-file").arg(&status));
        assert_eq!(ready(&status), 0, "{}", running.log());
        running.says("ENOSPC");
        empty();
        set_owner(Path::new(KVM), 0, 424, 0o660);
        healed(RIGHT);
        let written = || fs::metadata(&status).is_ok_and(|meta| meta.size() > 0);
        assert!(until(PATIENCE, written));
        assert_eq!(ready(&status), 0);
        // It becomes full meanwhile.
        fill();
        set_owner(Path::new(KVM), 0, 424, 0o660);
        healed(RIGHT);
        running.is_idle();
        assert_eq!(ready(&status), 0, "{}", running.log());
        // What is not proven any more is not ready, either.
        fs::remove_file(KVM).unwrap();
        becomes(&status, 5);
        mknod_kvm(Path::new(KVM), 0, 0, 0o600);
        healed(RIGHT);
        becomes(&status, 0);
    });
}

/// The device is the node's, and the mount by which its libvirtd sees it ignores devices: no guest gets it.
#[test]
fn a_libvirtd_whose_dev_ignores_devices_is_not_ready() {
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
        watch.says("option nodev");
        for _ in 0..40 {
            assert_eq!(ready(&status), 5, "{:?}", fs::read_to_string(&status));
            std::thread::sleep(Duration::from_millis(50));
        }
        // Nor by a heal.
        set_owner(Path::new(KVM), 0, 424, 0o660);
        healed(RIGHT);
        looks(&status);
        assert_eq!(ready(&status), 5);
    });
}

/// Names cost an attacker nothing: not one of these processes is looked at for longer than its status takes.
#[test]
fn very_many_names_blind_nobody() {
    require_commands(&["nsenter", "prlimit", "python3", "setpriv", "unshare"]);
    in_namespace(|| {
        let scene = Scene::new();
        container(&scene.pod);
        bare_root();
        let folder = scratch().join("state");
        fs::create_dir(&folder).unwrap();
        let status = folder.join("status.json");
        // Few descriptors instead of very many processes.
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
        healed((0, 109, 0o660));
        looks(&status);
        assert_eq!(ready(&status), 0, "{}", watch.log());
        // They end with the PID namespace of `watch`.
        drop(watch);
        flood.wait().unwrap();
    });
}

/// What the group files of several containers have is not known, and the device stays as it works for them.
#[test]
fn while_it_is_unclear_the_device_keeps_its_gid() {
    in_namespace(|| {
        // The pods' 424; the node's is 108.
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
        watch.says("runs in several containers");
        // As it was when it became unclear, whatever the node and the chart say.
        scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
        looks(&status);
        assert_eq!(support::owner(Path::new(KVM)), RIGHT, "{}", watch.log());
        set_owner(Path::new(KVM), 0, 0, 0o600);
        healed(RIGHT);
        assert_eq!(ready(&status), 5);
    });
}
