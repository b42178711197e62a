//! The forecast against the distribution's real systemd-udevd: every rule set is given to both, and
//! what udevd makes of the node when it starts, at an add event and at a change event must be what
//! was predicted.
//!
//! The daemon runs in a private mount namespace with a /dev, /run, /etc and rules folders of its own.
//! It is the one in `KVM_INIT_TEST_UDEV`, or in target/oracle, where tests/run unpacks it: the
//! package is never installed, since its scripts would start it on the machine's own /dev.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::disallowed_methods
)]

mod common;
#[path = "common/rule_sets.rs"]
mod rule_sets;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{bind, fresh_dev, in_namespace, mknod_kvm, mount_tmpfs, ok, scratch, set_owner};
use libvirt_kvm_init::accounts::{group, passwd};
use libvirt_kvm_init::sys::root::Root;
use libvirt_kvm_init::udev::{Database, Event, Forecast, Prediction, Udevd, predict};
use libvirt_kvm_init::udev_read;
use rule_sets::{Content, Entry, RuleSet};

const KVM: &str = "/sys/devices/virtual/misc/kvm";
const NODE: &str = "/dev/kvm";

/// Where udev is unpacked.
fn oracle() -> PathBuf {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/oracle");
    let unpacked = || fs::read_dir(&usual).into_iter().flatten().flatten();
    let given = std::env::var_os("KVM_INIT_TEST_UDEV").map(PathBuf::from);
    let folder = given.or_else(|| unpacked().map(|entry| entry.path()).max());
    let folder = folder.filter(|folder| folder.join("bin/udevadm").is_file());
    folder.unwrap_or_else(|| {
        panic!(
            "this test needs udev unpacked (not installed) in {}/udev-VERSION, or in the folder \
             that KVM_INIT_TEST_UDEV names: run tests/run, or `apt-get download udev` and `dpkg \
             -x` it there",
            usual.display()
        )
    })
}

/// udevd and what it is asked with, in the namespace's own folders.
struct Oracle {
    udevadm: PathBuf,
    udevd: PathBuf,
    stock: PathBuf,
}

impl Oracle {
    /// Replaces everything that udevd reads and writes.
    fn new() -> Self {
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
        fs::write(etc.join("group"), rule_sets::GROUP).unwrap();
        fs::write(etc.join("passwd"), rule_sets::PASSWD).unwrap();
        fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\n").unwrap();
        fs::copy("/etc/ld.so.cache", etc.join("ld.so.cache")).unwrap();
        bind(&etc, Path::new("/etc"));
        mount_tmpfs(Path::new("/run"), "mode=755");
        fs::create_dir(Path::new("/run/udev")).unwrap();
        for folder in ["/usr/lib", "/usr/local/lib"] {
            let folder = Path::new(folder);
            let rules = folder.join("udev/rules.d");
            if !rules.is_dir() {
                // Folders that the machine does not have are made in a copy of links.
                overlay(folder);
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

    /// Makes the rules folders hold this set and nothing else.
    fn install(&self, set: &RuleSet) {
        for folder in rule_sets::FOLDERS {
            let folder = Path::new("/").join(folder);
            if folder.is_dir() {
                for entry in fs::read_dir(&folder).unwrap().flatten() {
                    let path = entry.path();
                    match entry.file_type().unwrap().is_dir() {
                        true => fs::remove_dir_all(path).unwrap(),
                        false => fs::remove_file(path).unwrap(),
                    }
                }
            }
            fs::create_dir_all(&folder).unwrap();
        }
        for Entry { path, content } in &set.files {
            let path = Path::new("/").join(path);
            match content {
                Content::Text(text) => fs::write(path, text).unwrap(),
                Content::Link(to) => symlink(to, path).unwrap(),
                Content::Folder => fs::create_dir(path).unwrap(),
                Content::Stock => {
                    for entry in fs::read_dir(&self.stock).unwrap().flatten() {
                        fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
                    }
                }
            }
        }
    }

    /// What the three events make of a fresh node.
    fn ask(&self) -> [State; 3] {
        let fresh = || set_owner(Path::new(NODE), 0, 0, 0o600);
        let _ = fs::remove_dir_all("/run/udev/data");
        let _ = fs::remove_file("/run/udev/control");
        fresh();
        let daemon = self.start();
        let start = state();
        let at = |action: &str| {
            fresh();
            let action = format!("--action={action}");
            ok(self.udevadm("trigger").args(["--settle", &action, KVM]));
            state()
        };
        let (add, change) = (at("add"), at("change"));
        drop(daemon);
        [start, add, change]
    }

    fn start(&self) -> Daemon {
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
            assert!(Instant::now() < patience, "udevd does not answer");
            std::thread::sleep(Duration::from_millis(2));
        }
        daemon
    }

    fn answers(&self) -> bool {
        Path::new("/run/udev/control").exists()
            && common::run(self.udevadm("control").args(["--ping", "--timeout=10"])).0 == 0
    }

    fn udevadm(&self, verb: &str) -> Command {
        // A worker that fails answers no one who waits for its event.
        let mut command = Command::new("timeout");
        command.arg("20").arg(&self.udevadm).arg(verb);
        command
    }
}

/// A running udevd, ended with the value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        self.0.wait().unwrap();
    }
}

/// Puts a tmpfs of links to what is in `folder` over it, so that folders can be made there.
fn overlay(folder: &Path) {
    let copy = scratch().join(folder.to_string_lossy().replace('/', "_"));
    fs::create_dir(&copy).unwrap();
    bind(folder, &copy);
    mount_tmpfs(folder, "mode=755");
    for entry in fs::read_dir(&copy).unwrap().flatten() {
        // udev's own is made anew: through a link, the machine's would be written to.
        if entry.file_name() != "udev" {
            symlink(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
}

type State = (u32, u32, u32);

fn shown((uid, gid, mode): State) -> String {
    format!("{uid}:{gid} {mode:04o}")
}

fn state() -> State {
    let node = fs::metadata(NODE).unwrap();
    (node.uid(), node.gid(), node.permissions().mode() & 0o7777)
}

/// What the forecast says of a fresh node; nothing where it says that it cannot tell.
fn forecast(prediction: &Prediction, event: Event) -> Option<State> {
    match prediction.of(event) {
        Forecast::Unclear => None,
        Forecast::Untouched => Some((0, 0, 0o600)),
        Forecast::Becomes(outcome) => Some((
            outcome.uid.map_or(0, nix::unistd::Uid::as_raw),
            outcome.gid.map_or(0, nix::unistd::Gid::as_raw),
            outcome.mode.map_or(0o600, u32::from),
        )),
    }
}

fn read_and_predict(version: u32) -> Prediction {
    let root = Root::open(Path::new("/")).unwrap();
    let files = udev_read::rules(&root).unwrap();
    let node = Udevd {
        version: Some(version),
        ..Udevd::default()
    };
    let group =
        |name: &str| Some(group::by_name(rule_sets::GROUP.as_bytes(), name.as_bytes())?.gid);
    let user =
        |name: &str| Some(passwd::by_name(rule_sets::PASSWD.as_bytes(), name.as_bytes())?.uid);
    let db = Database {
        group: &group,
        user: &user,
    };
    predict(&files, &node, &db)
}

/// Asks both about every set, and gives what differs and how many answers were "unclear".
fn compare(sets: &[RuleSet]) -> (Vec<String>, usize) {
    let oracle = Oracle::new();
    let version = ok(&mut oracle.udevadm("--version"));
    let version = version.trim().parse().unwrap();
    let (mut wrong, mut unclear) = (Vec::new(), 0);
    for set in sets {
        oracle.install(set);
        let prediction = read_and_predict(version);
        if set.name == "stock" {
            assert_eq!(
                prediction.unclear,
                [],
                "the distribution's own rules are clear"
            );
        }
        let real = oracle.ask();
        for (event, real) in [Event::Start, Event::Add, Event::Change]
            .into_iter()
            .zip(real)
        {
            match forecast(&prediction, event) {
                None => {
                    unclear += 1;
                    if !set.may_be_unclear {
                        wrong.push(format!(
                            "{set}\n{event:?}: unclear: {:?}",
                            prediction.unclear
                        ));
                    }
                }
                Some(said) if said == real => {}
                Some(said) => wrong.push(format!(
                    "{set}\n{event:?}: said {}, is {}\n{prediction:?}",
                    shown(said),
                    shown(real)
                )),
            }
        }
    }
    (wrong, unclear)
}

/// What a test must not touch.
fn machines_own() -> Option<(u64, u32, u32, u32, i64, i64)> {
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

fn check(sets: &[RuleSet]) {
    common::require_root();
    // The kernel's events reach every udevd: one comparison at a time on the machine.
    let turn = fs::File::open(Path::new(KVM).join("uevent")).unwrap();
    turn.lock().unwrap();
    let before = machines_own();
    let began = Instant::now();
    let (wrong, unclear) = in_namespace(|| compare(sets));
    assert_eq!(
        machines_own(),
        before,
        "the machine's own {NODE} was touched"
    );
    eprintln!(
        "{} rule sets, {} answers, {unclear} of them unclear, in {:.1} s",
        sets.len(),
        sets.len() * 3,
        began.elapsed().as_secs_f64()
    );
    assert!(
        wrong.is_empty(),
        "{} of {} answers differ from udevd:\n\n{}",
        wrong.len(),
        sets.len() * 3,
        wrong.join("\n\n")
    );
}

#[test]
#[ignore = "tier: root"]
fn forecasts_come_true_for_rules_that_people_write() {
    check(&rule_sets::written());
}

#[test]
#[ignore = "tier: root"]
fn forecasts_come_true_for_rules_put_together_at_random() {
    check(&rule_sets::random(300));
}
