//! A denial by a security module: Landlock, which any process can apply to itself.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `LANDLOCK_ACCESS_FS_WRITE_FILE`
const WRITE_FILE: u64 = 1 << 1;

/// Denies opening files for writing to this thread and to every process that it starts.
pub fn deny_writing() -> io::Result<()> {
    // SAFETY: `struct landlock_ruleset_attr` begins with this field, and the kernel accepts a struct of this size.
    let rules = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::from_ref(&WRITE_FILE),
            size_of::<u64>(),
            0,
        )
    };
    if rules < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor for this caller.
    let rules = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(rules).unwrap()) };
    // SAFETY: the call takes two integers.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
