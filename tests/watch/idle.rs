//! Counts the wake-ups of the processes of `watch` while nothing happens, in each steady state.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal::SIGTERM;

use crate::libvirtd::{bare_root, container};
use support::watch::{Watch, watch};
use support::{KVM, Scene, command, in_namespace, program};

/// Measured from 2 s after the start on, for 30 s: a check every second would be 30 wake-ups.
const FROM: Duration = Duration::from_secs(2);
const FOR: Duration = Duration::from_secs(30);

/// Starts `watch` in a state, and returns the number of its wake-ups.
fn woken(verdict: &str, state: impl FnOnce(&Scene) -> std::process::Command + Send) -> u64 {
    in_namespace(|| {
        let scene = Scene::settled();
        let mut cmd = state(&scene);
        let watch = Watch::start(&mut cmd);
        assert_eq!(watch.report["verdict"], verdict, "{}", watch.report);
        std::thread::sleep(FROM);
        let before = watch.wakeups();
        std::thread::sleep(FOR);
        let woken = watch.wakeups() - before;
        println!("{verdict}: {woken} wake-ups in {FOR:?}");
        watch.signal(SIGTERM);
        woken
    })
}

#[test]
fn idle_watch_is_hardly_ever_woken_up() {
    let no_device = |scene: &Scene| {
        fs::remove_file(KVM).unwrap();
        watch(scene)
    };
    let not_ready = |scene: &Scene| {
        let list = "user = \"nova\"\ngroup = \"kvm\"\ncgroup_device_acl = [ \"/dev/null\" ]\n";
        scene.pod.file("etc/libvirt/qemu.conf", list);
        watch(scene)
    };
    let no_libvirtd = |scene: &Scene| {
        scene.host.dir("run/libvirt");
        container(&scene.pod);
        bare_root();
        let mut cmd = command(&program(), &["watch", "--host-root"]);
        cmd.arg(scene.host.path());
        cmd
    };
    std::thread::scope(|scope| {
        let fine = scope.spawn(|| woken("ok", watch));
        let absent = scope.spawn(|| woken("absent", no_device));
        let not_ready = scope.spawn(|| woken("unproven", not_ready));
        let no_libvirtd = scope.spawn(|| woken("unproven", no_libvirtd));
        // A new device and a starting libvirtd cause events, so nothing is polled.
        for quiet in [fine, absent, no_libvirtd] {
            assert_eq!(quiet.join().unwrap(), 0);
        }
        // Full checks follow after 5 and 21 seconds, because no event shows that the cause is gone.
        let woken = not_ready.join().unwrap();
        assert!(woken <= 14, "{woken}");
    });
}
