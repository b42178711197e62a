//! What a worker shows to the process that supervises it: a counter that moves with each step, the path that
//! the step is about, whether it waits for something on purpose, and which locks it holds.
//!
//! All of it is in one page of memory that both processes share, so that a step costs no system call. Without a
//! supervisor, and in the supervisor itself, every function here that shows something does nothing.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

use super::syscalls;

/// Moves with each step.
const STEPS: usize = 0;
/// How many waits on purpose are going on.
const WAITS: usize = 1;
/// Not 0 while the supervisor sleeps until it is told that such a wait is over.
const SLEEPS: usize = 2;
/// A bit for each descriptor, 0 to 63, that holds a lock which other processes ask for.
const LOCKS: usize = 3;
/// What the program keeps here for its supervisor ([`set_note`]).
const NOTE: usize = 4;
/// Not 0 where the worker cannot send its supervisor a signal: it is another user's process (`logs`), or alone in
/// a PID namespace.
const CANNOT_TELL: usize = 5;
/// The path's length in bytes, and its bytes from there on.
const LENGTH: usize = 6;
const TEXT: usize = 7;
/// Words of 8 bytes, one page.
pub(super) const WORDS: usize = 512;
/// No path that is longer is shown as a whole.
const LONGEST: usize = (WORDS - TEXT) * 8;

/// The page.
static PAGE: OnceLock<&'static [AtomicU64; WORDS]> = OnceLock::new();
/// In the worker, the process that supervises it, 0 where that is in another PID namespace.
static SUPERVISOR: AtomicI32 = AtomicI32::new(NONE);
const NONE: i32 = -1;

/// Makes the page, if there is none.
///
/// # Errors
/// `ENOMEM`.
pub(super) fn begin() -> nix::Result<()> {
    if PAGE.get().is_none() {
        let _ = PAGE.set(syscalls::shared_page()?);
    }
    Ok(())
}

/// This process is the worker from now on; `parent` as it sees it.
pub(super) fn begin_work(parent: Pid) {
    SUPERVISOR.store(parent.as_raw(), Ordering::SeqCst);
    if parent.as_raw() == 0
        && let Some(word) = word(CANNOT_TELL)
    {
        word.store(1, Ordering::SeqCst);
    }
}

fn word(at: usize) -> Option<&'static AtomicU64> {
    PAGE.get().and_then(|page| page.get(at))
}

/// The same in the worker alone.
fn worker_word(at: usize) -> Option<&'static AtomicU64> {
    word(at).filter(|_| supervisor() != NONE)
}

fn get(at: usize) -> u64 {
    word(at).map_or(0, |word| word.load(Ordering::SeqCst))
}

fn supervisor() -> i32 {
    SUPERVISOR.load(Ordering::SeqCst)
}

/// A step that is about no path.
pub fn step() {
    if let Some(word) = worker_word(STEPS) {
        word.fetch_add(1, Ordering::SeqCst);
        // A supervisor that this process does not see cannot be asked for; its end kills the worker.
        if get(CANNOT_TELL) != 0 && ![0, getppid().as_raw()].contains(&supervisor()) {
            syscalls::exit_now(u8::MAX.into());
        }
    }
}

/// A call that may not return follows, on the path that these parts make.
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

/// The path of the last step.
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

/// How many steps were made.
pub(super) fn steps() -> u64 {
    get(STEPS)
}

/// Whether the worker waits on purpose.
pub(super) fn is_waiting() -> bool {
    get(WAITS) != 0
}

/// The supervisor is about to sleep until a wait is over; false where it already is.
pub(super) fn sleep() -> bool {
    if let Some(word) = word(SLEEPS) {
        word.store(1, Ordering::SeqCst);
    }
    // The worker ends its wait first, and then looks whether it has to tell.
    let sleeps = is_waiting() && get(CANNOT_TELL) == 0;
    if !sleeps {
        awake();
    }
    sleeps
}

/// The supervisor no longer sleeps.
pub(super) fn awake() {
    if let Some(word) = word(SLEEPS) {
        word.store(0, Ordering::SeqCst);
    }
}

/// This process is another user's from now on, which takes the signal back that ends it together with its
/// supervisor (`PR_SET_PDEATHSIG`). The kernel sends that one only where the supervisor may send it (`CAP_KILL`),
/// so the worker also asks at each step whether that has ended.
#[cfg(feature = "logs")]
pub(super) fn change_user() {
    if let Some(word) = worker_word(CANNOT_TELL) {
        word.store(1, Ordering::SeqCst);
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    }
}

/// A wait on purpose, as long as the value lives: for an event, for input, for a reader of the output.
#[derive(Debug)]
pub struct Wait(());

impl Wait {
    /// Begins it.
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
        // A signal that the supervisor takes anyway, and that does nothing else.
        let parent = getppid();
        if get(SLEEPS) != 0 && get(CANNOT_TELL) == 0 && supervisor() == parent.as_raw() {
            let _ = kill(parent, Signal::SIGCHLD);
        }
    }
}

/// This descriptor holds a lock from now on that other processes ask for, or no longer does.
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

/// Keeps a number for the supervisor, 0 until then.
pub fn set_note(note: u64) {
    if let Some(word) = word(NOTE) {
        word.store(note, Ordering::SeqCst);
    }
}

/// The number that was kept last.
pub fn note() -> u64 {
    get(NOTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_as_its_parts_make_it() {
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
