//! Runs the work in a child process, and ends the run when that child makes no progress.
//!
//! A call on a file system whose server never answers (FUSE, NFS) cannot be interrupted, not even by SIGKILL: the
//! process sleeps in the kernel (state `D`). Only another process can still report that and exit. So a child (the
//! worker) does everything that opens, reads or writes foreign files, and records its steps in shared memory
//! (`progress`). The parent only waits for signals. It forwards those that end a program to the worker. When the
//! worker has made no step for [`LIMIT`], the parent kills it, releases the locks of a worker that cannot be killed,
//! and leaves that worker behind.
//!
//! The worker is killed when the parent ends first.

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

/// Maximum time without a step; then the worker is killed.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Interval between two checks of the worker's steps. After each step it is [`SHORTEST_TICK`], and then doubles up
/// to [`TICK`]. It starts short so that this process soon notices that the worker waits for an event, and then
/// sleeps as well. Time in which this process itself did not run (stopped, suspended) counts as at most one
/// interval.
const SHORTEST_TICK: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_secs(5);
/// Maximum time for a killed worker, and for the child that releases its locks, to end.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub enum Ended {
    /// The worker exited with this code.
    Exited(u8),
    Killed(Signal),
    /// The worker made no step for [`LIMIT`]. The text contains the path and the advice.
    Hung(String),
    /// waitpid(2) failed for the worker.
    Lost(SyscallError),
}

/// Runs `work`, which returns the exit code, in a forked child, and waits for the child. TERM, INT, HUP and QUIT
/// are forwarded to it; they take effect once `work` has called [`end_on_request`](super::end_on_request) or
/// `end_well_on_request`.
///
/// This process may have inherited other children, so only this one is waited for.
///
/// # Errors
/// When the child could not be created; `work` has not started.
pub fn supervise(work: impl FnOnce() -> u8) -> Result<Ended> {
    progress::begin().context(|| "mmap(a page)".to_owned())?;
    let parent = getpid();
    // While SIGCHLD is ignored the kernel reaps children and discards their exit codes (wait(2)).
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
            // Changes that the worker makes from now on would not be in the report.
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

/// Lets the kernel kill this process when `parent` ends. Returns false if `parent` has already ended. getppid(2)
/// returns 0 for a parent in another PID namespace (`unshare --pid` without `--fork`).
fn end_with(parent: Pid) -> bool {
    let _ = set_pdeathsig(Signal::SIGKILL);
    let now = getppid();
    now == parent || now.as_raw() == 0
}

/// Waits until the worker ends, or has made no step for [`LIMIT`].
fn watch_over(worker: Pid) -> Result<Ended> {
    let mut steps = progress::steps();
    let (mut quiet, mut tick) = (Duration::ZERO, SHORTEST_TICK);
    let mut requested = None;
    // The first interval does not count: most runs end within it.
    let mut start: Option<Instant> = None;
    loop {
        let timeout = (!progress::sleep()).then_some(tick);
        let signal = signals::wait_for_signal(timeout);
        progress::awake();
        match signal {
            None | Some(libc::SIGCHLD) => {}
            Some(number) => {
                let ends = forward(worker, number);
                if requested.is_none() && ends.is_some() {
                    requested = ends;
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
        let longest = if requested.is_some() { GRACE } else { TICK };
        tick = match now == steps {
            true => (tick * 2).min(longest),
            false => SHORTEST_TICK,
        };
        quiet = match now == steps && !progress::is_waiting() {
            true => quiet + passed,
            false => Duration::ZERO,
        };
        steps = now;
        match requested {
            Some(signal) if quiet >= GRACE => {
                give_up(worker)?;
                return Ok(Ended::Killed(signal));
            }
            None if quiet >= LIMIT => return give_up(worker),
            _ => {}
        }
    }
}

/// How a child ended; `None` while it runs.
fn ended(child: Pid, flags: WaitPidFlag) -> Result<Option<Ended>> {
    let status = retry(|| waitpid(child, Some(flags))).context(|| format!("waitpid({child})"))?;
    Ok(match status {
        WaitStatus::StillAlive => None,
        WaitStatus::Signaled(_, signal, _) => Some(Ended::Killed(signal)),
        // An exit code is one byte. Without WUNTRACED waitpid(2) reports no other state.
        WaitStatus::Exited(_, code) => Some(Ended::Exited(u8::try_from(code).unwrap_or(u8::MAX))),
        _ => Some(Ended::Exited(u8::MAX)),
    })
}

/// Forwards a signal to the worker. Returns the signal if it should end a worker that does not hang: it was not
/// inherited as ignored (nohup), and is not SIGHUP, at which `watch` reloads its configuration.
///
/// Without `CAP_KILL` a worker that runs as nobody (`logs`) cannot be signalled. This process then ends itself, which
/// the worker notices at its next step.
fn forward(worker: Pid, number: libc::c_int) -> Option<Signal> {
    let signal = Signal::try_from(number).ok()?;
    // Try twice: a user who stops a program sends one signal only.
    let sent = kill(worker, signal).or_else(|_| kill(worker, signal));
    let ends = !syscalls::is_ignored(number);
    if ends && sent == Err(Errno::EPERM) {
        end_by(signal);
    }
    (ends && signal != Signal::SIGHUP).then_some(signal)
}

/// Kills a worker that makes no step. A worker that cannot be killed is left behind without its locks.
fn give_up(worker: Pid) -> Result<Ended> {
    let path = progress::path();
    let killed = kill(worker, Signal::SIGKILL);
    let mut left_behind = String::new();
    if !ends_soon(worker)? {
        release_locks(worker)?;
        let why = match killed {
            Ok(()) => "SIGKILL did not end it".to_owned(),
            Err(errno) => format!("kill({worker}, SIGKILL) failed: {errno:?}"),
        };
        left_behind = format!("; process {worker} is still blocked in that call ({why})");
    }
    let path = match path.as_os_str().is_empty() {
        true => "a system call".to_owned(),
        false => format!("a call on {}", path.display()),
    };
    Ok(Ended::Hung(format!(
        "{path} did not return within {} s{left_behind}; find the server of that mount (NFS, FUSE) in \
         /proc/self/mountinfo, restore it or unmount it (umount -l), then run the command again",
        LIMIT.as_secs()
    )))
}

/// Waits up to [`GRACE`] for a child to end. Returns whether it did.
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

/// Releases the locks of a worker that cannot be killed: `ready` takes the lock on a status file as proof that
/// `watch` runs, and the lock on a group file blocks other editors. A lock belongs to the open file description, so
/// it is released through a copy of the worker's descriptor (pidfd_getfd(2)). Another child does that, because
/// the locked file may be on the file system that does not answer.
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
            // A lock that cannot be released stays until the worker's call returns.
            let _ = release();
            syscalls::exit_now(0)
        }
        ForkResult::Parent { child } => ends_soon(child).map(drop),
    }
}

/// Exits with the worker's exit code. This process has no buffered output to flush.
pub fn end_with_code(code: u8) -> ! {
    syscalls::exit_now(code.into())
}

/// Ends this process by the signal that ended its worker. The first process of a PID namespace does not receive that
/// signal from the kernel, so it exits with the code that a shell sets for it (128 + N).
pub fn end_by(signal: Signal) -> ! {
    signals::raise_default(signal);
    syscalls::exit_now(128 + signal as i32)
}
