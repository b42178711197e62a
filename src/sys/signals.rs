//! What this process does about signals, and what it puts back of them.

use std::ffi::{CStr, CString};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{close, execv, getpid};

use super::syscalls::{self, OnSignal, REQUESTS, bit, mask, on_signal};

/// What this process had about SIGCHLD.
#[derive(Debug)]
pub(crate) struct Sigchld {
    ignored: bool,
    /// One waits, blocked: a child that was inherited has ended.
    pending: bool,
}

/// Lets children wait to be asked for, whatever was inherited. Gives what was.
pub(crate) fn default_sigchld() -> Sigchld {
    let pending =
        syscalls::pending_signals().is_ok_and(|signals| signals.contains(Signal::SIGCHLD));
    let ignored = on_signal(Signal::SIGCHLD, OnSignal::Default);
    Sigchld { ignored, pending }
}

/// Puts back what [`default_sigchld`] gave. Where SIGCHLD is blocked, this also takes back the one that
/// the child's end left pending: setting a signal to be ignored discards it (sigaction(2)), and SIGCHLD
/// is ignored by default. One that waited before was discarded as well, so it is sent again.
pub(crate) fn restore_sigchld(was: &Sigchld) {
    let what = match was.ignored {
        true => OnSignal::Ignore,
        false => OnSignal::Default,
    };
    on_signal(Signal::SIGCHLD, what);
    if was.pending {
        let _ = kill(getpid(), Signal::SIGCHLD);
    }
}

/// Makes SIGTERM and SIGINT end this process also where it is the first of a PID namespace: the
/// kernel keeps signals without a handler from that one. One that was inherited as ignored stays so
/// (nohup, a shell's background job).
pub fn end_on_request() {
    for which in ENDS {
        if on_signal(which, OnSignal::End) {
            on_signal(which, OnSignal::Ignore);
        }
    }
    let_requests_through();
    let_through(bit(libc::SIGHUP) | bit(libc::SIGQUIT));
}

/// Lets signals through that were not inherited as blocked.
fn let_through(signals: u64) {
    mask(
        libc::SIG_UNBLOCK,
        Some(signals & !syscalls::inherited().blocked),
    );
}

/// The same for what runs until it is told to end: the exit code is 0, and no signal is ignored. A SIGHUP
/// is kept until it is asked for (signalfd(2)).
#[cfg(feature = "watch")]
pub fn end_well_on_request() {
    mask(libc::SIG_BLOCK, Some(bit(libc::SIGHUP)));
    for which in ENDS {
        on_signal(which, OnSignal::EndWell);
    }
    let_requests_through();
    let_through(bit(libc::SIGQUIT));
}

const ENDS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// The process that started this one may have blocked them, and that is handed on. What came since they
/// were held back comes now.
fn let_requests_through() {
    let _ = ENDS.into_iter().collect::<SigSet>().thread_unblock();
}

/// Holds back what a supervisor waits for: [`REQUESTS`] and SIGCHLD. Gives what was blocked before.
pub(crate) fn hold_signals() -> u64 {
    mask(libc::SIG_BLOCK, Some(HELD))
}

const HELD: u64 = REQUESTS | bit(libc::SIGCHLD);

/// Blocks just what [`hold_signals`] gave.
pub(crate) fn restore_signals(before: u64) {
    mask(libc::SIG_SETMASK, Some(before));
}

/// The same in the worker, where those that end a program wait for [`end_on_request`] or
/// [`end_well_on_request`].
pub(crate) fn restore_all_but_requests(before: u64) {
    restore_signals(before | REQUESTS);
}

/// Takes one of the signals that are held back, and waits for it at most so long.
pub(crate) fn wait_for_signal(timeout: Option<Duration>) -> Option<libc::c_int> {
    syscalls::wait_for_signal(HELD, timeout)
}

/// Lets a signal do to this process what it does by default. Returns where that is nothing.
pub(crate) fn raise_default(which: Signal) {
    // The process whose end this repeats has left its core already.
    let _ = set_dumpable(false);
    on_signal(which, OnSignal::Default);
    mask(libc::SIG_UNBLOCK, Some(bit(which as libc::c_int)));
    let _ = kill(getpid(), which);
}

/// execv(2): this process becomes the program at `path`. Before that, what Rust's runtime changed is put
/// back: SIGPIPE, blocked signals, and standard streams that were closed. Only returns where that failed,
/// with what execve(2) answered.
///
/// The environment is the one that was inherited, byte for byte; a signal that was ignored stays
/// ignored, and the handlers of this process (SIGTERM, SIGINT, Rust's for SIGSEGV and SIGBUS, which
/// leave ignored ones alone) go with it, as does its alternate signal stack (execve(2)).
pub fn become_program(path: &CStr, args: &[CString]) -> Errno {
    let inherited = syscalls::inherited();
    if !inherited.sigpipe_ignored() {
        syscalls::on_signal(Signal::SIGPIPE, syscalls::OnSignal::Default);
    }
    syscalls::mask(libc::SIG_SETMASK, Some(inherited.blocked));
    for fd in inherited.closed() {
        let _ = close(fd);
    }
    let Err(errno) = execv(path, args);
    errno
}
