//! What libvirt and QEMU do, found without the program: identities by asking glibc, verdicts by
//! starting QEMU.

use std::cell::RefCell;
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use support::{bind, require_commands, require_kvm, scratch};

/// Whom libvirt starts QEMU as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Sorted, each once.
    pub groups: Vec<u32>,
    /// The first passwd name with the uid.
    pub name: Option<String>,
}

/// glibc, made to read the account files of a test instead of the machine's.
pub struct Accounts {
    passwd: PathBuf,
    group: PathBuf,
}

impl Accounts {
    /// Covers the account files of this namespace. Whatever fails here fails the test: compared
    /// with the machine's own files the answers would mean nothing.
    pub fn cover() -> Self {
        if !cfg!(target_env = "gnu") {
            panic!("the oracle is glibc: test a gnu build");
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
        assert_eq!(seen, Some(12345), "glibc must see our passwd file");
        let root = Group::from_name("root").unwrap();
        assert_eq!(root, None, "glibc sees another group file too");
        accounts
    }

    /// Asks while glibc reads these files. Afterwards it reads empty ones: setpriv would take the
    /// number 108 for a group that is called so.
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

    /// virGetUserID and virGetGroupID, then virGetGroupList; `None` where libvirtd would not start.
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

    /// getgrnam
    pub fn gid_of(&self, group: &str) -> Option<u32> {
        Group::from_name(group)
            .unwrap()
            .map(|group| group.gid.as_raw())
    }
}

fn number_after_plus(text: &str) -> Option<u32> {
    text.strip_prefix('+').map(|number| number.parse().unwrap())
}

/// What came of a QEMU.
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

/// Runs QEMU up to its monitor with the credentials that libvirt would give it.
pub fn qemu(who: &Identity) -> Qemu {
    qemu_under(&[], who)
}

/// The same, through a command that ends in `exec "$@"` or the like.
pub fn qemu_under(wrapper: &[&str], who: &Identity) -> Qemu {
    let mut words: Vec<String> = wrapper.iter().map(|&word| word.to_owned()).collect();
    words.extend(drop_to(who));
    words.extend(QEMU.map(str::to_owned));
    words.push("stdio".to_owned());
    let (code, stdout, stderr) = run_with(Command::new(&words[0]).args(&words[1..]), b"quit\n");
    let text = format!("{stdout}{stderr}");
    // Anything else would be an oracle that fails for a reason of its own.
    assert!(
        code == 0 || text.contains("KVM kernel module") || text.contains("initialize kvm"),
        "QEMU says neither yes nor no: {code} {text}"
    );
    Qemu {
        works: code == 0,
        text,
    }
}

/// The words before a command that give it these credentials; uid 0 keeps its capabilities, and
/// setuid(2) takes those of everybody else.
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

/// Runs a command to its end without ever opening /dev/null, which a `nodev` /dev refuses.
pub fn run_with(cmd: &mut Command, input: &[u8]) -> (i32, String, String) {
    let mut child = cmd
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{cmd:?}: {e}"));
    // A QEMU that has already said no reads nothing.
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

/// What every test of this tier needs; it fails with a clear text where that is missing. The kernel
/// sends a change event to every udevd whenever a virtual machine begins or ends: until this thread
/// ends no test has one running.
pub fn require() {
    require_tools();
    SHARED_TURN.set(Some(support::udevd::shared_turn()));
}

/// The same for a test that has a udevd running.
pub fn require_tools() {
    require_commands(&["qemu-system-x86_64", "setpriv", "setfacl", "getfacl"]);
    require_kvm();
}
