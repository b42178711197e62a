//! `check` on the node, which inspects the container of a running libvirtd.

use std::fs::{self, FileTimes};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::mount::{MsFlags, mount};

use crate::place::{Jail, require_initial_pid_namespace};
use support::impostor::Impostor;
use support::{
    ALIGNED, Tree, below, bind, command, detach, go, in_namespace, owner, report, require_commands,
    set_owner, state, warnings,
};

/// A process named libvirtd with its own root. It is killed on drop.
struct Libvirtd {
    child: Child,
    root: PathBuf,
}

impl Libvirtd {
    fn start(pod: &Jail) -> Self {
        let sh = fs::canonicalize("/bin/sh").unwrap();
        pod.tree.file("libvirtd", "");
        bind(&sh, &pod.tree.at("libvirtd"));
        let mut cmd = pod.on_the_node("/libvirtd", &["-c", "echo here; read line"]);
        let mut child = cmd
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut here = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut here).unwrap();
        let root = PathBuf::from(format!("/proc/{}/root", child.id()));
        Self { child, root }
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `check` on the node with the machine's own daemons hidden, because they come and go.
fn check_on(node: &Jail, ours: u32) -> Command {
    check_among(node, &[ours])
}

/// Like [`check_on`], with several of the test's own daemons.
fn check_among(node: &Jail, ours: &[u32]) -> Command {
    let proc = node.tree.at("proc");
    for entry in fs::read_dir(&proc).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let is_one = ["libvirtd", "virtqemud", "systemd-udevd"].contains(&comm.trim());
        if is_one && name.parse().is_ok_and(|pid| !ours.contains(&pid)) {
            let (what, flags) = (Some("tmpfs"), MsFlags::empty());
            // The process may have ended.
            let _ = mount(what, &entry.path(), what, flags, None::<&str>);
        }
    }
    node.on_the_node("/kvm-init", &["check"])
}

/// Lets one test at a time have processes named libvirtd.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node, and a pod on it with a libvirtd.
fn node_with_pod() -> (Jail, Jail, Libvirtd) {
    require_initial_pid_namespace();
    let node = Jail::new(Tree::host(108));
    let pod = Jail::new(Tree::pod(424));
    bind(&node.tree.at("dev"), &pod.tree.at("dev"));
    set_owner(&node.tree.at("dev/kvm"), 0, 108, 0o660);
    date_group_file(&pod, SystemTime::now() - Duration::from_secs(3600));
    let libvirtd = Libvirtd::start(&pod);
    (node, pod, libvirtd)
}

/// Aligns the pod's group file and dates it before the start of its libvirtd.
fn align(pod: &Jail) {
    pod.tree.file("etc/group", ALIGNED);
    date_group_file(pod, SystemTime::now() - Duration::from_secs(3600));
}

fn date_group_file(pod: &Jail, changed: SystemTime) {
    let file = fs::File::options()
        .write(true)
        .open(pod.tree.at("etc/group"));
    let times = FileTimes::new().set_modified(changed);
    file.unwrap().set_times(times).unwrap();
}

#[test]
fn check_on_the_node_reports_node_and_pod() {
    let _alone = alone();
    in_namespace(|| {
        let (node, pod, libvirtd) = node_with_pod();
        let ours = libvirtd.child.id();
        let check = || check_on(&node, ours);
        let everything = || {
            state(&[
                &node.tree.at("etc"),
                &node.tree.at("dev"),
                &pod.tree.at("etc"),
            ])
        };
        let before = everything();
        let (code, found) = report(&mut check());
        assert_eq!(code, 1, "{found}");
        assert_eq!(found["host"]["root"], "/");
        assert_eq!(found["host"]["kvm_gid"], 108);
        assert_eq!(found["pod"]["root"], libvirtd.root.to_str().unwrap());
        assert_eq!(found["pod"]["kvm_gid"], 424);
        assert_eq!(found["qemu"]["user"], "nova");
        assert_eq!(found["qemu"]["uid"], 42424);
        assert_eq!(found["proof"]["result"], "EACCES");
        assert_eq!(warnings(&found), [""; 0]);
        let way_out = format!(
            "`libvirt-kvm-init apply --root={}`",
            libvirtd.root.display()
        );
        let run = go(&mut check());
        run.code(1)
            .last_line_has(&["drift: ", "nova", &format!("run {way_out} to repair it")]);
        assert!(
            found["summary"].as_str().unwrap().contains(&way_out),
            "{found}"
        );
        // The command is in the summary only.
        let advice = found["proof"]["advice"].as_str().unwrap();
        assert!(
            advice.contains("has no read and write permission for it") && !advice.contains("apply"),
            "{found}"
        );
        assert_eq!(everything(), before);
        // The reported command, run on the node, changes the pod's file and nothing of the node.
        let nodes = state(&[&node.tree.at("etc"), &node.tree.at("dev")]);
        let root = libvirtd.root.to_str().unwrap();
        // Without CAP_SYS_PTRACE the run cannot inspect a process that holds more capabilities (ptrace(2)).
        let run = go(&mut node.on_the_node("/kvm-init", &["apply", "--root", root])).code(3);
        run.last_line_has(&["refused: ", "EACCES", "CAP_SYS_PTRACE"]);
        assert_eq!(everything(), before);
        // With CAP_SYS_PTRACE it also sees the root of PID 1, which is not this node's; hence --host-root.
        let mut apply = command(
            Path::new("/kvm-init"),
            &["apply", "--host-root=/", "--root"],
        );
        below(apply.arg(root), node.tree.path());
        go(&mut apply).code(0);
        assert!(pod.tree.read("etc/group").contains("kvm:x:108:nova"));
        assert_eq!(state(&[&node.tree.at("etc"), &node.tree.at("dev")]), nodes);
        // With a pod that was aligned before its libvirtd started.
        align(&pod);
        let (code, found) = report(&mut check());
        assert_eq!((code, warnings(&found)), (0, vec![]), "{found}");
        assert_eq!(found["device"]["same_inode_as_host"], true);
        // Without libvirtd only the node is checked.
        drop(libvirtd);
        let (code, found) = report(&mut check());
        assert_eq!(code, 0, "{found}");
        assert_eq!(found["pod"]["root"], "/");
        assert_eq!(warnings(&found), ["limited-proof"]);
    });
}

#[test]
fn node_device_proves_nothing_for_a_libvirtd_with_a_private_dev() {
    let _alone = alone();
    in_namespace(|| {
        let (node, pod, libvirtd) = node_with_pod();
        align(&pod);
        let ours = libvirtd.child.id();
        let check = || check_on(&node, ours);
        assert_eq!(report(&mut check()).0, 0);
        detach(&pod.tree.at("dev"));
        for there in ["0:0 0600", "missing or not a KVM device"] {
            let (code, found) = report(&mut check());
            assert_eq!(code, 5, "{found}");
            assert_eq!(warnings(&found), ["private-device"]);
            let text = found["warnings"][0]["text"].as_str().unwrap();
            let root = libvirtd.root.to_str().unwrap();
            for part in [there, "0:108 0660", root] {
                assert!(text.contains(part), "{part}: {text}");
            }
            go(&mut check())
                .code(5)
                .last_line_has(&["a different one", there]);
            let _ = fs::remove_file(pod.tree.at("dev/kvm"));
        }
        assert_eq!(owner(&node.tree.at("dev/kvm")), (0, 108, 0o660));
    });
}

#[test]
fn libvirtd_older_than_the_group_file_is_a_warning() {
    let _alone = alone();
    in_namespace(|| {
        let (node, pod, libvirtd) = node_with_pod();
        align(&pod);
        let hour = Duration::from_secs(3600);
        let now = SystemTime::now();
        for (changed, want) in [(now - hour, vec![]), (now + hour, vec!["libvirtd-stale"])] {
            date_group_file(&pod, changed);
            let mut check = check_on(&node, libvirtd.child.id());
            let (code, found) = report(&mut check);
            assert_eq!(
                (code, warnings(&found)),
                (0, want.iter().map(ToString::to_string).collect())
            );
            if !want.is_empty() {
                let text = found["warnings"][0]["text"].as_str().unwrap();
                let pid = format!("(pid {})", libvirtd.child.id());
                assert!(text.contains(&pid), "{text}");
            }
        }
        // With such a root the table still fits into 80 columns.
        let table = go(&mut check_on(&node, libvirtd.child.id())).code(0).out;
        assert!(
            table.lines().all(|line| line.chars().count() <= 80),
            "{table}"
        );
    });
}

/// Unlike the proof, inspecting the root of another process needs CAP_SYS_PTRACE.
#[test]
fn uninspectable_libvirtd_is_a_warning() {
    require_commands(&["setpriv"]);
    let _alone = alone();
    in_namespace(|| {
        let (node, _pod, libvirtd) = node_with_pod();
        let _ = check_on(&node, libvirtd.child.id());
        let few = "--bounding-set=-all,+setuid,+setgid";
        let words = ["--inh-caps=-all", few, "/kvm-init", "check"];
        let (code, found) = report(&mut node.on_the_node("/usr/bin/setpriv", &words));
        assert_eq!((code, &found["pod"]["root"]), (5, &"/".into()), "{found}");
        let codes = warnings(&found);
        assert_eq!(codes, ["limited-proof", "libvirtd-unseen"]);
        let text = found["warnings"][1]["text"].as_str().unwrap();
        for part in [libvirtd.root.to_str().unwrap(), "CAP_SYS_PTRACE"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    });
}

/// An unprivileged process can name itself libvirtd and mount root's files over its group file.
#[test]
fn impostor_libvirtd_is_neither_reported_nor_edited() {
    require_commands(&["setpriv", "unshare"]);
    let _alone = alone();
    in_namespace(|| {
        let (node, pod, libvirtd) = node_with_pod();
        let script = support::scratch().join("script");
        fs::write(&script, "#!/bin/sh\necho backup\n").unwrap();
        let before = state(&[&script]);
        let impostor = Impostor::start(&[], &script);
        for real in [true, false] {
            if !real {
                let _ = kill_and_wait(&libvirtd);
            }
            let ours = [impostor.pid(), libvirtd.child.id()];
            let run = go(&mut check_among(&node, &ours));
            let output = format!("{}{}", run.out, run.err);
            let root = impostor.root();
            let root = root.to_str().unwrap();
            assert!(!output.contains(root), "{output}");
            assert_eq!(
                output.contains(libvirtd.root.to_str().unwrap()),
                real,
                "{output}"
            );
            // With the impostor's root as --root the run is refused and edits nothing.
            for command_name in ["apply", "check"] {
                let run = go(&mut node.on_the_node("/kvm-init", &[command_name, "--root", root]));
                assert!(state(&[&script]) == before, "{run}");
                run.code(3).last_line_has(&[root, "does not run as root"]);
            }
        }
        drop(pod);
    });
}

fn kill_and_wait(libvirtd: &Libvirtd) -> nix::Result<()> {
    let pid = nix::unistd::Pid::from_raw(libvirtd.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    // The process stays a zombie until the value is dropped. Zombies do not count as libvirtd.
    let status = format!("/proc/{pid}/status");
    while !fs::read_to_string(&status)
        .unwrap_or_default()
        .contains("State:\tZ")
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// libvirtd's /dev is the node's, mounted nodev: QEMU cannot open the device there.
#[test]
fn node_device_proves_nothing_for_a_libvirtd_with_a_nodev_dev() {
    let _alone = alone();
    in_namespace(|| {
        let (node, pod, libvirtd) = node_with_pod();
        align(&pod);
        let check = || check_on(&node, libvirtd.child.id());
        assert_eq!(report(&mut check()).0, 0);
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NODEV;
        let none = None::<&str>;
        mount(none, &pod.tree.at("dev"), none, flags, none).unwrap();
        let (code, found) = report(&mut check());
        assert_eq!(code, 5, "{found}");
        assert_eq!(warnings(&found), ["private-device"]);
        go(&mut check()).code(5).last_line_has(&["option nodev"]);
    });
}

/// `apply` refuses a device that is not the node's, so the advice must not be to run `apply`.
#[test]
fn drifted_pod_with_a_private_dev_is_not_reported_as_drift() {
    let _alone = alone();
    in_namespace(|| {
        let (node, pod, libvirtd) = node_with_pod();
        let ours = libvirtd.child.id();
        assert_eq!(report(&mut check_on(&node, ours)).0, 1);
        detach(&pod.tree.at("dev"));
        let ran = go(&mut check_on(&node, ours)).code(5);
        let ran = ran.last_line_has(&["mount the node's /dev"]);
        assert!(!ran.err.contains("to repair it"), "{ran}");
    });
}
