//! What only a tracer sees of a process.
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

/// Starts it, stopped at its first instruction.
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

/// Waits for that process, or for any with -1: which one, and its status.
fn wait(pid: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: a pointer to a local; nobody else waits for what this thread traces.
    let got = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    (got > 0).then_some((got, status))
}

/// The most memory that the process that the command becomes ever held: `VmHWM` in KiB as it ends. Its
/// children are not counted. What wait4(2) says instead counts the memory of whoever started it, too.
pub fn peak(cmd: &mut Command) -> Option<u64> {
    let pid = start(cmd)?;
    let at_end = libc::SIGTRAP | libc::PTRACE_EVENT_EXIT << 8;
    let mut known = false;
    let mut peak = None;
    while let Some((_, status)) = wait(pid).filter(|(_, status)| libc::WIFSTOPPED(*status)) {
        if !known {
            let options = libc::PTRACE_O_TRACEEXIT | libc::PTRACE_O_EXITKILL;
            ptrace(libc::PTRACE_SETOPTIONS, pid, options);
            known = true;
        }
        let signal = match libc::WSTOPSIG(status) {
            libc::SIGTRAP => 0,
            other => other,
        };
        if status >> 8 == at_end {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            peak = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        }
        ptrace(libc::PTRACE_CONT, pid, signal);
    }
    peak
}

/// More instructions than this are not waited for.
const TOO_MANY: u64 = 10_000_000;

/// How many instructions the command and its children execute in user space, one step after the other.
pub fn steps(cmd: &mut Command) -> Option<u64> {
    let first = start(cmd)?;
    let mut alive = BTreeSet::new();
    let mut steps = 0;
    // Every child of this process is traced: nothing else runs while something is measured.
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
            // An event is no step of its own.
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
