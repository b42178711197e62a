//! State of a worker that its supervisor can read: a counter that increases with each step, the path of the current
//! step, whether the worker waits intentionally, and which locks it holds.
//!
//! The state is in one page of shared memory, so that recording a step costs no system call. Without a supervisor, and
//! in the supervisor itself, the functions that record something have no effect.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

use super::syscalls;

/// Number of steps so far.
const STEPS: usize = 0;
/// Number of intentional waits in progress.
const WAITS: usize = 1;
/// Not 0 while the supervisor sleeps until the worker signals the end of such a wait.
const SLEEPS: usize = 2;
/// One bit for each descriptor from 0 to 63 that holds a lock on which other processes wait.
const LOCKS: usize = 3;
/// A value that the worker leaves for its supervisor ([`set_note`]).
const NOTE: usize = 4;
/// Not 0 if the worker cannot signal its supervisor: it runs as another user (`logs`), or in a PID namespace of its
/// own.
const CANNOT_SIGNAL: usize = 5;
/// The length of the path in bytes; the path itself starts at [`TEXT`].
const LENGTH: usize = 6;
const TEXT: usize = 7;
/// Words of 8 bytes in the page.
pub(super) const WORDS: usize = 512;
/// Longer paths are truncated.
const LONGEST: usize = (WORDS - TEXT) * 8;

static PAGE: OnceLock<&'static [AtomicU64; WORDS]> = OnceLock::new();
/// In the worker: the PID of its supervisor, or 0 if that is in another PID namespace.
static SUPERVISOR: AtomicI32 = AtomicI32::new(NONE);
const NONE: i32 = -1;

/// Allocates the shared page, if there is none yet.
pub(super) fn begin() -> nix::Result<()> {
    if PAGE.get().is_none() {
        let _ = PAGE.set(syscalls::shared_page()?);
    }
    Ok(())
}

/// Makes this process the worker. `parent` is the result of getppid(2).
pub(super) fn begin_work(parent: Pid) {
    SUPERVISOR.store(parent.as_raw(), Ordering::SeqCst);
    if parent.as_raw() == 0
        && let Some(word) = word(CANNOT_SIGNAL)
    {
        word.store(1, Ordering::SeqCst);
    }
}

fn word(at: usize) -> Option<&'static AtomicU64> {
    PAGE.get().and_then(|page| page.get(at))
}

/// As [`word`], but `None` outside of the worker.
fn worker_word(at: usize) -> Option<&'static AtomicU64> {
    word(at).filter(|_| supervisor() != NONE)
}

fn get(at: usize) -> u64 {
    word(at).map_or(0, |word| word.load(Ordering::SeqCst))
}

fn supervisor() -> i32 {
    SUPERVISOR.load(Ordering::SeqCst)
}

/// Records a step that concerns no path.
pub fn step() {
    if let Some(word) = worker_word(STEPS) {
        word.fetch_add(1, Ordering::SeqCst);
        // End if the supervisor has ended. One in another PID namespace (0) is not visible; its end kills the worker.
        if get(CANNOT_SIGNAL) != 0 && ![0, getppid().as_raw()].contains(&supervisor()) {
            syscalls::exit_now(u8::MAX.into());
        }
    }
}

/// Records a step before a call that may not return, with its path: these parts, joined by `/`.
pub fn at(parts: &[&OsStr]) {
    let Some(page) = PAGE.get() else {
        return;
    };
    let mut length = 0;
    let mut filled = 0_u64;
    let mut put = |byte: u8| {
        if length < LONGEST {
            filled |= u64::from(byte) << (length % 8 * 8);
            length += 1;
            if length % 8 == 0 {
                page[TEXT + length / 8 - 1].store(std::mem::take(&mut filled), Ordering::Relaxed);
            }
        }
    };
    let mut before: &[u8] = b"/";
    for part in parts.iter().map(|part| part.as_bytes()) {
        if !before.ends_with(b"/") && !part.starts_with(b"/") {
            put(b'/');
        }
        before = part;
        part.iter().for_each(|byte| put(*byte));
    }
    if length % 8 != 0 {
        page[TEXT + length / 8].store(filled, Ordering::Relaxed);
    }
    page[LENGTH].store(length as u64, Ordering::Relaxed);
    step();
}

pub(super) fn path() -> PathBuf {
    let Some(page) = PAGE.get() else {
        return PathBuf::new();
    };
    let words = page[TEXT..].iter();
    let mut bytes: Vec<u8> = words
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .collect();
    bytes.truncate(usize::try_from(get(LENGTH)).unwrap_or(0));
    PathBuf::from(OsString::from_vec(bytes))
}

pub(super) fn steps() -> u64 {
    get(STEPS)
}

/// Whether the worker waits intentionally.
pub(super) fn is_waiting() -> bool {
    get(WAITS) != 0
}

/// Records that the supervisor will sleep until the worker's wait is over. Returns false if the worker does not wait,
/// or cannot signal the end of the wait.
pub(super) fn sleep() -> bool {
    if let Some(word) = word(SLEEPS) {
        word.store(1, Ordering::SeqCst);
    }
    // The worker first ends its wait, and then checks whether to signal the supervisor.
    let sleeps = is_waiting() && get(CANNOT_SIGNAL) == 0;
    if !sleeps {
        awake();
    }
    sleeps
}

/// Records that the supervisor no longer sleeps.
pub(super) fn awake() {
    if let Some(word) = word(SLEEPS) {
        word.store(0, Ordering::SeqCst);
    }
}

/// Records that this process now runs as another user. The change has cleared the signal that ends the worker with its
/// supervisor (`PR_SET_PDEATHSIG`), so it is set again. The kernel sends it only if the supervisor has the permission
/// to (`CAP_KILL`), so the worker also checks at each step whether the supervisor has ended.
#[cfg(feature = "logs")]
pub(super) fn change_user() {
    if let Some(word) = worker_word(CANNOT_SIGNAL) {
        word.store(1, Ordering::SeqCst);
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    }
}

/// An intentional wait, for an event, for input or for a reader of the output, that lasts until the value is dropped.
#[derive(Debug)]
pub struct Wait(());

impl Wait {
    pub fn begin() -> Self {
        if let Some(word) = worker_word(WAITS) {
            word.fetch_add(1, Ordering::SeqCst);
        }
        Self(())
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(word) = worker_word(WAITS) else {
            return;
        };
        word.fetch_sub(1, Ordering::SeqCst);
        step();
        // SIGCHLD wakes the supervisor and has no other effect.
        let parent = getppid();
        if get(SLEEPS) != 0 && get(CANNOT_SIGNAL) == 0 && supervisor() == parent.as_raw() {
            let _ = kill(parent, Signal::SIGCHLD);
        }
    }
}

/// Records whether this descriptor holds a lock on which other processes wait.
pub(super) fn locked(fd: &impl AsRawFd, is_locked: bool) {
    if let (Some(word), Ok(bit)) = (word(LOCKS), u32::try_from(fd.as_raw_fd())) {
        let bit = 1_u64.checked_shl(bit).unwrap_or(0);
        match is_locked {
            true => word.fetch_or(bit, Ordering::SeqCst),
            false => word.fetch_and(!bit, Ordering::SeqCst),
        };
    }
}

/// The worker's descriptors that hold locks.
pub(super) fn locks() -> Vec<RawFd> {
    let held = get(LOCKS);
    (0..64).filter(|fd| held & 1 << fd != 0).collect()
}

/// Leaves a value for the supervisor; it is 0 until then.
pub fn set_note(note: u64) {
    if let Some(word) = word(NOTE) {
        word.store(note, Ordering::SeqCst);
    }
}

/// The value of the last [`set_note`].
pub fn note() -> u64 {
    get(NOTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_joined_from_its_parts_and_truncated_at_the_limit() {
        begin().unwrap();
        SUPERVISOR.store(0, Ordering::SeqCst);
        let long = vec![b'x'; LONGEST + 9];
        for (parts, want) in [
            (&[&b"/host"[..], b"etc/group"][..], &b"/host/etc/group"[..]),
            (&[b"/", b"dev"], b"/dev"),
            (&[b"/host", b"/dev/\xff"], b"/host/dev/\xff"),
            (&[b"x"], b"x"),
            (&[&long], &long[..LONGEST]),
        ] {
            let before = steps();
            let parts: Vec<_> = parts.iter().map(|part| OsStr::from_bytes(part)).collect();
            at(&parts);
            assert!(steps() > before);
            assert_eq!(path().into_os_string().into_vec(), want);
        }
    }
}
