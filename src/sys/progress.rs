//! What a worker shows to the process that supervises it: a counter that moves with each step, the path that
//! the step is about, whether it waits for something on purpose, and which locks it holds.
//!
//! All of it is in one page of memory that both processes share, so that a step costs no system call. Without a
//! supervisor every function here does nothing.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};

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
/// Not 0 once the worker is another user's process (`logs`): neither can send the other a signal any more.
const OTHER_USER: usize = 5;
/// The path's length in bytes, and its bytes from there on.
const LENGTH: usize = 6;
const TEXT: usize = 7;
/// Words of 8 bytes, one page.
pub(super) const WORDS: usize = 512;
/// No path that is longer is shown as a whole.
const LONGEST: usize = (WORDS - TEXT) * 8;

/// The page, and the process that made it.
static PAGE: OnceLock<(Page, Pid)> = OnceLock::new();

type Page = &'static [AtomicU64; WORDS];

/// Makes the page, if there is none. False where there is no memory for it.
pub(super) fn begin() -> bool {
    if PAGE.get().is_none()
        && let Ok(page) = syscalls::shared_page()
    {
        let _ = PAGE.set((page, getpid()));
    }
    PAGE.get().is_some()
}

fn word(at: usize) -> Option<&'static AtomicU64> {
    PAGE.get().and_then(|(page, _)| page.get(at))
}

fn get(at: usize) -> u64 {
    word(at).map_or(0, |word| word.load(Ordering::SeqCst))
}

/// The process that supervises this one, if one does.
pub(super) fn supervisor() -> Option<Pid> {
    PAGE.get().map(|(_, pid)| *pid)
}

/// A step that is about no path.
pub fn step() {
    if let Some(word) = word(STEPS) {
        word.fetch_add(1, Ordering::SeqCst);
        if get(OTHER_USER) != 0 && supervisor().is_some_and(|parent| parent != getppid()) {
            syscalls::exit_now(u8::MAX.into());
        }
    }
}

/// A call that may not return follows, on the path that these parts make.
pub fn at(parts: &[&OsStr]) {
    let Some((page, _)) = PAGE.get() else {
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
    let Some((page, _)) = PAGE.get() else {
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
    let sleeps = is_waiting() && get(OTHER_USER) == 0;
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

/// This process is another user's from now on. The kernel checks the rights to send a signal also for the one
/// that ends a worker together with its supervisor, so the worker asks at each step whether that has ended.
#[cfg(feature = "logs")]
pub(super) fn change_user() {
    if let Some(word) = word(OTHER_USER).filter(|_| supervisor() != Some(getpid())) {
        word.store(1, Ordering::SeqCst);
    }
}

/// A wait on purpose, as long as the value lives: for an event, for input, for a reader of the output.
#[derive(Debug)]
pub struct Wait(());

impl Wait {
    /// Begins it.
    pub fn begin() -> Self {
        if let Some(word) = word(WAITS) {
            word.fetch_add(1, Ordering::SeqCst);
        }
        Self(())
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(word) = word(WAITS) else {
            return;
        };
        word.fetch_sub(1, Ordering::SeqCst);
        step();
        // A signal that the supervisor takes anyway, and that does nothing else.
        if get(SLEEPS) != 0 && PAGE.get().is_some_and(|(_, parent)| *parent == getppid()) {
            let _ = kill(getppid(), Signal::SIGCHLD);
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
        assert!(begin());
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
