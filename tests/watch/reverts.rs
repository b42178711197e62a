//! Another process that reverts every change at once.

use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::watch::{PATIENCE, Watch, until, wait_for_repair, watch};
use support::{KVM, Scene, command, in_namespace, owner, program, run, set_owner};

/// Reverts the GID of the device until `stop`, and counts the reverts.
fn revert_changes(stop: &AtomicBool, reverted: &AtomicU64, gid: u32) {
    while !stop.load(Ordering::Relaxed) {
        if owner(Path::new(KVM)).1 == 108 {
            chown(KVM, Some(0), Some(gid)).unwrap();
            reverted.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets another process revert changes for this long, and returns how often it did.
fn conflict(watch: &Watch, gid: u32, lasts: Duration) -> u64 {
    let (stop, reverted) = (AtomicBool::new(false), AtomicU64::new(0));
    let (ticks, wakeups) = (watch.ticks(), watch.wakeups());
    std::thread::scope(|scope| {
        scope.spawn(|| revert_changes(&stop, &reverted, gid));
        std::thread::sleep(lasts);
        stop.store(true, Ordering::Relaxed);
    });
    let reverted = reverted.into_inner();
    println!(
        "in {lasts:?}: {reverted} reverts, {} wake-ups, {} ms of CPU",
        watch.wakeups() - wakeups,
        (watch.ticks() - ticks) * 10
    );
    // 20 repairs at once, then waits of 20, 40, 80 ms and so on.
    assert!((20..40).contains(&reverted), "{reverted}\n{}", watch.log());
    assert!(
        watch.ticks() - ticks < 100,
        "{} ticks",
        watch.ticks() - ticks
    );
    reverted
}

#[test]
fn watch_backs_off_logs_the_conflict_and_repairs_in_the_end() {
    in_namespace(|| {
        let scene = Scene::settled();
        let watch = Watch::start(&mut watch(&scene));
        conflict(&watch, 777, Duration::from_secs(5));
        wait_for_repair((0, 108, 0o660));
        let log = watch.log();
        assert!(log.contains("was reverted 20 times in a row"), "{log}");
        assert!(log.contains("auditctl"), "{log}");
        assert!(log.lines().count() < 40, "{log}");
        // A later change is no revert, so no longer wait is logged for it.
        watch.is_idle();
        let log = watch.log();
        set_owner(Path::new(KVM), 0, 777, 0o660);
        wait_for_repair((0, 108, 0o660));
        watch.is_idle();
        let waits_logged = |log: &str| log.matches("was reverted").count();
        assert_eq!(
            waits_logged(&watch.log()),
            waits_logged(&log),
            "{}",
            watch.log()
        );
    });
}

/// While another process has changed the device `ready` fails.
#[test]
fn watch_is_not_ready_while_it_backs_off() {
    in_namespace(|| {
        let scene = Scene::settled();
        let status = scene.pod.at("status.json");
        let ready = || {
            let mut ready = command(&program(), &["ready"]);
            run(ready.arg(&status)).0
        };
        let watch = Watch::start(watch(&scene).arg("--status-file").arg(&status));
        assert_eq!(ready(), 0);
        let (stop, reverted) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| revert_changes(&stop, &reverted, 777));
            // 20 repairs at once, and then the waits up to 2.56 s.
            let later = || reverted.load(Ordering::Relaxed) == 27;
            assert!(until(PATIENCE, later), "{}", watch.log());
            std::thread::sleep(Duration::from_millis(500));
            assert_eq!(owner(Path::new(KVM)).1, 777);
            let code = ready();
            stop.store(true, Ordering::Relaxed);
            assert_eq!(code, 5, "{}", watch.log());
        });
        wait_for_repair((0, 108, 0o660));
        assert!(until(PATIENCE, || ready() == 0), "{}", watch.log());
        assert!(watch.log().lines().count() < 40, "{}", watch.log());
    });
}

#[test]
fn charts_libvirt_sh_is_named_as_the_likely_cause() {
    in_namespace(|| {
        let scene = Scene::new();
        let out = scene.pod.at("aligned");
        let watch = Watch::start(watch(&scene).arg("--group-file-out").arg(&out));
        wait_for_repair((0, 108, 0o660));
        conflict(&watch, 424, Duration::from_secs(2));
        watch.wait_for_log("0:424 0660 is what the chart's libvirt.sh sets");
        drop(watch);
        // If the group file itself was aligned its old GID is remembered.
        let watch = Watch::start(&mut support::watch::watch(&scene));
        conflict(&watch, 424, Duration::from_secs(2));
        watch.wait_for_log("0:424 0660 is what the chart's libvirt.sh sets");
    });
}

#[test]
fn udev_rule_is_named_as_the_likely_cause() {
    in_namespace(|| {
        let scene = Scene::settled();
        let rule = "KERNEL==\"kvm\", GROUP=\"555\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";
        scene.host.file("etc/udev/rules.d/99-kvm.rules", rule);
        let watch = Watch::start(watch(&scene).args(["--gid", "108"]));
        conflict(&watch, 555, Duration::from_secs(2));
        watch.wait_for_log("etc/udev/rules.d/99-kvm.rules:1");
        watch.wait_for_log("0:555 0660 is what");
    });
}

/// Constant changes do not make `watch` spin.
#[test]
fn constant_changes_without_effect_cost_little() {
    in_namespace(|| {
        let scene = Scene::settled();
        let watch = Watch::start(&mut watch(&scene));
        let (ticks, wakeups) = (watch.ticks(), watch.wakeups());
        let (start, mut count) = (Instant::now(), 0_u64);
        while start.elapsed() < Duration::from_secs(3) {
            chown(KVM, Some(0), Some(108)).unwrap();
            count += 1;
            std::thread::sleep(Duration::from_micros(500));
        }
        let (ticks, wakeups) = (watch.ticks() - ticks, watch.wakeups() - wakeups);
        println!(
            "{count} changes without effect: {wakeups} wake-ups, {} ms of CPU",
            ticks * 10
        );
        assert!(wakeups <= count * 2 + 50);
        assert!(watch.log().lines().count() < 10, "{}", watch.log());
    });
}
