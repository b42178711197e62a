//! The libvirt tier: the distribution's libvirtd and QEMU, the incident's exact error before `apply`, and
//! a running `<domain type='kvm'>` after it.
//!
//! Needs root, KVM, and of Debian or Ubuntu: libvirt-daemon-system, libvirt-clients, qemu-system-x86.
//! libvirtd sees private copies of /etc, /run, /var/{lib,cache,log}/libvirt and /dev, and no cgroups. It
//! runs in a PID namespace of its own, whose init reaps at once what QEMU's daemonizing leaves behind:
//! where the machine's own init takes its time, libvirt waits seconds for each of its many QEMU probes.

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

/// The pod: this namespace's `/`, with the node's root beside it.
struct Pod {
    host: Tree,
    guest: Guest,
    libvirtd: Option<Child>,
}

impl Pod {
    /// Private copies of all that libvirtd writes to, the image's accounts, and the node's device.
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

    /// Starts libvirtd with the QEMU driver alone and only one QEMU to find. It ends when its standard input
    /// does, and its guests with it.
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
                    "libvirtd does not answer ({ended:?}):\n{}",
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

    /// The cure, as the pod's init step runs it. Gives the identity that the program computed for QEMU.
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

    /// A verb's exit code and report.
    fn report(&self, verb: &str) -> (i32, serde_json::Value) {
        let mut cmd = Command::new(program());
        // Named as what is no default: `check` would look for a libvirtd in another container.
        cmd.args([verb, "--format", "json", "--root", "/proc/self/root"]);
        cmd.arg("--host-root").arg(self.host.path());
        let (code, stdout, stderr) = run(&mut cmd);
        let report = serde_json::from_str(&stdout);
        (
            code,
            report.unwrap_or_else(|e| panic!("{e}: {cmd:?}\n{stdout}\n{stderr}")),
        )
    }

    /// What `check` says: its exit code, and whether the running libvirtd is older than the group file.
    fn check(&self) -> (i32, bool) {
        let (code, report) = self.report("check");
        let warnings = report["warnings"].as_array().unwrap();
        let stale = warnings
            .iter()
            .any(|warning| warning["code"] == "libvirtd-stale");
        (code, stale)
    }

    /// The chart's lines; `kvm` is what the pod's /etc/group says.
    fn chart(&self) {
        ok(Command::new("sh").args(["-ec", guest::CHART]));
    }

    /// The node's udev handles an event.
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

/// A node is rebooted, the pod comes up, a guest is started; then the pod is restarted with `apply` in it.
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
            "the identity that apply proves with is the one that QEMU gets"
        );

        pod.chart();
        assert_eq!(pod.device_gid(), NODE, "the chart's kvm is the node's now");
        pod.guest.starts("after the chart's own chown");

        pod.udev();
        pod.guest.starts("after an event of the node");
    });
}

/// What the chart's lines do without `apply`: they win until the node's next event. Then `apply` mends it
/// under a libvirtd that goes on running: of a group it knows the old number, but members are read anew.
#[test]
fn apply_repairs_under_a_running_libvirtd() {
    in_namespace(|| {
        let mut pod = Pod::new();
        pod.chart();
        assert_eq!(pod.device_gid(), IMAGE);
        // Times are compared by the second.
        std::thread::sleep(Duration::from_secs(2));
        pod.start_libvirtd();
        assert_eq!(pod.check(), (0, false), "the chart's number works now");
        assert_eq!(pod.guest.starts("the chart has taken the node").gid, IMAGE);

        pod.udev();
        assert_eq!(pod.check(), (1, false), "and now it does not");
        pod.guest.fails("an event of the node has taken it back");

        std::thread::sleep(Duration::from_secs(2));
        pod.apply();
        assert_eq!(pod.check(), (0, true), "a warning, which is no verdict");
        let seen = pod.guest.starts("after apply, libvirtd not restarted");
        assert_eq!(
            seen.gid, IMAGE,
            "libvirtd resolves the configured group once"
        );
        assert!(seen.groups.contains(&NODE), "{seen:?}");

        pod.chart();
        pod.udev();
        pod.guest
            .starts("after the chart's chown and an event of the node");
    });
}

/// The node's number changes again and again under a libvirtd that goes on running, and its events put
/// the device to its old number and back: with `watch` every guest starts, and libvirtd is not restarted.
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

        /// Set when it goes out of scope, by a failure as well.
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
                    // Every phase of a start meets every phase of a change.
                    for drift in [NODE, gid] {
                        std::thread::sleep(Duration::from_millis(1370));
                        set_owner(Path::new(DEVICE), 0, drift, 0o660);
                    }
                }
            });
            let _over = Over(&over);
            for number in 0..12 {
                let seen = pod.guest.starts(&format!("start {number}"));
                assert_eq!(seen.gid, first, "libvirtd is still the same");
            }
        });
        let log = fs::read_to_string(log).unwrap();
        println!("{} renumberings", log.matches("set-group-gid").count());
        let pid = nix::unistd::Pid::from_raw(i32::try_from(watch.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(watch.wait().unwrap().code(), Some(0));
    });
}

/// A list of devices without the device: its rights are as they should be, and no guest gets it. Where
/// libvirt makes neither a /dev nor a filter of the list, it does nothing.
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
        for verb in ["apply", "check"] {
            let (code, report) = pod.report(verb);
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
        assert_eq!(pod.check().0, 0, "nothing is made of the list");
        pod.start_libvirtd();
        pod.guest.starts("nothing is made of the list");
    });
}
