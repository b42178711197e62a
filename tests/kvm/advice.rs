//! Advice is there to be followed: the commands that `check` names are run as they stand, and then QEMU
//! opens KVM. And `apply` is only said to mend what it mends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libvirt_kvm_init::codes::{Cause, Permission};
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::verdict::Verdict;
use nix::mount::MsFlags;

use crate::landlock;
use crate::oracle::{self, Identity, qemu, run_with};
use crate::state::remount_dev;
use support::udevd::{NODE, Oracle, turn};
use support::{Tree, fresh_dev, in_namespace, mknod_char, mknod_kvm, ok, program, set_owner};

/// A pod that follows its node, and the node.
struct Scene {
    host: Tree,
    pod: Tree,
}

impl Scene {
    fn new(pods_kvm: u32) -> Self {
        let (host, pod) = (Tree::host(108), Tree::pod(pods_kvm));
        Self { host, pod }
    }

    fn verb(&self, verb: &str, more: &[&str]) -> Report {
        let mut cmd = Command::new(program());
        cmd.args([verb, "--format=json", "--root"])
            .arg(self.pod.path())
            .arg("--host-root")
            .arg(self.host.path())
            .args(more);
        let (code, stdout, stderr) = run_with(&mut cmd, b"");
        let report: Report = serde_json::from_str(&stdout)
            .unwrap_or_else(|e| panic!("{cmd:?}: {e}\n{stdout}{stderr}"));
        assert_eq!(code, i32::from(report.exit_code));
        report
    }

    fn check(&self) -> Report {
        self.verb("check", &[])
    }
}

fn nova(gid: u32) -> Identity {
    Identity {
        uid: 42424,
        gid,
        groups: vec![gid, 42424],
        name: Some("nova".to_owned()),
    }
}

/// The first command of a text, between backticks or at its end.
fn command_in(text: &str) -> String {
    let quoted = text.split('`').nth(1);
    let last = || text.rsplit(": ").next().unwrap();
    quoted.unwrap_or_else(last).to_owned()
}

fn follow(text: &str, first_in_path: &Path) {
    let path = format!(
        "{}:{}",
        first_in_path.display(),
        std::env::var("PATH").unwrap()
    );
    let command = command_in(text);
    println!("{command}");
    ok(Command::new("sh").args(["-ec", &command]).env("PATH", path));
}

fn on_stage(test: impl FnOnce() + Send) {
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        mknod_kvm(Path::new(NODE), 0, 108, 0o660);
        test();
    });
}

#[test]
fn a_lost_or_spoilt_node_comes_back_as_udev_makes_it() {
    let _turn = turn();
    in_namespace(|| {
        oracle::require_tools();
        let udev = Oracle::new("root:x:0:\nkvm:x:108:\n", "root:x:0:0::/:/bin/sh\n");
        let rule = "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"\n";
        fs::write("/etc/udev/rules.d/50-kvm.rules", rule).unwrap();
        let scene = Scene::new(108);
        let daemon = udev.start();
        type Spoil = fn();
        let states: [(Verdict, Spoil); 3] = [
            (Verdict::Absent, || {}),
            (Verdict::Refused, || {
                mknod_char(Path::new(NODE), (10, 231), 0, 108, 0o660);
            }),
            (Verdict::Refused, || fs::write(NODE, "").unwrap()),
        ];
        for (verdict, spoil) in states {
            fs::remove_file(NODE).unwrap();
            spoil();
            let report = scene.check();
            assert_eq!(report.verdict, verdict, "{report:#?}");
            let advice = report.proof.advice.clone().unwrap_or(report.summary);
            // The rest is asynchronous.
            follow(&advice, udev.folder());
            ok(udev.udevadm("settle").arg("--timeout=20"));
            assert_eq!(scene.check().verdict, Verdict::Ok, "{advice}");
            assert!(qemu(&nova(108)).works);
        }
        drop(daemon);
    });
}

#[test]
fn a_closed_folder_is_opened_for_the_class_that_qemu_is_in() {
    on_stage(|| {
        let scene = Scene::new(108);
        scene.verb("apply", &[]);
        for (uid, gid, mode) in [(0, 0, 0o750), (0, 42424, 0o705), (42424, 0, 0o077)] {
            set_owner(Path::new("/dev"), uid, gid, mode);
            assert!(!qemu(&nova(108)).works, "{uid}:{gid} {mode:o}");
            let report = scene.check();
            assert_eq!(report.proof.cause, Some(Cause::Ownership), "{report:#?}");
            follow(&report.proof.advice.unwrap(), Path::new("/usr/bin"));
            assert!(qemu(&nova(108)).works, "{uid}:{gid} {mode:o}");
            assert_eq!(scene.check().verdict, Verdict::Ok);
        }
        set_owner(Path::new("/dev"), 0, 0, 0o755);
        ok(Command::new("setfacl").args(["-m", "u:42424:-", "/dev"]));
        let report = scene.check();
        follow(&report.proof.advice.unwrap(), Path::new("/usr/bin"));
        assert!(qemu(&nova(108)).works);
    });
}

#[test]
fn a_closed_folder_before_a_link_is_found_too() {
    on_stage(|| {
        let scene = Scene::new(108);
        let way = PathBuf::from("/dev/way");
        fs::create_dir(&way).unwrap();
        std::os::unix::fs::symlink("/dev", way.join("dev")).unwrap();
        scene.verb("apply", &[]);
        set_owner(&way, 0, 0, 0o700);
        let report = scene.verb("check", &["--device", "/dev/way/dev/kvm"]);
        assert_eq!(report.proof.cause, Some(Cause::Ownership), "{report:#?}");
        assert_eq!(report.proof.computed, Some(Permission::Denied));
        assert_eq!(report.verdict, Verdict::Unproven);
        follow(&report.proof.advice.unwrap(), Path::new("/usr/bin"));
        let report = scene.verb("check", &["--device", "/dev/way/dev/kvm"]);
        assert_eq!(report.verdict, Verdict::Ok, "{report:#?}");
    });
}

#[test]
fn an_acl_that_denies_goes_away() {
    on_stage(|| {
        let scene = Scene::new(108);
        scene.verb("apply", &[]);
        for acl in [
            "u::rw,u:42424:-,g::rw,m::rw,o::-",
            "u::rw,u:42424:r,u:7:rw,g::rw,m::rw,o::-",
            "u::rw,u:42424:-,g::-,m::rw,o::-",
            "u::rw,u:7:rw,g::-,m::rw,o::-",
            "u::rw,g::-,g:42424:r,m::rw,o::-",
        ] {
            set_owner(Path::new(NODE), 0, 108, 0o660);
            ok(Command::new("setfacl").args(["--set", acl, NODE]));
            assert!(!qemu(&nova(108)).works, "{acl}");
            let report = scene.check();
            assert_eq!(report.proof.cause, Some(Cause::Acl), "{acl}: {report:#?}");
            follow(&report.proof.advice.unwrap(), Path::new("/usr/bin"));
            assert!(qemu(&nova(108)).works, "{acl}");
            assert_eq!(scene.check().verdict, Verdict::Ok, "{acl}");
            ok(Command::new("setfacl").args(["-b", NODE]));
        }
    });
}

/// A wrong number hides an ACL that would deny QEMU with the right one, too.
#[test]
fn what_is_mended_in_part_is_not_said_to_be_mended() {
    on_stage(|| {
        let scene = Scene::new(424);
        set_owner(Path::new(NODE), 0, 108, 0o660);
        let acl = "u::rw,u:42424:-,g::rw,m::rw,o::-";
        ok(Command::new("setfacl").args(["--set", acl, NODE]));
        let report = scene.check();
        assert_eq!(report.verdict, Verdict::Unproven, "{report:#?}");
        let advice = report.proof.advice.unwrap();
        assert!(
            advice.ends_with("`, which repairs a part and reports the rest"),
            "{advice}"
        );
        let after = scene.verb("apply", &[]);
        assert!(!after.changes.is_empty());
        assert_eq!(after.proof.cause, Some(Cause::Acl), "{after:#?}");
        follow(&after.proof.advice.unwrap(), Path::new("/usr/bin"));
        assert!(qemu(&nova(108)).works);
    });
}

/// The kernel asks about the mount first, and `apply` would change nothing about it.
#[test]
fn nodev_comes_before_the_rights() {
    on_stage(|| {
        let scene = Scene::new(424);
        remount_dev(MsFlags::MS_NODEV);
        let report = scene.check();
        let told = (report.verdict, report.proof.cause, report.proof.computed);
        let denied = Some(Permission::Denied);
        assert_eq!(told, (Verdict::Unproven, Some(Cause::Nodev), denied));
        let after = scene.verb("apply", &[]);
        assert_eq!(after.proof.cause, Some(Cause::Nodev), "{after:#?}");
        assert!(!qemu(&nova(108)).works);
    });
}

#[test]
fn apply_is_not_said_to_mend_what_a_security_module_denies() {
    on_stage(|| {
        // The group file is off, and that is not why.
        let scene = Scene::new(424);
        set_owner(Path::new(NODE), 0, 108, 0o666);
        if let Err(error) = landlock::deny_writing() {
            println!("this kernel has no Landlock ({error}): not shown");
            return;
        }
        let report = scene.check();
        let told = (report.verdict, report.proof.cause, report.proof.computed);
        let allowed = Some(Permission::Allowed);
        let cause = Some(Cause::SecurityModule);
        assert_eq!(told, (Verdict::Unproven, cause, allowed), "{report:#?}");
        assert!(!report.summary.contains("repair"), "{}", report.summary);
        assert!(!qemu(&nova(424)).works && !qemu(&nova(108)).works);
    });
}

/// libvirtd would not start: why, and with what to do.
#[test]
fn a_pod_without_the_group_is_told_why() {
    on_stage(|| {
        let scene = Scene::new(108);
        scene.pod.file("etc/group", "root:x:0:\nnova:x:42424:\n");
        let report = scene.check();
        assert_eq!(report.verdict, Verdict::Drift, "{report:#?}");
        let advice = report.proof.advice.unwrap();
        for part in ["etc/libvirt/qemu.conf:2: group", "no such group `kvm`"] {
            assert!(advice.contains(part), "{part}: {advice}");
        }
        assert_eq!(scene.verb("apply", &[]).verdict, Verdict::Ok);
    });
}

/// What was named by mistake is no rubbish.
#[test]
fn nobody_is_told_to_remove_what_was_named() {
    on_stage(|| {
        let scene = Scene::new(108);
        for device in ["/dev/null", "/dev", "/dev/shm/", "/etc/passwd"] {
            let report = scene.verb("check", &["--device", device]);
            assert_eq!(report.verdict, Verdict::Refused, "{report:#?}");
            let line = report.closing_line();
            assert!(
                line.contains("--device") && !line.contains("remove") && !line.contains("rm"),
                "{line}"
            );
        }
        let report = scene.verb("check", &["--device", "/dev/kmv"]);
        assert_eq!(report.verdict, Verdict::Absent, "{report:#?}");
    });
}

/// The chart's libvirt.sh knows one group, whatever another one this was asked to look after.
#[test]
fn libvirt_sh_gives_the_device_to_kvm_whatever_the_group() {
    on_stage(|| {
        let scene = Scene::new(424);
        let groups = "root:x:0:\nkvm:x:424:\nvirt:x:500:nova\nnova:x:42424:\n";
        scene.pod.file("etc/group", groups);
        let conf = "user = \"nova\"\ngroup = \"virt\"\n";
        scene.pod.file("etc/libvirt/qemu.conf", conf);
        scene.host.file("etc/group", "root:x:0:\nvirt:x:500:\n");
        set_owner(Path::new(NODE), 0, 500, 0o660);
        assert!(qemu(&nova(500)).works);
        let report = scene.verb("check", &["--group", "virt"]);
        // chmod 660 /dev/kvm; chown root:kvm /dev/kvm
        set_owner(Path::new(NODE), 0, 424, 0o660);
        assert!(!qemu(&nova(500)).works);
        assert_eq!(report.verdict, Verdict::Drift, "{report:#?}");
        for part in ["libvirt.sh", "0:424 0660", "omit --group"] {
            assert!(report.summary.contains(part), "{part}: {}", report.summary);
        }
    });
}
