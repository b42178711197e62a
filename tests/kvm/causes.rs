//! One state for each cause: checks the text of the report and the error of QEMU in the same state.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libvirt_kvm_init::codes::Cause;
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::verdict::Verdict;
use nix::mount::MsFlags;

use crate::bpf;
use crate::oracle::{self, Identity, qemu, qemu_under, run_with};
use crate::state::remount_dev;
use support::{
    Tree, bind, fresh_dev, in_namespace, mknod_char, mknod_kvm, ok, program, scratch, set_owner,
};

const DEVICE: &str = "/dev/kvm";

/// The identity of nova after an apply on a node whose kvm has GID 108.
fn nova() -> Identity {
    Identity {
        uid: 42424,
        gid: 108,
        groups: vec![108, 42424],
        name: Some("nova".to_owned()),
    }
}

fn apply_under(wrapper: &[&str], pod: &Tree, more: &[&str]) -> Report {
    let host = Tree::host(108);
    let program = program();
    let mut words: Vec<&str> = wrapper.to_vec();
    words.extend([program.to_str().unwrap(), "apply", "--format=json"]);
    let mut cmd = Command::new(words[0]);
    cmd.args(&words[1..])
        .arg("--root")
        .arg(pod.path())
        .arg("--host-root")
        .arg(host.path())
        .args(more);
    let (code, stdout, stderr) = run_with(&mut cmd, b"");
    let report: Report =
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{cmd:?}: {e}\n{stdout}{stderr}"));
    assert_eq!(code, i32::from(report.exit_code));
    report
}

fn apply(pod: &Tree) -> Report {
    apply_under(&[], pod, &[])
}

#[track_caller]
fn assert_reported(
    report: &Report,
    verdict: Verdict,
    result: &str,
    cause: Option<Cause>,
    advice: &str,
) {
    let reported = (
        report.verdict,
        report.proof.result.as_str(),
        report.proof.cause,
    );
    assert_eq!(reported, (verdict, result, cause), "{report:#?}");
    let line = report.closing_line();
    assert!(line.contains(advice), "`{advice}` is not in: {line}");
}

#[track_caller]
fn assert_qemu(who: &Identity, message: &str) {
    let qemu = qemu(who);
    assert!(!qemu.works && qemu.text.contains(message), "{qemu:?}");
}

/// Runs a test in a namespace with a device 0:108 0660.
fn on_stage(test: impl FnOnce(&Tree) + Send) {
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        mknod_kvm(Path::new(DEVICE), 0, 108, 0o660);
        test(&Tree::pod(424));
    });
}

#[test]
fn create_vm_proof_succeeds() {
    on_stage(|pod| {
        set_owner(Path::new(DEVICE), 0, 424, 0o600);
        let report = apply_under(&[], pod, &["--proof=create-vm"]);
        assert_reported(&report, Verdict::Ok, "ok", None, "");
        assert_eq!(report.proof.api_version, Some(12));
        assert!(qemu(&nova()).works);
    });
}

#[test]
fn ownership_denial_is_reported() {
    on_stage(|pod| {
        // A UID without a passwd name has only the configured group.
        pod.file(
            "etc/libvirt/qemu.conf",
            "user = \"+4343\"\ngroup = \"+4242\"\n",
        );
        let advice = "/dev/kvm is 0:108 0660, and 4343:4242 with the groups 4242 may not";
        let cause = Some(Cause::Ownership);
        assert_reported(&apply(pod), Verdict::Unproven, "EACCES", cause, advice);
        let who = Identity {
            uid: 4343,
            gid: 4242,
            groups: vec![4242],
            name: None,
        };
        assert_qemu(&who, "Permission denied");
    });
}

#[test]
fn closed_directory_is_reported() {
    on_stage(|pod| {
        set_owner(Path::new("/dev"), 0, 0, 0o700);
        let advice =
            "the directory /dev (0:0 0700) does not let nova (42424:108) pass: chmod o+x /dev";
        let cause = Some(Cause::Ownership);
        assert_reported(&apply(pod), Verdict::Unproven, "EACCES", cause, advice);
        assert_qemu(&nova(), "Permission denied");
    });
}

#[test]
fn denying_acl_is_reported() {
    on_stage(|pod| {
        ok(Command::new("setfacl").args(["-m", "u:42424:---", DEVICE]));
        let advice =
            "its ACL (user::rw-,user:42424:---,group::rw-,mask::rw-,other::---) denies nova";
        let cause = Some(Cause::Acl);
        assert_reported(&apply(pod), Verdict::Unproven, "EACCES", cause, advice);
        assert_qemu(&nova(), "Permission denied");
        // `apply` does repair an ACL in which only the entry of the owning group denies access.
        ok(Command::new("setfacl").args(["--set", "u::rw,u:1234:rw,g::---,m::rw,o::-", DEVICE]));
        assert_qemu(&nova(), "Permission denied");
        assert_reported(&apply(pod), Verdict::Ok, "ok", None, "");
        assert!(qemu(&nova()).works);
    });
}

#[test]
fn nodev_mount_is_reported() {
    on_stage(|pod| {
        remount_dev(MsFlags::MS_NODEV);
        let advice = "on a mount with the option nodev";
        let cause = Some(Cause::Nodev);
        assert_reported(&apply(pod), Verdict::Unproven, "EACCES", cause, advice);
        assert_qemu(&nova(), "Permission denied");
        // nodev denies root too.
        pod.file(
            "etc/libvirt/qemu.conf",
            "user = \"root\"\ngroup = \"kvm\"\n",
        );
        assert_reported(&apply(pod), Verdict::Unproven, "EACCES", cause, advice);
    });
}

#[test]
fn missing_device_is_absent() {
    on_stage(|pod| {
        fs::remove_file(DEVICE).unwrap();
        let cause = Some(Cause::Missing);
        let advice = "the KVM driver is loaded, so the node was lost";
        assert_reported(&apply(pod), Verdict::Absent, "none", cause, advice);
        assert_qemu(&nova(), "No such file or directory");
    });
}

#[test]
fn device_other_than_kvm_is_refused() {
    on_stage(|pod| {
        let device = Path::new(DEVICE);
        let cause = Some(Cause::NotKvm);
        for ((major, minor), message) in [
            ((10, 231), "No such device"),
            ((241, 232), "No such device or address"),
            ((1, 3), "Inappropriate ioctl"),
        ] {
            fs::remove_file(device).unwrap();
            mknod_char(device, (major, minor), 0, 108, 0o660);
            let advice = format!("/dev/kvm is a character device {major}:{minor}, and KVM is");
            assert_reported(&apply(pod), Verdict::Refused, "none", cause, &advice);
            assert_qemu(&nova(), message);
        }
        fs::remove_file(device).unwrap();
        fs::create_dir(device).unwrap();
        let advice = "/dev/kvm is a directory, which container runtimes make";
        assert_reported(&apply(pod), Verdict::Refused, "none", cause, advice);
        assert_qemu(&nova(), "Is a directory");
    });
}

/// /proc/misc may be hidden or belong to the container: a device that can be opened is not absent.
#[test]
fn hidden_proc_misc_is_not_absent() {
    on_stage(|pod| {
        set_owner(Path::new(DEVICE), 0, 424, 0o600);
        let list = scratch().join("misc");
        fs::write(&list, "200 tun\n229 fuse\n").unwrap();
        bind(&list, Path::new("/proc/misc"));
        assert_reported(&apply(pod), Verdict::Ok, "ok", None, "");
        assert!(qemu(&nova()).works);
    });
}

/// Tests each kind of device filter that this machine has (cgroup v1 controller, cgroup v2 BPF program) with the
/// proof and with QEMU.
#[test]
fn device_cgroup_denial_is_reported() {
    on_stage(|pod| {
        let mut tried = Vec::new();
        let mut done = 0;
        for filter in [Filter::version_1(), Filter::version_2()] {
            let filter = match filter {
                Ok(filter) => filter,
                Err(why) => {
                    tried.push(why);
                    continue;
                }
            };
            let enter = filter.enter();
            let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
            let advice = "the cgroup's device filter denies it to this container";
            let report = apply_under(&enter, pod, &[]);
            let cause = Some(Cause::DeviceCgroup);
            assert_reported(&report, Verdict::Unproven, "EPERM", cause, advice);
            let qemu = qemu_under(&enter, &nova());
            assert!(qemu.text.contains("Operation not permitted"), "{qemu:?}");
            // The kernel checks permissions before the filter.
            set_owner(Path::new(DEVICE), 0, 108, 0o660);
            ok(Command::new("setfacl").args(["-m", "u:42424:---", DEVICE]));
            let report = apply_under(&enter, pod, &[]);
            let cause = Some(Cause::Acl);
            assert_reported(&report, Verdict::Unproven, "EACCES", cause, "its ACL");
            ok(Command::new("setfacl").args(["-b", DEVICE]));
            done += 1;
        }
        assert!(
            done > 0,
            "this test needs a cgroup that can filter devices: {tried:?}"
        );
        println!("{done} kinds of device filter tested; not available: {tried:?}");
    });
}

/// A cgroup that denies 10:232; removed on drop.
struct Filter {
    directory: PathBuf,
    /// Descriptor of the cgroup v2 filter, kept open with the cgroup.
    _program: Option<std::os::fd::OwnedFd>,
}

impl Filter {
    fn version_1() -> Result<Self, String> {
        let directory = mounted("cgroup", Some("devices"))?.join(own_name());
        fs::create_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        let filter = Self {
            directory,
            _program: None,
        };
        fs::write(filter.directory.join("devices.deny"), "c 10:232 rwm")
            .map_err(|e| format!("devices.deny: {e}"))?;
        Ok(filter)
    }

    fn version_2() -> Result<Self, String> {
        let directory = mounted("cgroup2", None)?.join(own_name());
        fs::create_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        let mut filter = Self {
            directory,
            _program: None,
        };
        let group = fs::File::open(&filter.directory).unwrap();
        filter._program = Some(bpf::deny_devices(&group).map_err(|e| format!("bpf: {e}"))?);
        Ok(filter)
    }

    /// A command that moves itself into the cgroup and executes its arguments.
    fn enter(&self) -> Vec<String> {
        let procs = self.directory.join("cgroup.procs");
        let script = "echo $$ > \"$0\" && exec \"$@\"";
        ["sh", "-c", script, procs.to_str().unwrap()]
            .map(str::to_owned)
            .to_vec()
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // A process leaves its cgroup only a moment after it ended.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        println!("cannot remove {}", self.directory.display());
    }
}

fn own_name() -> String {
    format!("kvm-init-test-{}", std::process::id())
}

/// The mount point of a cgroup file system of this type and with this controller.
fn mounted(kind: &str, controller: Option<&str>) -> Result<PathBuf, String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let found = mounts.lines().find_map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        let has = |name| words[3].split(',').any(|option| option == name);
        let fits = words[2] == kind && controller.is_none_or(has);
        fits.then(|| PathBuf::from(words[1]))
    });
    found.ok_or_else(|| format!("no {kind} {}", controller.unwrap_or_default()))
}
