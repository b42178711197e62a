//! Work in a child, so that this process stays as it is and can become another program.

use std::ffi::{CStr, CString};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, getpid, getppid};

use super::{Named, Result, raw, retry};

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
    let sigchld = raw::default_sigchld();
    let forked = raw::fork().named(|| "fork()".to_owned());
    let ended = match forked {
        Ok(ForkResult::Child) => {
            let _ = set_pdeathsig(Signal::SIGKILL);
            // That does not help where the parent ended before.
            let code = if getppid() == parent { work() } else { u8::MAX };
            raw::exit_now(code.into())
        }
        Ok(ForkResult::Parent { child }) => retry(|| waitpid(child, None))
            .named(|| format!("waitpid({child})"))
            .map(|status| match status {
                WaitStatus::Signaled(_, signal, _) => Ended::Killed(signal),
                // A code is a byte, and without WUNTRACED nothing else is told.
                WaitStatus::Exited(_, code) => Ended::Exited(u8::try_from(code).unwrap_or(u8::MAX)),
                _ => Ended::Exited(u8::MAX),
            }),
        Err(error) => Err(error),
    };
    raw::restore_sigchld(&sigchld);
    ended
}

/// This process becomes the program at `path`, with nothing changed but that. Only returns where that
/// failed, with what execve(2) answered.
pub fn become_program(path: &CStr, args: &[CString]) -> Errno {
    raw::become_program(path, args)
}
