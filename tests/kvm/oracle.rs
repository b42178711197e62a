//! Reference results that do not use the program under test: identities from glibc, and verdicts from starting QEMU.

use std::cell::RefCell;
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use support::{bind, require_commands, require_kvm, scratch};

/// The identity with which libvirt starts QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Sorted, without duplicates.
    pub groups: Vec<u32>,
    /// The first passwd name with the UID.
    pub name: Option<String>,
}

/// Makes glibc read the account files of a test instead of the machine's.
pub struct Accounts {
    passwd: PathBuf,
    group: PathBuf,
}

impl Accounts {
    /// Bind-mounts test files over the account files of this namespace. Any failure here fails the test, since
    /// results from the machine's own files would be meaningless.
    pub fn cover() -> Self {
        if !cfg!(target_env = "gnu") {
            panic!("this test compares with glibc: test a gnu build");
        }
        for socket in ["/run/nscd", "/var/run/nscd"] {
            if Path::new(socket).exists() {
                support::mount_tmpfs(Path::new(socket), "mode=755");
            }
        }
        let cover = |name: &str, text: &str| {
            let path = scratch().join(format!("etc-{name}"));
            fs::write(&path, text).unwrap();
            bind(&path, &Path::new("/etc").join(name));
            path
        };
        cover("nsswitch.conf", "passwd: files\ngroup: files\n");
        let accounts = Self {
            passwd: cover("passwd", "canary:x:12345:12345::/:\n"),
            group: cover("group", "canary:x:12345:canary\n"),
        };
        let seen = User::from_name("canary")
            .unwrap()
            .map(|user| user.uid.as_raw());
        assert_eq!(
            seen,
            Some(12345),
            "glibc must read the passwd file of the test"
        );
        let root = Group::from_name("root").unwrap();
        assert_eq!(root, None, "glibc also reads another group file");
        accounts
    }

    /// Calls `ask` while glibc reads these files. Afterwards the files are empty: setpriv would treat 108 as the
    /// name of a group if one had that name.
    pub fn with<T>(&self, passwd: &[u8], group: &[u8], ask: impl FnOnce(&Self) -> T) -> T {
        let set = |passwd: &[u8], group: &[u8]| {
            fs::write(&self.passwd, passwd).unwrap();
            fs::write(&self.group, group).unwrap();
        };
        set(passwd, group);
        let answer = ask(self);
        set(b"", b"");
        answer
    }

    /// Computes what virGetUserID, virGetGroupID and virGetGroupList return; `None` if libvirtd would not start.
    pub fn identity(&self, user: &str, group: &str) -> Option<Identity> {
        let uid = number_after_plus(user).or_else(|| {
            let found = User::from_name(user).unwrap();
            found
                .map(|user| user.uid.as_raw())
                .or_else(|| user.parse().ok())
        })?;
        let gid = number_after_plus(group)
            .or_else(|| self.gid_of(group).or_else(|| group.parse().ok()))?;
        let first = User::from_uid(Uid::from_raw(uid)).unwrap();
        let mut groups: Vec<u32> = match &first {
            Some(first) => getgrouplist(&CString::new(first.name.as_str()).unwrap(), first.gid)
                .unwrap()
                .into_iter()
                .map(Gid::as_raw)
                .collect(),
            None => Vec::new(),
        };
        groups.push(gid);
        groups.sort_unstable();
        groups.dedup();
        Some(Identity {
            uid,
            gid,
            groups,
            name: first.map(|user| user.name),
        })
    }

    /// Calls getgrnam(3).
    pub fn gid_of(&self, group: &str) -> Option<u32> {
        Group::from_name(group)
            .unwrap()
            .map(|group| group.gid.as_raw())
    }
}

fn number_after_plus(text: &str) -> Option<u32> {
    text.strip_prefix('+').map(|number| number.parse().unwrap())
}

/// The result of a QEMU run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    pub works: bool,
    pub text: String,
}

const QEMU: [&str; 10] = [
    "qemu-system-x86_64",
    "-accel",
    "kvm",
    "-machine",
    "none",
    "-nodefaults",
    "-display",
    "none",
    "-S",
    "-monitor",
];

/// Runs QEMU up to its monitor with the credentials that libvirt would set.
pub fn qemu(who: &Identity) -> Qemu {
    qemu_under(&[], who)
}

/// Like [`qemu`], started through a wrapper command that executes its arguments.
pub fn qemu_under(wrapper: &[&str], who: &Identity) -> Qemu {
    let mut words: Vec<String> = wrapper.iter().map(|&word| word.to_owned()).collect();
    words.extend(drop_to(who));
    words.extend(QEMU.map(str::to_owned));
    words.push("stdio".to_owned());
    let (code, stdout, stderr) = run_with(Command::new(&words[0]).args(&words[1..]), b"quit\n");
    let text = format!("{stdout}{stderr}");
    // Any other failure is unrelated to KVM.
    assert!(
        code == 0 || text.contains("KVM kernel module") || text.contains("initialize kvm"),
        "QEMU failed for a reason other than KVM: {code} {text}"
    );
    Qemu {
        works: code == 0,
        text,
    }
}

/// A command prefix that sets these credentials. UID 0 keeps its capabilities; for other users setuid(2) drops them.
pub fn drop_to(who: &Identity) -> Vec<String> {
    let groups: Vec<_> = who.groups.iter().map(u32::to_string).collect();
    [
        "setpriv",
        &format!("--reuid={}", who.uid),
        &format!("--regid={}", who.gid),
        &format!("--groups={}", groups.join(",")),
        "--inh-caps=-all",
        "--",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Runs a command to its end without opening /dev/null, which fails on a `nodev` /dev.
pub fn run_with(cmd: &mut Command, input: &[u8]) -> (i32, String, String) {
    let mut child = cmd
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{cmd:?}: {e}"));
    // A QEMU that has already failed reads no input.
    let _ = child.stdin.take().unwrap().write_all(input);
    let out = child.wait_with_output().unwrap();
    let signal = out.status.signal().map(|signal| 128 + signal);
    (
        out.status.code().or(signal).unwrap(),
        String::from_utf8_lossy(&out.stdout).into_owned(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

thread_local! {
    static SHARED_TURN: RefCell<Option<fs::File>> = const { RefCell::new(None) };
}

/// Checks the requirements of every test of this tier. The kernel sends a change event to every udevd whenever a
/// virtual machine starts or ends, so no other test runs a udevd until this thread ends.
pub fn require() {
    require_tools();
    SHARED_TURN.set(Some(support::udevd::shared_turn()));
}

/// Like [`require`], for a test that runs a udevd.
pub fn require_tools() {
    require_commands(&["qemu-system-x86_64", "setpriv", "setfacl", "getfacl"]);
    require_kvm();
}
