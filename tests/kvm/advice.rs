//! Runs the commands in the advice of `check` unchanged and verifies that QEMU can then open KVM. `check` may advise
//! `apply` only for problems that `apply` repairs.

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

/// A node and a pod.
struct Scene {
    host: Tree,
    pod: Tree,
}

impl Scene {
    fn new(pods_kvm: u32) -> Self {
        let (host, pod) = (Tree::host(108), Tree::pod(pods_kvm));
        Self { host, pod }
    }

    fn run(&self, command: &str, more: &[&str]) -> Report {
        let mut cmd = Command::new(program());
        cmd.args([command, "--format=json", "--root"])
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
        self.run("check", &[])
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

/// The first command in an advice: between backticks, or at the end.
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
fn advice_restores_a_lost_or_replaced_device_through_udev() {
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
            // udev handles the event asynchronously.
            follow(&advice, udev.directory());
            ok(udev.udevadm("settle").arg("--timeout=20"));
            assert_eq!(scene.check().verdict, Verdict::Ok, "{advice}");
            assert!(qemu(&nova(108)).works);
        }
        drop(daemon);
    });
}

#[test]
fn advice_opens_a_closed_directory_for_qemus_class() {
    on_stage(|| {
        let scene = Scene::new(108);
        scene.run("apply", &[]);
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
fn closed_directory_before_a_symlink_is_found() {
    on_stage(|| {
        let scene = Scene::new(108);
        let way = PathBuf::from("/dev/way");
        fs::create_dir(&way).unwrap();
        std::os::unix::fs::symlink("/dev", way.join("dev")).unwrap();
        scene.run("apply", &[]);
        set_owner(&way, 0, 0, 0o700);
        let report = scene.run("check", &["--device", "/dev/way/dev/kvm"]);
        assert_eq!(report.proof.cause, Some(Cause::Ownership), "{report:#?}");
        assert_eq!(report.proof.computed, Some(Permission::Denied));
        assert_eq!(report.verdict, Verdict::Unproven);
        follow(&report.proof.advice.unwrap(), Path::new("/usr/bin"));
        let report = scene.run("check", &["--device", "/dev/way/dev/kvm"]);
        assert_eq!(report.verdict, Verdict::Ok, "{report:#?}");
    });
}

#[test]
fn advice_removes_a_denying_acl() {
    on_stage(|| {
        let scene = Scene::new(108);
        scene.run("apply", &[]);
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
            let advice = report.proof.advice.unwrap();
            if report.verdict == Verdict::Drift {
                // The summary names `apply`: a second command would contradict it.
                assert!(!advice.contains("run `"), "{acl}: {advice}");
                scene.run("apply", &[]);
            } else {
                follow(&advice, Path::new("/usr/bin"));
            }
            assert!(qemu(&nova(108)).works, "{acl}");
            assert_eq!(scene.check().verdict, Verdict::Ok, "{acl}");
            ok(Command::new("setfacl").args(["-b", NODE]));
        }
    });
}

/// A wrong GID hides an ACL that denies QEMU access with the target GID too.
#[test]
fn partial_repair_is_reported_as_partial() {
    on_stage(|| {
        let scene = Scene::new(424);
        set_owner(Path::new(NODE), 0, 108, 0o660);
        let acl = "u::rw,u:42424:-,g::rw,m::rw,o::-";
        ok(Command::new("setfacl").args(["--set", acl, NODE]));
        let report = scene.check();
        assert_eq!(report.verdict, Verdict::Unproven, "{report:#?}");
        let advice = report.proof.advice.unwrap();
        assert!(
            advice.ends_with("`: it repairs part of the problem and reports what remains"),
            "{advice}"
        );
        let after = scene.run("apply", &[]);
        assert!(!after.changes.is_empty());
        assert_eq!(after.proof.cause, Some(Cause::Acl), "{after:#?}");
        follow(&after.proof.advice.unwrap(), Path::new("/usr/bin"));
        assert!(qemu(&nova(108)).works);
    });
}

/// The kernel checks the mount before owner and mode, and `apply` cannot change the mount.
#[test]
fn nodev_is_reported_before_owner_and_mode() {
    on_stage(|| {
        let scene = Scene::new(424);
        remount_dev(MsFlags::MS_NODEV);
        let report = scene.check();
        let reported = (report.verdict, report.proof.cause, report.proof.computed);
        let denied = Some(Permission::Denied);
        assert_eq!(reported, (Verdict::Unproven, Some(Cause::Nodev), denied));
        let after = scene.run("apply", &[]);
        assert_eq!(after.proof.cause, Some(Cause::Nodev), "{after:#?}");
        assert!(!qemu(&nova(108)).works);
    });
}

#[test]
fn apply_is_not_advised_for_a_security_module_denial() {
    on_stage(|| {
        // The group file is wrong too, but the security module denies access.
        let scene = Scene::new(424);
        set_owner(Path::new(NODE), 0, 108, 0o666);
        if let Err(error) = landlock::deny_writing() {
            println!("not tested: this kernel has no Landlock ({error})");
            return;
        }
        let report = scene.check();
        let reported = (report.verdict, report.proof.cause, report.proof.computed);
        let allowed = Some(Permission::Allowed);
        let cause = Some(Cause::SecurityModule);
        assert_eq!(reported, (Verdict::Unproven, cause, allowed), "{report:#?}");
        assert!(!report.summary.contains("repair"), "{}", report.summary);
        assert!(!qemu(&nova(424)).works && !qemu(&nova(108)).works);
    });
}

/// libvirtd would not start without the group: the advice has the reason.
#[test]
fn missing_pod_group_is_explained() {
    on_stage(|| {
        let scene = Scene::new(108);
        scene.pod.file("etc/group", "root:x:0:\nnova:x:42424:\n");
        let report = scene.check();
        assert_eq!(report.verdict, Verdict::Drift, "{report:#?}");
        let advice = report.proof.advice.unwrap();
        for part in ["etc/libvirt/qemu.conf:2: group", "no such group `kvm`"] {
            assert!(advice.contains(part), "{part}: {advice}");
        }
        assert_eq!(scene.run("apply", &[]).verdict, Verdict::Ok);
    });
}

/// A path that was mistyped in --device must not be removed.
#[test]
fn advice_does_not_remove_a_mistyped_device() {
    on_stage(|| {
        let scene = Scene::new(108);
        for device in ["/dev/null", "/dev", "/dev/shm/", "/etc/passwd"] {
            let report = scene.run("check", &["--device", device]);
            assert_eq!(report.verdict, Verdict::Refused, "{report:#?}");
            let line = report.closing_line();
            assert!(
                line.contains("--device") && !line.contains("remove") && !line.contains("rm"),
                "{line}"
            );
        }
        let report = scene.run("check", &["--device", "/dev/kmv"]);
        assert_eq!(report.verdict, Verdict::Absent, "{report:#?}");
    });
}

/// The chart's libvirt.sh always uses the group kvm, whatever `--group` is.
#[test]
fn libvirt_sh_sets_group_kvm_regardless_of_group_option() {
    on_stage(|| {
        let scene = Scene::new(424);
        let groups = "root:x:0:\nkvm:x:424:\nvirt:x:500:nova\nnova:x:42424:\n";
        scene.pod.file("etc/group", groups);
        let conf = "user = \"nova\"\ngroup = \"virt\"\n";
        scene.pod.file("etc/libvirt/qemu.conf", conf);
        scene.host.file("etc/group", "root:x:0:\nvirt:x:500:\n");
        set_owner(Path::new(NODE), 0, 500, 0o660);
        assert!(qemu(&nova(500)).works);
        let report = scene.run("check", &["--group", "virt"]);
        // chmod 660 /dev/kvm; chown root:kvm /dev/kvm
        set_owner(Path::new(NODE), 0, 424, 0o660);
        assert!(!qemu(&nova(500)).works);
        assert_eq!(report.verdict, Verdict::Drift, "{report:#?}");
        for part in ["libvirt.sh", "0:424 0660", "omit --group"] {
            assert!(report.summary.contains(part), "{part}: {}", report.summary);
        }
    });
}
