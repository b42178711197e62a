//! `watch` without --root: the files of a libvirtd in another container.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::watch::{PATIENCE, Watch, until, wait_for_repair};
use support::{KVM, Scene, Tree, bind, command, in_namespace, owner, program, scratch, set_owner};

/// Puts a program named libvirtd and its libraries below a root. It must be called before `watch` starts in its own
/// mount namespace.
pub fn container(tree: &Tree) {
    for name in ["usr/bin", "proc"] {
        tree.dir(name);
    }
    fs::copy("/bin/sleep", tree.at("usr/bin/libvirtd")).unwrap();
    for directory in ["lib", "lib64", "usr/lib"] {
        let from = Path::new("/").join(directory);
        if from.is_dir() {
            bind(
                &from.canonicalize().unwrap(),
                tree.dir(directory).at(directory).as_path(),
            );
        }
    }
    if !tree.at("dev/kvm").exists() {
        bind(Path::new("/dev"), &tree.at("dev"));
    }
}

/// A process named libvirtd with a tree as its root, in the PID namespace of `watch`.
pub struct Libvirtd(Pid);

impl Libvirtd {
    pub fn start(watch: &Watch, tree: &Tree) -> Self {
        Self::with(watch, tree, &[])
    }

    /// A libvirtd without CAP_SYS_ADMIN, as in an unprivileged container.
    pub fn without_admin(watch: &Watch, tree: &Tree) -> Self {
        let less = [
            "setpriv",
            "--bounding-set=-sys_admin",
            "--inh-caps=-sys_admin",
        ];
        Self::with(watch, tree, &less)
    }

    fn with(watch: &Watch, tree: &Tree, wrapper: &[&str]) -> Self {
        let words = enter(watch);
        let mut enter = Command::new(&words[0]);
        enter.args(&words[1..]).args(wrapper);
        enter.args(["setsid", "chroot"]).arg(tree.path());
        let mut child = enter
            .args(["/usr/bin/libvirtd", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        // nsenter stays as the parent of the command.
        let mut pid = None;
        let started = || {
            pid = children(child.id())
                .into_iter()
                .find(|pid| name(*pid) == "libvirtd");
            pid.is_some()
        };
        assert!(until(PATIENCE, started), "{:?}", child.try_wait());
        std::thread::spawn(move || child.wait());
        Self(Pid::from_raw(pid.unwrap().cast_signed()))
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

fn name(pid: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
    comm.unwrap_or_default().trim_end().to_owned()
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn first_child(pid: u32) -> u32 {
    children(pid)[0]
}

/// The words before a command that make it run in the namespaces of `watch`.
pub fn enter(watch: &Watch) -> Vec<String> {
    let inner = first_child(watch.pid()).to_string();
    ["nsenter", "-t", &inner, "-p", "-m"]
        .map(ToOwned::to_owned)
        .to_vec()
}

/// `watch` in a new PID namespace, in which it sees only the libvirtds of the test.
pub fn alone(scene: &Scene) -> Command {
    alone_with(scene, &["env"])
}

/// Like [`alone`], started by a wrapper command.
pub fn alone_with(scene: &Scene, wrapper: &[&str]) -> Command {
    // A shell is PID 1, because `watch` would have to reap processes that it did not start.
    let script = "\"$@\" & trap 'kill $!' TERM; wait";
    let mut cmd = command(
        Path::new("unshare"),
        &["--pid", "--fork", "--mount-proc", "--kill-child"],
    );
    cmd.args(["sh", "-c", script, "sh"]).args(wrapper);
    cmd.arg(program())
        .args(["watch", "--host-root"])
        .arg(scene.host.path());
    cmd
}

pub fn group(tree: &Tree) -> String {
    tree.read("etc/group")
}

pub fn follows(watch: &Watch, tree: &Tree, gid: u32) {
    let line = format!("kvm:x:{gid}:nova\n");
    let followed = || group(tree).contains(&line);
    assert!(
        until(PATIENCE, followed),
        "{}\n{}",
        group(tree),
        watch.log()
    );
}

/// Makes /etc empty, as in a container that contains only the program.
pub fn bare_root() {
    let etc = scratch().join("etc");
    fs::create_dir(&etc).unwrap();
    bind(&etc, Path::new("/etc"));
}

#[test]
fn files_of_a_libvirtd_in_another_container_are_maintained() {
    in_namespace(|| {
        let scene = Scene::new();
        let (second, third) = (Tree::pod(425), Tree::pod(426));
        for tree in [&scene.pod, &second, &third] {
            container(tree);
        }
        bare_root();
        // Without libvirtd the node's device is maintained, but there is no QEMU identity for the proof.
        let mut cmd = alone(&scene);
        let watch = Watch::start(&mut cmd);
        assert_eq!(watch.report["verdict"], "unproven", "{}", watch.report);
        let summary = watch.report["summary"].as_str().unwrap();
        assert!(summary.contains("no libvirtd"), "{summary}");
        wait_for_repair((0, 108, 0o660));
        let libvirtd = Libvirtd::start(&watch, &scene.pod);
        follows(&watch, &scene.pod, 108);

        scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
        follows(&watch, &scene.pod, 109);
        wait_for_repair((0, 109, 0o660));
        // While a second libvirtd runs as well, neither container is edited.
        let other = Libvirtd::start(&watch, &second);
        set_owner(Path::new(KVM), 0, 424, 0o660);
        watch.wait_for_log("runs in several containers");
        wait_for_repair((0, 109, 0o660));
        assert!(group(&second).contains("kvm:x:425:nova\n"));

        // The first libvirtd ends, and the pod is recreated twice.
        drop(libvirtd);
        follows(&watch, &second, 109);
        drop(other);
        let _libvirtd = Libvirtd::start(&watch, &third);
        follows(&watch, &third, 109);
        assert_eq!(owner(Path::new(KVM)), (0, 109, 0o660));
    });
}

/// Without an event `watch` would search for libvirtd after 1, 3, 7, 15, 31 and 63 seconds.
#[test]
fn starting_libvirtd_is_detected_by_its_socket() {
    in_namespace(|| {
        let scene = Scene::new();
        container(&scene.pod);
        scene.host.dir("run/libvirt");
        bare_root();
        let watch = Watch::start(&mut alone(&scene));
        assert_eq!(watch.report["verdict"], "unproven", "{}", watch.report);
        std::thread::sleep(Duration::from_secs(33));
        let _libvirtd = Libvirtd::start(&watch, &scene.pod);
        let start = std::time::Instant::now();
        scene.host.file("run/libvirt/libvirt-sock", "");
        follows(&watch, &scene.pod, 108);
        println!("detected by its socket after {:?}", start.elapsed());
    });
}

#[test]
fn files_of_the_nodes_libvirtd_and_of_several_are_not_edited() {
    in_namespace(|| {
        let scene = Scene::new();
        let (one, other) = (Tree::pod(425), Tree::pod(426));
        for tree in [&scene.host, &one, &other] {
            container(tree);
        }
        let nodes = group(&scene.host);
        bare_root();
        let status = scratch().join("status.json");
        let watch = Watch::start(
            alone(&scene)
                .args(["--recheck", "1s", "--status-file"])
                .arg(&status),
        );
        let _nodes = Libvirtd::start(&watch, &scene.host);
        crate::impostor::wait_for_two_checks(&status);
        assert_eq!(group(&scene.host), nodes);
        drop(watch);

        let watch = Watch::start(
            alone(&scene)
                .args(["--recheck", "1h", "--status-file"])
                .arg(&status),
        );
        let _both = (
            Libvirtd::start(&watch, &one),
            Libvirtd::start(&watch, &other),
        );
        watch.is_idle();
        scene
            .host
            .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
        scene.host.file("etc/group", "root:x:0:\nkvm:x:109:\n");
        let is_published = || {
            fs::read_to_string(&status)
                .is_ok_and(|text| text.contains("runs in several containers"))
        };
        assert!(
            until(PATIENCE, is_published),
            "{:?}",
            fs::read_to_string(&status)
        );
        assert!(group(&one).contains("kvm:x:425:nova\n"));
        assert!(group(&other).contains("kvm:x:426:nova\n"));
        // The device keeps its GID as well, since their group files may not have another one.
        assert_eq!(owner(Path::new(KVM)), (0, 108, 0o660));
    });
}
