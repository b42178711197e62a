//! Concurrent runs, killed runs, and locks held by other processes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::holders::{lock, lockers_process};
use support::{
    KVM, Scene, bind, go, in_namespace, mknod_kvm, names, owner, scratch, set_owner, waits_for_lock,
};

const MANY: u32 = 32;
/// The lock of lckpwdf(3).
const PASSWORDS: &str = "etc/.pwd.lock";

#[test]
fn concurrent_runs_on_one_pod_lose_no_update() {
    in_namespace(|| {
        let scene = Scene::new();
        let users: String = (0..MANY)
            .map(|n| format!("u{n}:x:{}:1:::\n", 2000 + n))
            .collect();
        let text = format!("{}{users}", scene.pod.read("etc/passwd"));
        scene.pod.file("etc/passwd", &text);
        // Each run has its own device, because each sets another GID: they share the group file.
        let different = |n: u32| {
            let device = format!("/dev/kvm{n}");
            mknod_kvm(Path::new(&device), 0, 0, 0o600);
            let mut cmd = scene.apply();
            cmd.arg("--device").arg(device);
            cmd.arg(format!("--group=g{n}"))
                .arg(format!("--gid={}", 3000 + n));
            cmd.arg(format!("--qemu-user=u{n}"));
            cmd
        };
        // The runs share group and device, and each adds another member.
        let members = |n: u32| {
            let mut cmd = scene.apply();
            cmd.arg(format!("--qemu-user=u{n}"));
            cmd
        };
        let all = |make: &dyn Fn(u32) -> Command| {
            let mut cmds: Vec<_> = (0..MANY).map(make).collect();
            let spawn = |cmd: &mut Command| {
                let cmd = cmd.stdout(Stdio::piped()).stderr(Stdio::piped());
                cmd.spawn().unwrap()
            };
            let children: Vec<_> = cmds.iter_mut().map(spawn).collect();
            for child in children {
                let out = child.wait_with_output().unwrap();
                let err = String::from_utf8_lossy(&out.stderr).into_owned();
                assert_eq!(out.status.code(), Some(0), "{err}");
            }
        };
        all(&different);
        all(&members);
        let text = scene.pod.read("etc/group");
        for n in 0..MANY {
            let line = format!("\ng{n}:x:{}:u{n}\n", 3000 + n);
            assert!(text.contains(&line), "{line} is not in {text}");
        }
        let kvm = text.lines().find(|line| line.starts_with("kvm:")).unwrap();
        let members: Vec<_> = kvm.rsplit(':').next().unwrap().split(',').collect();
        for n in 0..MANY {
            assert!(members.contains(&format!("u{n}").as_str()), "u{n}: {kvm}");
        }
        assert!(members.contains(&"nova") && members.len() == 33, "{kvm}");
        assert!(text.starts_with("root:x:0:\nkvm:x:108:nova,"), "{text}");
        assert_eq!(text.lines().count(), 3 + 32);
        assert_eq!(
            names(&scene.pod.at("etc")),
            [".pwd.lock", "group", "libvirt", "passwd"]
        );
    });
}

#[test]
fn lock_of_a_killed_process_is_free() {
    in_namespace(|| {
        let scene = Scene::new();
        let lock = scene.pod.at(PASSWORDS);
        let holder = lockers_process(&lock);
        let mut run = scene.apply().spawn().unwrap();
        waits_for_lock(run.id());
        assert!(
            run.try_wait().unwrap().is_none(),
            "the run did not wait for the lock"
        );
        // A run that waited for the full 10 s would fail.
        holder.kill();
        assert!(run.wait().unwrap().success());
    });
}

#[test]
fn held_password_lock_fails_the_run_after_ten_seconds() {
    in_namespace(|| {
        let scene = Scene::new();
        let lock = lock(&scene.pod.at(PASSWORDS)).unwrap();
        let before = scene.state();
        let run = go(&mut scene.apply()).code(4);
        run.last_line_has(&[
            "failed: ",
            "etc/.pwd.lock, F_OFD_SETLK) for 10 s",
            "lslocks",
        ]);
        assert_eq!(scene.state(), before);
        drop(lock);
        go(&mut scene.apply()).code(0);
    });
}

/// A group file that takes long to write.
fn big(kvm: &str) -> String {
    let many: String = (0..40_000)
        .map(|n| format!("g{n}:x:{}:a,b\n", 100_000 + n))
        .collect();
    let (front, back) = many.split_at(many.len() / 2);
    let (half, rest) = back.split_once('\n').unwrap();
    format!("{front}{half}\n{kvm}\n{rest}")
}

/// Hidden files beside a file, without the lock of lckpwdf(3), which stays.
fn left_beside(file: &Path) -> Vec<String> {
    let mut hidden = names(file.parent().unwrap());
    hidden.retain(|name| name.starts_with('.') && name != ".pwd.lock");
    hidden
}

fn kill_repeatedly(out: Option<&str>) {
    in_namespace(|| {
        let scene = Scene::new();
        let (old, new) = (big("kvm:x:424:"), big("kvm:x:108:nova"));
        let file = scene.pod.at(out.unwrap_or("etc/group"));
        scene.pod.dir("volume").file("etc/group", &old);
        let apply = || {
            let mut cmd = scene.apply();
            if out.is_some() {
                cmd.arg("--group-file-out").arg(&file);
            }
            cmd
        };
        let start = Instant::now();
        go(&mut apply()).code(0);
        let whole = start.elapsed();
        let (mut olds, mut news, mut left_over) = (0, 0, 0);
        const RUNS: u32 = 200;
        for n in 0..RUNS {
            fs::write(&file, &old).unwrap();
            let mut cmd = apply();
            let mut child = cmd
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // Not in ascending order, so that a slow machine also kills at every moment.
            sleep(whole * (n * 37 % RUNS) / RUNS);
            let _ = child.kill();
            child.wait().unwrap();
            let text = fs::read(&file).unwrap();
            if text == old.as_bytes() {
                olds += 1;
            } else if text == new.as_bytes() {
                news += 1;
            } else {
                panic!(
                    "run {n}: {} bytes, neither the old nor the new file",
                    text.len()
                );
            }
            left_over += u32::from(!left_beside(&file).is_empty());
            let (uid, _, mode) = owner(Path::new(KVM));
            assert!(uid == 0 && mode == 0o660);
        }
        println!(
            "a run takes {whole:?}; old file left {olds} times, new file {news}, leftovers {left_over}"
        );
        assert!(
            olds > 0 && news > 0,
            "all kills came too early, or all too late"
        );
        fs::write(&file, &old).unwrap();
        go(&mut apply()).code(0);
        assert_eq!(fs::read(&file).unwrap(), new.as_bytes());
        assert_eq!(left_beside(&file), [""; 0]);
    });
}

#[test]
fn killed_run_leaves_old_or_new_group_file() {
    kill_repeatedly(None);
}

#[test]
fn killed_run_leaves_old_or_new_output() {
    kill_repeatedly(Some("volume/group"));
}

/// A write of up to one page is atomic. A longer mounted file can be torn.
#[test]
fn kill_during_an_in_place_write_leaves_old_or_new_content() {
    in_namespace(|| {
        let scene = Scene::new();
        let many: String = (0..150)
            .map(|n| format!("g{n}:x:{}:a\n", 5000 + n))
            .collect();
        let (file, source) = (scene.pod.at("etc/group"), scene.pod.at("source"));
        fs::write(&source, "").unwrap();
        bind(&source, &file);
        let read = || {
            let text = fs::read_to_string(&source).unwrap();
            text.trim_end_matches('\n').to_owned()
        };
        for (was, becomes) in [("42", "108"), ("929292", "108")] {
            let old = format!("kvm:x:{was}:nova\n{many}nova:x:42424:");
            let new = format!("kvm:x:{becomes}:nova\n{many}nova:x:42424:");
            fs::write(&source, &old).unwrap();
            let start = Instant::now();
            go(&mut scene.apply()).code(0);
            let whole = start.elapsed();
            const RUNS: u32 = 200;
            for n in 0..RUNS {
                fs::write(&source, &old).unwrap();
                let mut cmd = scene.apply();
                let cmd = cmd.stdout(Stdio::null()).stderr(Stdio::null());
                let mut child = cmd.spawn().unwrap();
                sleep(whole * (n * 37 % RUNS) / RUNS);
                let _ = child.kill();
                child.wait().unwrap();
                let text = read();
                assert!(text == old || text == new, "run {n}: {text}");
            }
            go(&mut scene.apply()).code(0);
            assert_eq!(read(), new);
            assert_eq!(
                names(&scene.pod.at("etc")),
                [".pwd.lock", "group", "libvirt", "passwd"]
            );
        }
    });
}

#[test]
fn apply_fails_after_repeated_external_changes() {
    in_namespace(|| {
        let scene = Scene::settled();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    support::set_owner(Path::new(KVM), 0, 424, 0o600);
                }
            });
            // Whether a run succeeds is chance, but a lost race must be reported.
            let mut lost = 0;
            for _ in 0..50 {
                let run = go(&mut scene.apply());
                match run.code {
                    4 => {
                        lost += 1;
                        drop(
                            run.last_line_has(&["another process repeatedly changes", "--settle"]),
                        );
                    }
                    code => assert!([0, 5].contains(&code), "{run}"),
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            println!("{lost} of 50 runs gave up");
        });
        go(&mut scene.apply()).code(0);
    });
}

/// `watch` writes in place into a file of root that a container has mounted. A file that another user puts there
/// between the check and the write neither gets root as its owner nor is written to.
#[test]
fn file_swapped_before_an_in_place_write_is_not_changed() {
    use libvirt_kvm_init::sys::file::{LockFile, OwnerAndMode};
    use libvirt_kvm_init::sys::output_dir::{Purpose, open_output};
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    in_namespace(|| {
        let out = scratch().join("group");
        let evil = scratch().join("evil");
        fs::write(&out, "").unwrap();
        set_owner(&out, 0, 0, 0o644);
        let stop = AtomicBool::new(false);
        let swap = || {
            let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
            let here = nix::fcntl::AT_FDCWD;
            nix::fcntl::renameat2(here, &evil, here, &out, flags).unwrap();
        };
        std::thread::scope(|scope| {
            let swapper = scope.spawn(|| {
                let (mut swaps, mut lost) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let mine = fs::File::create(&evil).unwrap();
                    set_owner(&evil, 42424, 42424, 0o644);
                    swap();
                    swap();
                    fs::remove_file(&evil).unwrap();
                    let now = mine.metadata().unwrap();
                    swaps += 1;
                    lost += u32::from((now.uid(), now.len()) != (42424, 0));
                }
                (swaps, lost)
            });
            for n in 0..20_000_u32 {
                let (mut directory, name) = open_output(&out, Purpose::Write).unwrap();
                directory
                    .lock(LockFile::Own, Duration::from_secs(1))
                    .unwrap();
                let text = format!("kvm:x:{n}:\n");
                let found = directory.find(&name).unwrap();
                // If another file is there by then this is an error, as expected.
                let rights = OwnerAndMode::Root(0o644);
                let _ = directory.overwrite(&name, found.as_ref(), None, text.as_bytes(), rights);
            }
            stop.store(true, Ordering::Relaxed);
            let (swaps, lost) = swapper.join().unwrap();
            println!("20000 writes, {swaps} swaps: {lost} files of the other user written");
            assert_eq!(lost, 0);
        });
    });
}
