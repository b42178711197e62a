//! The calls that neither std nor nix offers in a safe form. No other file may say `unsafe`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use nix::Result;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::unistd::{ForkResult, getpid};

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

/// getdents64(2): fills `buffer` with records of an open folder's next entries, and says how far; 0 at its
/// end.
pub fn getdents64(folder: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the buffer is as long as the call is told, and any bytes will do in it.
    let got = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            folder.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    Errno::result(got).map(|got| usize::try_from(got).unwrap_or(0))
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

/// Whether a descriptor is the root of a mount: statx(2), `STATX_ATTR_MOUNT_ROOT`, Linux 5.8. `None` where
/// the kernel or a filter of system calls does not answer that.
pub fn is_mount_root(fd: BorrowedFd<'_>) -> Result<Option<bool>> {
    /// `STATX_ATTR_MOUNT_ROOT`
    const MOUNT_ROOT: u64 = 0x2000;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is empty and ends in NUL, and the kernel fills a struct of this layout.
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
    // SAFETY: zeroes are a valid value of all its fields, which are numbers.
    let found = unsafe { found.assume_init() };
    let is_known = found.stx_attributes_mask & MOUNT_ROOT != 0;
    Ok(is_known.then_some(found.stx_attributes & MOUNT_ROOT != 0))
}

/// renameat2(2) within a directory, `EEXIST` where there is something called `to` (`RENAME_NOREPLACE`).
pub fn rename_anew(folder: BorrowedFd<'_>, from: &CStr, to: &CStr) -> Result<()> {
    /// `RENAME_NOREPLACE`
    const NO_REPLACE: libc::c_uint = 1;
    let folder = folder.as_raw_fd();
    // SAFETY: both strings end in NUL.
    let done = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            folder,
            from.as_ptr(),
            folder,
            to.as_ptr(),
            NO_REPLACE,
        )
    };
    Errno::result(done).map(drop)
}

/// getrandom(2): a number that nobody can guess. It does not wait for the kernel to have gathered enough at
/// boot (`GRND_INSECURE`, Linux 5.6).
pub fn random() -> Result<u64> {
    /// `GRND_INSECURE`
    const AT_ONCE: libc::c_uint = 4;
    let mut bytes = [0_u8; 8];
    // SAFETY: the buffer is as long as the call is told.
    let got = unsafe {
        libc::syscall(
            libc::SYS_getrandom,
            bytes.as_mut_ptr(),
            bytes.len(),
            AT_ONCE,
        )
    };
    match Errno::result(got)? {
        8 => Ok(u64::from_ne_bytes(bytes)),
        _ => Err(Errno::EIO),
    }
}

/// ioctl(2) for a request whose argument must be 0, as `KVM_GET_API_VERSION` and `KVM_CREATE_VM`
/// want it: without an explicit argument the kernel would see what a register happened to hold.
pub fn ioctl_zero(fd: BorrowedFd<'_>, request: u32) -> Result<i32> {
    // SAFETY: KVM's argument-less requests read and write no memory of this process.
    #[allow(clippy::cast_possible_wrap, clippy::unnecessary_cast)]
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, 0 as libc::c_ulong) };
    Errno::result(answer)
}

/// Takes every capability that the kernel knows from the bounding set, also those that are younger than
/// this program.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`.
pub fn empty_bounding_set() -> Result<()> {
    /// A capability is a bit of 64.
    const END: libc::c_ulong = 64;
    let zero: libc::c_ulong = 0;
    for capability in 0..END {
        // SAFETY: five numbers.
        let call = |what| unsafe { libc::prctl(what, capability, zero, zero, zero) };
        // To ask costs a tenth of taking one away.
        match Errno::result(call(libc::PR_CAPBSET_READ)) {
            // The first that this kernel does not know.
            Err(Errno::EINVAL) if capability > 0 => break,
            Ok(0) => {}
            _ => Errno::result(call(libc::PR_CAPBSET_DROP)).map(drop)?,
        }
    }
    Ok(())
}

/// What a process may do, a bit for each capability (capabilities(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What counts now.
    pub effective: u64,
    /// What it can make count.
    pub permitted: u64,
    /// What a program that it starts may get.
    pub inheritable: u64,
}

/// What the two calls below are told first: `_LINUX_CAPABILITY_VERSION_3`, which takes each set in two
/// words, and that this process is meant.
const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

/// capget(2) for this process: all sets by one call.
pub fn capabilities() -> Result<Capabilities> {
    let mut header = CAPABILITIES;
    let mut words = [0_u32; 6];
    // SAFETY: both are as long as the kernel takes them for in this version.
    let done = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), words.as_mut_ptr()) };
    Errno::result(done)?;
    let set = |place: usize| u64::from(words[place]) | u64::from(words[place + 3]) << 32;
    Ok(Capabilities {
        effective: set(0),
        permitted: set(1),
        inheritable: set(2),
    })
}

/// capset(2) for this process: all sets at once, and of the ambient one only that stays which is in both the
/// permitted and the inheritable one.
///
/// # Errors
/// `EPERM` for more than it has.
pub fn set_capabilities(new: Capabilities) -> Result<()> {
    let mut header = CAPABILITIES;
    let mut words = [0_u32; 6];
    let word = |part: u64| u32::try_from(part & u64::from(u32::MAX)).unwrap_or_default();
    let sets = [new.effective, new.permitted, new.inheritable];
    for (place, set) in sets.into_iter().enumerate() {
        words[place] = word(set);
        words[place + 3] = word(set >> 32);
    }
    // SAFETY: both are as long as the kernel takes them for in this version.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), words.as_ptr()) };
    Errno::result(done).map(drop)
}

/// fork(2).
///
/// The program has one thread, so the child may do what the parent may.
pub fn fork() -> Result<ForkResult> {
    // SAFETY: no other thread can hold a lock that the child would wait for.
    unsafe { nix::unistd::fork() }
}

/// What this process had about SIGCHLD.
#[derive(Debug)]
pub struct Sigchld {
    ignored: bool,
    /// One waits, blocked: a child that was inherited has ended.
    pending: bool,
}

/// Lets children wait to be asked for, whatever was inherited. Gives what was.
pub fn default_sigchld() -> Sigchld {
    let pending = pending().is_ok_and(|signals| signals.contains(Signal::SIGCHLD));
    // SAFETY: installs no handler.
    let was = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
    Sigchld {
        ignored: matches!(was, Ok(SigHandler::SigIgn)),
        pending,
    }
}

/// Puts back what [`default_sigchld`] gave. Where SIGCHLD is blocked, this also takes back the one that
/// the child's end left pending: setting a signal to be ignored discards it (sigaction(2)), and SIGCHLD
/// is ignored by default. One that waited before was discarded as well, so it is sent again.
pub fn restore_sigchld(was: &Sigchld) {
    let handler = if was.ignored {
        SigHandler::SigIgn
    } else {
        SigHandler::SigDfl
    };
    // SAFETY: installs no handler.
    let _ = unsafe { signal(Signal::SIGCHLD, handler) };
    if was.pending {
        let _ = kill(getpid(), Signal::SIGCHLD);
    }
}

/// The signals that wait, sigpending(2).
fn pending() -> Result<SigSet> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the call fills the set, of which zeroes are a valid value.
    unsafe {
        Errno::result(libc::sigpending(set.as_mut_ptr()))?;
        Ok(SigSet::from_sigset_t_unchecked(set.assume_init()))
    }
}

/// Makes SIGTERM and SIGINT end this process also where it is the first of a PID namespace: the
/// kernel keeps signals without a handler from that one. One that was inherited as ignored stays so
/// (nohup, a shell's background job).
pub fn end_on_request() {
    extern "C" fn end(number: libc::c_int) {
        exit_now(128 + number);
    }
    on_request(end, true);
    let_through(libc::SIGHUP);
    let_through(libc::SIGQUIT);
}

/// The same for what runs until it is told to end: the exit code is 0, and no signal is ignored. A SIGHUP
/// is kept until there is somebody to take it.
#[cfg(feature = "watch")]
pub fn end_well_on_request() {
    extern "C" fn end(_: libc::c_int) {
        exit_now(0);
    }
    mask(libc::SIG_BLOCK, Some(bit(libc::SIGHUP)));
    on_request(end, false);
    let_through(libc::SIGQUIT);
}

/// `end` does nothing but to end the process.
fn on_request(end: extern "C" fn(libc::c_int), leave_ignored: bool) {
    use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
    let mut both = SigSet::empty();
    for number in [Signal::SIGTERM, Signal::SIGINT] {
        both.add(number);
        // SAFETY: the handlers make one call, _exit(2), which is async-signal-safe.
        let was = unsafe { signal(number, SigHandler::Handler(end)) };
        if leave_ignored && matches!(was, Ok(SigHandler::SigIgn)) {
            // SAFETY: installs no handler.
            let _ = unsafe { signal(number, SigHandler::SigIgn) };
        }
    }
    // Whoever started this process may have blocked them, and that is handed on. What came since they
    // were held back comes now.
    let _ = both.thread_unblock();
}

/// The signals that end a program and that its user sends to the process that was started: the supervisor.
const REQUESTS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];
/// Holds back the signals that [`wait_for_signal`] waits for. Gives what was blocked before.
pub fn hold_signals() -> u64 {
    mask(libc::SIG_BLOCK, Some(set(&REQUESTS) | bit(libc::SIGCHLD)))
}

/// Blocks just what [`hold_signals`] gave.
pub fn restore_signals(before: u64) {
    mask(libc::SIG_SETMASK, Some(before));
}

/// The same in the worker, where those that end a program wait for [`end_on_request`] or [`end_well_on_request`].
pub fn restore_all_but_requests(before: u64) {
    restore_signals(before | set(&REQUESTS));
}

/// Lets a signal through that was not inherited as blocked.
fn let_through(number: libc::c_int) {
    if BLOCKED.load(Ordering::Relaxed) & bit(number) == 0 {
        mask(libc::SIG_UNBLOCK, Some(bit(number)));
    }
}

/// Takes one of the signals that are held back, rt_sigtimedwait(2), and waits for it at most so long. Nothing when the time is
/// over, or another signal came.
pub fn wait_for_signal(timeout: Option<std::time::Duration>) -> Option<libc::c_int> {
    let signals = set(&REQUESTS) | bit(libc::SIGCHLD);
    let timeout = timeout.map(nix::sys::time::TimeSpec::from_duration);
    let timeout = timeout.as_ref().map(AsRef::as_ref);
    let timeout: *const libc::timespec = timeout.map_or(std::ptr::null(), std::ptr::from_ref);
    let nothing = std::ptr::null_mut::<libc::siginfo_t>();
    // SAFETY: the kernel reads a set of as many bytes as it is told, and a time that is valid or none.
    let taken = unsafe {
        let size = size_of::<u64>();
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const signals,
            nothing,
            timeout,
            size,
        )
    };
    let taken = Errno::result(taken).ok()?;
    libc::c_int::try_from(taken).ok()
}

/// Lets a signal do to this process what it does by default. Returns where that is nothing.
pub fn raise_default(signal_: Signal) {
    // The process whose end this repeats has left its core already.
    let _ = nix::sys::prctl::set_dumpable(false);
    // SAFETY: installs no handler.
    let _ = unsafe { signal(signal_, SigHandler::SigDfl) };
    mask(libc::SIG_UNBLOCK, Some(bit(signal_ as libc::c_int)));
    let _ = kill(getpid(), signal_);
}

/// A page of memory that this process shares with the children that it forks from now on. It is never given back.
pub fn shared_page<const WORDS: usize>() -> Result<&'static [AtomicU64; WORDS]> {
    // SAFETY: asks for new memory at no address of its own.
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
    // SAFETY: the memory is as long as that, aligned to a page, zeroed, and stays mapped; zeroes are a valid value of
    // these words, and other processes change them as other threads would.
    Ok(unsafe { &*page.cast() })
}

fn set(numbers: &[libc::c_int]) -> u64 {
    numbers.iter().fold(0, |set, number| set | bit(*number))
}

/// A signal as the kernel has it in a set: signal 1 is bit 0.
fn bit(number: libc::c_int) -> u64 {
    1 << (number - 1)
}

/// rt_sigprocmask(2), which gives what was blocked before. The C library's function would leave out
/// signals that it keeps for itself.
fn mask(how: libc::c_int, signals: Option<u64>) -> u64 {
    let mut before = 0_u64;
    let new = signals
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the kernel reads and writes as many bytes as it is told, and the numbers have them.
    unsafe {
        let size = size_of::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, how, new, &raw mut before, size);
    }
    before
}

/// What Rust's runtime changes before `main`, as it was before that: bit 0 to 2 for a standard stream
/// that was closed, [`SIGPIPE_IGNORED`].
static INHERITED: AtomicU8 = AtomicU8::new(0);
const SIGPIPE_IGNORED: u8 = 1 << 3;
/// The signals that were blocked then, as the kernel has them: signal 1 is bit 0.
static BLOCKED: AtomicU64 = AtomicU64::new(0);

/// Runs before `main`, as a constructor: Rust's runtime ignores SIGPIPE, opens /dev/null for standard
/// streams that are closed, and installs handlers, at which musl unblocks the signals 32 to 34 (34 is
/// another C library's SIGRTMIN). Whoever becomes another program has to know what it was given.
///
/// The kernel throws away signals for the first process of a PID namespace that has no handler for them,
/// unless they are blocked. So there they are held back until [`end_on_request`] or
/// [`end_well_on_request`] was called: a container that is stopped in the moment in which it starts must not
/// have to be killed. Its worker, which is not the first process, inherits that.
extern "C" fn note_inherited() {
    let mut found = 0;
    for fd in 0..3 {
        // SAFETY: asks for a descriptor's flags, whether it is open or not.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            found |= 1 << fd;
        }
    }
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: changes nothing, and zeroes are a valid value of what it fills.
    let now = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), now.as_mut_ptr());
        now.assume_init()
    };
    if now.sa_sigaction == libc::SIG_IGN {
        found |= SIGPIPE_IGNORED;
    }
    INHERITED.store(found, Ordering::Relaxed);
    BLOCKED.store(mask(libc::SIG_BLOCK, None), Ordering::Relaxed);
    // SAFETY: takes and changes nothing.
    if unsafe { libc::getpid() } == 1 {
        mask(libc::SIG_BLOCK, Some(set(&REQUESTS)));
    }
}

// SAFETY: the section holds pointers to functions that the C library calls once, before `main`; this
// one uses nothing of Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_INHERITED: extern "C" fn() = note_inherited;

/// execv(2): this process becomes the program at `path`. Before that, what Rust's runtime changed is put
/// back: SIGPIPE, blocked signals, and standard streams that were closed. Only returns where that failed.
///
/// The environment is the one that was inherited, byte for byte; a signal that was ignored stays
/// ignored, and the handlers of this process (SIGTERM, SIGINT, Rust's for SIGSEGV and SIGBUS, which
/// leave ignored ones alone) go with it, as does its alternate signal stack (execve(2)).
pub fn become_program(path: &CStr, args: &[CString]) -> Errno {
    let inherited = INHERITED.load(Ordering::Relaxed);
    if inherited & SIGPIPE_IGNORED == 0 {
        // SAFETY: installs no handler.
        let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    }
    mask(libc::SIG_SETMASK, Some(BLOCKED.load(Ordering::Relaxed)));
    for fd in (0..3).filter(|fd| inherited & 1 << fd != 0) {
        close(fd);
    }
    match nix::unistd::execv(path, args) {
        Err(errno) => errno,
        Ok(never) => match never {},
    }
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

/// pidfd_getfd(2), Linux 5.6: one more descriptor of a file that another process has open.
pub fn pidfd_getfd(process: BorrowedFd<'_>, number: RawFd) -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: three integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
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
