//! Stops the proof's child at the moment it opens the device. A seccomp filter reports each open(2) for reading and
//! writing to the test, which decides when the call continues (seccomp_unotify(2)). No tracer is attached to the
//! child, so a test can also try to trace it.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` (include/uapi/linux/seccomp.h)
const RECEIVE: u32 = 0xc050_2100;
const SEND: u32 = 0xc018_2101;
/// Descriptor number of the filter's listener in the program, above the numbers that it uses itself.
const LISTENER: RawFd = 200;
/// Time limit of a run.
const LONGEST: Duration = Duration::from_secs(20);

/// A run of the program whose proof's child is stopped at its open(2) of the device.
pub struct Held {
    child: Child,
    listener: OwnedFd,
    /// Start of the run, for the time limit.
    started: Instant,
}

/// A child that is stopped before it opens the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    id: u64,
    pub pid: u32,
}

impl Held {
    pub fn start(cmd: &mut Command) -> Self {
        cmd.stdin(Stdio::null());
        cmd.stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: system calls only.
        unsafe { cmd.pre_exec(install) };
        let child = cmd.spawn().unwrap();
        // SAFETY: two system calls; the second creates a descriptor owned by this caller.
        let listener = unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, child.id(), 0);
            let process = OwnedFd::from_raw_fd(RawFd::try_from(process).unwrap());
            let listener = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), LISTENER, 0);
            assert!(listener >= 0, "pidfd_getfd: {}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(RawFd::try_from(listener).unwrap())
        };
        Self {
            child,
            listener,
            started: Instant::now(),
        }
    }

    /// The next child that opens the device; `None` once the run has ended.
    pub fn next(&mut self) -> Option<Opening> {
        loop {
            assert!(
                self.started.elapsed() < LONGEST,
                "the run exceeds its time limit"
            );
            let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::from(20_u8)).unwrap();
            if ready > 0
                && let Some(opening) = self.receive()
            {
                return Some(opening);
            }
            if self.child.try_wait().unwrap().is_some() {
                return None;
            }
        }
    }

    /// `None` if the child has ended before its notification was read.
    fn receive(&self) -> Option<Opening> {
        // SAFETY: zeroes are a valid value, and the kernel requires a zeroed structure.
        let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes the size encoded in the request, which is the size of the structure.
        let done = unsafe {
            libc::ioctl(
                self.listener.as_raw_fd(),
                RECEIVE as _,
                &raw mut notification,
            )
        };
        (done == 0).then_some(Opening {
            id: notification.id,
            pid: notification.pid,
        })
    }

    /// Lets the child continue; false if it has ended.
    pub fn release(&self, opening: Opening) -> bool {
        let mut answer = libc::seccomp_notif_resp {
            id: opening.id,
            val: 0,
            error: 0,
            flags: u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap(),
        };
        // SAFETY: the kernel reads the size encoded in the request, which is the size of the structure.
        unsafe { libc::ioctl(self.listener.as_raw_fd(), SEND as _, &raw mut answer) == 0 }
    }

    /// Lets every further child continue and returns exit code, stdout and stderr.
    pub fn finish(mut self) -> (i32, String, String) {
        while let Some(opening) = self.next() {
            self.release(opening);
        }
        let out = self.child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = out.status.code().expect("an exit code");
        (code, text(&out.stdout), text(&out.stderr))
    }
}

/// Installs the filter in this process; its listener becomes [`LISTENER`] and stays open across exec.
fn install() -> io::Result<()> {
    let code = |op: u32| u16::try_from(op).unwrap_or_default();
    let number = |value| u32::try_from(value).unwrap_or_default();
    let step = |op: u32, k, jt, jf| libc::sock_filter {
        code: code(op),
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        // In struct seccomp_data the system call number is the first word; the third argument, the flags, is at byte 32.
        step(load, 0, 0, 0),
        step(equal, number(libc::SYS_openat), 0, 4),
        step(load, 32, 0, 0),
        step(
            libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
            number(i64::from(libc::O_ACCMODE)),
            0,
            0,
        ),
        step(equal, number(i64::from(libc::O_RDWR)), 0, 1),
        step(answer, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
        step(answer, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or_default(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program outlives the call, which copies it; dup2 returns a descriptor without close-on-exec.
    let done = unsafe {
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        );
        match RawFd::try_from(listener) {
            Ok(listener) if listener >= 0 => libc::dup2(listener, LISTENER),
            _ => -1,
        }
    };
    match done {
        LISTENER => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `what` in the child process before it executes the command.
pub fn before(cmd: &mut Command, what: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: the callers make system calls only.
    unsafe { cmd.pre_exec(what) };
}

/// The values of a line of /proc/PID/status.
pub fn status(pid: u32, key: &str) -> Vec<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let radix = if key.starts_with("Cap") { 16 } else { 10 };
    let words = line.unwrap().trim_start_matches(':').split_whitespace();
    words
        .map(|word| u64::from_str_radix(word, radix).unwrap())
        .collect()
}
