//! `--settle`: a device that appears, changes, or never appears.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use support::{KVM, Scene, go, in_namespace, mknod_kvm, owner, report, set_owner, warnings};

fn kvm() -> &'static Path {
    Path::new(KVM)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Runs `apply --settle` while `change` changes the device. The argument of `change` asserts that the run has not
/// ended.
fn settle(
    scene: &Scene,
    longest: &str,
    change: impl FnOnce(&dyn Fn()) + Send,
) -> (i32, serde_json::Value) {
    let mut cmd = scene.apply();
    cmd.args(["--settle", longest]);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| report(&mut cmd));
        change(&|| assert!(!run.is_finished(), "the run did not wait"));
        run.join().unwrap()
    })
}

/// Without the warning `unsettled` the wait ended because the device stopped changing.
#[test]
fn settle_waits_for_a_new_device_and_for_udev() {
    in_namespace(|| {
        let scene = Scene::without_device();
        let (code, report) = settle(&scene, "60s", |goes_on| {
            sleep(ms(300));
            goes_on();
            mknod_kvm(kvm(), 0, 0, 0o600);
            sleep(ms(200));
            goes_on();
            set_owner(kvm(), 0, 108, 0o660);
        });
        assert_eq!(code, 0, "{report}");
        assert_eq!(warnings(&report), [""; 0]);
        // The changes of udev are not repeated.
        let changes = report["changes"].to_string();
        assert!(!changes.contains("device"), "{changes}");
    });
}

#[test]
fn settle_waits_while_the_device_is_replaced_repeatedly() {
    in_namespace(|| {
        let scene = Scene::with_device(0, 108, 0o660);
        let (code, report) = settle(&scene, "60s", |goes_on| {
            for _ in 0..6 {
                sleep(ms(200));
                goes_on();
                fs::remove_file(kvm()).unwrap();
                sleep(ms(20));
                mknod_kvm(kvm(), 0, 0, 0o600);
            }
        });
        assert_eq!((code, warnings(&report)), (0, vec![]), "{report}");
        assert_eq!(owner(kvm()), (0, 108, 0o660));
    });
}

#[test]
fn device_that_keeps_changing_is_used_with_a_warning() {
    in_namespace(|| {
        let scene = Scene::with_device(0, 108, 0o660);
        let over = AtomicBool::new(false);
        let (code, report) = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    set_owner(kvm(), 0, 108, 0o660);
                    sleep(ms(50));
                }
            });
            let ended = report(scene.apply().args(["--settle", "1s"]));
            over.store(true, Ordering::Relaxed);
            ended
        });
        assert_eq!(code, 0, "{report}");
        assert_eq!(warnings(&report), ["unsettled"]);
    });
}

#[test]
fn device_that_never_appears_is_absent_after_the_wait() {
    in_namespace(|| {
        go(Scene::without_device().apply().args(["--settle", "1s"])).code(6);
    });
}

#[test]
fn settle_ends_early_for_an_unchanging_device() {
    in_namespace(|| {
        let scene = Scene::settled();
        // A limit below 500 ms must not cause the warning `unsettled`.
        for longest in ["10m", "100ms"] {
            let (code, report) = report(scene.apply().args(["--settle", longest]));
            assert_eq!((code, warnings(&report)), (0, vec![]), "{longest}");
        }
    });
}

/// User and system time in clock ticks of a child and its own children, read before the child is reaped.
fn cpu_ticks(cmd: &mut Command) -> u64 {
    let mut child = cmd
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(Pid::from_raw(pid.cast_signed())), flags).unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    child.wait().unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    let fields: Vec<_> = after_name.split(' ').collect();
    let ticks = fields[11..15].iter().map(|ticks| ticks.parse::<u64>());
    ticks.map(Result::unwrap).sum()
}

#[test]
fn settle_uses_no_cpu_time_while_it_waits() {
    in_namespace(|| {
        let scene = Scene::without_device();
        let ticks = cpu_ticks(scene.apply().args(["--settle", "3s"]));
        // A hundred ticks are a second; spinning would take three of them.
        assert!(ticks < 30, "{ticks} ticks in 3 s of waiting");
    });
}
