//! A security module's denial: Landlock's, which any process can give itself.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `LANDLOCK_ACCESS_FS_WRITE_FILE`
const WRITE_FILE: u64 = 1 << 1;

/// From now on this thread, and every process that it starts, opens no file for writing.
pub fn deny_writing() -> io::Result<()> {
    // SAFETY: `struct landlock_ruleset_attr` begins with this one number, and may end with it.
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
    // SAFETY: the kernel has just made this descriptor for us.
    let rules = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(rules).unwrap()) };
    // SAFETY: two integers.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
