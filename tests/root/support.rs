//! A node and a pod that share one /dev, and what every run of the program must keep to.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

use crate::common::{Tree, bind, fresh_dev, mknod_kvm, program, require_kvm, run};

/// The device of every scene.
pub const KVM: &str = "/dev/kvm";

/// A node whose kvm is 108, and a pod whose image says 424, over one /dev.
pub struct Scene {
    pub host: Tree,
    pub pod: Tree,
}

impl Scene {
    /// The incident: the device is 0:424.
    pub fn new() -> Self {
        Self::with_device(0, 424, 0o660)
    }

    pub fn with_device(uid: u32, gid: u32, mode: u32) -> Self {
        let scene = Self::without_device();
        mknod_kvm(Path::new(KVM), uid, gid, mode);
        scene
    }

    /// A pod that is as the node, with the device as it shall be.
    pub fn settled() -> Self {
        let scene = Self::with_device(0, 108, 0o660);
        scene.pod.file("etc/group", ALIGNED);
        scene
    }

    pub fn without_device() -> Self {
        require_kvm();
        fresh_dev();
        let (host, pod) = (Tree::host(108), Tree::pod(424));
        bind(Path::new("/dev"), &host.at("dev"));
        Self { host, pod }
    }

    /// `apply` for this pod on this node.
    pub fn apply(&self) -> Command {
        let mut cmd = apply();
        cmd.arg("--root").arg(self.pod.path());
        cmd.arg("--host-root").arg(self.host.path());
        cmd
    }

    /// Everything that a run must not touch when it says no.
    pub fn state(&self) -> State {
        state(&[self.host.path(), self.pod.path(), Path::new("/dev")])
    }
}

/// The group file of [`Tree::pod`] once it follows a node whose kvm is 108.
pub const ALIGNED: &str = "root:x:0:\nkvm:x:108:nova\nnova:x:42424:\n";

/// `apply` without any option, in an environment without any variable but PATH.
pub fn apply() -> Command {
    command(&program(), &["apply"])
}

/// A command in an environment without any variable but PATH.
pub fn command(path: &Path, args: &[&str]) -> Command {
    let mut cmd = Command::new(path);
    cmd.args(args).env_clear().env("PATH", PATH);
    cmd
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
    shown: String,
}

/// Runs the program, and checks what holds for every run: no panic, no colour, no line of the table
/// over 80 columns, and on failure a last line that says why.
pub fn go(cmd: &mut Command) -> Run {
    let shown = format!("{cmd:?}");
    let (code, out, err) = run(cmd);
    let run = Run {
        code,
        out,
        err,
        shown,
    };
    let text = format!("{run}");
    assert!(!run.err.contains("panicked"), "{text}");
    assert!(!run.out.contains('\x1b'), "{text}");
    assert!((0..=6).contains(&run.code), "{text}");
    if !run.out.starts_with('{') {
        assert_fits(&run.out);
    }
    if run.code != 0 {
        let last = run.err.lines().last().unwrap_or_default();
        assert!(last.starts_with("libvirt-kvm-init: "), "{text}");
    }
    run
}

/// Every line has at most 80 columns, unless one word alone is wider.
pub fn assert_fits(table: &str) {
    for line in table.lines() {
        let width = line.chars().count();
        let longest = line.split_whitespace().map(|word| word.chars().count());
        // The word and the label before it.
        let longest = longest.max().unwrap_or_default() + 11;
        assert!(width <= 80.max(longest), "{width} columns: {line}\n{table}");
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            code,
            out,
            err,
            shown,
        } = self;
        write!(f, "{shown}\nexit code {code}\n{out}{err}")
    }
}

impl Run {
    /// The exit code must be this one.
    #[track_caller]
    pub fn code(self, want: i32) -> Self {
        assert_eq!(self.code, want, "{self}");
        self
    }

    /// The last line must contain all of these.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        let last = self.err.lines().last().unwrap_or_default();
        for part in parts {
            assert!(
                last.contains(part),
                "`{part}` is not in the last line\n{self}"
            );
        }
        self
    }

    /// The report.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self}"))
    }
}

/// Runs with `--format json`, and gives the report.
#[track_caller]
pub fn report(cmd: &mut Command) -> (i32, serde_json::Value) {
    let run = go(cmd.args(["--format", "json"]));
    let report = run.json();
    assert_eq!(report["exit_code"], run.code, "{run}");
    (run.code, report)
}

/// The codes of a report's warnings, but for the one that is about the machine's own QEMUs.
pub fn warnings(report: &serde_json::Value) -> Vec<String> {
    let all = report["warnings"].as_array().unwrap().iter();
    all.map(|warning| warning["code"].as_str().unwrap().to_owned())
        .filter(|code| code != "old-gid-in-use")
        .collect()
}

/// Everything that stat(2) and read(2) say of the files below some folders.
pub type State = BTreeMap<PathBuf, (String, Vec<u8>)>;

pub fn state(folders: &[&Path]) -> State {
    let mut all = State::new();
    let mut todo: Vec<_> = folders.iter().map(|path| path.to_path_buf()).collect();
    while let Some(path) = todo.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_dir() {
            let names = fs::read_dir(&path).unwrap();
            todo.extend(names.map(|entry| entry.unwrap().path()));
        }
        let small = meta.is_file() && meta.len() < 1 << 24;
        let content = if small {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        all.insert(path, (facts(&meta), content));
    }
    all
}

/// Inode, kind and mode, owner, links, size, modification and change time.
fn facts(meta: &fs::Metadata) -> String {
    let device = meta.file_type().is_char_device();
    format!(
        "{}:{} {:o} {}:{} {} {} {}.{} {}.{} {device}",
        meta.dev(),
        meta.ino(),
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    )
}

/// Waits until this is so. The limit is there for a test that hangs.
#[track_caller]
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < end, "not in a minute: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until another process than this one and than those that had it open before has a file open.
pub fn opened_by_another(path: &Path, before: &[u32]) {
    eventually("a process that opens the file", || {
        openers(path).iter().any(|pid| !before.contains(pid))
    });
}

/// The processes that have a file open.
pub fn openers(path: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        fds.flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == path))
    })
    .collect()
}

/// Owner, group, permission bits.
pub fn owner(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

pub fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Bind-mounts `source` read-only on `target`.
pub fn bind_read_only(source: &Path, target: &Path) {
    bind(source, target);
    make_read_only(target);
}

/// Makes a mount read-only in this namespace.
pub fn make_read_only(target: &Path) {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .unwrap_or_else(|e| panic!("remount {} read-only: {e}", target.display()));
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> std::io::Result<()> {
    let (path, name) = c_strings(path, name);
    // SAFETY: both strings end in NUL, and the value is as long as the call is told.
    let done = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

pub fn get_xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = c_strings(path, name);
    let mut value = vec![0_u8; 4096];
    // SAFETY: both strings end in NUL, and the buffer is as long as the call is told.
    let got = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(got).ok()?);
    Some(value)
}

fn c_strings(path: &Path, name: &str) -> (CString, CString) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    (path, CString::new(name).unwrap())
}

/// Makes a system call answer `errno` in a command: what an older kernel or a runtime's filter does.
pub fn without_call(cmd: &mut Command, call: libc::c_long, errno: i32) -> &mut Command {
    use std::os::unix::process::CommandExt;
    let call = u32::try_from(call).unwrap();
    let errno = u32::try_from(errno).unwrap();
    let code = |op: u32| u16::try_from(op).unwrap();
    let step = |op: u32, k, jt, jf| libc::sock_filter {
        code: code(op),
        jt,
        jf,
        k,
    };
    let filter = [
        // The number is the first word of struct seccomp_data.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call, 0, 1),
        step(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | errno,
            0,
            0,
        ),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let install = move || {
        let program = libc::sock_fprog {
            len: 4,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the program outlives the call, which copies it.
        let done = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        if done == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: one system call, no allocation.
    unsafe { cmd.pre_exec(install) }
}

/// Bounds the memory that the command may map, in bytes.
pub fn bounded_memory(cmd: &mut Command, bytes: u64) -> &mut Command {
    limited(cmd, libc::RLIMIT_AS as _, bytes)
}

/// Kills a command that needs more processor time than reading its input does: 20 s.
pub fn bounded_cpu(cmd: &mut Command) -> &mut Command {
    limited(cmd, libc::RLIMIT_CPU as _, 20)
}

fn limited(cmd: &mut Command, resource: u32, most: u64) -> &mut Command {
    use std::os::unix::process::CommandExt;
    let limit = move || {
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        // SAFETY: reads a struct that lives here.
        match unsafe { libc::setrlimit(resource as _, &raw const limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: one system call.
    unsafe { cmd.pre_exec(limit) }
}

/// Makes a command run below another root.
pub fn below<'a>(cmd: &'a mut Command, root: &Path) -> &'a mut Command {
    use std::os::unix::process::CommandExt;
    let root = root.to_owned();
    let change = move || {
        nix::unistd::chroot(&root)?;
        nix::unistd::chdir("/")?;
        Ok(())
    };
    // SAFETY: two system calls; the paths are short enough for nix not to allocate.
    unsafe { cmd.pre_exec(change) }
}

/// Takes a capability from the command for good.
pub fn without_capability(cmd: &mut Command, capability: caps::Capability) -> &mut Command {
    use std::os::unix::process::CommandExt;
    let drop =
        move || caps::drop(None, caps::CapSet::Bounding, capability).map_err(std::io::Error::other);
    // SAFETY: one prctl(2).
    unsafe { cmd.pre_exec(drop) }
}
