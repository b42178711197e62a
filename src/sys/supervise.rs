//! Work in a child, and a parent that touches nothing of others: it ends when the child does not get on any more.
//!
//! A call on a file system whose server never answers (FUSE, NFS) cannot be ended, not even by SIGKILL: the
//! process is in the kernel (`D`). Only another process can still report and end. So all that opens, reads or
//! writes what belongs to others is done by the child (the worker), which shows its steps in shared memory
//! (`progress`). The parent waits for signals alone: it hands those that end a program on to the worker, and
//! when the worker has made no step for [`LIMIT`] it kills it, gives back the locks that a worker in such a
//! call still holds, and leaves it behind.
//!
//! The worker is killed when the parent ends before it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, getpid, getppid};

use super::file::record;
use super::signals::{self, default_sigchld, restore_sigchld};
use super::{Context, Result, SyscallError, progress, retry, syscalls};

/// How long a worker may make no step.
pub const LIMIT: Duration = Duration::from_secs(30);
/// How often its steps are looked at: soon after one, so that this process sleeps as well when the worker does,
/// and then less often. Time in which this process itself did not run (stopped, suspended) counts no more than
/// that.
const SHORTEST_TICK: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_secs(5);
/// How long a worker that is killed, and the child that gives back its locks, may take to end.
const GRACE: Duration = Duration::from_secs(1);

/// How a worker ended.
#[derive(Debug)]
pub enum Ended {
    /// With this exit code.
    Exited(u8),
    /// By this signal.
    Killed(Signal),
    /// It made no step for [`LIMIT`]. The text names the path, and what to do.
    Hung(String),
    /// It could not be waited for.
    Lost(SyscallError),
}

/// Does `work`, which gives the exit code, in a forked child, and waits for it. TERM, INT, HUP and QUIT are
/// handed on to it, once `work` has called [`end_on_request`](super::end_on_request) or its like.
///
/// This process may have inherited children of its own: no other than this one is waited for.
///
/// # Errors
/// When no child could be made: `work` was not begun.
pub fn supervise(work: impl FnOnce() -> u8) -> Result<Ended> {
    progress::begin().context(|| "mmap(a page)".to_owned())?;
    let parent = getpid();
    // Where SIGCHLD is ignored the kernel would take the child away with its exit code.
    let sigchld = default_sigchld();
    let mask = signals::hold_signals();
    let ended = match syscalls::fork().context(|| "fork()".to_owned()) {
        Ok(ForkResult::Child) => {
            signals::restore_all_but_requests(mask);
            if !end_with(parent) {
                syscalls::exit_now(u8::MAX.into());
            }
            progress::begin_work(getppid());
            syscalls::exit_now(work().into())
        }
        Ok(ForkResult::Parent { child }) => Ok(watch_over(child).unwrap_or_else(|error| {
            // What it still did would not be in the report.
            let _ = kill(child, Signal::SIGKILL);
            let _ = ends_soon(child);
            Ended::Lost(error)
        })),
        Err(error) => Err(error),
    };
    signals::restore_signals(mask);
    restore_sigchld(&sigchld);
    ended
}

/// Has this process killed when `parent` ends; false where that has happened. A parent in another PID namespace
/// (`unshare --pid` without `--fork`) is 0.
fn end_with(parent: Pid) -> bool {
    let _ = set_pdeathsig(Signal::SIGKILL);
    let now = getppid();
    now == parent || now.as_raw() == 0
}

/// Waits for the worker, as long as it makes steps.
fn watch_over(worker: Pid) -> Result<Ended> {
    let mut steps = progress::steps();
    let (mut quiet, mut tick) = (Duration::ZERO, SHORTEST_TICK);
    let mut asked = None;
    // The first tick does not count: most work is over by then.
    let mut start: Option<Instant> = None;
    loop {
        let timeout = (!progress::sleep()).then_some(tick);
        let signal = signals::wait_for_signal(timeout);
        progress::awake();
        match signal {
            None | Some(libc::SIGCHLD) => {}
            Some(number) => {
                let ends = hand_on(worker, number);
                if asked.is_none() && ends.is_some() {
                    asked = ends;
                    (quiet, tick, start) = (Duration::ZERO, SHORTEST_TICK, Some(Instant::now()));
                }
            }
        }
        if let Some(ended) = ended(worker, WaitPidFlag::WNOHANG)? {
            return Ok(ended);
        }
        let now = progress::steps();
        let passed = start.map_or(Duration::ZERO, |start| start.elapsed().min(tick));
        start = Some(Instant::now());
        let longest = if asked.is_some() { GRACE } else { TICK };
        tick = match now == steps {
            true => (tick * 2).min(longest),
            false => SHORTEST_TICK,
        };
        quiet = match now == steps && !progress::is_waiting() {
            true => quiet + passed,
            false => Duration::ZERO,
        };
        steps = now;
        match asked {
            Some(signal) if quiet >= GRACE => {
                give_up(worker)?;
                return Ok(Ended::Killed(signal));
            }
            None if quiet >= LIMIT => return give_up(worker),
            _ => {}
        }
    }
}

/// How a child ended; nothing where it has not.
fn ended(child: Pid, flags: WaitPidFlag) -> Result<Option<Ended>> {
    let status = retry(|| waitpid(child, Some(flags))).context(|| format!("waitpid({child})"))?;
    Ok(match status {
        WaitStatus::StillAlive => None,
        WaitStatus::Signaled(_, signal, _) => Some(Ended::Killed(signal)),
        // A code is a byte, and without WUNTRACED nothing else is told.
        WaitStatus::Exited(_, code) => Some(Ended::Exited(u8::try_from(code).unwrap_or(u8::MAX))),
        _ => Some(Ended::Exited(u8::MAX)),
    })
}

/// Sends a signal to the worker. Gives it where it ends a worker that is in no system call that hangs: it was not
/// inherited as ignored (nohup), and it is not the SIGHUP that `watch` reads its configuration at.
///
/// A worker that runs as nobody (`logs`) is out of reach without `CAP_KILL`: it learns by its next step that this
/// process has ended.
fn hand_on(worker: Pid, number: libc::c_int) -> Option<Signal> {
    let signal = Signal::try_from(number).ok()?;
    // Who asks a program to end does so once.
    let sent = kill(worker, signal).or_else(|_| kill(worker, signal));
    let ends = !syscalls::is_ignored(number);
    if ends && sent == Err(Errno::EPERM) {
        end_by(signal);
    }
    (ends && signal != Signal::SIGHUP).then_some(signal)
}

/// Kills a worker that makes no step, and leaves it behind where that does not end it.
fn give_up(worker: Pid) -> Result<Ended> {
    let path = progress::path();
    let killed = kill(worker, Signal::SIGKILL);
    let mut left_behind = String::new();
    if !ends_soon(worker)? {
        release_locks(worker)?;
        let why = match killed {
            Ok(()) => "which not even SIGKILL ends".to_owned(),
            Err(errno) => format!("as kill({worker}, SIGKILL) gave {errno:?}"),
        };
        left_behind = format!("; process {worker} is left behind in that call, {why}");
    }
    let path = match path.as_os_str().is_empty() {
        true => "a system call".to_owned(),
        false => format!("a call on {}", path.display()),
    };
    Ok(Ended::Hung(format!(
        "{path} did not answer for {} s{left_behind}; see in /proc/self/mountinfo what serves that mount (NFS, FUSE), \
         and restore or unmount it (umount -l), then run this again",
        LIMIT.as_secs()
    )))
}

/// Whether a child ends in [`GRACE`].
fn ends_soon(child: Pid) -> Result<bool> {
    let end = Instant::now() + GRACE;
    loop {
        if ended(child, WaitPidFlag::WNOHANG)?.is_some() {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        signals::wait_for_signal(Some(left));
    }
}

/// Gives back the locks of a worker that cannot end: the lock on a status file says that `watch` lives, the one
/// on a group file keeps others from editing it. A lock belongs to the open file, of which pidfd_getfd(2) gives
/// this process one more descriptor. The file may be on the very file system that does not answer, so it is
/// done by one more child.
fn release_locks(worker: Pid) -> Result<()> {
    let locks = progress::locks();
    if locks.is_empty() {
        return Ok(());
    }
    match syscalls::fork().context(|| "fork()".to_owned())? {
        ForkResult::Child => {
            let release = || {
                let process = syscalls::pidfd_open(worker.as_raw().unsigned_abs())?;
                for number in locks {
                    let file = syscalls::pidfd_getfd(process.as_fd(), number)?;
                    let all = record(libc::F_UNLCK, 0, 0)?;
                    fcntl(&file, FcntlArg::F_OFD_SETLK(&all))?;
                }
                Ok::<_, Errno>(())
            };
            // What fails here leaves a lock that its worker holds until the call returns.
            let _ = release();
            syscalls::exit_now(0)
        }
        ForkResult::Parent { child } => ends_soon(child).map(drop),
    }
}

/// Ends this process with its worker's exit code, at once: it has nothing left to write.
pub fn end_with_code(code: u8) -> ! {
    syscalls::exit_now(code.into())
}

/// Ends this process as its worker was ended: by the same signal, or where the kernel keeps that one from it
/// (the first process of a PID namespace) with the exit code that a shell gives for it.
pub fn end_by(signal: Signal) -> ! {
    signals::raise_default(signal);
    syscalls::exit_now(128 + signal as i32)
}
