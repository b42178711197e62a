//! The runs whose calls are failed: the state before, and the state that is required after.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::runs::kept;
use crate::temporary_below;
use crate::trace::Kind;
use support::metrics::check_metrics;
use support::{
    ALIGNED, KVM, Scene, State, bind, command, go, owner, program, run, set_owner, set_xattr,
};

const WITHOUT_EPERM: &[Kind] = &[Kind::Eio, Kind::Enospc, Kind::Eintr, Kind::Kill];

/// One kind of run.
pub struct Case {
    pub name: &'static str,
    command: &'static str,
    options: &'static [&'static str],
    /// Whether it runs a command in the end (`exec`).
    becomes: bool,
    /// Whether it runs until it gets a signal (`watch`).
    pub watches: bool,
    /// The name of the program's own first call.
    pub marker: &'static str,
    /// The kinds of failure that are injected.
    pub kinds: &'static [Kind],
    /// The number of concurrent runs.
    pub workers: usize,
    /// Whether the group file is a mount point.
    pinned: bool,
    /// Whether an output and a rule are written.
    more: bool,
}

/// The files below the pod root in which `watch` publishes its state.
const METRICS: &str = "state/kvm.prom";
const STATUS: &str = "state/status.json";
/// The files of an earlier run whose proof was ok.
const OLD_METRICS: &str = "# HELP libvirt_kvm_init_ready Of an earlier run.
# TYPE libvirt_kvm_init_ready gauge
libvirt_kvm_init_ready 1
";
const OLD_STATUS: &str = "{\"summary\":\"of an earlier run\",\"proof\":{\"result\":\"ok\"}}\n";

const PLAIN: Case = Case {
    name: "apply",
    command: "apply",
    options: &[],
    becomes: false,
    watches: false,
    marker: "umask",
    kinds: &[
        Kind::Eio,
        Kind::Eperm,
        Kind::Enospc,
        Kind::Eintr,
        Kind::Kill,
    ],
    workers: 2,
    pinned: false,
    more: false,
};

pub const APPLY: Case = PLAIN;

pub const PERSIST: Case = Case {
    name: "apply --persist --group-file-out",
    options: &["--persist"],
    more: true,
    ..PLAIN
};

pub const IN_PLACE: Case = Case {
    name: "apply in place",
    kinds: WITHOUT_EPERM,
    pinned: true,
    ..PLAIN
};

pub const EXEC: Case = Case {
    name: "exec",
    command: "exec",
    becomes: true,
    marker: "rt_sigpending",
    kinds: WITHOUT_EPERM,
    ..PLAIN
};

pub const WATCH: Case = Case {
    name: "watch",
    command: "watch",
    options: &["--format", "json", "--recheck", "1s"],
    watches: true,
    kinds: WITHOUT_EPERM,
    workers: 6,
    ..PLAIN
};

pub const WATCH_PERSIST: Case = Case {
    name: "watch --persist --group-file-out",
    options: &["--format", "json", "--recheck", "1s", "--persist"],
    more: true,
    ..WATCH
};

const OLD: &str = "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n";
const OLD_OUT: &str = "root:x:0:\nkvm:x:7:\n";
const RULES: &str = "etc/udev/rules.d";
const RULE: &str = "etc/udev/rules.d/99-libvirt-kvm-init.rules";
/// An ACL that denies the group: u::rw-, u:1234:rw-, g::---, m::rw-, o::---.
const ACL: [u8; 44] = [
    2, 0, 0, 0, //
    1, 0, 6, 0, 255, 255, 255, 255, //
    2, 0, 6, 0, 0xd2, 4, 0, 0, //
    4, 0, 0, 0, 255, 255, 255, 255, //
    16, 0, 6, 0, 255, 255, 255, 255, //
    32, 0, 0, 0, 255, 255, 255, 255,
];

/// A case with its node and pod.
pub struct Stage {
    pub case: &'static Case,
    pub scene: Scene,
    /// The rule as a run without faults writes it.
    rule: std::cell::RefCell<Option<String>>,
}

impl Stage {
    pub fn new(case: &'static Case) -> Self {
        let scene = Scene::new();
        if case.pinned {
            scene.pod.file("source", OLD);
            bind(&scene.pod.at("source"), &scene.pod.at("etc/group"));
        }
        if case.more {
            scene.host.dir("etc/udev");
            scene.pod.dir("volume");
        }
        if case.watches {
            scene.pod.dir("state");
        }
        let rule = std::cell::RefCell::new(None);
        Self { case, scene, rule }
    }

    /// The command line of the case.
    pub fn command(&self) -> Command {
        let mut cmd = command(&program(), &[self.case.command, "--root"]);
        cmd.arg(self.scene.pod.path());
        cmd.arg("--host-root").arg(self.scene.host.path());
        cmd.args(self.case.options);
        if self.case.more {
            cmd.arg("--group-file-out").arg(self.out());
        }
        if self.case.watches {
            cmd.arg("--metrics-file").arg(self.scene.pod.at(METRICS));
            cmd.arg("--status-file").arg(self.scene.pod.at(STATUS));
        }
        if self.case.becomes {
            cmd.arg("--").arg(program()).arg("--version");
        }
        cmd
    }

    fn out(&self) -> PathBuf {
        self.scene.pod.at("volume/group")
    }

    /// Restores the state before a run.
    pub fn reset(&self) {
        fs::write(self.scene.pod.at("etc/group"), OLD).unwrap();
        let _ = fs::remove_file(KVM);
        support::mknod_kvm(Path::new(KVM), 0, 424, 0o600);
        if self.case.watches {
            self.scene
                .pod
                .file(METRICS, OLD_METRICS)
                .file(STATUS, OLD_STATUS);
        }
        if self.case.more {
            let _ = fs::remove_dir_all(self.scene.host.at(RULES));
            fs::write(self.out(), OLD_OUT).unwrap();
            set_owner(&self.out(), 0, 0, 0o644);
            set_xattr(Path::new(KVM), "system.posix_acl_access", &ACL).unwrap();
        }
    }

    /// Asserts that every file is the old one or the new one.
    pub fn assert_whole(&self, shown: &str) {
        let group = self.scene.pod.read("etc/group");
        // A write in place reserves its space as newlines at the end.
        let without_space = |text: String| text.trim_end().to_owned() + "\n";
        let group = if self.case.pinned {
            without_space(group)
        } else {
            group
        };
        assert!(group == OLD || group == ALIGNED, "{group}{shown}");
        if self.case.more {
            assert_eq!(group, OLD, "{shown}");
            let mut out = fs::read_to_string(self.out()).unwrap();
            if self.case.watches {
                out = without_space(out);
            }
            assert!(out == OLD_OUT || out == ALIGNED, "{out}{shown}");
            let rule = fs::read_to_string(self.scene.host.at(RULE)).ok();
            assert!(
                rule.is_none() || rule == *self.rule.borrow(),
                "{rule:?}{shown}"
            );
        }
    }

    /// Asserts that files and device are in the target state and that the QEMU identity can open the device.
    pub fn assert_aligned(&self, shown: &str) {
        let file = if self.case.more {
            self.out()
        } else {
            self.scene.pod.at("etc/group")
        };
        assert_eq!(fs::read_to_string(&file).unwrap(), ALIGNED, "{shown}");
        assert_eq!(owner(&file), (0, 0, 0o644), "{shown}");
        assert_eq!(owner(Path::new(KVM)), (0, 108, 0o660), "{shown}");
        if self.case.more {
            let rule = self.scene.host.read(RULE);
            assert!(rule.contains("GROUP=\"108\""), "{rule}{shown}");
            let known = self.rule.borrow_mut().get_or_insert(rule.clone()).clone();
            assert_eq!(rule, known, "{shown}");
        }
        Self::assert_opens(shown);
    }

    /// Opens the device as the QEMU identity, without the program.
    fn assert_opens(shown: &str) {
        let mut cmd = Command::new("sh");
        cmd.args(["-c", ": <>/dev/kvm"]).stdin(Stdio::null());
        let become_nova = || {
            let (nova, kvm) = (Gid::from_raw(42424), Gid::from_raw(108));
            setresgid(kvm, kvm, kvm)?;
            setgroups(&[nova, kvm])?;
            let nova = Uid::from_raw(42424);
            setresuid(nova, nova, nova)?;
            Ok::<(), io::Error>(())
        };
        // SAFETY: three system calls, no allocation.
        unsafe { cmd.pre_exec(become_nova) };
        let (code, _, err) = run(&mut cmd);
        assert_eq!(code, 0, "as nova: {err}{shown}");
    }

    /// The state that a refused run must not change. It excludes the published files of an earlier run, and the
    /// directory in which the lock file was created and removed.
    pub fn node_and_pod(&self) -> State {
        let mut state = self.scene.state();
        state.retain(|path, _| !path.starts_with(self.scene.pod.at("state")));
        state.remove(&self.scene.pod.at("volume"));
        state
    }

    /// Asserts that the published files are complete and that `ready` agrees with them. Returns whether both files are
    /// of this run.
    ///
    /// `had_begun`: the run got as far as removing the status file of an earlier run.
    pub fn assert_published(&self, had_begun: bool, shown: &str) -> bool {
        let metrics = self.scene.pod.read(METRICS);
        check_metrics(&metrics);
        let status = fs::read_to_string(self.scene.pod.at(STATUS)).ok();
        let ready = go(command(&program(), &["ready"]).arg(self.scene.pod.at(STATUS)));
        let shown = format!("{status:?}\n{ready}{shown}");
        let Some(status) = status else {
            assert_eq!(ready.code, 4, "{shown}");
            return false;
        };
        if status == OLD_STATUS {
            assert!(!had_begun, "status of an earlier run: {shown}");
            return false;
        }
        // The run has ended, so no process maintains the file.
        assert_eq!(ready.code, 4, "{shown}");
        // The file system was full.
        if status.is_empty() {
            return false;
        }
        let report: serde_json::Value = serde_json::from_str(&status).expect(&shown);
        assert_eq!(report["schema"], 1, "{shown}");
        if report["proof"]["result"] == "ok" {
            Self::assert_opens(&shown);
        }
        metrics != OLD_METRICS
    }

    /// Whether a call removes the status file of an earlier run.
    pub fn removes_status(text: &str) -> bool {
        text.starts_with("unlinkat(") && text.contains("\"status.json\"")
    }

    /// The temporary files that a run left.
    pub fn left_over(&self) -> Vec<String> {
        let found = temporary_below(&[self.scene.host.path(), self.scene.pod.path()]);
        found
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    /// Asserts that the next run repairs everything and removes leftovers.
    pub fn recover(&self, shown: &str) {
        if self.case.watches {
            let run = kept(self, &mut self.command());
            assert_eq!(run.code, Ok(0), "the next run: {}\nafter {shown}", run.err);
            assert!(run.went_on, "{}\nafter {shown}", run.err);
            assert!(self.assert_published(true, shown), "{shown}");
        }
        let mut cmd = self.scene.apply();
        if self.case.more {
            cmd.arg("--persist").arg("--group-file-out").arg(self.out());
        }
        let run = go(&mut cmd);
        assert_eq!(run.code, 0, "the next run: {run}\nafter {shown}");
        self.assert_aligned(shown);
        assert_eq!(self.left_over(), [""; 0], "{shown}");
    }
}
