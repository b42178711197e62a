//! System calls for which neither std nor nix has a safe function. `unsafe` is confined to this file (enforced by
//! lints).
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use nix::Result;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::time::TimeSpec;
use nix::unistd::ForkResult;

/// Largest size of an extended attribute, and of the list of their names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LONGEST_ATTRIBUTE: usize = 65_536;

/// getxattr(2), which follows links, for `/proc/self/fd/N`. `None` if the attribute is not set or the file system does
/// not support it.
pub fn getxattr(path: &CStr, name: &CStr) -> Result<Option<Vec<u8>>> {
    let get = |value: &mut [u8]| {
        let (path, name, room) = (path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast());
        // SAFETY: both strings are NUL-terminated, and the length passed is the length of the buffer.
        unsafe { libc::getxattr(path, name, room, value.len()) }
    };
    match filled(1024, get) {
        Err(Errno::ERANGE) => filled(LONGEST_ATTRIBUTE, get).map(Some),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        value => value.map(Some),
    }
}

/// Calls `fill` with a buffer of this size. Returns the part that it filled, according to the length that it returns.
fn filled(room: usize, fill: impl Fn(&mut [u8]) -> libc::ssize_t) -> Result<Vec<u8>> {
    let mut bytes = vec![0; room];
    let got = Errno::result(fill(&mut bytes))?;
    bytes.truncate(usize::try_from(got).unwrap_or(0));
    Ok(bytes)
}

/// setxattr(2), which follows links, for `/proc/self/fd/N`.
pub fn setxattr(path: &CStr, name: &CStr, value: &[u8]) -> Result<()> {
    // SAFETY: both strings are NUL-terminated, and the length passed is the length of the value.
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

/// The NUL-separated names of a file's extended attributes (listxattr(2), which follows links).
pub fn listxattr(path: &CStr) -> Result<Vec<u8>> {
    let names = filled(LONGEST_ATTRIBUTE, |names| {
        let room = names.as_mut_ptr().cast();
        // SAFETY: the path is NUL-terminated, and the length passed is the length of the buffer.
        unsafe { libc::listxattr(path.as_ptr(), room, names.len()) }
    });
    match names {
        Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
        names => names,
    }
}

/// getdents64(2): fills `buffer` with records of the next directory entries. Returns the number of bytes, 0 at the end.
pub fn getdents64(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the length passed is the length of the buffer, and any byte is a valid `u8`.
    let got = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    Errno::result(got).map(|got| usize::try_from(got).unwrap_or(0))
}

/// fchmodat2(2) on the descriptor itself (`AT_EMPTY_PATH`), Linux 6.6. It accepts an `O_PATH` descriptor, for which
/// fchmod(2) fails with `EBADF`.
pub fn fchmodat2(fd: BorrowedFd<'_>, mode: libc::mode_t) -> Result<()> {
    /// The same number on every architecture (include/uapi/asm-generic/unistd.h).
    const SYS_FCHMODAT2: libc::c_long = 452;
    // SAFETY: the arguments are integers and a NUL-terminated string.
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

/// Whether a descriptor is the root of a mount (statx(2), `STATX_ATTR_MOUNT_ROOT`, Linux 5.8). `None` if the kernel or
/// a seccomp filter does not support the request.
pub fn is_mount_root(fd: BorrowedFd<'_>) -> Result<Option<bool>> {
    /// `STATX_ATTR_MOUNT_ROOT`
    const MOUNT_ROOT: u64 = 0x2000;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is NUL-terminated, and the kernel writes one `statx` to a buffer of that type.
    let done = unsafe {
        libc::syscall(
            libc::SYS_statx,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            0,
            found.as_mut_ptr(),
        )
    };
    match Errno::result(done) {
        Err(Errno::ENOSYS | Errno::EPERM) => return Ok(None),
        done => done?,
    };
    // SAFETY: the struct was zeroed, and zero is a valid value of its fields, which are all integers.
    let found = unsafe { found.assume_init() };
    let is_known = found.stx_attributes_mask & MOUNT_ROOT != 0;
    Ok(is_known.then_some(found.stx_attributes & MOUNT_ROOT != 0))
}

/// renameat2(2) within a directory with `RENAME_NOREPLACE`: `EEXIST` if `to` exists.
pub fn rename_noreplace(directory: BorrowedFd<'_>, from: &CStr, to: &CStr) -> Result<()> {
    /// `RENAME_NOREPLACE`
    const NO_REPLACE: libc::c_uint = 1;
    let directory = directory.as_raw_fd();
    // SAFETY: both strings are NUL-terminated.
    let done = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            directory,
            from.as_ptr(),
            directory,
            to.as_ptr(),
            NO_REPLACE,
        )
    };
    Errno::result(done).map(drop)
}

/// An unpredictable number (getrandom(2)). It does not block while the kernel's random number generator is not
/// initialized at boot (`GRND_INSECURE`, Linux 5.6).
pub fn random() -> Result<u64> {
    /// `GRND_INSECURE`
    const INSECURE: libc::c_uint = 4;
    let mut bytes = [0_u8; 8];
    // SAFETY: the length passed is the length of the buffer.
    let got = unsafe {
        libc::syscall(
            libc::SYS_getrandom,
            bytes.as_mut_ptr(),
            bytes.len(),
            INSECURE,
        )
    };
    match Errno::result(got)? {
        8 => Ok(u64::from_ne_bytes(bytes)),
        _ => Err(Errno::EIO),
    }
}

/// ioctl(2) for a request that requires the argument 0, such as `KVM_GET_API_VERSION` and `KVM_CREATE_VM`. Without an
/// explicit argument the kernel would read an undefined register value.
pub fn ioctl_zero(fd: BorrowedFd<'_>, request: u32) -> Result<i32> {
    // SAFETY: KVM's requests without an argument access no memory of this process.
    #[allow(clippy::cast_possible_wrap, clippy::unnecessary_cast)]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, 0 as libc::c_ulong) };
    Errno::result(result)
}

/// Drops all capabilities of the kernel from the bounding set, including those that are newer than this program. Those
/// in `permitted`, one bit each, are normally in the set, so they are dropped without reading it first.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`.
pub fn empty_bounding_set(permitted: u64) -> Result<()> {
    /// Capabilities are bits of a 64-bit set.
    const END: libc::c_ulong = 64;
    let zero: libc::c_ulong = 0;
    for capability in 0..END {
        // SAFETY: all five arguments are integers.
        let call = |what| unsafe { libc::prctl(what, capability, zero, zero, zero) };
        // PR_CAPBSET_READ costs a tenth of PR_CAPBSET_DROP.
        let has = match permitted >> capability & 1 {
            1 => Ok(1),
            _ => Errno::result(call(libc::PR_CAPBSET_READ)),
        };
        match has {
            // The first capability that this kernel does not have.
            Err(Errno::EINVAL) if capability > 0 => break,
            Ok(0) => {}
            _ => Errno::result(call(libc::PR_CAPBSET_DROP)).map(drop)?,
        }
    }
    Ok(())
}

/// The capability sets of a process, one bit for each capability (capabilities(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// The header of capget(2) and capset(2): `_LINUX_CAPABILITY_VERSION_3`, with which the low words of the three sets are
/// followed by the high words, and PID 0, the calling process.
const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

/// capget(2) for this process: all sets with one call.
///
/// The crate `caps` makes one call per set, returns errors as text, and returns each set as a hash set, for which std
/// needs random numbers and panics without them.
pub fn capabilities() -> Result<Capabilities> {
    let mut header = CAPABILITIES;
    let mut words = [[0_u32; 3]; 2];
    // SAFETY: version 3 takes a header of two words and fills two structs of three words, the sizes of these arrays.
    let done = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), words.as_mut_ptr()) };
    Errno::result(done)?;
    let [low, high] = words.map(|half| half.map(u64::from));
    let [effective, permitted, inheritable] = [0, 1, 2].map(|set| low[set] | high[set] << 32);
    Ok(Capabilities {
        effective,
        permitted,
        inheritable,
    })
}

/// capset(2) for this process: sets all three sets. The kernel removes from the ambient set all capabilities that are
/// not both permitted and inheritable.
///
/// # Errors
/// `EPERM` for a capability that this process lacks.
pub fn set_capabilities(new: Capabilities) -> Result<()> {
    let mut header = CAPABILITIES;
    let word = |part: u64| u32::try_from(part & u64::from(u32::MAX)).unwrap_or_default();
    let sets = [new.effective, new.permitted, new.inheritable];
    let words = [sets.map(word), sets.map(|set| word(set >> 32))];
    // SAFETY: version 3 takes a header of two words and two structs of three words, the sizes of these arrays.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), words.as_ptr()) };
    Errno::result(done).map(drop)
}

/// fork(2). This program has only one thread, so the child can call any function.
pub fn fork() -> Result<ForkResult> {
    // SAFETY: there is no other thread that could hold a lock on which the child would block.
    unsafe { nix::unistd::fork() }
}

/// The disposition of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSignal {
    Default,
    Ignore,
    #[cfg(feature = "watch")]
    EndWell,
    /// Exit with 128 + N, the code that a shell sets for signal N.
    End,
}

/// Sets the disposition of a signal. Returns whether the signal was ignored before.
pub fn on_signal(which: Signal, what: OnSignal) -> bool {
    extern "C" fn end(number: libc::c_int) {
        exit_now(128 + number);
    }
    #[cfg(feature = "watch")]
    extern "C" fn end_well(_: libc::c_int) {
        exit_now(0);
    }
    let handler = match what {
        OnSignal::Default => SigHandler::SigDfl,
        OnSignal::Ignore => SigHandler::SigIgn,
        #[cfg(feature = "watch")]
        OnSignal::EndWell => SigHandler::Handler(end_well),
        OnSignal::End => SigHandler::Handler(end),
    };
    // SAFETY: the handlers only call _exit(2), which is async-signal-safe.
    let was = unsafe { signal(which, handler) };
    matches!(was, Ok(SigHandler::SigIgn))
}

/// Whether this process ignores a signal.
pub fn is_ignored(number: libc::c_int) -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null action changes nothing. The kernel fills a struct that was zeroed, for which zero is a valid
    // value.
    let now = unsafe {
        libc::sigaction(number, std::ptr::null(), now.as_mut_ptr());
        now.assume_init()
    };
    now.sa_sigaction == libc::SIG_IGN
}

/// The pending signals (sigpending(2)).
pub fn pending_signals() -> Result<SigSet> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the call writes to a set of this type, which was zeroed, and zero is a valid value.
    unsafe {
        Errno::result(libc::sigpending(set.as_mut_ptr()))?;
        Ok(SigSet::from_sigset_t_unchecked(set.assume_init()))
    }
}

/// The signals that end a program. Users send them to the process that they started, which is the supervisor.
pub const REQUESTS: u64 =
    bit(libc::SIGTERM) | bit(libc::SIGINT) | bit(libc::SIGHUP) | bit(libc::SIGQUIT);

/// Waits for one of these blocked signals, up to `timeout`, and takes it (rt_sigtimedwait(2)). `None` after the
/// timeout, or if another signal interrupted the wait.
pub fn wait_for_signal(signals: u64, timeout: Option<Duration>) -> Option<libc::c_int> {
    let timeout = timeout.map(TimeSpec::from_duration);
    let timeout = timeout.as_ref().map(AsRef::as_ref);
    let timeout: *const libc::timespec = timeout.map_or(std::ptr::null(), std::ptr::from_ref);
    let nothing = std::ptr::null_mut::<libc::siginfo_t>();
    // SAFETY: the size passed is the size of the set, and both other pointers are null or point to a valid value.
    let taken = unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const signals,
            nothing,
            timeout,
            size_of::<u64>(),
        )
    };
    let taken = Errno::result(taken).ok()?;
    libc::c_int::try_from(taken).ok()
}

/// A page of memory that is shared with all children that are forked from now on. It is never unmapped.
pub fn shared_page<const WORDS: usize>() -> Result<&'static [AtomicU64; WORDS]> {
    // SAFETY: an anonymous mapping without a fixed address affects no existing memory.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<[AtomicU64; WORDS]>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: the mapping has the size of the array, is page-aligned and never unmapped. The kernel zeroes it, and zero
    // is a valid value of these words. They are atomic, so other processes can change them as other threads would.
    Ok(unsafe { &*page.cast() })
}

/// The bit of a signal in a signal set of the kernel: signal 1 is bit 0.
pub const fn bit(number: libc::c_int) -> u64 {
    1 << (number - 1)
}

/// rt_sigprocmask(2). Returns the previous mask. The function of the C library would omit the signals that it reserves
/// for itself.
pub fn mask(how: libc::c_int, signals: Option<u64>) -> u64 {
    let mut before = 0_u64;
    let new = signals
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the size passed is the size of both sets, and `new` is null or points to a set.
    unsafe {
        let size = size_of::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, how, new, &raw mut before, size);
    }
    before
}

/// The state that this process inherited, before Rust's runtime changed it.
#[derive(Debug, Clone, Copy)]
pub struct Inherited {
    /// Bits 0 to 2: the standard stream was closed. Bit 3: [`SIGPIPE_IGNORED`].
    bits: u8,
    /// The blocked signals, one [`bit`] each.
    pub blocked: u64,
}

impl Inherited {
    pub fn sigpipe_ignored(self) -> bool {
        self.bits & SIGPIPE_IGNORED != 0
    }

    /// The descriptors of the standard streams that were closed.
    pub fn closed(self) -> impl Iterator<Item = RawFd> {
        (0..3).filter(move |fd| self.bits & 1 << fd != 0)
    }
}

const SIGPIPE_IGNORED: u8 = 1 << 3;
static INHERITED: AtomicU8 = AtomicU8::new(0);
static BLOCKED: AtomicU64 = AtomicU64::new(0);

/// The state that `note_inherited` stored.
pub fn inherited() -> Inherited {
    Inherited {
        bits: INHERITED.load(Ordering::Relaxed),
        blocked: BLOCKED.load(Ordering::Relaxed),
    }
}

/// Stores the inherited state. It runs before `main`, as a constructor, because Rust's runtime ignores SIGPIPE, opens
/// /dev/null for closed standard streams, and installs handlers, whereupon musl unblocks the signals 32 to 34 (34 is
/// SIGRTMIN in another C library). A process that executes another program has to restore that state.
///
/// It also blocks [`REQUESTS`] in the first process of a PID namespace, until `signals::end_on_request` or
/// `signals::end_well_on_request` is called. The kernel discards signals for that process if they are neither blocked
/// nor handled, so a container that is stopped during startup would ignore SIGTERM and have to be killed. The worker,
/// which is not the first process, inherits the mask.
extern "C" fn note_inherited() {
    let mut bits = 0;
    for fd in 0..3 {
        // SAFETY: F_GETFD only reads the flags of a descriptor, and fails for one that is closed.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            bits |= 1 << fd;
        }
    }
    if is_ignored(libc::SIGPIPE) {
        bits |= SIGPIPE_IGNORED;
    }
    INHERITED.store(bits, Ordering::Relaxed);
    BLOCKED.store(mask(libc::SIG_BLOCK, None), Ordering::Relaxed);
    // SAFETY: getpid(2) has no arguments and no effects.
    if unsafe { libc::getpid() } == 1 {
        mask(libc::SIG_BLOCK, Some(REQUESTS));
    }
}

// SAFETY: the section contains pointers to functions that the C library calls once, before `main`. This function does
// not use Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_INHERITED: extern "C" fn() = note_inherited;

/// pidfd_open(2), Linux 5.3. The descriptor becomes readable when the process ends.
pub fn pidfd_open(pid: u32) -> Result<OwnedFd> {
    // SAFETY: both arguments are integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just created this descriptor, close-on-exec, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_getfd(2), Linux 5.6: duplicates descriptor `fd` of another process.
pub fn pidfd_getfd(process: BorrowedFd<'_>, fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: all arguments are integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    let fd = Errno::result(fd)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just created this descriptor, close-on-exec, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes all descriptors except `keep` (close_range(2), Linux 5.9; individually on older kernels).
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
    // SAFETY: called only in a child that ends without running destructors, so no owner of a descriptor closes it
    // again.
    let done = unsafe { libc::syscall(libc::SYS_close_range, low, high, 0) };
    if Errno::result(done).is_err() {
        let limit = nix::unistd::sysconf(nix::unistd::SysconfVar::OPEN_MAX);
        let limit = limit.ok().flatten().unwrap_or(1024);
        // Linux 5.6 to 5.8. Inherited descriptors above this limit are not expected.
        let limit = RawFd::try_from(limit).unwrap_or(1024).min(65_536).min(last);
        for fd in first..=limit {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// _exit(2): ends the process without destructors and exit handlers, which in a forked child belong to the parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// A path to an open file, for calls that take only paths. It leads to the inode that was opened, even if the original
/// path is changed.
pub fn proc_path(fd: impl AsFd) -> CString {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    // Cannot fail: the path contains no NUL.
    CString::new(path).unwrap_or_default()
}
