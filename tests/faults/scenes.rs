//! The runs whose calls are failed: how things stand before, and how they shall stand after.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::common::{bind, program, run, set_owner};
use crate::support::{ALIGNED, KVM, Scene, command, go, owner, set_xattr};
use crate::temporary_below;

/// One kind of run.
pub struct Case {
    pub name: &'static str,
    verb: &'static str,
    options: &'static [&'static str],
    /// What is to be run in the end.
    becomes: bool,
    /// It goes on until it is told to end.
    pub watches: bool,
    /// The name of the program's own first call, where that does not name the node's root.
    pub marker: Option<&'static str>,
    /// Every call that only reads is failed as well, not only a part of them.
    pub complete: bool,
    /// The group file is a mount point.
    pinned: bool,
    /// There is an output file and a rule.
    more: bool,
}

const PLAIN: Case = Case {
    name: "apply",
    verb: "apply",
    options: &[],
    becomes: false,
    watches: false,
    marker: None,
    complete: true,
    pinned: false,
    more: false,
};

pub const APPLY: Case = PLAIN;

pub const PERSIST: Case = Case {
    name: "apply --persist --group-file-out",
    options: &["--persist"],
    complete: false,
    more: true,
    ..PLAIN
};

pub const IN_PLACE: Case = Case {
    name: "apply in place",
    complete: false,
    pinned: true,
    ..PLAIN
};

pub const EXEC: Case = Case {
    name: "exec",
    verb: "exec",
    becomes: true,
    marker: Some("rt_sigpending"),
    complete: false,
    ..PLAIN
};

pub const WATCH: Case = Case {
    name: "watch",
    verb: "watch",
    options: &["--format", "json"],
    watches: true,
    complete: false,
    ..PLAIN
};

const OLD: &str = "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n";
const OLD_OUT: &str = "root:x:0:\nkvm:x:7:\n";
const RULES: &str = "etc/udev/rules.d";
const RULE: &str = "etc/udev/rules.d/99-libvirt-kvm-init.rules";
/// The group is shut out: u::rw-, u:1234:rw-, g::---, m::rw-, o::---.
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
    /// The rule as a clean run writes it.
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
        let rule = std::cell::RefCell::new(None);
        Self { case, scene, rule }
    }

    /// The run.
    pub fn command(&self) -> Command {
        let mut cmd = command(&program(), &[self.case.verb, "--root"]);
        cmd.arg(self.scene.pod.path());
        cmd.arg("--host-root").arg(self.scene.host.path());
        cmd.args(self.case.options);
        if self.case.more {
            cmd.arg("--group-file-out").arg(self.out());
        }
        if self.case.becomes {
            cmd.arg("--").arg(program()).arg("--version");
        }
        cmd
    }

    fn out(&self) -> PathBuf {
        self.scene.pod.at("volume/group")
    }

    /// How things stand before each run.
    pub fn reset(&self) {
        fs::write(self.scene.pod.at("etc/group"), OLD).unwrap();
        let _ = fs::remove_file(KVM);
        crate::common::mknod_kvm(Path::new(KVM), 0, 424, 0o600);
        if self.case.more {
            let _ = fs::remove_dir_all(self.scene.host.at(RULES));
            fs::write(self.out(), OLD_OUT).unwrap();
            set_owner(&self.out(), 0, 0, 0o644);
            set_xattr(Path::new(KVM), "system.posix_acl_access", &ACL).unwrap();
        }
    }

    /// Every file is the old one or the new one.
    pub fn assert_whole(&self, shown: &str) {
        let group = self.scene.pod.read("etc/group");
        // While a file is written in place, newlines at its end are its space.
        let group = if self.case.pinned {
            group.trim_end().to_owned() + "\n"
        } else {
            group
        };
        assert!(group == OLD || group == ALIGNED, "{group}{shown}");
        if self.case.more {
            assert_eq!(group, OLD, "{shown}");
            let out = fs::read_to_string(self.out()).unwrap();
            assert!(out == OLD_OUT || out == ALIGNED, "{out}{shown}");
            let rule = fs::read_to_string(self.scene.host.at(RULE)).ok();
            assert!(
                rule.is_none() || rule == *self.rule.borrow(),
                "{rule:?}{shown}"
            );
        }
    }

    /// All is as it shall be, and who QEMU will be can open the device: asked of the kernel here, not of
    /// the program.
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

    /// What a run left beside the files.
    pub fn left_over(&self) -> Vec<String> {
        let found = temporary_below(&[self.scene.host.path(), self.scene.pod.path()]);
        found
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    /// The next run puts all right, and clears up.
    pub fn recover(&self, shown: &str) {
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
