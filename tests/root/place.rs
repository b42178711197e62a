//! Runs on the node itself, and in containers with and without a host root.
//!
//! The program runs in its own root, a tmpfs with the machine's programs, so that the machine's /mnt, /host and
//! /.dockerenv have no effect.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use caps::Capability::CAP_SYS_PTRACE;

use support::{
    ALIGNED, Run, Tree, below, bind, command, detach, go, in_namespace, mknod_kvm, owner, program,
    report, require_kvm, set_owner, state, warnings, without_capability,
};

/// A root directory in which the program can run, statically linked or not.
pub struct Jail {
    pub tree: Tree,
}

impl Jail {
    /// Creates the root from a pod or a host tree, with a device as the kernel creates it.
    pub fn new(tree: Tree) -> Self {
        require_kvm();
        // The root for unshare(1) must be a mount point.
        bind(tree.path(), tree.path());
        for name in ["usr", "lib", "lib64", "bin", "proc"] {
            let ours = Path::new("/").join(name);
            match fs::read_link(&ours) {
                Ok(to) => symlink(to, tree.at(name)).unwrap(),
                Err(_) if ours.exists() => bind(&ours, tree.dir(name).at(name).as_path()),
                Err(_) => {}
            }
        }
        // Mounted, not copied: a copy could still be open for writing in a process that another test is starting
        // (ETXTBSY).
        tree.file("kvm-init", "");
        bind(&program(), &tree.at("kvm-init"));
        mknod_kvm(&tree.at("dev/kvm"), 0, 0, 0o600);
        support::mknod_char(&tree.at("dev/null"), (1, 3), 0, 0, 0o666);
        Self { tree }
    }

    /// `apply` in this root, in the machine's PID namespace. Without CAP_SYS_PTRACE it cannot inspect the root of PID
    /// 1, which differs between machines.
    fn apply(&self) -> Command {
        self.on_the_node("/kvm-init", &["apply"])
    }

    /// A command in this root, started like [`Jail::apply`].
    pub fn on_the_node(&self, program: &str, args: &[&str]) -> Command {
        let mut cmd = command(Path::new(program), args);
        below(&mut cmd, self.tree.path());
        without_capability(&mut cmd, CAP_SYS_PTRACE);
        cmd
    }

    /// `apply` in this root, in a new PID namespace.
    fn apply_in_pod(&self) -> Command {
        let wrap = ["--pid", "--fork", "--mount-proc", "/kvm-init", "apply"];
        let mut cmd = command(Path::new("/usr/bin/unshare"), &wrap);
        below(&mut cmd, self.tree.path());
        cmd
    }
}

/// Panics if the tests do not run in the initial PID namespace.
pub fn require_initial_pid_namespace() {
    let link = fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(
        link.to_str(),
        Some("pid:[4026531836]"),
        "this test needs to run in the initial PID namespace"
    );
}

fn names_no_host(run: &Run) -> bool {
    run.json()["host"].is_null()
}

#[test]
fn apply_on_a_bare_node_edits_no_group_file() {
    in_namespace(|| {
        require_initial_pid_namespace();
        let node = Jail::new(Tree::host(108));
        let before = state(&[&node.tree.at("etc")]);
        let (code, report) = report(&mut node.apply());
        assert_eq!(code, 0, "{report}");
        assert_eq!(warnings(&report), ["limited-proof"]);
        assert_eq!(report["qemu"]["uid"], 65534);
        assert_eq!(report["qemu"]["groups"], serde_json::json!([108]));
        assert_eq!(report["host"]["root"], "/");
        assert_eq!(owner(&node.tree.at("dev/kvm")), (0, 108, 0o660));
        assert_eq!(state(&[&node.tree.at("etc")]), before);
        // The file also stays if the node has a QEMU user who is not a member of the group.
        node.tree
            .file("etc/passwd", "root:x:0:0:::\nlibvirt-qemu:x:64055:108:::\n");
        node.tree.file("etc/os-release", "ID=ubuntu\n");
        let before = state(&[&node.tree.at("etc")]);
        go(&mut node.apply()).code(0);
        assert_eq!(state(&[&node.tree.at("etc")]), before);
    });
}

#[test]
fn group_file_out_on_the_node_leaves_the_nodes_file_alone() {
    in_namespace(|| {
        require_initial_pid_namespace();
        let node = Jail::new(Tree::host(108));
        let etc = || state(&[&node.tree.at("etc")]);
        let before = etc();
        for how in ["--missing=fail", "--missing=skip"] {
            let _ = fs::remove_file(node.tree.at("out"));
            if how.ends_with("skip") {
                fs::remove_file(node.tree.at("dev/kvm")).unwrap();
            }
            go(node.apply().args([how, "--group-file-out", "/out"])).code(0);
            let text = node.tree.read("out");
            assert_eq!(text, node.tree.read("etc/group"));
            assert_eq!(owner(&node.tree.at("out")), (0, 0, 0o644));
        }
        assert_eq!(etc(), before);
    });
}

#[test]
fn missing_host_root_is_a_warning_with_every_container_marker() {
    in_namespace(|| {
        let pod = Jail::new(Tree::pod(424));
        let reset = || {
            pod.tree
                .file("etc/group", "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n");
            set_owner(&pod.tree.at("dev/kvm"), 0, 108, 0o660);
        };
        type Mark = fn(&Jail, &mut Command);
        let table: [(&str, Mark); 5] = [
            ("Kubernetes", |_, cmd| {
                cmd.env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
            }),
            ("systemd's interface", |_, cmd| {
                cmd.env("container", "podman");
            }),
            ("podman", |pod, _| {
                pod.tree.file("run/.containerenv", "");
            }),
            ("docker", |pod, _| {
                pod.tree.file(".dockerenv", "");
            }),
            ("a PID namespace alone", |_, _| {}),
        ];
        for (what, mark) in table {
            let own = what.contains("PID");
            let cmd = || {
                let mut cmd = if own { pod.apply_in_pod() } else { pod.apply() };
                mark(&pod, &mut cmd);
                cmd
            };
            reset();
            let before = state(&[pod.tree.at("etc").as_path(), &pod.tree.at("dev")]);
            let run = go(cmd().arg("--strict")).code(3);
            run.last_line_has(&["refused: ", "--host-root", "/mnt/host-rootfs"]);
            assert_eq!(
                state(&[pod.tree.at("etc").as_path(), &pod.tree.at("dev")]),
                before
            );
            // The device's GID becomes the target; the pod's file is not used as the node's.
            let (code, report) = report(&mut cmd());
            assert_eq!(code, 0, "{what}: {report}");
            assert_eq!(warnings(&report), ["host-root-unknown"], "{what}");
            assert!(report["host"].is_null(), "{what}");
            assert_eq!(report["target"]["source"], "device", "{what}");
            assert_eq!(pod.tree.read("etc/group"), ALIGNED, "{what}");
            for file in ["run/.containerenv", ".dockerenv"] {
                let _ = fs::remove_file(pod.tree.at(file));
            }
        }
    });
}

#[test]
fn mounted_host_root_is_found_and_a_plain_directory_is_not() {
    in_namespace(|| {
        let pod = Jail::new(Tree::pod(424));
        let host = Tree::host(108);
        let run = || {
            let mut cmd = pod.apply_in_pod();
            go(cmd.args(["--dry-run", "--format", "json"]))
        };
        for place in ["mnt/host-rootfs", "host"] {
            let at = pod.tree.dir(place).at(place);
            // A directory of the image is no mount, whatever it contains.
            pod.tree
                .dir(&format!("{place}/etc"))
                .dir(&format!("{place}/usr"));
            assert!(names_no_host(&run()), "{place}");
            bind(host.path(), &at);
            let found = run();
            let report = found.json();
            assert_eq!(report["host"]["root"], format!("/{place}"), "{found}");
            assert_eq!(report["target"]["gid"], 108, "{found}");
            // A mount without usr is no host root.
            fs::remove_dir_all(host.at("usr")).unwrap();
            assert!(names_no_host(&run()), "{place}");
            host.dir("usr/bin");
            detach(&at);
            // The container's own root, mounted again, is not the node.
            bind(pod.tree.path(), &at);
            assert!(names_no_host(&run()), "{place}");
            detach(&at);
        }
        // The first of two mounts is used.
        bind(host.path(), &pod.tree.at("host"));
        let other = Tree::host(109);
        bind(other.path(), &pod.tree.at("mnt/host-rootfs"));
        assert_eq!(run().json()["target"]["gid"], 109);
    });
}

#[test]
fn invalid_host_root_option_is_a_usage_error() {
    in_namespace(|| {
        let pod = Jail::new(Tree::pod(424));
        let before = state(&[pod.tree.at("etc").as_path(), &pod.tree.at("dev")]);
        let table = [
            ("/nowhere", "ENOENT"),
            ("/etc/group", "ENOTDIR"),
            ("/", "own root"),
            ("/usr/..", "own root"),
            ("/empty", "nothing is mounted there"),
        ];
        pod.tree.dir("empty");
        for (given, why) in table {
            let mut cmd = pod.apply_in_pod();
            cmd.env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
            let run = go(cmd.args(["--host-root", given])).code(2);
            run.last_line_has(&["usage: --host-root ", given, why, "mount the node's root"]);
        }
        assert_eq!(
            state(&[pod.tree.at("etc").as_path(), &pod.tree.at("dev")]),
            before
        );
    });
}

#[test]
fn apply_works_as_an_init_step_of_kubernetes() {
    in_namespace(|| {
        let pod = Jail::new(Tree::pod(424));
        let host = Tree::host(108);
        // Pod and node share one /dev.
        bind(&pod.tree.at("dev"), &host.at("dev"));
        bind(
            host.path(),
            &pod.tree.dir("mnt/host-rootfs").at("mnt/host-rootfs"),
        );
        let mut cmd = pod.apply_in_pod();
        cmd.env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
        // Kubernetes adds variables for Services of the same namespace.
        cmd.env("LIBVIRT_KVM_INIT_SERVICE_HOST", "10.0.0.2");
        cmd.env("LIBVIRT_KVM_INIT_PORT", "tcp://10.0.0.2:80");
        let (code, report) = report(&mut cmd);
        assert_eq!(code, 0, "{report}");
        assert_eq!(pod.tree.read("etc/group"), ALIGNED);
        assert_eq!(owner(&host.at("dev/kvm")), (0, 108, 0o660));
    });
}
