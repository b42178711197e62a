//! What this process does about signals, and what it puts back of them.

use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::getpid;

use super::syscalls::{self, OnSignal, bit, mask, on_signal};

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
    for which in REQUESTS {
        if on_signal(which, OnSignal::End) {
            on_signal(which, OnSignal::Ignore);
        }
    }
    let_requests_through();
    // SIGHUP, where only this program's start held it back.
    let hangup = bit(libc::SIGHUP);
    if syscalls::inherited().blocked & hangup == 0 {
        mask(libc::SIG_UNBLOCK, Some(hangup));
    }
}

/// The same for what runs until it is told to end: the exit code is 0, and no signal is ignored. A SIGHUP
/// is kept until it is asked for (signalfd(2)).
#[cfg(feature = "watch")]
pub fn end_well_on_request() {
    mask(libc::SIG_BLOCK, Some(bit(libc::SIGHUP)));
    for which in REQUESTS {
        on_signal(which, OnSignal::EndWell);
    }
    let_requests_through();
}

const REQUESTS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// The process that started this one may have blocked them, and that is handed on. What came since they
/// were held back comes now.
fn let_requests_through() {
    let _ = REQUESTS.into_iter().collect::<SigSet>().thread_unblock();
}
