//! Work in a child, so that this process stays as it is and can become another program.

use std::ffi::{CStr, CString};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, close, execv, getpid, getppid};

use super::signals::{default_sigchld, restore_sigchld};
use super::{Context, Result, retry, syscalls};

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Exited(u8),
    /// By this signal.
    Killed(Signal),
}

/// Does `work`, which gives the exit code, in a forked child, and waits for it. The child is killed when
/// this process ends before it.
///
/// This process may have inherited children of its own: no other than this one is waited for.
///
/// # Errors
/// When no child could be made or waited for.
pub fn in_child(work: impl FnOnce() -> u8) -> Result<Ended> {
    let parent = getpid();
    // Where SIGCHLD is ignored the kernel would take the child away with its exit code.
    let sigchld = default_sigchld();
    let forked = syscalls::fork().context(|| "fork()".to_owned());
    let ended = match forked {
        Ok(ForkResult::Child) => {
            let _ = set_pdeathsig(Signal::SIGKILL);
            // That does not help where the parent ended before.
            let code = if getppid() == parent { work() } else { u8::MAX };
            syscalls::exit_now(code.into())
        }
        Ok(ForkResult::Parent { child }) => retry(|| waitpid(child, None))
            .context(|| format!("waitpid({child})"))
            .map(|status| match status {
                WaitStatus::Signaled(_, signal, _) => Ended::Killed(signal),
                // A code is a byte, and without WUNTRACED nothing else is told.
                WaitStatus::Exited(_, code) => Ended::Exited(u8::try_from(code).unwrap_or(u8::MAX)),
                _ => Ended::Exited(u8::MAX),
            }),
        Err(error) => Err(error),
    };
    restore_sigchld(&sigchld);
    ended
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
