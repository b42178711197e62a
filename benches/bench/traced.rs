//! The most memory that a process held, read when it is about to end.
//!
//! What wait4(2) says of it counts the memory of whoever started the process, too, from before it became
//! the program that is measured.
#![allow(unsafe_code)]

use std::fs;
use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

fn ptrace(request: libc::c_uint, pid: i32, data: i32) -> i64 {
    let data = data as libc::c_long;
    // SAFETY: none of the requests below takes a pointer.
    unsafe { libc::ptrace(request, pid, 0 as libc::c_long, data) }
}

/// `VmHWM` in KiB of the process that the command becomes; its children are not counted.
pub fn peak(cmd: &mut Command) -> Option<u64> {
    let traced = || match ptrace(libc::PTRACE_TRACEME, 0, 0) {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    };
    // SAFETY: one system call.
    let child = unsafe { cmd.pre_exec(traced) }.spawn().ok()?;
    let pid = child.id().cast_signed();
    let at_end = libc::SIGTRAP | libc::PTRACE_EVENT_EXIT << 8;
    let mut known = false;
    let mut peak = None;
    loop {
        let mut status = 0;
        // SAFETY: a pointer to a local; the process is our child, and nobody else waits for it.
        let got = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if got != pid || !libc::WIFSTOPPED(status) {
            return peak;
        }
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
}
