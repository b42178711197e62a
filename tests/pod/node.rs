//! A node for tests: a /dev, a root file system to mount into containers, and a podman whose storage is removed with
//! the test.

use std::cell::Cell;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sched::{CloneFlags, unshare};

use support::guest::{self, NODE};
use support::rule_sets::{self, Content, RuleSet};
use support::udevd::{self, Oracle};
use support::{
    Tree, bind, fresh_dev, mknod_kvm, ok, program, require_commands, require_kvm, scratch,
    set_owner,
};

pub const DEVICE: &str = "/dev/kvm";

/// The init of the PID namespace. When its standard input is closed it ends, and with it the remaining containers of
/// the test. It reaps orphans immediately, since libvirt waits for the QEMU processes that it probes.
const INIT: &str = "mount -t proc proc /proc; echo up; exec 3<&0; (read -r _ <&3) & wait $!";

/// The node on which the containers of a test run.
pub struct Node {
    root: PathBuf,
    init: Child,
    udev: Option<(Oracle, udevd::Daemon)>,
    cgroup: String,
    /// The image's group file and passwd file.
    accounts: (String, String),
    containers: Cell<u32>,
}

impl Node {
    /// A node whose device has the GID `NODE`. Only inside `in_namespace`.
    pub fn new() -> Self {
        Self::prepare(None, guest::accounts())
    }

    /// A node with a real udevd and the distribution's rules.
    pub fn with_udevd() -> Self {
        // Read the accounts before udevd's files are mounted over those of the machine.
        let accounts = guest::accounts();
        let (group, passwd) = (
            format!("root:x:0:\nkvm:x:{NODE}:\n"),
            "root:x:0:0::/:/bin/sh\n",
        );
        let oracle = Oracle::new(&group, passwd);
        oracle.install(&debian());
        Self::prepare(Some(oracle), accounts)
    }

    fn prepare(oracle: Option<Oracle>, accounts: (String, String)) -> Self {
        require_commands(&[
            "conmon",
            "libvirtd",
            "podman",
            "qemu-system-x86_64",
            "runc",
            "timeout",
            "virsh",
        ]);
        require_kvm();
        let root = node_root(oracle.is_some());

        fs::write(scratch().join("containers.conf"), containers_conf()).unwrap();

        // Processes started from here on are in a new PID namespace; the first is its init.
        unshare(CloneFlags::CLONE_NEWPID).expect("unshare(CLONE_NEWPID)");
        let mut init = Command::new("sh")
            .args(["-c", INIT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        init.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();

        ok(Command::new("mount")
            .args(["--rbind", "/dev"])
            .arg(root.join("dev")));
        // Mounts propagate between the node and containers that request it, but not to the machine.
        ok(Command::new("mount").arg("--make-rshared").arg(scratch()));
        let own = scratch();
        let cgroup = format!("/libvirt-kvm-init{}", own.file_name().unwrap().display());
        let udev = oracle.map(|oracle| {
            let daemon = oracle.start();
            (oracle, daemon)
        });
        Self {
            root,
            init,
            udev,
            cgroup,
            accounts,
            containers: Cell::new(0),
        }
    }

    /// The path of a file in the node's file system.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Lets the node handle a udev event of the device.
    pub fn event(&self) {
        match &self.udev {
            Some((oracle, _)) => oracle.trigger("add"),
            None => set_owner(Path::new(DEVICE), 0, NODE, 0o660),
        }
    }

    /// Lets the node handle an event in the background, 200 ms after the file `note` is created.
    pub fn answers(&self, note: &Path) -> Running {
        let answer = match &self.udev {
            Some((oracle, _)) => {
                let trigger = oracle.udevadm("trigger");
                let words = [trigger.get_program()]
                    .into_iter()
                    .chain(trigger.get_args());
                let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
                format!("{} --settle --action=add {}", words.join(" "), udevd::KVM)
            }
            None => format!("chown 0:{NODE} {DEVICE} && chmod 660 {DEVICE}"),
        };
        let wait = "while ! [ -e \"$1\" ]; do sleep 0.01; done; sleep 0.2; ";
        let words = ["60", "sh", "-ec", &(wait.to_owned() + &answer), "sh"];
        Running::start(Command::new("timeout").args(words).arg(note))
    }

    /// A podman command.
    pub fn podman(&self, subcommand: &str) -> Command {
        let own = scratch().join("podman");
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "120", "podman", "--log-level=error"]);
        for (option, directory) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            command.arg(option).arg(own.join(directory));
        }
        command.args(["--storage-driver=vfs", "--runtime=runc"]);
        command.args(["--cgroup-manager=cgroupfs", subcommand]);
        command.env("CONTAINERS_CONF", scratch().join("containers.conf"));
        command
    }

    /// `podman run` with the options of all containers, the container's name, and its root.
    pub fn run(&self, name: &str, image: &Image) -> (Command, String, PathBuf) {
        let number = self.containers.get() + 1;
        self.containers.set(number);
        let name = format!("{name}-{number}");
        let mut command = self.podman("run");
        command.args([
            "--rm",
            "--cgroups=no-conmon",
            "--no-hosts",
            "--passwd=false",
        ]);
        command.args(["--cgroup-parent", &self.cgroup, "--name", &name]);
        let root = image.layer(&name);
        (command, name, root)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.udev = None;
        let _ = self.init.wait(); // closes its standard input first; all processes of the namespace end with it
        for controller in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            remove_cgroup(&controller.path().join(self.cgroup.trim_start_matches('/')));
        }
        remove_cgroup(&Path::new("/sys/fs/cgroup").join(self.cgroup.trim_start_matches('/')));
    }
}

fn remove_cgroup(cgroup: &Path) {
    for inner in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&inner.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

/// A command on the node, killed on drop. The namespace's init can only end after the test has waited for all
/// processes that it started.
pub struct Running(Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// The exit status, if the command has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Waits until the command ends.
    pub fn end(mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's rules.
fn debian() -> RuleSet {
    let stock = Content::Stock;
    rule_sets::set("Debian", vec![("usr/lib/udev/rules.d", stock)])
}

/// Creates the node's root file system; its /dev is not mounted yet. With a udevd, it contains udevd's files.
fn node_root(udevd: bool) -> PathBuf {
    let host = Tree::host(NODE);
    if udevd {
        for directory in ["etc", "usr/lib/udev/rules.d"] {
            host.dir(directory);
            bind(&Path::new("/").join(directory), &host.at(directory));
        }
    } else {
        fresh_dev();
        mknod_kvm(Path::new(DEVICE), 0, NODE, 0o660);
    }
    host.dir("run");
    host.file("etc/machine-id", "6b7ab1f60d334d4e9c1a5b9f2a0c4e11\n");
    host.path().to_owned()
}

/// podman raises resource limits, which root is not allowed to do on every machine; so set the current limits.
fn containers_conf() -> String {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let hard = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let hard = line.unwrap().split_whitespace().nth(1).unwrap();
        hard.parse().unwrap_or(65536_u32).min(65536)
    };
    let (files, processes) = (hard("Max open files"), hard("Max processes"));
    format!(
        "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \
         \"nproc={processes}:{processes}\"]\n[engine]\nevents_logger = \"none\"\n"
    )
}

/// The lower layers of the overlay that is a container's root.
pub struct Image(String);

impl Image {
    /// The libvirt image: the machine's own root with the accounts of the image over it, and without any files of
    /// this project.
    pub fn libvirt(node: &Node) -> (Self, Tree) {
        let tree = Tree::new();
        let (group, passwd) = &node.accounts;
        tree.file("etc/group", group).file("etc/passwd", passwd);
        tree.file("etc/libvirt/qemu.conf", "# user = \"root\"\n");
        guest::only_qemu(&tree.at("opt/libvirt"));
        (Self(format!("{}:/", tree.path().display())), tree)
    }

    /// The project's own image: the program alone if it is static, otherwise with the machine's root for its libraries.
    pub fn program() -> Self {
        let tree = Tree::new();
        copy_program(&tree.at("libvirt-kvm-init"));
        let bytes = fs::read(program()).unwrap();
        let dynamic = bytes.windows(7).take(0x1000).any(|word| word == b"/ld-lin");
        let below = if dynamic { ":/" } else { "" };
        Self(format!("{}{below}", tree.path().display()))
    }

    /// Mounts a container's root: a new writable layer over the image.
    fn layer(&self, name: &str) -> PathBuf {
        let own = scratch().join("layers").join(name);
        for directory in ["upper", "work", "root"] {
            fs::create_dir_all(own.join(directory)).unwrap();
        }
        let root = own.join("root");
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.0,
            own.join("upper").display(),
            own.join("work").display()
        );
        ok(Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&root));
        root
    }
}

/// The writable layer of a container.
pub fn written_by(name: &str) -> PathBuf {
    scratch().join("layers").join(name).join("upper")
}

/// Copies the program under test to a path.
pub fn copy_program(to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(program(), to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
}

/// UID, GID and mode of the device.
pub fn device() -> (u32, u32, u32) {
    let node = fs::metadata(DEVICE).unwrap();
    (node.uid(), node.gid(), node.mode() & 0o7777)
}

/// Runs `f` on a new node.
pub fn on_a_node(f: impl FnOnce(&Node) + Send) {
    support::in_namespace(|| f(&Node::new()));
}
