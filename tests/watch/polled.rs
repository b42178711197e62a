//! `watch` without inotify, whose instances and watches any process of the same user can use up, even without
//! capabilities.
#![allow(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use caps::CapSet;
use nix::sys::signal::Signal::SIGHUP;

use support::watch::{PATIENCE, Watch, until, wait_for_repair, watch};
use support::{
    KVM, Scene, detach, go, in_namespace, mknod_kvm, mount_tmpfs, owner, scratch, set_owner,
    without_call,
};

const RIGHT: (u32, u32, u32) = (0, 108, 0o660);
const MOMENT: Duration = Duration::from_millis(1700);
/// Logged when polling begins, and when it ends.
const POLLING: &str = "polling every ";
const NOT_ANY_MORE: &str = "polling has stopped";

/// The errors of an exhausted inotify: name, system call, errno, and a part of the log line.
const WAYS: [(&str, libc::c_long, i32, &str); 4] = [
    (
        "instances",
        libc::SYS_inotify_init1,
        libc::EMFILE,
        "fs.inotify.max_user_instances",
    ),
    ("files", libc::SYS_inotify_init1, libc::ENFILE, "ENFILE"),
    (
        "watches",
        libc::SYS_inotify_add_watch,
        libc::ENOSPC,
        "fs.inotify.max_user_watches",
    ),
    (
        "memory",
        libc::SYS_inotify_add_watch,
        libc::ENOMEM,
        "ENOMEM",
    ),
];

fn assert_logged_once(log: &str, part: &str) {
    assert_eq!(log.matches(POLLING).count(), 1, "{log}");
    assert!(log.contains(part), "{part}: {log}");
}

#[test]
fn watch_polls_everything_without_inotify() {
    for (what, call, errno, part) in WAYS {
        in_namespace(|| {
            let scene = Scene::new();
            let mut cmd = watch(&scene);
            let running = Watch::start(without_call(&mut cmd, call, errno));
            assert_eq!(running.report["verdict"], "ok", "{what}");
            for _ in 0..3 {
                set_owner(Path::new(KVM), 0, 424, 0o660);
                wait_for_repair(RIGHT);
            }
            fs::remove_file(KVM).unwrap();
            running.wait_for_log("absent");
            mknod_kvm(Path::new(KVM), 0, 0, 0o600);
            wait_for_repair(RIGHT);
            // Input files that are changed in place, replaced, or in a new directory.
            scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
            wait_for_repair((0, 109, 0o660));
            let (new, name) = (scene.host.at("etc/new"), scene.host.at("etc/group"));
            fs::write(&new, "root:x:0:\nkvm:x:110:\n").unwrap();
            fs::rename(&new, &name).unwrap();
            wait_for_repair((0, 110, 0o660));
            let rule =
                "KERNEL==\"kvm\", GROUP=\"555\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";
            let name = "etc/udev/rules.d/99-kvm.rules";
            scene.host.file(name, rule);
            wait_for_repair((0, 555, 0o660));
            scene.host.file(name, &rule.replace("555", "556"));
            wait_for_repair((0, 556, 0o660));
            fs::remove_file(scene.host.at(name)).unwrap();
            wait_for_repair((0, 110, 0o660));
            // SIGHUP and events of mounts need no inotify.
            running.signal(SIGHUP);
            running.wait_for_log("the configuration was reloaded");
            mount_tmpfs(Path::new("/dev"), "mode=755");
            running.wait_for_log("/dev/kvm exists on the node, but not in this container");
            detach(Path::new("/dev"));
            running.wait_for_log("info: QEMU as nova");
            assert_logged_once(&running.log(), part);
        });
    }
}

/// Polling once a second causes no other work.
#[test]
fn polling_costs_little_and_changes_nothing() {
    in_namespace(|| {
        let scene = Scene::new();
        let mut cmd = watch(&scene);
        let (_, call, errno, part) = WAYS[0];
        let running = Watch::start(without_call(&mut cmd, call, errno));
        std::thread::sleep(Duration::from_secs(2));
        let before = (running.wakeups(), running.nanoseconds(), scene.state());
        std::thread::sleep(Duration::from_secs(10));
        let (wakeups, used) = (
            running.wakeups() - before.0,
            running.nanoseconds() - before.1,
        );
        println!(
            "10 s: {wakeups} wake-ups, {:.2} ms of CPU",
            used as f64 / 1e6
        );
        assert!((5..=30).contains(&wakeups), "{wakeups}");
        assert!(scene.state() == before.2);
        assert_logged_once(&running.log(), part);
    });
}

#[test]
fn settle_and_exec_work_without_inotify() {
    for (what, call, errno, part) in WAYS {
        in_namespace(|| {
            let scene = Scene::without_device();
            let mut cmd = scene.apply();
            cmd.args(["--settle", "10s"]);
            let run = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(300));
                    mknod_kvm(Path::new(KVM), 0, 0, 0o600);
                    std::thread::sleep(Duration::from_millis(300));
                    set_owner(Path::new(KVM), 0, 108, 0o660);
                });
                go(without_call(&mut cmd, call, errno)).code(0)
            });
            assert_logged_once(&run.err, part);
            // The changes of udev are not repeated.
            assert!(!run.out.contains("set-device"), "{what}: {run}");
            assert_eq!(owner(Path::new(KVM)), RIGHT, "{what}");
            // As an entrypoint it starts its command.
            let mut cmd = scene.exec(&["--settle=5s"]);
            cmd.args(["echo", "it starts"]);
            let run = go(without_call(&mut cmd, call, errno)).code(0);
            assert_eq!(run.out, "it starts\n", "{what}: {run}");
            // The wait also ends in time if the device does not appear.
            fs::remove_file(KVM).unwrap();
            let mut cmd = scene.apply();
            go(without_call(cmd.args(["--settle", "1s"]), call, errno)).code(6);
        });
    }
}

/// A UID that nothing else on this machine uses, because the limits count per UID.
const USER: u32 = 1_234_567;

/// Makes a command run as that user, with all of root's capabilities or with none.
fn as_user(cmd: &mut Command, capable: bool) -> &mut Command {
    let become_user = move || {
        let other = std::io::Error::other;
        // SAFETY: system calls on this process' own credentials.
        unsafe {
            if libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(capable)) != 0
                || libc::setgroups(0, std::ptr::null()) != 0
                || libc::setresgid(0, 0, 0) != 0
                || libc::setresuid(USER, USER, USER) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
        }
        if capable {
            let all = caps::read(None, CapSet::Permitted).map_err(other)?;
            caps::set(None, CapSet::Effective, &all).map_err(other)?;
            caps::set(None, CapSet::Inheritable, &all).map_err(other)?;
            caps::set(None, CapSet::Ambient, &all).map_err(other)?;
        }
        Ok(())
    };
    // SAFETY: the child has one thread, and allocates in its own copy of the heap.
    unsafe { cmd.pre_exec(become_user) }
}

/// A process that opens inotify instances until none is left, and holds them until it is killed.
struct Hog(Child);

impl Hog {
    /// `others` is the number of the user's instances already in use.
    fn start(others: u32) -> Self {
        let script = "import ctypes, sys\n\
            c = ctypes.CDLL(None, use_errno=True)\n\
            n = 0\n\
            while c.inotify_init1(0) >= 0: n += 1\n\
            print(n, ctypes.get_errno(), flush=True)\n\
            sys.stdin.read()\n";
        let mut cmd = Command::new("python3");
        cmd.args(["-c", script]);
        let mut child = as_user(&mut cmd, false)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.as_mut().unwrap();
        BufReader::new(out.by_ref()).read_line(&mut line).unwrap();
        let most = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
        let most: u32 = most.trim().parse().unwrap();
        assert_eq!(line.trim(), format!("{} {}", most - others, libc::EMFILE));
        Self(child)
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn has_inotify(watch: &Watch) -> bool {
    let fds = fs::read_dir(format!("/proc/{}/fd", watch.worker())).unwrap();
    let mut names = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    names.any(|name| name == Path::new("anon_inode:inotify"))
}

#[test]
fn exhausted_inotify_instances_do_not_stop_apply_or_watch() {
    in_namespace(|| {
        let scene = Scene::new();
        fs::set_permissions(
            scratch(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let hog = Hog::start(0);
        let mut cmd = scene.apply();
        go(as_user(cmd.args(["--settle", "1s"]), true)).code(0);
        assert_eq!(owner(Path::new(KVM)), RIGHT);
        let mut cmd = watch(&scene);
        cmd.args(["--recheck", "2s"]);
        let running = Watch::start(as_user(&mut cmd, true));
        assert_eq!(running.report["verdict"], "ok");
        assert!(!has_inotify(&running));
        set_owner(Path::new(KVM), 0, 424, 0o660);
        wait_for_repair(RIGHT);
        assert_logged_once(&running.log(), "fs.inotify.max_user_instances");
        // A free instance is used again.
        drop(hog);
        running.wait_for_log(NOT_ANY_MORE);
        assert!(has_inotify(&running));
        // If all other instances are used up again, `watch` keeps its own.
        let hog = Hog::start(1);
        for _ in 0..3 {
            std::thread::sleep(MOMENT);
            set_owner(Path::new(KVM), 0, 424, 0o600);
            wait_for_repair(RIGHT);
        }
        drop(hog);
        let log = running.log();
        assert_logged_once(&log, POLLING);
        assert_eq!(log.matches(NOT_ANY_MORE).count(), 1, "{log}");
        assert!(until(PATIENCE, || has_inotify(&running)));
    });
}
