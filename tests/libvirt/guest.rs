//! Starts a `<domain type='kvm'>` with the distribution's libvirtd and QEMU: it fails with the error of the incident
//! before `apply` and runs after it.
//!
//! Needs root, KVM, and on Debian or Ubuntu the packages libvirt-daemon-system, libvirt-clients and qemu-system-x86.
//! libvirtd has private copies of /etc, /run, /var/{lib,cache,log}/libvirt and /dev, and no cgroups. It runs in its
//! own PID namespace, whose init immediately reaps the orphans of a daemonizing QEMU: if the machine's init is slow
//! at that, libvirt waits seconds for each of its many QEMU probes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::guest::{self, Guest, IMAGE, Identity, NODE, NOVA};

use support::{
    Tree, bind, detach, fresh_dev, in_namespace, mknod_kvm, ok, program, run, scratch, set_owner,
};

const DEVICE: &str = "/dev/kvm";

/// The pod, whose root is this namespace's `/`, and the node's root.
struct Pod {
    host: Tree,
    guest: Guest,
    libvirtd: Option<Child>,
}

impl Pod {
    /// Sets up private copies of all directories that libvirtd writes to, the image's accounts, and the node's device.
    fn new() -> Self {
        support::require_commands(&[
            "libvirtd",
            "virsh",
            "qemu-system-x86_64",
            "unshare",
            "timeout",
        ]);
        support::require_kvm();

        let tree = scratch().join("pod");
        for (name, place) in [
            ("etc", "/etc"),
            ("run", "/run"),
            ("lib", "/var/lib/libvirt"),
            ("cache", "/var/cache/libvirt"),
            ("log", "/var/log/libvirt"),
        ] {
            let own = tree.join(name);
            fs::create_dir_all(&own).unwrap();
            if name == "etc" {
                ok(Command::new("cp").args(["-a", "/etc/."]).arg(&own));
            }
            fs::create_dir_all(place).unwrap();
            bind(&own, Path::new(place));
        }
        detach(Path::new("/sys/fs/cgroup"));
        fresh_dev();
        mknod_kvm(Path::new(DEVICE), 0, NODE, 0o660);

        let (group, passwd) = guest::accounts();
        fs::write("/etc/group", group).unwrap();
        fs::write("/etc/passwd", passwd).unwrap();

        let libvirt = Path::new("/etc/libvirt");
        fs::write(libvirt.join("qemu.conf"), guest::QEMU_CONF).unwrap();
        fs::write(libvirt.join("libvirtd.conf"), guest::LIBVIRTD_CONF).unwrap();
        fs::create_dir_all(libvirt.join("qemu")).unwrap();
        fs::write(libvirt.join("qemu/guest.xml"), guest::DOMAIN).unwrap();

        let host = Tree::host(NODE);
        bind(Path::new("/dev"), &host.at("dev"));
        assert_eq!(
            fs::metadata(host.at("dev/kvm")).unwrap().ino(),
            fs::metadata(DEVICE).unwrap().ino()
        );
        guest::only_qemu(&scratch().join("tools"));
        Self {
            host,
            guest: Guest {
                run: "/run/libvirt".into(),
                logs: "/var/log/libvirt".into(),
                messages: scratch().join("libvirtd.log"),
                proc: PathBuf::new(),
            },
            libvirtd: None,
        }
    }

    /// Starts libvirtd with only the QEMU driver and only one QEMU in its PATH. libvirtd and its guests end when the
    /// standard input is closed.
    fn start_libvirtd(&mut self) {
        let init = "exec 3<&0
            PATH=$BIN LIBVIRT_DRIVER_DIR=$DRIVERS $LIBVIRTD 3<&- & l=$!
            (read x <&3; kill $l; /bin/sleep 10; kill -9 $l) & wait $l";
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.guest.messages)
            .unwrap();
        let mut child = Command::new("unshare")
            .args([
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                init,
            ])
            .env("BIN", scratch().join("tools/bin"))
            .env("DRIVERS", scratch().join("tools/drivers"))
            .env("LIBVIRTD", "/usr/sbin/libvirtd")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let began = Instant::now();
        while UnixStream::connect(self.guest.socket()).is_err() {
            let ended = child.try_wait().unwrap();
            if ended.is_some() || began.elapsed() > Duration::from_secs(30) {
                let _ = child.kill();
                panic!(
                    "libvirtd is not reachable ({ended:?}):\n{}",
                    self.guest.said()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.guest.proc = format!("/proc/{}/root/proc", child.id()).into();
        self.libvirtd = Some(child);
    }

    /// Ends libvirtd and its guests.
    fn stop_libvirtd(&mut self) {
        if let Some(mut child) = self.libvirtd.take() {
            child.wait().unwrap(); // closes its standard input first
        }
    }

    /// Runs `apply` like the pod's init step and returns the identity that the program computed for QEMU.
    fn apply(&self) -> Identity {
        let (code, report) = self.report("apply");
        assert_eq!(code, 0, "{report}");
        assert_eq!(report["verdict"], "ok", "{report}");
        let number = |v: &serde_json::Value| -> u32 { v.as_u64().unwrap().try_into().unwrap() };
        let qemu = &report["qemu"];
        let mut groups: Vec<u32> = qemu["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(number)
            .collect();
        groups.sort_unstable();
        Identity {
            uid: number(&qemu["uid"]),
            gid: number(&qemu["gid"]),
            groups,
        }
    }

    /// The exit code and report of a command.
    fn report(&self, command: &str) -> (i32, serde_json::Value) {
        let mut cmd = Command::new(program());
        // Without an explicit --root, `check` would look for a libvirtd in another container.
        cmd.args([command, "--format", "json", "--root", "/proc/self/root"]);
        cmd.arg("--host-root").arg(self.host.path());
        let (code, stdout, stderr) = run(&mut cmd);
        let report = serde_json::from_str(&stdout);
        (
            code,
            report.unwrap_or_else(|e| panic!("{e}: {cmd:?}\n{stdout}\n{stderr}")),
        )
    }

    /// Runs `check` and returns its exit code, and whether it warns that libvirtd is older than the group file.
    fn check(&self) -> (i32, bool) {
        let (code, report) = self.report("check");
        let warnings = report["warnings"].as_array().unwrap();
        let stale = warnings
            .iter()
            .any(|warning| warning["code"] == "libvirtd-stale");
        (code, stale)
    }

    /// Runs the commands of the chart's libvirt.sh; `kvm` is resolved in the pod's /etc/group.
    fn chart(&self) {
        ok(Command::new("sh").args(["-ec", guest::CHART]));
    }

    /// Sets the device as the node's udev does at an event.
    fn udev(&self) {
        set_owner(Path::new(DEVICE), 0, NODE, 0o660);
    }

    fn device_gid(&self) -> u32 {
        fs::metadata(DEVICE).unwrap().gid()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.stop_libvirtd();
    }
}

/// After a reboot of the node a guest fails to start; after `apply` and a restart of the pod it starts.
#[test]
fn guest_starts_after_apply_and_pod_restart() {
    in_namespace(|| {
        let mut pod = Pod::new();
        pod.start_libvirtd();
        pod.guest.fails("node 108, image 424");
        pod.stop_libvirtd();

        let computed = pod.apply();
        pod.start_libvirtd();
        let seen = pod.guest.starts("after apply and a restart of the pod");
        assert_eq!(
            seen,
            Identity {
                uid: NOVA,
                gid: NODE,
                groups: vec![NODE, NOVA]
            }
        );
        assert_eq!(
            computed, seen,
            "apply must prove with the identity that QEMU gets"
        );

        pod.chart();
        assert_eq!(
            pod.device_gid(),
            NODE,
            "the chart's kvm must have the node's GID"
        );
        pod.guest.starts("after the chart's own chown");

        pod.udev();
        pod.guest.starts("after a udev event on the node");
    });
}

/// Without `apply`, the chart's chown works until the node's next event. `apply` then repairs the pod while libvirtd
/// keeps running: libvirtd keeps the old GID of the configured group, but rereads memberships at each guest start.
#[test]
fn apply_repairs_under_a_running_libvirtd() {
    in_namespace(|| {
        let mut pod = Pod::new();
        pod.chart();
        assert_eq!(pod.device_gid(), IMAGE);
        // The program compares times in whole seconds.
        std::thread::sleep(Duration::from_secs(2));
        pod.start_libvirtd();
        assert_eq!(pod.check(), (0, false), "the GID that the chart set works");
        assert_eq!(pod.guest.starts("after the chart's chown").gid, IMAGE);

        pod.udev();
        assert_eq!(pod.check(), (1, false), "the node's GID does not work");
        pod.guest.fails("after a udev event on the node");

        std::thread::sleep(Duration::from_secs(2));
        pod.apply();
        assert_eq!(
            pod.check(),
            (0, true),
            "a warning must not change the verdict"
        );
        let seen = pod.guest.starts("after apply, libvirtd not restarted");
        assert_eq!(
            seen.gid, IMAGE,
            "libvirtd must resolve the configured group only once"
        );
        assert!(seen.groups.contains(&NODE), "{seen:?}");

        pod.chart();
        pod.udev();
        pod.guest
            .starts("after the chart's chown and a udev event on the node");
    });
}

/// The node's GID for kvm changes repeatedly while libvirtd runs, and events set the device to an old GID and back.
/// With `watch` every guest starts, without a restart of libvirtd.
#[test]
fn watch_follows_changing_node_gid_under_a_running_libvirtd() {
    in_namespace(|| {
        let mut pod = Pod::new();
        let mut watch = Command::new(program());
        watch.args(["watch", "--root", "/proc/self/root", "--format", "json"]);
        watch.arg("--host-root").arg(pod.host.path());
        let log = scratch().join("watch.log");
        watch.stderr(fs::File::create(&log).unwrap());
        let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
        let mut report = String::new();
        let mut out = std::io::BufReader::new(watch.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut report).unwrap();
        pod.start_libvirtd();
        let first = pod.guest.starts("before").gid;

        /// Sets the flag on drop, also if the test fails.
        struct Over<'a>(&'a std::sync::atomic::AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let over = std::sync::atomic::AtomicBool::new(false);
        let host = pod.host.path().join("etc/group");
        let order = std::sync::atomic::Ordering::Relaxed;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for gid in [70_109, 70_110, 70_111].into_iter().cycle() {
                    if over.load(order) {
                        return;
                    }
                    fs::write(&host, format!("root:x:0:\nkvm:x:{gid}:\n")).unwrap();
                    // This interval lets starts and changes overlap in every phase.
                    for drift in [NODE, gid] {
                        std::thread::sleep(Duration::from_millis(1370));
                        set_owner(Path::new(DEVICE), 0, drift, 0o660);
                    }
                }
            });
            let _over = Over(&over);
            for number in 0..12 {
                let seen = pod.guest.starts(&format!("start {number}"));
                assert_eq!(seen.gid, first, "libvirtd must not be restarted");
            }
        });
        let log = fs::read_to_string(log).unwrap();
        println!("{} renumberings", log.matches("set-group-gid").count());
        let pid = nix::unistd::Pid::from_raw(i32::try_from(watch.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(watch.wait().unwrap().code(), Some(0));
    });
}

/// A cgroup_device_acl without /dev/kvm keeps the device from every guest, although owner and mode are right. If
/// libvirt creates neither a private /dev nor a device filter from the list, the list has no effect.
#[test]
fn cgroup_device_acl_without_kvm_is_reported() {
    const MISSING: &str = "Could not access KVM kernel module: No such file or directory";
    in_namespace(|| {
        let mut pod = Pod::new();
        pod.apply();
        let conf = Path::new("/etc/libvirt/qemu.conf");
        let before = fs::read_to_string(conf).unwrap();
        let list =
            "cgroup_device_acl = [ '/dev/null', '/dev/zero', '/dev/urandom', '/dev/ptmx' ]\n";
        fs::write(conf, before.clone() + list).unwrap();
        for command in ["apply", "check"] {
            let (code, report) = pod.report(command);
            assert_eq!(
                (code, &report["verdict"]),
                (5, &"unproven".into()),
                "{report}"
            );
            assert_eq!(report["proof"]["cause"], "device-cgroup", "{report}");
            let summary = report["summary"].as_str().unwrap();
            assert!(summary.contains("/etc/libvirt/qemu.conf:5"), "{summary}");
        }
        pod.start_libvirtd();
        pod.guest.fails_with(MISSING, "the list lacks the device");
        pod.stop_libvirtd();

        fs::write(
            conf,
            before.clone() + &list.replace("/dev/ptmx", "/dev/kvm"),
        )
        .unwrap();
        assert_eq!(pod.check().0, 0, "the list has the device");
        pod.start_libvirtd();
        pod.guest.starts("the list has the device");
        pod.stop_libvirtd();

        let neither = "namespaces = []\ncgroup_controllers = [ 'cpu' ]\n";
        fs::write(conf, before + list + neither).unwrap();
        assert_eq!(pod.check().0, 0, "libvirt does not use the list");
        pod.start_libvirtd();
        pod.guest.starts("libvirt does not use the list");
    });
}
