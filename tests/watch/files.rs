//! The files that `watch` writes: the group file of another container, the status and the metrics.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use support::metrics::check_metrics;
use support::peak::{bounded, ordinary};
use support::watch::{PATIENCE, Watch, until, wait_for_repair, watch};
use support::{
    ALIGNED, KVM, Scene, bind, command, go, in_namespace, inode, make_read_only, mknod_char,
    mknod_kvm, mount_tmpfs, ok, program, run, scratch, set_owner,
};

const RIGHT: (u32, u32, u32) = (0, 108, 0o660);

/// The libvirt container has mounted the group file, so its inode must stay.
#[test]
fn group_file_mounted_in_another_container_is_updated() {
    in_namespace(|| {
        let scene = Scene::new();
        let volume = scratch().join("volume");
        fs::create_dir(&volume).unwrap();
        let out = volume.join("group");
        let mut apply = scene.apply();
        ok(apply.arg("--group-file-out").arg(&out));
        let of = inode(&out);

        // The container: a mount namespace in which the file is mounted, and printed on request.
        let mounted = scratch().join("mounted");
        fs::write(&mounted, "").unwrap();
        let script = format!(
            "mount --bind {} {m} && echo ready && while read -r x; do cat {m}; echo end; done",
            out.display(),
            m = mounted.display()
        );
        let mut child = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-ec", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut ask, answer) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut answer = std::io::BufRead::lines(std::io::BufReader::new(answer));
        assert_eq!(answer.next().unwrap().unwrap(), "ready");
        let mut sees = || -> Vec<String> {
            std::io::Write::write_all(&mut ask, b"\n").unwrap();
            let lines = answer.by_ref().map(Result::unwrap);
            lines.take_while(|line| line != "end").collect()
        };
        assert_eq!(sees(), ALIGNED.lines().collect::<Vec<_>>());

        let watch = Watch::start(watch(&scene).arg("--group-file-out").arg(&out));
        for gid in [109, 70_000, 7] {
            scene
                .host
                .file("etc/group", &format!("root:x:0:\nkvm:x:{gid}:\n"));
            wait_for_repair((0, gid, 0o660));
            let line = format!("kvm:x:{gid}:nova");
            assert!(sees().contains(&line), "{gid}");
            watch.is_idle();
        }
        assert_eq!(inode(&out), of);
        // Another process overwrites it.
        fs::write(&out, "root:x:0:\n").unwrap();
        assert!(until(PATIENCE, || sees().contains(&"kvm:x:7:nova".to_owned())));
        assert_eq!(sees().len(), 3, "not only the GID in use is kept");
        drop(watch);
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

/// Another user may hold the old file open for writing, so libvirtd must get a new one.
#[test]
fn output_that_another_user_can_write_is_replaced() {
    in_namespace(|| {
        for (uid, mode) in [(42_424, 0o644), (0, 0o666), (0, 0o664)] {
            let scene = Scene::new();
            let volume = scene.pod.at("volume");
            fs::create_dir(&volume).unwrap();
            let out = volume.join("group");
            fs::write(&out, "root:x:0:\nkvm:x:424:\n").unwrap();
            set_owner(&out, uid, 0, mode);
            let held = fs::OpenOptions::new().write(true).open(&out).unwrap();
            let _watch = Watch::start(watch(&scene).arg("--group-file-out").arg(&out));
            let stands = fs::metadata(&out).unwrap();
            assert_ne!(
                stands.ino(),
                held.metadata().unwrap().ino(),
                "{uid} {mode:o}"
            );
            assert_eq!((stands.uid(), stands.mode() & 0o7777), (0, 0o644));
            assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED);
        }
    });
}

/// The device is repaired from the last read of the files. If the pod's group file was changed since then and cannot
/// be written, the device must not get a GID that this file does not have.
#[test]
fn device_gets_no_gid_that_the_pods_group_file_does_not_have() {
    in_namespace(|| {
        for has_output in [false, true] {
            let scene = Scene::settled();
            let volume = scene.pod.dir("volume").at("volume");
            let mut cmd = watch(&scene);
            let (directory, file) = match has_output {
                true => {
                    cmd.arg("--group-file-out").arg(volume.join("group"));
                    (volume.clone(), volume.join("group"))
                }
                false => (scene.pod.at("etc"), scene.pod.at("etc/group")),
            };
            let watch = Watch::start(&mut cmd);
            watch.signal(Signal::SIGSTOP);
            let images = ALIGNED.replace(":108:", ":424:");
            fs::write(&file, &images).unwrap();
            bind(&directory, &directory);
            make_read_only(&directory);
            set_owner(Path::new(KVM), 0, 424, 0o660);
            watch.signal(Signal::SIGCONT);
            watch.wait_for_log("EROFS");
            for _ in 0..100 {
                let now = support::owner(Path::new(KVM));
                assert_eq!(now, (0, 424, 0o660), "{has_output}: {}", watch.log());
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(fs::read_to_string(&file).unwrap(), images);
            drop(watch);
            support::detach(&directory);
        }
    });
}

/// As in the sidecar: all is read-only except the file that the other container has mounted.
#[test]
fn single_mounted_file_is_maintained_without_a_lock() {
    in_namespace(|| {
        let scene = Scene::settled();
        scene.pod.file("source", ALIGNED).file("own/group", "");
        let (source, own) = (scene.pod.at("source"), scene.pod.at("own"));
        bind(&own, &own);
        make_read_only(&own);
        bind(&source, &own.join("group"));
        let of = inode(&source);
        let _watch = Watch::start(watch(&scene).arg("--group-file-out").arg(own.join("group")));
        for gid in [70_000, 109, 7] {
            scene
                .host
                .file("etc/group", &format!("root:x:0:\nkvm:x:{gid}:\n"));
            wait_for_repair((0, gid, 0o660));
            let line = format!("\nkvm:x:{gid}:nova\n");
            assert!(fs::read_to_string(&source).unwrap().contains(&line));
        }
        assert_eq!(inode(&source), of);
        assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
    });
}

#[test]
fn status_and_metrics_show_the_current_state() {
    in_namespace(|| {
        let scene = Scene::settled();
        let directory = scratch().join("state");
        fs::create_dir(&directory).unwrap();
        let (metrics, status) = (directory.join("kvm.prom"), directory.join("kvm.json"));
        let mut cmd = watch(&scene);
        cmd.arg("--metrics-file")
            .arg(&metrics)
            .arg("--status-file")
            .arg(&status);
        let watch = Watch::start(&mut cmd);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        let reads = |path: &Path, part: &str| {
            let has = || fs::read_to_string(path).is_ok_and(|text| text.contains(part));
            assert!(
                until(PATIENCE, has),
                "{part}: {:?}",
                fs::read_to_string(path)
            );
        };
        assert_eq!((mode(&metrics), mode(&status)), (0o644, 0o644));
        reads(&metrics, "\nlibvirt_kvm_init_ready 1\n");
        reads(&metrics, "\nlibvirt_kvm_init_verdict{verdict=\"ok\"} 1\n");
        reads(
            &metrics,
            "\nlibvirt_kvm_init_heals_total{action=\"set-device-owner\"} 0\n",
        );
        set_owner(Path::new(KVM), 0, 424, 0o600);
        wait_for_repair(RIGHT);
        reads(
            &metrics,
            "\nlibvirt_kvm_init_heals_total{action=\"set-device-owner\"} 1\n",
        );
        reads(
            &metrics,
            "\nlibvirt_kvm_init_heals_total{action=\"set-device-mode\"} 1\n",
        );
        reads(&metrics, "\nlibvirt_kvm_init_last_heal_timestamp_seconds ");
        reads(&status, "\"verdict\":\"ok\"");
        fs::remove_file(KVM).unwrap();
        reads(&metrics, "\nlibvirt_kvm_init_ready 0\n");
        reads(&metrics, "cause=\"missing\"");
        reads(&status, "\"verdict\":\"absent\"");
        mknod_kvm(Path::new(KVM), 0, 0, 0o600);
        reads(&metrics, "\nlibvirt_kvm_init_ready 1\n");

        // The metrics are valid, also for promtool if that is installed.
        check_metrics(&fs::read_to_string(&metrics).unwrap());
        if run(Command::new("sh").args(["-c", "command -v promtool"])).0 == 0 {
            let text = fs::File::open(&metrics).unwrap();
            let done = Command::new("promtool")
                .args(["check", "metrics"])
                .stdin(text)
                .output();
            assert!(done.as_ref().unwrap().status.success(), "{done:?}");
        } else {
            println!("skipped: promtool is not installed");
        }
        let names: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        drop(watch);
    });
}

/// Files of ordinary size, drifts of device and group file, and all outputs.
#[test]
fn watch_with_ordinary_files_needs_at_most_3_mib() {
    in_namespace(|| {
        let scene = Scene::new();
        ordinary(&scene);
        let state = scratch().join("state");
        fs::create_dir(&state).unwrap();
        let mut cmd = watch(&scene);
        cmd.arg("--persist");
        cmd.arg("--metrics-file").arg(state.join("kvm.prom"));
        cmd.arg("--status-file").arg(state.join("status.json"));
        let watch = Watch::start(&mut cmd);
        bounded("watch, after its first pass", watch.status("VmHWM"));
        let text = scene.pod.read("etc/group");
        for n in 0..20 {
            set_owner(Path::new(KVM), 0, 424, 0o600);
            wait_for_repair(RIGHT);
            scene
                .pod
                .file("etc/group", &text.replace("kvm:x:108", "kvm:x:424"));
            let repaired = || scene.pod.read("etc/group") == text;
            assert!(until(PATIENCE, repaired), "{n}");
        }
        bounded("watch, after 40 drifts", watch.status("VmHWM"));
    });
}

/// `ready` must not read the status of an earlier run.
#[test]
fn watch_with_an_invalid_option_removes_the_old_status_file() {
    in_namespace(|| {
        let scene = Scene::settled();
        let status = scratch().join("status.json");
        for by_variable in [false, true] {
            let old = "{\"summary\":\"an earlier run\",\"proof\":{\"result\":\"ok\"}}";
            fs::write(&status, old).unwrap();
            let mut cmd = watch(&scene);
            cmd.arg("--gid=99999999999");
            match by_variable {
                true => cmd.env("LIBVIRT_KVM_INIT_STATUS_FILE", &status),
                false => cmd.arg("--status-file").arg(&status),
            };
            go(&mut cmd).code(2);
            assert!(!status.exists());
        }
    });
}

#[test]
fn status_and_metrics_files_must_be_regular() {
    in_namespace(|| {
        let scene = Scene::settled();
        let null = |at: &Path| mknod_char(at, (1, 3), 0, 0, 0o666);
        let is_null = |at: &Path| {
            fs::symlink_metadata(at)
                .unwrap()
                .file_type()
                .is_char_device()
        };
        // In /dev it is a usage error.
        for option in ["--status-file", "--metrics-file", "--group-file-out"] {
            let ended = go(watch(&scene).arg(option).arg("/dev/null")).code(2);
            assert!(ended.err.contains("a file outside /dev"), "{}", ended.err);
            assert!(is_null(Path::new("/dev/null")));
        }
        // Elsewhere it is logged.
        let (status, metrics) = (scratch().join("status"), scratch().join("metrics"));
        null(&status);
        std::os::unix::fs::symlink("/dev/null", &metrics).unwrap();
        let mut cmd = watch(&scene);
        cmd.arg("--status-file").arg(&status);
        let watch = Watch::start(cmd.arg("--metrics-file").arg(&metrics));
        watch.wait_for_log("which is not a regular file");
        set_owner(Path::new(KVM), 0, 424, 0o600);
        watch.wait_for_log("repaired");
        drop(watch);
        assert!(is_null(&status) && is_null(Path::new("/dev/null")));
        assert!(fs::symlink_metadata(&metrics).unwrap().is_symlink());
    });
}

#[test]
fn status_file_is_removed_or_unlocked_when_it_is_outdated() {
    in_namespace(|| {
        let scene = Scene::settled();
        let directory = scratch().join("state");
        fs::create_dir(&directory).unwrap();
        mount_tmpfs(&directory, "size=12k,nr_inodes=20,mode=777");
        let status = directory.join("status.json");
        let ready = || go(command(&program(), &["ready"]).arg(&status));
        let is = |there: bool| until(PATIENCE, || status.exists() == there);
        let old = "{\"summary\":\"an earlier run\",\"proof\":{\"result\":\"ok\"}}";
        fs::write(&status, old).unwrap();
        // No process maintains the old file.
        ready().code(4);
        // `watch` waits for the missing device, and has no status yet.
        fs::remove_file(KVM).unwrap();
        let mut cmd = watch(&scene);
        cmd.arg("--settle=3s").arg("--status-file").arg(&status);
        let starting = std::thread::scope(|scope| {
            let code = scope.spawn(|| {
                assert!(is(false));
                let code = ready().code;
                mknod_kvm(Path::new(KVM), 0, 108, 0o660);
                code
            });
            let watch = Watch::start(&mut cmd);
            assert_eq!(code.join().unwrap(), 4);
            watch
        });
        assert!(is(true));
        ready().code(0);
        let _ = fs::write(directory.join("full"), [0; 12 << 10]);
        set_owner(Path::new(KVM), 0, 424, 0o600);
        starting.wait_for_log("is not up to date");
        // The proof is still ok, as in the file.
        ready().code(0);
        // Now it fails, which the lock shows instead of the file.
        fs::remove_file(KVM).unwrap();
        let unready = || ready().code == 5;
        assert!(until(PATIENCE, unready));
        mknod_kvm(Path::new(KVM), 0, 108, 0o660);
        fs::remove_file(directory.join("full")).unwrap();
        set_owner(Path::new(KVM), 0, 424, 0o600);
        starting.wait_for_log("is up to date again");
        ready().code(0);
        drop(starting);
        ready().code(4);
    });
}

/// A missing, full or read-only directory is logged once, and repairs go on.
#[test]
fn unwritable_metrics_file_is_logged_once_and_repairs_go_on() {
    in_namespace(|| {
        let scene = Scene::settled();
        let directory = scratch().join("state");
        let mut cmd = watch(&scene);
        cmd.arg("--metrics-file").arg(directory.join("kvm.prom"));
        let watch = Watch::start(&mut cmd);
        watch.wait_for_log("ENOENT");
        let drift = || {
            for _ in 0..3 {
                set_owner(Path::new(KVM), 0, 424, 0o600);
                wait_for_repair(RIGHT);
                watch.is_idle();
            }
        };
        drift();
        fs::create_dir(&directory).unwrap();
        drift();
        watch.wait_for_log("is up to date again");
        mount_tmpfs(&directory, "size=4k,nr_inodes=20,mode=777");
        let _ = fs::write(directory.join("full"), [0; 8192]);
        drift();
        watch.wait_for_log("ENOSPC");
        make_read_only(&directory);
        drift();
        watch.wait_for_log("EROFS");
        let log = watch.log();
        let lines = log.lines().filter(|line| line.contains("not up to date"));
        assert_eq!(lines.count(), 3, "{log}");
    });
}

#[test]
fn sighup_reloads_the_configuration() {
    in_namespace(|| {
        let scene = Scene::settled();
        let file = scratch().join("config.yaml");
        let status = scratch().join("status.json");
        fs::write(&file, "recheck: 1h\n").unwrap();
        let mut watch = Watch::start(watch(&scene).arg("--config").arg(&file));
        let again = |watch: &Watch, text: &str| {
            fs::write(&file, text).unwrap();
            watch.signal(Signal::SIGHUP);
        };
        again(
            &watch,
            &format!("status-file: {}\nmode: '0666'\n", status.display()),
        );
        wait_for_repair((0, 108, 0o666));
        assert!(until(PATIENCE, || status.exists()));
        again(&watch, "mode: 0999\n");
        watch.wait_for_log("keeping the old configuration");
        again(&watch, "dry-run: true\n");
        watch.wait_for_log("--dry-run cannot be used with watch");
        fs::set_permissions(KVM, fs::Permissions::from_mode(0o600)).unwrap();
        wait_for_repair((0, 108, 0o666));
        // With another device.
        let other = scratch().join("kvm");
        mknod_kvm(&other, 0, 0, 0o600);
        again(&watch, &format!("device: {}\n", other.display()));
        let right = || support::owner(&other) == RIGHT;
        assert!(until(PATIENCE, right));
        set_owner(&other, 0, 424, 0o600);
        assert!(until(PATIENCE, right));
        set_owner(Path::new(KVM), 0, 424, 0o600);
        watch.is_idle();
        assert_eq!(support::owner(Path::new(KVM)), (0, 424, 0o600));
        assert!(watch.runs());
    });
}
