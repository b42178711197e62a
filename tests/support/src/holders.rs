//! Processes of other users that hold locks, leases or files.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The UID of the QEMU user, an ordinary unprivileged user.
pub const OTHER: u32 = 42424;

/// A process that holds a lock, lease or file; killed on drop.
pub struct Holder(Child);

impl Holder {
    /// Kills the process with SIGKILL, as the kernel does when memory is exhausted.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts a process of this user that runs `first` and then sleeps.
fn process(uid: u32, first: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Holder {
    try_process(uid, first).unwrap()
}

fn try_process(
    uid: u32,
    first: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<Holder> {
    let mut cmd = Command::new("sleep");
    cmd.arg("600").uid(uid).gid(uid);
    cmd.stdin(Stdio::null()).stdout(Stdio::null());
    cmd.stderr(Stdio::null());
    // SAFETY: the child makes system calls and allocates strings, which this C library allows after fork.
    unsafe { cmd.pre_exec(first) };
    cmd.spawn().map(Holder)
}

fn checked(done: libc::c_int) -> io::Result<()> {
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Keeps the file open across exec.
fn kept(file: File) -> io::Result<libc::c_int> {
    let fd = file.into_raw_fd();
    // SAFETY: changes a flag of an open descriptor.
    checked(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
    Ok(fd)
}

fn lock_of(kind: libc::c_int) -> libc::flock {
    // SAFETY: zeroes are a valid value and mean the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind.try_into().unwrap();
    lock
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Starts a process of root that holds the lock, taken as by lckpwdf(3).
pub fn lockers_process(path: &Path) -> Holder {
    try_lockers_process(path).unwrap()
}

/// Starts a process that holds the lock; `None` if another process has it.
pub fn try_lockers_process(path: &Path) -> Option<Holder> {
    let path = path.to_owned();
    try_process(0, move || {
        let fd = kept(lock_file(&path)?)?;
        let wanted = lock_of(libc::F_WRLCK);
        // SAFETY: reads a valid local struct.
        checked(unsafe { libc::fcntl(fd, libc::F_SETLK, &raw const wanted) })
    })
    .ok()
}

/// Takes the lock for this process; it is held while the file is open.
pub fn lock(path: &Path) -> Option<File> {
    let file = lock_file(path).unwrap();
    let wanted = lock_of(libc::F_WRLCK);
    // SAFETY: reads a valid local struct.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const wanted) };
    (done == 0).then_some(file)
}

/// Starts a process of another user that takes every lock on these files that it can get: exclusive flock(2) locks and
/// fcntl(2) locks. Panics if it gets none.
pub fn greedy(paths: Vec<PathBuf>) -> Holder {
    process(OTHER, move || {
        let mut got = 0;
        for path in &paths {
            for for_writing in [false, true] {
                let opened = OpenOptions::new().read(true).write(for_writing).open(path);
                let Ok(file) = opened else { continue };
                let fd = kept(file)?;
                // SAFETY: the call takes two integers.
                let flocked = unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) } == 0;
                let kind = match for_writing {
                    true => libc::F_WRLCK,
                    false => libc::F_RDLCK,
                };
                let wanted = lock_of(kind);
                // SAFETY: reads a valid local struct.
                let locked = unsafe { libc::fcntl(fd, libc::F_SETLK, &raw const wanted) } == 0;
                got += i32::from(flocked) + i32::from(locked);
            }
        }
        match got {
            0 => Err(io::Error::other("no lock could be taken")),
            _ => Ok(()),
        }
    })
}

/// Starts a process of another user that holds a lease on its own file: an open(2) of that file blocks, or fails with
/// EWOULDBLOCK if it is non-blocking.
pub fn lease(path: &Path) -> Holder {
    let path = path.to_owned();
    process(OTHER, move || {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let fd = kept(file)?;
        // SAFETY: installs no handler; the calls take integers.
        unsafe {
            libc::signal(libc::SIGIO, libc::SIG_IGN);
            checked(libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK))
        }
    })
}

/// Runs `what` as another user, in a child.
pub fn as_other(what: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    process(OTHER, what).kill();
}
