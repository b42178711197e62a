//! Repairs every kind of drift repeatedly, and measures how fast.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libvirt_kvm_init::sys::inotify::Watcher;
use nix::mount::{MsFlags, mount};

use support::drift::{DRIFTS, PAUSE, right, time};
use support::rule_sets::{Content, K, set};
use support::udevd::{Oracle, turn};
use support::watch::{PATIENCE, Watch, distribution, until, watch};
use support::{Scene, Tree, in_namespace, inode, mknod_char, owner, scratch};

const ROUNDS: usize = 100;

/// Asserts that each drift is repaired. Only an event can cause that: the next full check is in an hour.
fn all(watch: &Watch, rounds: usize) {
    let mut times = Vec::new();
    let mut by_kind = vec![Vec::new(); DRIFTS.len()];
    for _ in 0..rounds {
        for (kind, (name, drift)) in DRIFTS.iter().enumerate() {
            std::thread::sleep(PAUSE);
            let took =
                time(*drift).unwrap_or_else(|| panic!("{name} was not repaired\n{}", watch.log()));
            times.push(took);
            by_kind[kind].push(took);
        }
    }
    for ((name, _), times) in DRIFTS.iter().zip(by_kind) {
        distribution(name, times);
    }
    distribution("all", times);
}

#[test]
fn thousand_drifts_are_repaired() {
    in_namespace(|| {
        let scene = Scene::settled();
        mknod_char(Path::new("/dev/canary"), (1, 3), 0, 0, 0o600);
        let canary = inode(Path::new("/dev/canary"));
        let metrics = scratch().join("kvm.prom");
        let watch = Watch::start(
            watch(&scene)
                .args(["--recheck", "1h", "--metrics-file"])
                .arg(&metrics),
        );

        let before = watch.wakeups();
        std::thread::sleep(Duration::from_secs(10));
        let woken = watch.wakeups() - before;
        println!("wake-ups in 10 quiet seconds: {woken}");
        assert_eq!(woken, 0);

        all(&watch, ROUNDS);
        let peak = watch.status("VmHWM");
        println!("peak: {peak} KiB (VmHWM); CPU: {} ms", watch.ticks() * 10);
        if std::env::var_os("KVM_INIT_TEST_BIN").is_some() {
            assert!(peak <= 3 * 1024, "{peak} KiB");
        }
        // A link is not followed, and not every drift is logged.
        assert_eq!(
            (
                owner(Path::new("/dev/canary")),
                inode(Path::new("/dev/canary"))
            ),
            ((0, 0, 0o600), canary)
        );
        let lines = watch.log().lines().count();
        println!("log lines: {lines}");
        assert!(lines < 60, "{}", watch.log());
        let counted = || {
            let text = fs::read_to_string(&metrics).unwrap();
            let of = |action: &str| -> u64 {
                let key = format!("libvirt_kvm_init_heals_total{{action=\"{action}\"}} ");
                text.lines()
                    .find_map(|line| line.strip_prefix(&key))
                    .unwrap()
                    .parse()
                    .unwrap()
            };
            of("set-device-owner") + of("set-device-mode") + of("set-device-acl") >= 1000
        };
        assert!(until(PATIENCE, counted));
        // `watch` does not react to its own changes.
        watch.is_idle();
        let before = watch.wakeups();
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(watch.wakeups(), before);
    });
}

/// A node with udevd and the usual rule, and its root as a container sees it.
fn node() -> (Oracle, Tree) {
    let oracle = Oracle::new("root:x:0:\nkvm:x:108:\n", "root:x:0:0::/:/bin/sh\n");
    let rules = Content::Text(K.into());
    let path = "usr/lib/udev/rules.d/50-udev-default.rules";
    oracle.install(&set("stock", vec![(path, rules)]));
    let host = Tree::new();
    let whole = MsFlags::MS_BIND | MsFlags::MS_REC;
    for name in ["etc", "usr", "run", "dev"] {
        let (from, to) = (Path::new("/").join(name), host.dir(name).at(name));
        mount(Some(&from), &to, None::<&str>, whole, None::<&str>).unwrap();
    }
    (oracle, host)
}

/// A real udevd starts and handles events of the same device.
#[test]
fn drifts_are_repaired_while_udevd_changes_the_device() {
    let _turn = turn();
    in_namespace(|| {
        let (oracle, host) = node();
        let pod = Tree::pod(424);
        mknod_char(Path::new("/dev/canary"), (1, 3), 0, 0, 0o600);
        let mut cmd = support::program_command("watch", pod.path(), host.path());
        let watch = Watch::start(cmd.args(["--recheck", "1h"]));
        let daemon = oracle.start();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut events = 0;
                while !over.load(Ordering::Relaxed) {
                    oracle.trigger(if events % 2 == 0 { "add" } else { "change" });
                    events += 1;
                    std::thread::sleep(PAUSE);
                }
                println!("{events} events handled by udevd during the run");
            });
            all(&watch, ROUNDS / 4);
            over.store(true, Ordering::Relaxed);
        });
        drop(daemon);
        let _daemon = oracle.start();
        assert!(until(PATIENCE, right));
    });
}

/// A proof that creates a virtual machine causes a udev event, and udevd touches the device. That must not cause the
/// next proof.
#[test]
fn event_caused_by_the_proof_causes_no_other_proof() {
    let _turn = turn();
    in_namespace(|| {
        let (oracle, host) = node();
        let _daemon = oracle.start();
        let pod = Tree::pod(424);
        let mut cmd = support::program_command("watch", pod.path(), host.path());
        let watch = Watch::start(cmd.args(["--proof", "create-vm"]));
        watch.is_idle();
        let before = watch.wakeups();
        std::thread::sleep(Duration::from_secs(3));
        // Other virtual machines on this machine cause events, too.
        let woken = watch.wakeups() - before;
        println!("wake-ups in 3 s: {woken}");
        assert!(woken < 6, "{woken}");
    });
}

/// Devices that the kernel creates and removes cause events, too. The test uses a loop device, since KVM's module
/// cannot be unloaded if it is built in; devtmpfs treats all devices alike.
#[test]
fn devices_created_and_removed_by_the_kernel_cause_events() {
    const LOOP_CTL_ADD: libc::c_ulong = 0x4C80;
    const LOOP_CTL_REMOVE: libc::c_ulong = 0x4C81;
    in_namespace(|| {
        let dev = scratch().join("devtmpfs");
        fs::create_dir(&dev).unwrap();
        let mounted = mount(
            Some("devtmpfs"),
            &dev,
            Some("devtmpfs"),
            MsFlags::empty(),
            None::<&str>,
        );
        let Ok(control) = fs::File::options()
            .read(true)
            .write(true)
            .open(dev.join("loop-control"))
        else {
            println!("skipped: this machine has no devtmpfs ({mounted:?}) or no loop devices");
            return;
        };
        let number = 500 + std::process::id() % 1000;
        let name = format!("loop{number}");
        let ask = |request| crate::directories::ioctl(&control, request, number);
        let mut watcher = Watcher::new(PAUSE);
        assert!(watcher.follow_device(&dev, name.as_ref()).unwrap());
        let soon = || Some(Instant::now() + Duration::from_secs(5));
        for _ in 0..3 {
            assert!(
                ask(LOOP_CTL_ADD) >= 0,
                "{}",
                std::io::Error::last_os_error()
            );
            assert!(watcher.wait(soon()).unwrap().device, "no event");
            assert_eq!(owner(&dev.join(&name)), (0, 0, 0o600));
            while watcher
                .wait(Some(Instant::now() + Duration::from_millis(100)))
                .unwrap()
                .any()
            {}
            assert!(
                ask(LOOP_CTL_REMOVE) >= 0,
                "{}",
                std::io::Error::last_os_error()
            );
            assert!(watcher.wait(soon()).unwrap().device, "no event");
            while watcher
                .wait(Some(Instant::now() + Duration::from_millis(100)))
                .unwrap()
                .any()
            {}
        }
    });
}
