//! `--settle`: a device that appears, moves, or does not come.

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

/// Runs `apply --settle` while `meanwhile` does something to the device; it is given what asserts that the run
/// goes on.
fn settle(
    scene: &Scene,
    longest: &str,
    meanwhile: impl FnOnce(&dyn Fn()) + Send,
) -> (i32, serde_json::Value) {
    let mut cmd = scene.apply();
    cmd.args(["--settle", longest]);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| report(&mut cmd));
        meanwhile(&|| assert!(!run.is_finished(), "it did not wait"));
        run.join().unwrap()
    })
}

/// Without the warning `unsettled` a wait has ended because the device held still.
#[test]
fn a_device_that_appears_and_is_answered_by_udev_is_waited_for() {
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
        // What udev did was not done again.
        let changes = report["changes"].to_string();
        assert!(!changes.contains("device"), "{changes}");
    });
}

#[test]
fn a_device_that_is_replaced_again_and_again_is_waited_for() {
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
fn one_that_never_holds_still_is_said_and_used_all_the_same() {
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
fn one_that_never_comes_is_absent_when_the_time_is_over() {
    in_namespace(|| {
        go(Scene::without_device().apply().args(["--settle", "1s"])).code(6);
    });
}

#[test]
fn one_that_holds_still_is_not_waited_for_until_the_time_is_over() {
    in_namespace(|| {
        let scene = Scene::settled();
        // A shorter wait is no sign that another process changes it.
        for longest in ["10m", "100ms"] {
            let (code, report) = report(scene.apply().args(["--settle", longest]));
            assert_eq!((code, warnings(&report)), (0, vec![]), "{longest}");
        }
    });
}

/// User and system time of a child that has ended and was not yet waited for, and of its own, in clock ticks.
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
fn waiting_costs_no_processor_time() {
    in_namespace(|| {
        let scene = Scene::without_device();
        let ticks = cpu_ticks(scene.apply().args(["--settle", "3s"]));
        // A hundred ticks are a second; spinning would take three of them.
        assert!(ticks < 30, "{ticks} ticks in 3 s of waiting");
    });
}
