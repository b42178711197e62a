//! The distribution's real systemd-udevd.
//!
//! The daemon runs in a private mount namespace with its own /dev, /run, /etc and rules directories. It is the one in
//! `KVM_INIT_TEST_UDEV`, or in target/oracle, where tests/run unpacks it. The package is never installed, since its
//! scripts would start udevd on the machine's own /dev.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::rule_sets::{self, Content, Entry, RuleSet};
use crate::{bind, fresh_dev, mknod_kvm, mount_tmpfs, ok, run, scratch, set_owner, udev_directory};

/// The device in sysfs.
pub const KVM: &str = "/sys/devices/virtual/misc/kvm";
/// The device that udevd manages.
pub const NODE: &str = "/dev/kvm";

/// The directory of the unpacked udev.
fn oracle() -> PathBuf {
    udev_directory().expect(
        "this test needs udev unpacked (not installed) in target/oracle/udev-VERSION or in the \
        directory KVM_INIT_TEST_UDEV: run tests/run, or `apt-get download udev` and unpack it \
        there with `dpkg -x`",
    )
}

/// udevd and udevadm, in directories of the namespace.
pub struct Oracle {
    udevadm: PathBuf,
    udevd: PathBuf,
    stock: PathBuf,
}

impl Oracle {
    /// Replaces all directories and files that udevd reads and writes.
    pub fn new(group: &str, passwd: &str) -> Self {
        let from = oracle();
        let own = scratch();
        let bin = own.join("bin");
        fs::create_dir(&bin).unwrap();
        let udevadm = bin.join("udevadm");
        fs::copy(from.join("bin/udevadm"), &udevadm).unwrap();
        let udevd = bin.join("systemd-udevd");
        symlink("udevadm", &udevd).unwrap();
        let stock = own.join("stock");
        fs::create_dir(&stock).unwrap();
        for entry in fs::read_dir(from.join("lib/udev/rules.d"))
            .unwrap()
            .flatten()
        {
            fs::copy(entry.path(), stock.join(entry.file_name())).unwrap();
        }
        fresh_dev();
        let etc = own.join("etc");
        fs::create_dir_all(etc.join("udev/rules.d")).unwrap();
        fs::write(etc.join("group"), group).unwrap();
        fs::write(etc.join("passwd"), passwd).unwrap();
        fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\n").unwrap();
        fs::copy("/etc/ld.so.cache", etc.join("ld.so.cache")).unwrap();
        bind(&etc, Path::new("/etc"));
        mount_tmpfs(Path::new("/run"), "mode=755");
        fs::create_dir(Path::new("/run/udev")).unwrap();
        for directory in ["/usr/lib", "/usr/local/lib"] {
            let directory = Path::new(directory);
            let rules = directory.join("udev/rules.d");
            if !rules.is_dir() {
                // Directories that the machine does not have are created in an overlay of links.
                overlay(directory);
                fs::create_dir_all(&rules).unwrap();
            }
            mount_tmpfs(&rules, "mode=755");
        }
        mknod_kvm(Path::new(NODE), 0, 0, 0o600);
        Self {
            udevadm,
            udevd,
            stock,
        }
    }

    /// The directory with udevadm and udevd.
    pub fn directory(&self) -> &Path {
        self.udevadm.parent().unwrap()
    }

    /// Replaces the content of the rules directories by this set.
    pub fn install(&self, set: &RuleSet) {
        for directory in rule_sets::DIRECTORIES {
            let directory = Path::new("/").join(directory);
            if directory.is_dir() {
                for entry in fs::read_dir(&directory).unwrap().flatten() {
                    let path = entry.path();
                    match entry.file_type().unwrap().is_dir() {
                        true => fs::remove_dir_all(path).unwrap(),
                        false => fs::remove_file(path).unwrap(),
                    }
                }
            }
            fs::create_dir_all(&directory).unwrap();
        }
        for Entry { path, content } in &set.files {
            let path = Path::new("/").join(path);
            match content {
                Content::Text(text) => fs::write(path, text).unwrap(),
                Content::Link(to) => symlink(to, path).unwrap(),
                Content::Directory => fs::create_dir(path).unwrap(),
                Content::Stock => {
                    for entry in fs::read_dir(&self.stock).unwrap().flatten() {
                        fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
                    }
                }
            }
        }
    }

    /// The state in which a start, an add event and a change event leave a new device.
    pub fn ask(&self) -> [State; 3] {
        let fresh = || set_owner(Path::new(NODE), 0, 0, 0o600);
        fresh();
        let daemon = self.start();
        let start = state();
        let at = |action: &str| {
            fresh();
            self.trigger(action);
            state()
        };
        let (add, change) = (at("add"), at("change"));
        drop(daemon);
        [start, add, change]
    }

    /// Starts a udevd without state of an earlier one, and waits until it is ready.
    pub fn start(&self) -> Daemon {
        let _ = fs::remove_dir_all("/run/udev/data");
        let _ = fs::remove_file("/run/udev/control");
        let child = Command::new(&self.udevd)
            .arg("--children-max=1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon(child);
        let patience = Instant::now() + Duration::from_secs(20);
        while !self.answers() {
            assert!(Instant::now() < patience, "udevd is not ready");
            std::thread::sleep(Duration::from_millis(2));
        }
        daemon
    }

    /// Triggers an event of the device, and waits until udevd has handled it.
    pub fn trigger(&self, action: &str) {
        let action = format!("--action={action}");
        ok(self.udevadm("trigger").args(["--settle", &action, KVM]));
    }

    fn answers(&self) -> bool {
        Path::new("/run/udev/control").exists()
            && run(self.udevadm("control").args(["--ping", "--timeout=10"])).0 == 0
    }

    /// A udevadm command with a time limit of 20 seconds.
    pub fn udevadm(&self, name: &str) -> Command {
        // If a udevd worker fails, udevadm would wait for its event without limit.
        let mut command = Command::new("timeout");
        command.arg("20").arg(&self.udevadm).arg(name);
        command
    }
}

/// A running udevd, terminated on drop.
pub struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        self.0.wait().unwrap();
    }
}

/// Mounts a tmpfs with links to the entries of `directory` over it, so that new directories can be created there.
fn overlay(directory: &Path) {
    let copy = scratch().join(directory.to_string_lossy().replace('/', "_"));
    fs::create_dir(&copy).unwrap();
    bind(directory, &copy);
    mount_tmpfs(directory, "mode=755");
    for entry in fs::read_dir(&copy).unwrap().flatten() {
        // The directory udev is recreated: through a link, files of the machine would be changed.
        if entry.file_name() != "udev" {
            symlink(entry.path(), directory.join(entry.file_name())).unwrap();
        }
    }
}

/// Owner, group and permission bits.
pub type State = (u32, u32, u32);

/// A state in the notation of `ls -n` and chmod(1).
pub fn shown((uid, gid, mode): State) -> String {
    format!("{uid}:{gid} {mode:04o}")
}

/// The state of the device.
pub fn state() -> State {
    let node = fs::metadata(NODE).unwrap();
    (node.uid(), node.gid(), node.permissions().mode() & 0o7777)
}

/// The attributes of the machine's own device, which a test must not change.
pub fn machines_own() -> Option<(u64, u32, u32, u32, i64, i64)> {
    let node = fs::metadata(NODE).ok()?;
    Some((
        node.ino(),
        node.uid(),
        node.gid(),
        node.mode(),
        node.ctime(),
        node.ctime_nsec(),
    ))
}

/// An exclusive lock on the machine for tests that run a udevd, held until the file is closed: the kernel sends its
/// events to every udevd.
pub fn turn() -> fs::File {
    let turn = uevent();
    turn.lock().unwrap();
    turn
}

/// The shared lock for tests that run no udevd but cause events.
pub fn shared_turn() -> fs::File {
    let turn = uevent();
    turn.lock_shared().unwrap();
    turn
}

fn uevent() -> fs::File {
    fs::File::open(Path::new(KVM).join("uevent")).unwrap()
}
