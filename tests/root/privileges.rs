//! Tests which capabilities the running program has, by /proc/PID/status, and that it needs each one that it keeps.
#![allow(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use caps::Capability::{
    CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_MKNOD,
    CAP_NET_RAW, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE,
};
use caps::{CapSet, Capability};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use support::{
    ALIGNED, KVM, Scene, command, get_xattr, go, in_namespace, owner, program, require_commands,
    scratch, set_xattr, without_call, without_capability,
};

const APPLY: &[Capability] = &[
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_FOWNER,
    CAP_FSETID,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_PTRACE,
];
const CHECK: &[Capability] = &[
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_PTRACE,
];
const LOGS: &[Capability] = &[
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_KILL,
    CAP_SETGID,
    CAP_SETUID,
];
const INSTALL: &[Capability] = &[CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER];

/// The privilege fields of /proc/PID/status.
#[derive(Debug, PartialEq, Eq)]
struct Rights {
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
    bounding: u64,
    no_new_privs: bool,
    umask: String,
}

impl std::fmt::Display for Rights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "CapEff {:010x} CapPrm {:010x} CapInh {:x} CapAmb {:x} CapBnd {:x} NoNewPrivs {} Umask {}",
            self.effective,
            self.permitted,
            self.inheritable,
            self.ambient,
            self.bounding,
            u8::from(self.no_new_privs),
            self.umask
        )
    }
}

fn rights(pid: u32) -> Rights {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = |key: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)).unwrap();
        value.trim().to_owned()
    };
    let set = |key: &str| u64::from_str_radix(&line(key), 16).unwrap();
    Rights {
        effective: set("CapEff:"),
        permitted: set("CapPrm:"),
        inheritable: set("CapInh:"),
        ambient: set("CapAmb:"),
        bounding: set("CapBnd:"),
        no_new_privs: line("NoNewPrivs:") == "1",
        umask: line("Umask:"),
    }
}

/// The fields of a process with only these capabilities.
fn only(capabilities: &[Capability]) -> Rights {
    let kept = capabilities.iter().map(Capability::bitmask).sum();
    Rights {
        effective: kept,
        permitted: kept,
        inheritable: 0,
        ambient: 0,
        bounding: 0,
        no_new_privs: true,
        umask: "0077".to_owned(),
    }
}

fn wait_for(mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !ready() {
        assert!(Instant::now() < end, "the expected state was not reached");
        sleep(Duration::from_millis(5));
    }
}

/// A full pipe: a write to it blocks.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    // Commands of other tests must not inherit it.
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut file = fs::File::from(writer.try_clone().unwrap());
    while file.write(&[b'\n'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// A run that is blocked in writing its report (stdout) or its closing line (stderr).
struct Held {
    child: Child,
    /// PID of the worker of the started process.
    worker: u32,
    _reader: OwnedFd,
}

impl Held {
    fn start(cmd: &mut Command) -> Self {
        cmd.stderr(Stdio::null());
        Self::at(1, cmd)
    }

    /// Starts a run that blocks in writing to this stream.
    fn at(stream: i32, cmd: &mut Command) -> Self {
        let (reader, writer) = full_pipe();
        if stream == 1 {
            cmd.stdout(writer);
        } else {
            cmd.stdout(Stdio::null()).stderr(writer);
        }
        // Every inheritable set gets a capability that is not needed.
        let more = || {
            caps::raise(None, CapSet::Inheritable, CAP_NET_RAW).map_err(io::Error::other)?;
            caps::raise(None, CapSet::Ambient, CAP_NET_RAW).map_err(io::Error::other)
        };
        // SAFETY: system calls only.
        unsafe { cmd.pre_exec(more) };
        let child = cmd.stdin(Stdio::null()).spawn().unwrap();
        let mut held = Self {
            child,
            worker: 0,
            _reader: reader,
        };
        let children = format!("/proc/{0}/task/{0}/children", held.child.id());
        let waits = [libc::SYS_write, libc::SYS_writev].map(|call| format!("{call} {stream:#x} "));
        wait_for(|| {
            let worker = fs::read_to_string(&children).unwrap_or_default();
            held.worker = worker.trim().parse().unwrap_or(0);
            let syscall = format!("/proc/{}/syscall", held.worker);
            let now = fs::read_to_string(syscall).unwrap_or_default();
            waits.iter().any(|wait| now.starts_with(wait.as_str()))
        });
        held
    }

    fn rights(&self) -> Rights {
        rights(self.worker)
    }

    /// The fields of the supervising process.
    fn supervisors_rights(&self) -> Rights {
        rights(self.child.id())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn each_command_keeps_exactly_its_documented_capabilities() {
    in_namespace(|| {
        let scene = Scene::new();
        scene.host.dir("etc/udev/rules.d");
        let keeps = |what: &str, held: &Held, kept: &[Capability]| {
            let rights = held.rights();
            println!("{what}: {rights}");
            assert_eq!(rights, only(kept), "{what}");
            // The worker of `logs` reads open files and keeps nothing; its supervisor keeps `LOGS`.
            let kept = if what == "logs" { LOGS } else { kept };
            assert_eq!(held.supervisors_rights(), only(kept), "{what}");
        };
        keeps("apply", &Held::start(&mut scene.apply()), APPLY);
        assert_eq!(scene.pod.read("etc/group"), ALIGNED);
        let mut persist = scene.apply();
        persist.arg("--persist");
        keeps("apply --persist", &Held::start(&mut persist), APPLY);
        let mut watch = scene.command("watch");
        keeps("watch", &Held::start(&mut watch), APPLY);
        let mut check = scene.command("check");
        keeps("check", &Held::start(&mut check), CHECK);
        let mut install = command(&program(), &["install"]);
        install.arg(scene.pod.path());
        keeps("install", &Held::start(&mut install), INSTALL);
        let mut ready = command(&program(), &["ready", "/dev/absent"]);
        keeps("ready", &Held::at(2, &mut ready), &[]);
        let mut logs = command(&program(), &["logs", "--format=json", "/dev/null"]);
        let logs = Held::start(&mut logs);
        keeps("logs", &logs, &[]);
        let owner = fs::metadata(format!("/proc/{}/stat", logs.worker)).unwrap();
        assert!(owner.uid() == 0 || owner.uid() == 65_534);
    });
}

#[test]
fn exec_drops_capabilities_only_in_its_child() {
    assert_exec_drops_only_in_its_child(None);
    assert_exec_drops_only_in_its_child(Some(CAP_SYS_PTRACE));
}

/// `exec` may be started without one capability.
fn assert_exec_drops_only_in_its_child(missing: Option<Capability>) {
    in_namespace(|| {
        let scene = Scene::without_device();
        let mut own = rights(std::process::id());
        let mut cmd = scene.exec(&["--settle=60s"]);
        if let Some(missing) = missing {
            without_capability(&mut cmd, missing);
            for set in [&mut own.effective, &mut own.permitted, &mut own.bounding] {
                *set &= !missing.bitmask();
            }
        }
        cmd.args(["cat", "/proc/self/status"]);
        let wrapper = cmd.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let wrapper = wrapper.unwrap();
        let pid = wrapper.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let mut worker = 0;
        wait_for(|| {
            let text = fs::read_to_string(&children).unwrap_or_default();
            worker = text.trim().parse().unwrap_or(0);
            // With an inotify descriptor it waits for the device.
            let fds = fs::read_dir(format!("/proc/{worker}/fd"));
            let fds = fds.into_iter().flatten().flatten();
            let mut names = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
            names.any(|name| name == Path::new("anon_inode:inotify"))
        });
        let (parent, child) = (rights(pid), rights(worker));
        support::mknod_kvm(Path::new(KVM), 0, 108, 0o660);
        let out = wrapper.wait_with_output().unwrap();
        let row = APPLY.iter().filter(|kept| Some(**kept) != missing);
        assert_eq!(child, only(&row.copied().collect::<Vec<_>>()));
        assert_eq!(parent, own);
        let status = String::from_utf8(out.stdout).unwrap();
        for (key, value) in [
            ("CapEff:", own.effective),
            ("CapPrm:", own.permitted),
            ("CapInh:", own.inheritable),
            ("CapBnd:", own.bounding),
            ("CapAmb:", own.ambient),
        ] {
            let line = format!("{key}\t{value:016x}\n");
            assert!(status.contains(&line), "{line}{status}");
        }
        assert!(status.contains(&format!("Umask:\t{}\n", own.umask)));
        assert!(status.contains("NoNewPrivs:\t0\n"));
    });
}

/// A missing capability is no error, and none is gained.
#[test]
fn fewer_initial_capabilities_are_no_error() {
    in_namespace(|| {
        let scene = Scene::new();
        let mut cmd = scene.apply();
        for capability in [CAP_FOWNER, Capability::CAP_SETPCAP] {
            without_capability(&mut cmd, capability);
        }
        let held = Held::start(&mut cmd).rights();
        let kept: Vec<_> = APPLY.iter().copied().filter(|c| *c != CAP_FOWNER).collect();
        let bounding = rights(std::process::id()).bounding
            & !(CAP_FOWNER.bitmask() | Capability::CAP_SETPCAP.bitmask());
        assert_eq!(
            held,
            Rights {
                bounding,
                ..only(&kept)
            }
        );
    });
}

/// Each command without CAP_SYS_PTRACE, and with all other capabilities. Only commands that look for a libvirtd may
/// need these: without CAP_SYS_PTRACE a process can inspect only processes whose capabilities are a subset of its own
/// (ptrace(2)).
#[test]
fn without_sys_ptrace_only_check_and_watch_keep_all_capabilities() {
    in_namespace(|| {
        let scene = Scene::new();
        let given = rights(std::process::id()).permitted & !CAP_SYS_PTRACE.bitmask();
        for more in [CAP_NET_RAW, CAP_MKNOD] {
            assert_ne!(given & more.bitmask(), 0, "this test needs {more}");
        }
        let row = |kept: &[Capability]| {
            let kept = kept.iter().filter(|kept| **kept != CAP_SYS_PTRACE);
            only(&kept.copied().collect::<Vec<_>>())
        };
        let all = || Rights {
            permitted: given,
            effective: given,
            ..only(&[])
        };
        let keeps = |what: &str, stream: i32, mut cmd: Command, want: Rights| {
            without_capability(&mut cmd, CAP_SYS_PTRACE);
            let log = scratch().join("log");
            if stream == 1 {
                cmd.stderr(fs::File::create(&log).unwrap());
            }
            let held = Held::at(stream, &mut cmd).rights();
            println!("{what}: {held}");
            assert_eq!(held, want, "{what}");
            if stream == 1 {
                let log = fs::read_to_string(log).unwrap();
                let mask = format!("capsh --decode={given:x}");
                let line = log.lines().find(|line| line.contains(&mask));
                let is_told = line.is_some_and(|line| {
                    line.starts_with(&format!("info: {what} keeps all"))
                        && line.contains("with CAP_SYS_PTRACE it drops")
                });
                assert_eq!(is_told, want == all(), "{what}: {log}");
            }
        };
        keeps("apply", 1, scene.apply(), row(APPLY));
        assert_eq!(scene.pod.read("etc/group"), ALIGNED);
        let mut install = command(&program(), &["install"]);
        install.arg(scene.pod.path());
        keeps("install", 1, install, row(INSTALL));
        let ready = command(&program(), &["ready", "/dev/absent"]);
        keeps("ready", 2, ready, only(&[]));
        let logs = command(&program(), &["logs", "--format=json", "/dev/null"]);
        keeps("logs", 1, logs, only(&[]));
        keeps("check", 1, scene.command("check"), all());
        keeps("watch", 1, scene.command("watch"), all());
    });
}

/// If a seccomp filter prevents a command from dropping capabilities it warns and continues.
#[test]
fn failure_to_drop_capabilities_is_a_warning() {
    in_namespace(|| {
        let scene = Scene::settled();
        let mut install = command(&program(), &["install"]);
        install.arg(scene.pod.path());
        let mut apply = scene.apply();
        apply.arg("--proof=off");
        let mut check = scene.command("check");
        check.arg("--proof=off");
        let ready = command(&program(), &["ready", "/dev/absent"]);
        let logs = command(&program(), &["logs", "/dev/null"]);
        let cases: [(&str, Command, i32); 5] = [
            ("apply", apply, 0),
            ("check", check, 0),
            ("install", install, 0),
            ("ready", ready, 4),
            // The change of its UID to nobody drops them anyway.
            ("logs", logs, 0),
        ];
        for (what, mut cmd, code) in cases {
            let run = go(without_call(&mut cmd, libc::SYS_capset, libc::EPERM)).code(code);
            let told = "warn: capset: EPERM (Operation not permitted): this run continues with all";
            assert!(run.err.contains(told), "{what}: {run}");
        }
        let mut cmd = scene.apply();
        let run = go(without_call(&mut cmd, libc::SYS_prctl, libc::EINVAL)).code(0);
        for call in ["PR_SET_NO_NEW_PRIVS", "PR_CAPBSET_DROP"] {
            let told = format!("warn: prctl({call}): EINVAL");
            assert!(run.err.contains(&told), "{run}");
        }
    });
}

/// Changes the owner of the pod's etc to another user, and its mode to 0700.
fn closed_etc(scene: &Scene) {
    let etc = scene.pod.at("etc");
    chown(&etc, Some(1234), Some(1234)).unwrap();
    fs::set_permissions(&etc, fs::Permissions::from_mode(0o700)).unwrap();
}

/// Asserts that a run succeeds, and that it fails without these capabilities.
#[track_caller]
fn needs(capabilities: &[Capability], prepare: impl Fn(&Scene) -> Command) {
    let mut cmd = prepare(&Scene::new());
    go(&mut cmd).code(0);
    let mut cmd = prepare(&Scene::new());
    for capability in capabilities {
        without_capability(&mut cmd, *capability);
    }
    let run = go(&mut cmd);
    assert_ne!(run.code, 0, "without {capabilities:?}: {run}");
}

#[test]
fn every_kept_capability_is_needed() {
    require_commands(&["strace"]);
    in_namespace(|| {
        needs(&[CAP_CHOWN], Scene::apply);
        needs(&[CAP_SETUID], Scene::apply);
        needs(&[CAP_SETGID], Scene::apply);
        // `apply` writes there, so CAP_DAC_READ_SEARCH is not enough.
        needs(&[CAP_DAC_OVERRIDE], |scene| {
            closed_etc(scene);
            scene.apply()
        });
        // Either of the two is enough for reading.
        needs(&[CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH], |scene| {
            scene.pod.file("etc/group", ALIGNED);
            support::set_owner(Path::new(KVM), 0, 108, 0o660);
            closed_etc(scene);
            scene.command("check")
        });
        // The new file first gets its owner and then its mode.
        needs(&[CAP_FOWNER], |scene| {
            chown(scene.pod.at("etc/group"), Some(1234), Some(1234)).unwrap();
            scene.apply()
        });
        // Without CAP_FSETID the setgid bit is lost.
        let bits = |without: bool| {
            let scene = Scene::new();
            let group = scene.pod.at("etc/group");
            support::set_owner(&group, 0, 4321, 0o2640);
            let mut cmd = scene.apply();
            if without {
                without_capability(&mut cmd, CAP_FSETID);
            }
            go(&mut cmd).code(0);
            owner(&group).2
        };
        assert_eq!((bits(false), bits(true)), (0o2640, 0o640));
    });
}

/// The proof's child has the real and the saved UID of its parent, so kill(2) needs no capability.
#[test]
fn killing_the_proofs_child_needs_no_capability() {
    require_commands(&["strace"]);
    in_namespace(|| {
        let ends = |without: bool| {
            let (scene, trace) = (Scene::settled(), scratch().join("trace"));
            let only = ["-f", "-qq", "-e", "trace=kill", "-e", "signal=none", "-o"];
            let mut cmd = command(Path::new("strace"), &only);
            let check = scene.command("check");
            cmd.arg(&trace).arg(check.get_program());
            cmd.args(check.get_args());
            if without {
                without_capability(&mut cmd, CAP_KILL);
            }
            go(&mut cmd).code(0);
            fs::read_to_string(trace).unwrap()
        };
        assert!(ends(false).trim_end().ends_with("= 0"));
        assert!(ends(true).trim_end().ends_with("= 0"));
    });
}

#[test]
fn apply_works_with_foreign_owners_and_security_labels() {
    in_namespace(|| {
        let scene = Scene::new();
        let group = scene.pod.at("etc/group");
        // The label of a security module that is not active: writing it needs CAP_SYS_ADMIN (xattr(7)).
        let labelled = set_xattr(&group, "security.kvm-init-test", b"label").is_ok();
        chown(&group, Some(1234), Some(4321)).unwrap();
        fs::set_permissions(&group, fs::Permissions::from_mode(0o2640)).unwrap();
        closed_etc(&scene);
        support::set_owner(Path::new(KVM), 1234, 1234, 0o600);
        go(&mut scene.apply()).code(0);
        assert_eq!(owner(&group), (1234, 4321, 0o2640));
        assert_eq!(owner(Path::new(KVM)).1, 108);
        assert_eq!(scene.pod.read("etc/group"), ALIGNED);
        if labelled {
            assert_eq!(get_xattr(&group, "security.kvm-init-test"), None);
        }
        go(&mut scene.command("check")).code(0);
    });
}
