//! Signal dispositions and masks of this process, and their restoration before it executes another program.

use std::ffi::{CStr, CString};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{close, execv, getpid};

use super::syscalls::{self, OnSignal, REQUESTS, bit, mask, on_signal};

/// The state of SIGCHLD before [`default_sigchld`].
#[derive(Debug)]
pub(crate) struct Sigchld {
    ignored: bool,
    /// A blocked SIGCHLD was pending: an inherited child has ended.
    pending: bool,
}

/// Sets SIGCHLD to its default action, so that waitpid(2) can return ended children. Returns the previous state.
pub(crate) fn default_sigchld() -> Sigchld {
    let pending =
        syscalls::pending_signals().is_ok_and(|signals| signals.contains(Signal::SIGCHLD));
    let ignored = on_signal(Signal::SIGCHLD, OnSignal::Default);
    Sigchld { ignored, pending }
}

/// Restores the state that [`default_sigchld`] returned. Setting a disposition that ignores a signal, as the default
/// one of SIGCHLD does, discards a pending signal (sigaction(2)): the one of this program's child, and one that was
/// pending before. The latter is sent again.
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

/// Installs handlers with which SIGTERM and SIGINT end this process even if it is the first of a PID namespace, to
/// which the kernel delivers no signal without a handler. A signal that was inherited as ignored stays ignored (nohup,
/// a background job of a shell).
pub fn end_on_request() {
    for which in ENDS {
        if on_signal(which, OnSignal::End) {
            on_signal(which, OnSignal::Ignore);
        }
    }
    unblock_requests();
    unblock(bit(libc::SIGHUP) | bit(libc::SIGQUIT));
}

/// Unblocks those of these signals that were not inherited as blocked.
fn unblock(signals: u64) {
    mask(
        libc::SIG_UNBLOCK,
        Some(signals & !syscalls::inherited().blocked),
    );
}

/// As [`end_on_request`], for a command that runs until it is stopped: it exits with 0, and ignores no signal. SIGHUP
/// stays blocked until it is read (signalfd(2)).
#[cfg(feature = "watch")]
pub fn end_well_on_request() {
    mask(libc::SIG_BLOCK, Some(bit(libc::SIGHUP)));
    for which in ENDS {
        on_signal(which, OnSignal::EndWell);
    }
    unblock_requests();
    unblock(bit(libc::SIGQUIT));
}

const ENDS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// Unblocks SIGTERM and SIGINT, also if they were inherited as blocked. Those that are pending are delivered now.
fn unblock_requests() {
    let _ = ENDS.into_iter().collect::<SigSet>().thread_unblock();
}

/// Blocks the signals that a supervisor waits for: [`REQUESTS`] and SIGCHLD. Returns the previous mask.
pub(crate) fn hold_signals() -> u64 {
    mask(libc::SIG_BLOCK, Some(HELD))
}

const HELD: u64 = REQUESTS | bit(libc::SIGCHLD);

/// Restores the mask that [`hold_signals`] returned.
pub(crate) fn restore_signals(before: u64) {
    mask(libc::SIG_SETMASK, Some(before));
}

/// Restores that mask in the worker, where [`REQUESTS`] stay blocked until [`end_on_request`] or
/// [`end_well_on_request`].
pub(crate) fn restore_all_but_requests(before: u64) {
    restore_signals(before | REQUESTS);
}

/// Waits for one of the signals that [`hold_signals`] blocks, up to `timeout`, and takes it.
pub(crate) fn wait_for_signal(timeout: Option<Duration>) -> Option<libc::c_int> {
    syscalls::wait_for_signal(HELD, timeout)
}

/// Sends a signal to this process with its default action. Returns if that does not end the process.
pub(crate) fn raise_default(which: Signal) {
    // The child whose end is repeated here has already dumped core.
    let _ = set_dumpable(false);
    on_signal(which, OnSignal::Default);
    mask(libc::SIG_UNBLOCK, Some(bit(which as libc::c_int)));
    let _ = kill(getpid(), which);
}

/// Executes the program at `path` (execv(2)), after it has restored what Rust's runtime changed: SIGPIPE, blocked
/// signals, and closed standard streams. Returns the errno only if execve(2) fails.
///
/// The environment is the inherited one, byte for byte. Ignored signals stay ignored. execve(2) resets the handlers of
/// this process (for SIGTERM and SIGINT, and those of Rust for SIGSEGV and SIGBUS, which are not installed for ignored
/// signals), and drops its alternate signal stack.
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
