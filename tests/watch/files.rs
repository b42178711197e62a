//! What it writes beside the device: the group file of another container, and the state for others.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use support::metrics::check_metrics;
use support::peak::{bounded, ordinary};
use support::watch::{PATIENCE, Watch, healed, until, watch};
use support::{
    ALIGNED, KVM, Scene, bind, command, go, in_namespace, inode, make_read_only, mknod_char,
    mknod_kvm, mount_tmpfs, ok, program, run, scratch, set_owner,
};

const RIGHT: (u32, u32, u32) = (0, 108, 0o660);

/// The libvirt container holds the inode of the group file by a mount of its own.
#[test]
fn another_container_sees_the_group_file_change() {
    in_namespace(|| {
        let scene = Scene::new();
        let volume = scratch().join("volume");
        fs::create_dir(&volume).unwrap();
        let out = volume.join("group");
        let mut apply = scene.apply();
        ok(apply.arg("--group-file-out").arg(&out));
        let of = inode(&out);

        // The container: a mount namespace in which the file is mounted, and in which it is asked for.
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
            healed((0, gid, 0o660));
            let line = format!("kvm:x:{gid}:nova");
            assert!(sees().contains(&line), "{gid}");
            watch.is_idle();
        }
        assert_eq!(inode(&out), of);
        // Somebody spoils it.
        fs::write(&out, "root:x:0:\n").unwrap();
        assert!(until(PATIENCE, || sees().contains(&"kvm:x:7:nova".to_owned())));
        assert_eq!(sees().len(), 3, "only the number that is in use");
        drop(watch);
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

/// What somebody else may hold open for writing does not stay the group file that libvirtd reads.
#[test]
fn a_planted_file_is_replaced() {
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

/// The device is mended from what was seen last of the files. Where the pod's group file is another one by
/// then, and cannot be written, the device does not get a number that this one does not have.
#[test]
fn no_gid_goes_onto_the_device_that_the_pods_group_file_has_not() {
    in_namespace(|| {
        for has_output in [false, true] {
            let scene = Scene::settled();
            let volume = scene.pod.dir("volume").at("volume");
            let mut cmd = watch(&scene);
            let (folder, file) = match has_output {
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
            bind(&folder, &folder);
            make_read_only(&folder);
            set_owner(Path::new(KVM), 0, 424, 0o660);
            watch.signal(Signal::SIGCONT);
            watch.says("EROFS");
            for _ in 0..100 {
                let now = support::owner(Path::new(KVM));
                assert_eq!(now, (0, 424, 0o660), "{has_output}: {}", watch.log());
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(fs::read_to_string(&file).unwrap(), images);
            drop(watch);
            support::detach(&folder);
        }
    });
}

/// The sidecar's way: its root is read-only, and so is all but the one file that the other container has.
#[test]
fn a_file_that_is_mounted_alone_is_kept_without_a_lock() {
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
            healed((0, gid, 0o660));
            let line = format!("\nkvm:x:{gid}:nova\n");
            assert!(fs::read_to_string(&source).unwrap().contains(&line));
        }
        assert_eq!(inode(&source), of);
        assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
    });
}

#[test]
fn the_state_is_there_for_others() {
    in_namespace(|| {
        let scene = Scene::settled();
        let folder = scratch().join("state");
        fs::create_dir(&folder).unwrap();
        let (metrics, status) = (folder.join("kvm.prom"), folder.join("kvm.json"));
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
        healed(RIGHT);
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

        // Whole at every moment, and read as Prometheus reads it where its tool is installed.
        check_metrics(&fs::read_to_string(&metrics).unwrap());
        if run(Command::new("sh").args(["-c", "command -v promtool"])).0 == 0 {
            let text = fs::File::open(&metrics).unwrap();
            let done = Command::new("promtool")
                .args(["check", "metrics"])
                .stdin(text)
                .output();
            assert!(done.as_ref().unwrap().status.success(), "{done:?}");
        } else {
            println!("not shown: promtool is not installed");
        }
        let names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        drop(watch);
    });
}

/// Files of ordinary size, a drift of each, and all that it writes.
#[test]
fn an_ordinary_watch_needs_three_mebibytes_at_most() {
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
            healed(RIGHT);
            scene
                .pod
                .file("etc/group", &text.replace("kvm:x:108", "kvm:x:424"));
            let mended = || scene.pod.read("etc/group") == text;
            assert!(until(PATIENCE, mended), "{n}");
        }
        bounded("watch, after 40 drifts", watch.status("VmHWM"));
    });
}

/// What `ready` reads is of this run, or it is not there.
#[test]
fn a_watch_that_cannot_be_meant_leaves_no_older_status() {
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
fn nothing_but_a_file_is_replaced_or_taken_away() {
    in_namespace(|| {
        let scene = Scene::settled();
        let null = |at: &Path| mknod_char(at, (1, 3), 0, 0, 0o666);
        let is_null = |at: &Path| {
            fs::symlink_metadata(at)
                .unwrap()
                .file_type()
                .is_char_device()
        };
        // In /dev, where it is said at once.
        for option in ["--status-file", "--metrics-file", "--group-file-out"] {
            let ended = go(watch(&scene).arg(option).arg("/dev/null")).code(2);
            assert!(ended.err.contains("/dev is the node's"), "{}", ended.err);
            assert!(is_null(Path::new("/dev/null")));
        }
        // And elsewhere.
        let (status, metrics) = (scratch().join("status"), scratch().join("metrics"));
        null(&status);
        std::os::unix::fs::symlink("/dev/null", &metrics).unwrap();
        let mut cmd = watch(&scene);
        cmd.arg("--status-file").arg(&status);
        let watch = Watch::start(cmd.arg("--metrics-file").arg(&metrics));
        watch.says("where a regular file belongs");
        set_owner(Path::new(KVM), 0, 424, 0o600);
        watch.says("repaired");
        drop(watch);
        assert!(is_null(&status) && is_null(Path::new("/dev/null")));
        assert!(fs::symlink_metadata(&metrics).unwrap().is_symlink());
    });
}

#[test]
fn a_status_that_is_not_kept_up_to_date_is_taken_away() {
    in_namespace(|| {
        let scene = Scene::settled();
        let folder = scratch().join("state");
        fs::create_dir(&folder).unwrap();
        mount_tmpfs(&folder, "size=12k,nr_inodes=20,mode=777");
        let status = folder.join("status.json");
        let ready = || go(command(&program(), &["ready"]).arg(&status));
        let is = |there: bool| until(PATIENCE, || status.exists() == there);
        let old = "{\"summary\":\"an earlier run\",\"proof\":{\"result\":\"ok\"}}";
        fs::write(&status, old).unwrap();
        // Nobody keeps it up to date.
        ready().code(4);
        // It waits for a device that is not there, and has nothing to tell yet.
        fs::remove_file(KVM).unwrap();
        let mut cmd = watch(&scene);
        cmd.arg("--settle=3s").arg("--status-file").arg(&status);
        let starting = std::thread::scope(|scope| {
            let told = scope.spawn(|| {
                assert!(is(false));
                let told = ready().code;
                mknod_kvm(Path::new(KVM), 0, 108, 0o660);
                told
            });
            let watch = Watch::start(&mut cmd);
            assert_eq!(told.join().unwrap(), 4);
            watch
        });
        assert!(is(true));
        ready().code(0);
        let _ = fs::write(folder.join("full"), [0; 12 << 10]);
        set_owner(Path::new(KVM), 0, 424, 0o600);
        starting.says("is not up to date");
        // The proof is ok as before, and that is what the file says.
        ready().code(0);
        // Now it is not, and no file says so: the lock does.
        fs::remove_file(KVM).unwrap();
        let unready = || ready().code == 5;
        assert!(until(PATIENCE, unready));
        mknod_kvm(Path::new(KVM), 0, 108, 0o660);
        fs::remove_file(folder.join("full")).unwrap();
        set_owner(Path::new(KVM), 0, 424, 0o600);
        starting.says("is up to date again");
        ready().code(0);
        drop(starting);
        ready().code(4);
    });
}

/// Missing, full, read-only: said once, and nothing waits for it.
#[test]
fn a_state_that_cannot_be_written() {
    in_namespace(|| {
        let scene = Scene::settled();
        let folder = scratch().join("state");
        let mut cmd = watch(&scene);
        cmd.arg("--metrics-file").arg(folder.join("kvm.prom"));
        let watch = Watch::start(&mut cmd);
        watch.says("ENOENT");
        let drift = || {
            for _ in 0..3 {
                set_owner(Path::new(KVM), 0, 424, 0o600);
                healed(RIGHT);
                watch.is_idle();
            }
        };
        drift();
        fs::create_dir(&folder).unwrap();
        drift();
        watch.says("is up to date again");
        mount_tmpfs(&folder, "size=4k,nr_inodes=20,mode=777");
        let _ = fs::write(folder.join("full"), [0; 8192]);
        drift();
        watch.says("ENOSPC");
        make_read_only(&folder);
        drift();
        watch.says("EROFS");
        let log = watch.log();
        let lines = log.lines().filter(|line| line.contains("not up to date"));
        assert_eq!(lines.count(), 3, "{log}");
    });
}

#[test]
fn the_configuration_is_read_again() {
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
        healed((0, 108, 0o666));
        assert!(until(PATIENCE, || status.exists()));
        again(&watch, "mode: 0999\n");
        watch.says("keeping the old configuration");
        again(&watch, "dry-run: true\n");
        watch.says("--dry-run cannot be used with watch");
        fs::set_permissions(KVM, fs::Permissions::from_mode(0o600)).unwrap();
        healed((0, 108, 0o666));
        // Another device.
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
