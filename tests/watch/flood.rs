//! Endless changes in watched directories, which any user can make, cost little and hide no drift.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::drift::{right, time};
use support::watch::{Watch, distribution, watch};
use support::{KVM, Scene, bind, detach, in_namespace, mknod_char, scratch, set_owner};

const FLOOD: Duration = Duration::from_secs(6);
/// Share of one core that the release binary may use. Events are handled at most twenty times a second, each with at
/// most two context switches; a full check, every 5 s, starts some processes.
const SHARE: f64 = 0.05;
const WAKEUPS_A_SECOND: u64 = 60;
const NOBODY: (u32, u32) = (65534, 65534);

/// Becomes another user in this thread only.
fn become_user((uid, gid): (u32, u32)) {
    // SAFETY: three system calls on this thread's own credentials.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) == 0
            && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
            && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
}

fn touch(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the string ends in NUL, and no times means now.
    let done = unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), std::ptr::null(), 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Runs `once` repeatedly as a user, measures `watch` during this, and then causes drifts.
fn flood(what: &str, watch: &Watch, user: (u32, u32), once: impl Fn() + Send + Sync) {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            become_user(user);
            while !stop.load(Ordering::Relaxed) {
                once();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let ends = scopeguard(&stop);
        std::thread::sleep(Duration::from_millis(500));
        let (start, before) = (Instant::now(), count.load(Ordering::Relaxed));
        let (wakeups, used) = (watch.wakeups(), watch.nanoseconds());
        std::thread::sleep(FLOOD);
        let took = start.elapsed();
        let (wakeups, used) = (watch.wakeups() - wakeups, watch.nanoseconds() - used);
        let count = count.load(Ordering::Relaxed) - before;
        let share = used as f64 / took.as_nanos() as f64;
        println!(
            "{what}: {count} in {took:.1?}, {wakeups} wake-ups, {:.2} % of a core",
            share * 100.0
        );
        let seconds = took.as_secs() + 1;
        assert!(count > 5_000, "{what}: {count} are too few for a flood");
        let bound = WAKEUPS_A_SECOND * seconds;
        assert!(wakeups <= bound, "{what}: {wakeups} wake-ups, over {bound}");
        if std::env::var_os("KVM_INIT_TEST_BIN").is_some() {
            assert!(share <= SHARE, "{what}: {:.2} % of a core", share * 100.0);
        }
        let repairs = (0..20).map(|_| {
            std::thread::sleep(Duration::from_millis(150));
            time(|| {
                let at = Instant::now();
                set_owner(Path::new(KVM), 0, 424, 0o660);
                at
            })
            .unwrap_or_else(|| panic!("{what}: not repaired\n{}", watch.log()))
        });
        distribution(what, repairs.collect());
        assert!(right());
        drop(ends);
    });
}

/// Ends the flood on drop, also after a failed assertion.
fn scopeguard(stop: &AtomicBool) -> impl Drop + '_ {
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    Ends(stop)
}

#[test]
fn touching_other_devices_costs_little() {
    in_namespace(|| {
        let scene = Scene::settled();
        let others = ["/dev/a", "/dev/b"].map(Path::new);
        for path in others {
            mknod_char(path, (1, 3), 0, 0, 0o666);
        }
        let watch = Watch::start(&mut watch(&scene));
        // In turns: the kernel merges successive events that are identical (inotify(7)).
        flood("other devices", &watch, NOBODY, || {
            for path in others {
                touch(path);
            }
        });
    });
}

#[test]
fn touching_the_device_as_the_qemu_user_costs_little() {
    in_namespace(|| {
        let scene = Scene::settled();
        let watch = Watch::start(&mut watch(&scene));
        flood("the device", &watch, (42424, 108), || {
            // The call may fail: on the drifted device the user has no permission.
            let path = CString::new(KVM).unwrap();
            // SAFETY: as in `touch`.
            unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), std::ptr::null(), 0) };
        });
    });
}

#[test]
fn creating_and_removing_files_beside_the_group_file_costs_little() {
    in_namespace(|| {
        let scene = Scene::settled();
        let volume = scene.pod.dir("volume").at("volume");
        let mut cmd = watch(&scene);
        cmd.arg("--group-file-out").arg(volume.join("group"));
        let watch = Watch::start(&mut cmd);
        let names: Vec<PathBuf> = (0..2).map(|n| volume.join(format!("x{n}"))).collect();
        // As root of another container: a directory that another user can write is refused.
        flood("other names", &watch, (0, 0), || {
            for name in &names {
                drop(fs::File::create(name).unwrap());
                fs::remove_file(name).unwrap();
            }
        });
    });
}

/// Any user can mount and unmount what the node permits, such as a FUSE file system.
#[test]
fn mounting_and_unmounting_costs_little() {
    in_namespace(|| {
        let scene = Scene::settled();
        let at = scratch().join("mounted");
        fs::create_dir(&at).unwrap();
        let watch = Watch::start(&mut watch(&scene));
        flood("mounts", &watch, (0, 0), || {
            bind(scene.pod.path(), &at);
            detach(&at);
        });
    });
}

/// An overflowed inotify queue may have lost an event of the device.
#[test]
fn drift_hidden_by_a_queue_overflow_is_repaired() {
    in_namespace(|| {
        let scene = Scene::settled();
        let watch = Watch::start(&mut watch(&scene));
        let (a, b) = (Path::new("/dev/a"), Path::new("/dev/b"));
        for round in 0..5 {
            watch.signal(nix::sys::signal::Signal::SIGSTOP);
            for _ in 0..10_000 {
                fs::write(a, "").unwrap();
                fs::rename(a, b).unwrap();
                fs::remove_file(b).unwrap();
            }
            if round % 2 == 0 {
                set_owner(Path::new(KVM), 0, 424, 0o660);
            } else {
                fs::remove_file(KVM).unwrap();
                support::mknod_kvm(Path::new(KVM), 0, 0, 0o600);
            }
            watch.signal(nix::sys::signal::Signal::SIGCONT);
            support::watch::wait_for_repair((0, 108, 0o660));
            watch.is_idle();
            // The device that was replaced during the overflow is watched again.
            set_owner(Path::new(KVM), 0, 424, 0o660);
            support::watch::wait_for_repair((0, 108, 0o660));
        }
    });
}

/// A device mounted alone: changes to it cause no event in any directory of this container.
#[test]
fn bind_mounted_device_is_maintained() {
    in_namespace(|| {
        let scene = Scene::settled();
        let node = Path::new("/dev/node");
        fs::create_dir(node).unwrap();
        fs::rename(KVM, node.join("kvm")).unwrap();
        fs::write(KVM, "").unwrap();
        support::bind(&node.join("kvm"), Path::new(KVM));
        let watch = Watch::start(&mut watch(&scene));
        for _ in 0..5 {
            watch.is_idle();
            set_owner(&node.join("kvm"), 0, 424, 0o600);
            support::watch::wait_for_repair((0, 108, 0o660));
        }
    });
}
