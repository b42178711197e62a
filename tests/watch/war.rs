//! Somebody who undoes every change at once.

use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::watch::{PATIENCE, Watch, healed, until, watch};
use support::{KVM, Scene, command, in_namespace, owner, program, run, set_owner};

/// Undoes until it is told to stop; how often it did.
fn opponent(stop: &AtomicBool, undone: &AtomicU64, gid: u32) {
    while !stop.load(Ordering::Relaxed) {
        if owner(Path::new(KVM)).1 == 108 {
            chown(KVM, Some(0), Some(gid)).unwrap();
            undone.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A war of so long; the count of moves.
fn war(watch: &Watch, gid: u32, lasts: Duration) -> u64 {
    let (stop, undone) = (AtomicBool::new(false), AtomicU64::new(0));
    let (ticks, wakeups) = (watch.ticks(), watch.wakeups());
    std::thread::scope(|scope| {
        scope.spawn(|| opponent(&stop, &undone, gid));
        std::thread::sleep(lasts);
        stop.store(true, Ordering::Relaxed);
    });
    let undone = undone.into_inner();
    println!(
        "in {lasts:?}: {undone} undone, {} wake-ups, {} ms of CPU",
        watch.wakeups() - wakeups,
        (watch.ticks() - ticks) * 10
    );
    // 20 at once, then waits of 20, 40, 80 ms and so on.
    assert!((20..40).contains(&undone), "{undone}\n{}", watch.log());
    assert!(
        watch.ticks() - ticks < 100,
        "{} ticks",
        watch.ticks() - ticks
    );
    undone
}

#[test]
fn it_backs_off_names_the_opponent_and_wins_in_the_end() {
    in_namespace(|| {
        let scene = Scene::settled();
        let watch = Watch::start(&mut watch(&scene));
        war(&watch, 777, Duration::from_secs(5));
        healed((0, 108, 0o660));
        let log = watch.log();
        assert!(log.contains("was reverted 20 times in a row"), "{log}");
        assert!(log.contains("auditctl"), "{log}");
        assert!(log.lines().count() < 40, "{log}");
        // What comes later is no undo: no wait that goes on is announced for it.
        watch.is_idle();
        let log = watch.log();
        set_owner(Path::new(KVM), 0, 777, 0o660);
        healed((0, 108, 0o660));
        watch.is_idle();
        let told = |log: &str| log.matches("was reverted").count();
        assert_eq!(told(&watch.log()), told(&log), "{}", watch.log());
    });
}

/// For as long as the device is somebody else's, `ready` says no.
#[test]
fn while_it_gives_way_it_does_not_say_that_it_is_ready() {
    in_namespace(|| {
        let scene = Scene::settled();
        let status = scene.pod.at("status.json");
        let ready = || {
            let mut ready = command(&program(), &["ready"]);
            run(ready.arg(&status)).0
        };
        let watch = Watch::start(watch(&scene).arg("--status-file").arg(&status));
        assert_eq!(ready(), 0);
        let (stop, undone) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| opponent(&stop, &undone, 777));
            // 20 at once, and the waits up to the one of 2.56 s.
            let later = || undone.load(Ordering::Relaxed) == 27;
            assert!(until(PATIENCE, later), "{}", watch.log());
            std::thread::sleep(Duration::from_millis(500));
            assert_eq!(owner(Path::new(KVM)).1, 777);
            let code = ready();
            stop.store(true, Ordering::Relaxed);
            assert_eq!(code, 5, "{}", watch.log());
        });
        healed((0, 108, 0o660));
        assert!(until(PATIENCE, || ready() == 0), "{}", watch.log());
        assert!(watch.log().lines().count() < 40, "{}", watch.log());
    });
}

#[test]
fn the_charts_lines_in_a_container_with_the_images_file_are_known() {
    in_namespace(|| {
        let scene = Scene::new();
        let out = scene.pod.at("aligned");
        let watch = Watch::start(watch(&scene).arg("--group-file-out").arg(&out));
        healed((0, 108, 0o660));
        war(&watch, 424, Duration::from_secs(2));
        watch.says("0:424 0660 is what the chart's libvirt.sh sets");
        drop(watch);
        // Where the file itself was brought in line, its old number is remembered.
        let watch = Watch::start(&mut support::watch::watch(&scene));
        war(&watch, 424, Duration::from_secs(2));
        watch.says("0:424 0660 is what the chart's libvirt.sh sets");
    });
}

#[test]
fn a_rule_is_known() {
    in_namespace(|| {
        let scene = Scene::settled();
        let rule = "KERNEL==\"kvm\", GROUP=\"555\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";
        scene.host.file("etc/udev/rules.d/99-kvm.rules", rule);
        let watch = Watch::start(watch(&scene).args(["--gid", "108"]));
        war(&watch, 555, Duration::from_secs(2));
        watch.says("etc/udev/rules.d/99-kvm.rules:1");
        watch.says("0:555 0660 is what");
    });
}

/// Even where it is never quiet, it does not spin.
#[test]
fn a_storm_of_changes_that_change_nothing() {
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
            "{count} changes of nothing: {wakeups} wake-ups, {} ms of CPU",
            ticks * 10
        );
        assert!(wakeups <= count * 2 + 50);
        assert!(watch.log().lines().count() < 10, "{}", watch.log());
    });
}
