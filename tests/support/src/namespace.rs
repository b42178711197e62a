//! A private mount namespace with its own devices for each test.
//!
//! A test never changes the machine's own /dev/kvm, /etc or libvirt. Everything below happens in a mount namespace that
//! ends with the closure. Directory trees are on a tmpfs of that namespace, so that cleanup cannot follow a bind mount
//! out of it.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::project;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

thread_local! {
    /// The tmpfs of the namespace that this thread is in.
    static SCRATCH: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Panics if the test does not run as root: tests/run decides which tiers run, so a test never skips itself.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this tier needs root: run it as root or skip it"
    );
}

/// Panics if one of these commands is not installed.
pub fn require_commands(names: &[&str]) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: OsString = [path, OsString::from("/usr/sbin:/sbin")].join(std::ffi::OsStr::new(":"));
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
        .collect();
    assert!(
        missing.is_empty(),
        "this tier needs these commands, which are not installed: {missing:?}"
    );
}

/// Panics if a device 10:232 cannot be opened. Needs `in_namespace`.
pub fn require_kvm() {
    let node = scratch().join("kvm-probe");
    mknod_kvm(&node, 0, 0, 0o600);
    if let Err(e) = fs::File::options().read(true).write(true).open(&node) {
        panic!("this tier needs a usable KVM, but opening 10:232 failed: {e}");
    }
    fs::remove_file(&node).unwrap();
}

/// The directory of the unpacked udev of the distribution: `KVM_INIT_TEST_UDEV`, or the newest in target/oracle, where
/// tests/install unpacks it.
pub fn udev_directory() -> Option<PathBuf> {
    let usual = project("target/oracle");
    let unpacked = || fs::read_dir(&usual).into_iter().flatten().flatten();
    let given = std::env::var_os("KVM_INIT_TEST_UDEV").map(PathBuf::from);
    let directory = given.or_else(|| unpacked().map(|entry| entry.path()).max());
    directory.filter(|directory| directory.join("bin/udevadm").is_file())
}

/// Runs `f` in a thread with a private mount namespace. Commands started from that thread are in it too; a panic of
/// `f` is propagated to the caller.
pub fn in_namespace<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    require_root();
    default_signals();
    let scratch = tempfile::tempdir().unwrap();
    let result = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name(
                std::thread::current()
                    .name()
                    .unwrap_or("namespace")
                    .to_owned(),
            )
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_NEWNS).expect("unshare(CLONE_NEWNS)");
                mount(
                    None::<&str>,
                    "/",
                    None::<&str>,
                    MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                    None::<&str>,
                )
                .expect("make / private");
                mount_tmpfs(scratch.path(), "mode=755");
                SCRATCH.set(Some(scratch.path().to_owned()));
                f()
            })
            .unwrap()
            .join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A job that a shell or nohup(1) starts in the background ignores these signals; the processes of a test would inherit
/// that.
#[allow(unsafe_code)]
fn default_signals() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for number in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
        // SAFETY: sets the default action and installs no handler.
        unsafe { signal(number, SigHandler::SigDfl) }.unwrap();
    }
}

/// True if this thread runs inside `in_namespace`.
pub(crate) fn in_a_namespace() -> bool {
    SCRATCH.with_borrow(Option::is_some)
}

/// The namespace's own directory: a tmpfs that allows devices and ends with the namespace.
pub fn scratch() -> PathBuf {
    SCRATCH
        .with_borrow(Clone::clone)
        .expect("only inside in_namespace")
}

/// A new empty directory below `scratch()`.
pub(crate) fn scratch_dir() -> PathBuf {
    tempfile::Builder::new()
        .tempdir_in(scratch())
        .unwrap()
        .keep()
}

/// Mounts a tmpfs that allows devices.
pub fn mount_tmpfs(target: &Path, options: &str) {
    mount(
        Some("tmpfs"),
        target,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some(options),
    )
    .unwrap_or_else(|e| panic!("mount a tmpfs on {}: {e}", target.display()));
}

/// Bind-mounts `source` on `target`.
pub fn bind(source: &Path, target: &Path) {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap_or_else(|e| panic!("bind {} on {}: {e}", source.display(), target.display()));
}

/// Bind-mounts `source` on `target` with all mounts below it.
pub fn bind_all(source: &Path, target: &Path) {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, None::<&str>, flags, None::<&str>)
        .unwrap_or_else(|e| panic!("bind {} on {}: {e}", source.display(), target.display()));
}

/// Unmounts everything on `target` in this namespace.
pub fn detach(target: &Path) {
    loop {
        match umount2(target, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL) => return,
            Err(e) => panic!("detach {}: {e}", target.display()),
        }
    }
}

/// Replaces /dev by a new one with the devices that programs expect, and without /dev/kvm. Detaches the old one first,
/// since libvirt searches for mounts below /dev and would find the old ones.
pub fn fresh_dev() {
    assert!(in_a_namespace(), "only inside in_namespace");
    let dev = Path::new("/dev");
    detach(dev);
    mount_tmpfs(dev, "mode=755");
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        mknod_char(&dev.join(name), (major, minor), 0, 0, 0o666);
    }
    for name in ["pts", "shm"] {
        fs::create_dir(dev.join(name)).unwrap();
    }
    let pts = Some("newinstance,ptmxmode=666,mode=620");
    mount(
        Some("devpts"),
        "/dev/pts",
        Some("devpts"),
        MsFlags::MS_NOSUID,
        pts,
    )
    .expect("mount devpts");
    mount_tmpfs(&dev.join("shm"), "mode=1777");
    for (name, to) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(to, dev.join(name)).unwrap();
    }
}

/// Creates a character device with exactly this owner, group and mode.
pub fn mknod_char(path: &Path, (major, minor): (u64, u64), uid: u32, gid: u32, mode: u32) {
    mknod(path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor))
        .unwrap_or_else(|e| panic!("mknod {}: {e}", path.display()));
    set_owner(path, uid, gid, mode);
}

/// Creates a KVM device, 10:232.
pub fn mknod_kvm(path: &Path, uid: u32, gid: u32, mode: u32) {
    mknod_char(path, (10, 232), uid, gid, mode);
}

/// Calls chown, then chmod, as udev does.
pub fn set_owner(path: &Path, uid: u32, gid: u32, mode: u32) {
    chown(path, Some(uid), Some(gid)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
