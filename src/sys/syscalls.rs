//! The calls that neither std nor nix offers in a safe form. No other file may say `unsafe`.
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

/// The longest value of an extended attribute, and list of their names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LONGEST_ATTRIBUTE: usize = 65_536;

/// getxattr(2), following links: meant for `/proc/self/fd/N`. `None` where the attribute is not
/// set or the file system has none.
pub fn getxattr(path: &CStr, name: &CStr) -> Result<Option<Vec<u8>>> {
    let get = |value: &mut [u8]| {
        let (path, name, room) = (path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast());
        // SAFETY: both strings end in NUL and the buffer is as long as the length that is passed.
        unsafe { libc::getxattr(path, name, room, value.len()) }
    };
    match filled(1024, get) {
        Err(Errno::ERANGE) => filled(LONGEST_ATTRIBUTE, get).map(Some),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        value => value.map(Some),
    }
}

/// What a call writes into a buffer, whose length it answers.
fn filled(room: usize, fill: impl Fn(&mut [u8]) -> libc::ssize_t) -> Result<Vec<u8>> {
    let mut bytes = vec![0; room];
    let got = Errno::result(fill(&mut bytes))?;
    bytes.truncate(usize::try_from(got).unwrap_or(0));
    Ok(bytes)
}

/// setxattr(2), following links: meant for `/proc/self/fd/N`.
pub fn setxattr(path: &CStr, name: &CStr, value: &[u8]) -> Result<()> {
    // SAFETY: both strings end in NUL and the value is as long as the length that is passed.
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
    let names = filled(LONGEST_ATTRIBUTE, |names| {
        let room = names.as_mut_ptr().cast();
        // SAFETY: the path ends in NUL and the buffer is as long as the length that is passed.
        unsafe { libc::listxattr(path.as_ptr(), room, names.len()) }
    });
    match names {
        Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
        names => names,
    }
}

/// getdents64(2): fills `buffer` with records of an open directory's next entries, and gives how far; 0 at its
/// end.
pub fn getdents64(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the buffer is as long as the length that is passed, and any bytes will do in it.
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
pub fn rename_anew(directory: BorrowedFd<'_>, from: &CStr, to: &CStr) -> Result<()> {
    /// `RENAME_NOREPLACE`
    const NO_REPLACE: libc::c_uint = 1;
    let directory = directory.as_raw_fd();
    // SAFETY: both strings end in NUL.
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

/// getrandom(2): a number that nobody can guess. It does not wait for the kernel to have gathered enough at
/// boot (`GRND_INSECURE`, Linux 5.6).
pub fn random() -> Result<u64> {
    /// `GRND_INSECURE`
    const AT_ONCE: libc::c_uint = 4;
    let mut bytes = [0_u8; 8];
    // SAFETY: the buffer is as long as the length that is passed.
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
/// this program. What is `permitted`, a bit for each, is in it as a rule, so that it is not asked for.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`.
pub fn empty_bounding_set(permitted: u64) -> Result<()> {
    /// A capability is a bit of 64.
    const END: libc::c_ulong = 64;
    let zero: libc::c_ulong = 0;
    for capability in 0..END {
        // SAFETY: five numbers.
        let call = |what| unsafe { libc::prctl(what, capability, zero, zero, zero) };
        // To ask costs a tenth of taking one away.
        let has = match permitted >> capability & 1 {
            1 => Ok(1),
            _ => Errno::result(call(libc::PR_CAPBSET_READ)),
        };
        match has {
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

/// What the two calls below are told first: `_LINUX_CAPABILITY_VERSION_3`, which takes the low words of the
/// three sets and then the high ones, and that this process is meant.
const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

/// capget(2) for this process: all sets by one call.
///
/// The crate `caps` asks for each set by a call of its own, gives it as a hash set, for which std wants
/// random numbers and panics without them, and errors as text.
pub fn capabilities() -> Result<Capabilities> {
    let mut header = CAPABILITIES;
    let mut words = [[0_u32; 3]; 2];
    // SAFETY: both are as long as the kernel takes them for in this version.
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

/// capset(2) for this process: all sets at once, and of the ambient one only that stays which is in both the
/// permitted and the inheritable one.
///
/// # Errors
/// `EPERM` for more than it has.
pub fn set_capabilities(new: Capabilities) -> Result<()> {
    let mut header = CAPABILITIES;
    let word = |part: u64| u32::try_from(part & u64::from(u32::MAX)).unwrap_or_default();
    let sets = [new.effective, new.permitted, new.inheritable];
    let words = [sets.map(word), sets.map(|set| word(set >> 32))];
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

/// What becomes of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSignal {
    /// What the kernel does by itself.
    Default,
    /// Nothing.
    Ignore,
    /// The process ends with exit code 0.
    #[cfg(feature = "watch")]
    EndWell,
    /// The process ends with the exit code that a shell gives for the signal.
    End,
}

/// sigaction(2). Gives whether the signal was ignored before.
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
    // SAFETY: the handlers make one call, _exit(2), which is async-signal-safe.
    let was = unsafe { signal(which, handler) };
    matches!(was, Ok(SigHandler::SigIgn))
}

/// Whether this process ignores a signal.
pub fn is_ignored(number: libc::c_int) -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: changes nothing, and zeroes are a valid value of what it fills.
    let now = unsafe {
        libc::sigaction(number, std::ptr::null(), now.as_mut_ptr());
        now.assume_init()
    };
    now.sa_sigaction == libc::SIG_IGN
}

/// The signals that wait, sigpending(2).
pub fn pending_signals() -> Result<SigSet> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the call fills the set, of which zeroes are a valid value.
    unsafe {
        Errno::result(libc::sigpending(set.as_mut_ptr()))?;
        Ok(SigSet::from_sigset_t_unchecked(set.assume_init()))
    }
}

/// The signals that end a program and that its user sends to the process that was started: the supervisor.
pub const REQUESTS: u64 =
    bit(libc::SIGTERM) | bit(libc::SIGINT) | bit(libc::SIGHUP) | bit(libc::SIGQUIT);

/// Takes one of these blocked signals, rt_sigtimedwait(2), and waits for it at most so long. Nothing when the
/// time is over, or another signal came.
pub fn wait_for_signal(signals: u64, timeout: Option<Duration>) -> Option<libc::c_int> {
    let timeout = timeout.map(TimeSpec::from_duration);
    let timeout = timeout.as_ref().map(AsRef::as_ref);
    let timeout: *const libc::timespec = timeout.map_or(std::ptr::null(), std::ptr::from_ref);
    let nothing = std::ptr::null_mut::<libc::siginfo_t>();
    // SAFETY: the kernel reads a set of as many bytes as it is told, and a time that is valid or none.
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

/// A signal as the kernel has it in a set: signal 1 is bit 0.
pub const fn bit(number: libc::c_int) -> u64 {
    1 << (number - 1)
}

/// rt_sigprocmask(2), which gives what was blocked before. The C library's function would leave out
/// signals that it keeps for itself.
pub fn mask(how: libc::c_int, signals: Option<u64>) -> u64 {
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

/// What Rust's runtime changes before `main`, as it was before that.
#[derive(Debug, Clone, Copy)]
pub struct Inherited {
    /// Bit 0 to 2 for a standard stream that was closed, [`SIGPIPE_IGNORED`].
    bits: u8,
    /// The signals that were blocked, each as [`bit`] has it.
    pub blocked: u64,
}

impl Inherited {
    /// Whether SIGPIPE was ignored.
    pub fn sigpipe_ignored(self) -> bool {
        self.bits & SIGPIPE_IGNORED != 0
    }

    /// The standard streams that were closed.
    pub fn closed(self) -> impl Iterator<Item = RawFd> {
        (0..3).filter(move |fd| self.bits & 1 << fd != 0)
    }
}

const SIGPIPE_IGNORED: u8 = 1 << 3;
static INHERITED: AtomicU8 = AtomicU8::new(0);
static BLOCKED: AtomicU64 = AtomicU64::new(0);

/// What this process was given.
pub fn inherited() -> Inherited {
    Inherited {
        bits: INHERITED.load(Ordering::Relaxed),
        blocked: BLOCKED.load(Ordering::Relaxed),
    }
}

/// Runs before `main`, as a constructor: Rust's runtime ignores SIGPIPE, opens /dev/null for standard
/// streams that are closed, and installs handlers, at which musl unblocks the signals 32 to 34 (34 is
/// another C library's SIGRTMIN). A process that becomes another program has to know what it was given.
///
/// The kernel throws away signals for the first process of a PID namespace that has no handler for them,
/// unless they are blocked. So there they are held back until `signals::end_on_request` or
/// `signals::end_well_on_request` was called: a container that is stopped while it starts then ends by
/// SIGTERM, and does not have to be killed. Its worker, which is not the first process, inherits that.
extern "C" fn note_inherited() {
    let mut found = 0;
    for fd in 0..3 {
        // SAFETY: asks for a descriptor's flags, whether it is open or not.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            found |= 1 << fd;
        }
    }
    if is_ignored(libc::SIGPIPE) {
        found |= SIGPIPE_IGNORED;
    }
    INHERITED.store(found, Ordering::Relaxed);
    BLOCKED.store(mask(libc::SIG_BLOCK, None), Ordering::Relaxed);
    // SAFETY: takes and changes nothing.
    if unsafe { libc::getpid() } == 1 {
        mask(libc::SIG_BLOCK, Some(REQUESTS));
    }
}

// SAFETY: the section holds pointers to functions that the C library calls once, before `main`; this
// one uses nothing of Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_INHERITED: extern "C" fn() = note_inherited;

/// pidfd_open(2), Linux 5.3: readable once the process has ended.
pub fn pidfd_open(pid: u32) -> Result<OwnedFd> {
    // SAFETY: two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// pidfd_getfd(2), Linux 5.6: one more descriptor of a file that another process has open.
pub fn pidfd_getfd(process: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd> {
    // SAFETY: three integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    let fd = Errno::result(fd)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

/// _exit(2): ends a forked child without running what belongs to the parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing can follow.
    unsafe { libc::_exit(code) }
}

/// The path under which a descriptor can be reached by calls that take only paths. It names the
/// very inode that was opened, whatever happens to the path it was opened by.
pub fn proc_path(fd: impl AsFd) -> CString {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    // Digits hold no NUL.
    CString::new(path).unwrap_or_default()
}
