//! Measures peak memory and instructions of a process with ptrace(2).
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn ptrace(request: libc::c_uint, pid: i32, data: i32) -> i64 {
    let data = libc::c_long::from(data);
    // SAFETY: none of the requests below takes a pointer.
    unsafe { libc::ptrace(request, pid, 0 as libc::c_long, data) }
}

/// Starts the command, stopped at its first instruction.
#[allow(clippy::zombie_processes)] // `wait` waits for it.
fn start(cmd: &mut Command) -> Option<i32> {
    let traced = || match ptrace(libc::PTRACE_TRACEME, 0, 0) {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    };
    // SAFETY: one system call.
    let child = unsafe { cmd.pre_exec(traced) }.spawn().ok()?;
    Some(child.id().cast_signed())
}

/// Waits for that process, or for any one with -1. Returns its PID and status.
fn wait(pid: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: a pointer to a local; only this thread waits for the processes that it traces.
    let got = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    (got > 0).then_some((got, status))
}

/// The peak memory of the command: the largest `VmHWM` in KiB of its processes that execute the same file as the first
/// one (supervisor, worker and the proof's child), read when each ends. `ru_maxrss` of wait4(2) would include the memory of
/// the process that forked it.
pub fn peak(cmd: &mut Command) -> Option<u64> {
    let first = start(cmd)?;
    let at_end = libc::SIGTRAP | libc::PTRACE_EVENT_EXIT << 8;
    let executable = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let mut alive = BTreeSet::new();
    let mut own = None;
    let mut peak = None;
    // All children of this process are traced: it starts no other one during a measurement.
    while let Some((pid, status)) = wait(-1) {
        if !libc::WIFSTOPPED(status) {
            alive.remove(&pid);
            if alive.is_empty() {
                break;
            }
            continue;
        }
        let mut signal = libc::WSTOPSIG(status);
        // The first stop of a process is not a signal for it.
        if alive.insert(pid) || signal == libc::SIGTRAP {
            signal = 0;
        }
        if pid == first && own.is_none() {
            let family = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
            let family = family | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
            ptrace(
                libc::PTRACE_SETOPTIONS,
                pid,
                family | libc::PTRACE_O_TRACEEXIT,
            );
            own = executable(pid);
        }
        if status >> 8 == at_end && executable(pid) == own {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            peak = peak.max(kib);
        }
        ptrace(libc::PTRACE_CONT, pid, signal);
    }
    peak
}

/// Counting stops after this many instructions.
const TOO_MANY: u64 = 10_000_000;

/// Counts the instructions that the command and its children execute in user space, by single-stepping.
pub fn steps(cmd: &mut Command) -> Option<u64> {
    let first = start(cmd)?;
    let mut alive = BTreeSet::new();
    let mut steps = 0;
    // All children of this process are traced: it starts no other one during a measurement.
    while let Some((pid, status)) = wait(-1) {
        if !libc::WIFSTOPPED(status) {
            alive.remove(&pid);
            if pid == first || alive.is_empty() {
                break;
            }
            continue;
        }
        let mut signal = libc::WSTOPSIG(status);
        if alive.insert(pid) {
            if pid == first {
                let family = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
                let family = family | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
                ptrace(libc::PTRACE_SETOPTIONS, pid, family);
            }
            signal = 0;
        } else if signal == libc::SIGTRAP {
            // A stop for a ptrace event is not a step.
            steps += u64::from(status >> 16 == 0);
            signal = 0;
        }
        if steps > TOO_MANY {
            break;
        }
        ptrace(libc::PTRACE_SINGLESTEP, pid, signal);
    }
    for pid in alive {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        while wait(pid).is_some_and(|(_, status)| libc::WIFSTOPPED(status)) {}
    }
    (steps <= TOO_MANY).then_some(steps)
}
