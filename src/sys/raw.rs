//! The calls that neither std nor nix offers in a safe form. No other file may say `unsafe`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::Result;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::ForkResult;

/// getxattr(2), following links: meant for `/proc/self/fd/N`. `None` where the attribute is not
/// set or the file system has none.
pub fn getxattr(path: &CStr, name: &CStr) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0_u8; 1024];
    loop {
        // SAFETY: both strings end in NUL and the buffer is as long as the call is told.
        let got = unsafe {
            libc::getxattr(
                path.as_ptr(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        match Errno::result(got) {
            Ok(got) => {
                value.truncate(usize::try_from(got).unwrap_or(0));
                return Ok(Some(value));
            }
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => return Ok(None),
            // XATTR_SIZE_MAX is 64 KiB.
            Err(Errno::ERANGE) if value.len() < 65_536 => value.resize(65_536, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// setxattr(2), following links: meant for `/proc/self/fd/N`.
pub fn setxattr(path: &CStr, name: &CStr, value: &[u8]) -> Result<()> {
    // SAFETY: both strings end in NUL and the value is as long as the call is told.
    let done = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(done).map(drop)
}

/// The names of a file's extended attributes, listxattr(2), following links.
pub fn listxattr(path: &CStr) -> Result<Vec<u8>> {
    let mut names = vec![0_u8; 65_536];
    // SAFETY: the path ends in NUL and the buffer is as long as the call is told.
    let got = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    match Errno::result(got) {
        Ok(got) => {
            names.truncate(usize::try_from(got).unwrap_or(0));
            Ok(names)
        }
        Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
        Err(errno) => Err(errno),
    }
}

/// fchmodat2(2) on the descriptor itself (`AT_EMPTY_PATH`), Linux 6.6 and later; works on an
/// `O_PATH` descriptor, where fchmod(2) answers `EBADF`.
pub fn fchmodat2(fd: BorrowedFd<'_>, mode: libc::mode_t) -> Result<()> {
    /// The same number on every architecture (include/uapi/asm-generic/unistd.h).
    const SYS_FCHMODAT2: libc::c_long = 452;
    // SAFETY: four integers and an empty string that ends in NUL.
    let done = unsafe {
        libc::syscall(
            SYS_FCHMODAT2,
            fd.as_raw_fd(),
            c"".as_ptr(),
            mode,
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(done).map(drop)
}

/// ioctl(2) for a request whose argument must be 0, as `KVM_GET_API_VERSION` and `KVM_CREATE_VM`
/// want it: without an explicit argument the kernel would see what a register happened to hold.
pub fn ioctl_zero(fd: BorrowedFd<'_>, request: u32) -> Result<i32> {
    // SAFETY: KVM's argument-less requests read and write no memory of this process.
    #[allow(clippy::cast_possible_wrap, clippy::unnecessary_cast)]
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, 0 as libc::c_ulong) };
    Errno::result(answer)
}

/// fork(2).
///
/// The program has one thread, so the child may do what the parent may.
pub fn fork() -> Result<ForkResult> {
    // SAFETY: no other thread can hold a lock that the child would wait for.
    unsafe { nix::unistd::fork() }
}

/// Lets children wait to be asked for, whatever was inherited.
pub fn default_sigchld() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: installs no handler.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// Makes SIGTERM and SIGINT end this process also where it is the first of a PID namespace: the
/// kernel keeps signals without a handler from that one.
pub fn end_on_request() {
    extern "C" fn end(number: libc::c_int) {
        exit_now(128 + number);
    }
    on_request(end);
}

/// The same for what is not wrong to end: the exit code is 0.
#[cfg(feature = "watch")]
pub fn end_well_on_request() {
    extern "C" fn end(_: libc::c_int) {
        exit_now(0);
    }
    on_request(end);
}

/// `end` does nothing but to end the process.
fn on_request(end: extern "C" fn(libc::c_int)) {
    use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
    let mut both = SigSet::empty();
    for number in [Signal::SIGTERM, Signal::SIGINT] {
        both.add(number);
        // SAFETY: the handlers make one call, _exit(2), which is async-signal-safe.
        let _ = unsafe { signal(number, SigHandler::Handler(end)) };
    }
    // Whoever started this process may have blocked them, and that is handed on.
    let _ = both.thread_unblock();
}

/// pidfd_open(2), Linux 5.3: readable once the process has ended.
pub fn pidfd_open(pid: u32) -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, for this caller alone.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

/// Closes every descriptor but `keep` (close_range(2), Linux 5.9; one by one before that).
pub fn close_all_but(keep: BorrowedFd<'_>) {
    let keep = keep.as_raw_fd();
    close_range(0, keep - 1);
    close_range(keep + 1, RawFd::MAX);
}

fn close_range(first: RawFd, last: RawFd) {
    let (Ok(low), Ok(high)) = (libc::c_uint::try_from(first), libc::c_uint::try_from(last)) else {
        return;
    };
    if low > high {
        return;
    }
    // SAFETY: called in a child that ends without running destructors, so no owner of a closed
    // descriptor will close its number again.
    let done = unsafe { libc::syscall(libc::SYS_close_range, low, high, 0) };
    if Errno::result(done).is_err() {
        let limit = nix::unistd::sysconf(nix::unistd::SysconfVar::OPEN_MAX);
        let limit = limit.ok().flatten().unwrap_or(1024);
        // Only Linux 5.6 to 5.8 comes here; nobody has opened more before this program started.
        let limit = RawFd::try_from(limit).unwrap_or(1024).min(65_536).min(last);
        for fd in first..=limit {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// close(2) of a descriptor that a call handed out as a bare number.
pub fn close(fd: RawFd) {
    // SAFETY: the caller got the number from the kernel and gave it to nobody.
    unsafe { libc::close(fd) };
}

/// _exit(2): ends a forked child without running what belongs to the parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing can follow.
    unsafe { libc::_exit(code) }
}

/// The path under which a descriptor can be reached by calls that take only paths. It names the
/// very inode that was opened, whatever happens to the path it was opened by.
pub fn proc_path(fd: impl AsFd) -> std::ffi::CString {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    // Digits hold no NUL.
    std::ffi::CString::new(path).unwrap_or_default()
}
