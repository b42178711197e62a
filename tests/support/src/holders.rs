//! Processes of other users, and what they hold on to: locks, leases, files.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The user of QEMU, who is nobody in particular here.
pub const OTHER: u32 = 42424;

/// A process that holds something, ended with the value.
pub struct Holder(Child);

impl Holder {
    /// Kills it, as the kernel does with one that needs too much memory.
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

/// A process of this user that has done `first`, and then does nothing.
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
    // SAFETY: the child makes system calls and builds strings; this C library lets it.
    unsafe { cmd.pre_exec(first) };
    cmd.spawn().map(Holder)
}

fn checked(done: libc::c_int) -> io::Result<()> {
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Open also in the program that this process becomes.
fn kept(file: File) -> io::Result<libc::c_int> {
    let fd = file.into_raw_fd();
    // SAFETY: changes a flag of a descriptor of its own.
    checked(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
    Ok(fd)
}

fn lock_of(kind: libc::c_int) -> libc::flock {
    // SAFETY: zeroes are a valid value: the whole file.
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

/// Takes the lock as lckpwdf(3) does, in a process of root's.
pub fn lockers_process(path: &Path) -> Holder {
    try_lockers_process(path).unwrap()
}

/// The same; nothing where another process has it.
pub fn try_lockers_process(path: &Path) -> Option<Holder> {
    let path = path.to_owned();
    try_process(0, move || {
        let fd = kept(lock_file(&path)?)?;
        let wanted = lock_of(libc::F_WRLCK);
        // SAFETY: reads a struct that lives here.
        checked(unsafe { libc::fcntl(fd, libc::F_SETLK, &raw const wanted) })
    })
    .ok()
}

/// Takes the lock for this process, as long as the file is open.
pub fn lock(path: &Path) -> Option<File> {
    let file = lock_file(path).unwrap();
    let wanted = lock_of(libc::F_WRLCK);
    // SAFETY: reads a struct that lives here.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const wanted) };
    (done == 0).then_some(file)
}

/// A process of another user that holds every lock on these that it can get: flock(2) for itself alone, and
/// fcntl(2) for reading. How many it got is what it tells by ending at once where there was none.
pub fn greedy(paths: Vec<PathBuf>) -> Holder {
    process(OTHER, move || {
        let mut got = 0;
        for path in &paths {
            for for_writing in [false, true] {
                let opened = OpenOptions::new().read(true).write(for_writing).open(path);
                let Ok(file) = opened else { continue };
                let fd = kept(file)?;
                // SAFETY: two integers.
                let flocked = unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) } == 0;
                let kind = match for_writing {
                    true => libc::F_WRLCK,
                    false => libc::F_RDLCK,
                };
                let wanted = lock_of(kind);
                // SAFETY: reads a struct that lives here.
                let locked = unsafe { libc::fcntl(fd, libc::F_SETLK, &raw const wanted) } == 0;
                got += i32::from(flocked) + i32::from(locked);
            }
        }
        match got {
            0 => Err(io::Error::other("nothing to hold")),
            _ => Ok(()),
        }
    })
}

/// A process of another user that holds a lease on a file of its own: whoever opens that file waits, or is
/// told to come again.
pub fn lease(path: &Path) -> Holder {
    let path = path.to_owned();
    process(OTHER, move || {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let fd = kept(file)?;
        // SAFETY: installs no handler; two integers.
        unsafe {
            libc::signal(libc::SIGIO, libc::SIG_IGN);
            checked(libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK))
        }
    })
}

/// Does something as another user, in a child.
pub fn as_other(what: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    process(OTHER, what).kill();
}
