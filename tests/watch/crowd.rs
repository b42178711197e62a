//! Concurrent runs on one pod beside `watch`, and killed holders of the lock.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::holders::try_lockers_process;
use support::watch::{PATIENCE, Watch, until, watch};
use support::{ALIGNED, Scene, in_namespace, mknod_kvm, names};

const MANY: u32 = 64;

/// Run `n`, of one of four kinds: another group, another member of kvm, its own output, a shared output.
fn run(scene: &Scene, n: u32) -> Command {
    let mut cmd = scene.apply();
    let out = |name: String| scene.pod.at(&format!("volume/{name}"));
    match n % 4 {
        0 => {
            // This run has its own device, because it sets another GID.
            let device = format!("/dev/kvm{n}");
            mknod_kvm(Path::new(&device), 0, 0, 0o600);
            cmd.arg("--device").arg(device);
            cmd.arg(format!("--group=g{n}"));
            cmd.arg(format!("--gid={}", 3000 + n));
            cmd.arg(format!("--qemu-user=u{n}"));
        }
        1 => drop(cmd.arg(format!("--qemu-user=u{n}"))),
        2 => drop(cmd.arg("--group-file-out").arg(out(format!("group{n}")))),
        _ => drop(cmd.arg("--group-file-out").arg(out("group".to_owned()))),
    }
    cmd
}

#[test]
fn concurrent_runs_beside_watch_lose_no_update() {
    in_namespace(|| {
        let scene = Scene::new();
        let users = (0..MANY).map(|n| format!("u{n}:x:{}:1:::\n", 2000 + n));
        let text = format!(
            "{}{}",
            scene.pod.read("etc/passwd"),
            users.collect::<String>()
        );
        scene.pod.file("etc/passwd", &text).dir("volume");
        let mut keeper = Watch::start(&mut watch(&scene));
        let stop = AtomicBool::new(false);
        let mut longest = Duration::ZERO;
        let mut killed = 0;
        let (etc, volume) = (scene.pod.at("etc"), scene.pod.at("volume"));
        std::thread::scope(|scope| {
            let holders = scope.spawn(|| {
                let mut killed = 0;
                while !stop.load(Ordering::Relaxed) {
                    for lock in [etc.join(".pwd.lock"), volume.join(".libvirt-kvm-init.lock")] {
                        // While a run holds the lock there is no other holder to kill.
                        let Some(holder) = try_lockers_process(&lock) else {
                            continue;
                        };
                        sleep(Duration::from_millis(20));
                        holder.kill();
                        killed += 1;
                    }
                }
                killed
            });
            let start = Instant::now();
            let spawn = |n| {
                let mut cmd = run(&scene, n);
                let cmd = cmd.stdout(Stdio::null()).stderr(Stdio::piped());
                cmd.spawn().unwrap()
            };
            let children: Vec<_> = (0..MANY).map(spawn).collect();
            for (n, child) in children.into_iter().enumerate() {
                let out = child.wait_with_output().unwrap();
                let err = String::from_utf8_lossy(&out.stderr).into_owned();
                longest = longest.max(start.elapsed());
                // Stopped before the assertion fails, so that the thread of the holders ends as well.
                if out.status.code() != Some(0) {
                    stop.store(true, Ordering::Relaxed);
                }
                // A run that waited for a lock for ten seconds would have failed.
                assert_eq!(out.status.code(), Some(0), "run {n}: {err}");
            }
            stop.store(true, Ordering::Relaxed);
            killed = holders.join().unwrap();
        });
        println!("{MANY} runs beside watch, {killed} holders killed: all done after {longest:.1?}");
        let text = scene.pod.read("etc/group");
        let kvm = text
            .lines()
            .find(|line| line.starts_with("kvm:x:108:"))
            .unwrap();
        let members: Vec<_> = kvm.rsplit(':').next().unwrap().split(',').collect();
        for n in 0..MANY {
            match n % 4 {
                0 => assert!(
                    text.contains(&format!("\ng{n}:x:{}:u{n}\n", 3000 + n)),
                    "{text}"
                ),
                1 => assert!(members.contains(&format!("u{n}").as_str()), "{kvm}"),
                2 => {
                    // An aligned copy of the pod's file as it was at that moment.
                    let out = fs::read_to_string(volume.join(format!("group{n}"))).unwrap();
                    let kvm = out.lines().find(|line| line.starts_with("kvm:x:108:nova"));
                    assert!(kvm.is_some() && out.contains("\nnova:x:42424:\n"), "{out}");
                }
                _ => {}
            }
        }
        assert!(members.contains(&"nova") && members.len() == 17, "{kvm}");
        let lines = ALIGNED.lines().count() + 16;
        assert_eq!(text.lines().count(), lines, "{text}");
        assert_eq!(names(&etc), [".pwd.lock", "group", "libvirt", "passwd"]);
        // The next run that writes there removes the file of a killed holder.
        fs::remove_file(volume.join("group")).unwrap();
        let mut last = run(&scene, 3);
        support::go(&mut last).code(0);
        assert!(!names(&volume).iter().any(|name| name.starts_with('.')));
        // `watch` still maintains the group file.
        assert!(keeper.runs());
        scene
            .pod
            .file("etc/group", "root:x:0:\nkvm:x:424:\nnova:x:42424:\n");
        let kept = || scene.pod.read("etc/group") == ALIGNED;
        assert!(until(PATIENCE, kept), "{}", keeper.log());
    });
}
