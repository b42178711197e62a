//! QEMU's first steps with /dev/kvm, performed by a child process that has the QEMU user's file permissions.
//!
//! access(2) succeeds in cases in which open(2) fails (a `nodev` mount, no driver), and root can open what QEMU
//! cannot. Therefore the child opens the device by path, as QEMU does, with the file-system IDs, groups and
//! capabilities that libvirt sets for QEMU, and reads KVM's API version. Its real, effective and saved UIDs
//! stay 0, so that no process of the QEMU user can signal, trace or slow it.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{fstat, stat};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::config::ProofKind;
use crate::sys::device::DeviceStat;
use crate::sys::identity::{Credentials, open_as};
use crate::sys::{self, Context, kvm, signals, syscalls};

/// Time limit for one child. At most two are started, so the proof takes at most 10 s.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeResult {
    /// QEMU can open KVM; its API version.
    Ok(i32),
    /// The path now leads to another inode than the one that was inspected before.
    OtherInode,
    /// The API version is not the one that QEMU requires.
    OtherVersion(i32),
    /// Setting the QEMU user's credentials failed: the `DropStep` and its errno. Nothing was opened.
    NotDropped(u8, Errno),
    /// stat(2) of the device failed.
    Stat(Errno),
    /// open(2) of the device failed.
    Open(Errno),
    /// `KVM_GET_API_VERSION` failed.
    Version(Errno),
    /// `KVM_CREATE_VM` failed.
    CreateVm(Errno),
    /// The child did not report a result in time and was killed.
    TimedOut,
    /// The child ended without reporting a result.
    Killed,
}

impl ProbeResult {
    /// Whether the proof itself failed: the child was killed, timed out, or did not get the credentials. Such
    /// a result implies nothing about the device. `EPERM` and `EINVAL` are excluded: the kernel returns them
    /// if this container lacks the capability, or if the ID is not mapped.
    pub fn is_undone(self) -> bool {
        match self {
            Self::TimedOut | Self::Killed => true,
            Self::NotDropped(_, errno) => !matches!(errno, Errno::EPERM | Errno::EINVAL),
            _ => false,
        }
    }
}

/// Opens `device` with the credentials `who` in a forked child. The child opens it only if it is the inode
/// `checked`. `beside` runs in this process in parallel.
///
/// If the proof itself fails, it is repeated once with another child. There is no second attempt if the first
/// child cannot be killed, because the second one would hang in the same place.
pub fn probe(
    device: &Path,
    checked: &DeviceStat,
    who: &Credentials,
    kind: ProofKind,
    beside: impl FnOnce(),
) -> sys::Result<ProbeResult> {
    let mut beside = Some(beside);
    let mut attempt = || {
        let work = || probe_as_qemu(device, checked, who, kind);
        attempt(work, || {
            if let Some(beside) = beside.take() {
                beside();
            }
        })
    };
    let mut done = attempt();
    if done
        .as_ref()
        .map_or(true, |(result, has_ended)| result.is_undone() && *has_ended)
    {
        log::warn!("the proof could not be completed; trying once more");
        done = attempt();
    }
    done.map(|(result, _)| result)
}

/// Runs `work` in a child. Returns its result, and whether the child has ended.
fn attempt(
    work: impl FnOnce() -> ProbeResult,
    beside: impl FnOnce(),
) -> sys::Result<(ProbeResult, bool)> {
    let (mine, childs) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).context(|| "pipe2(O_CLOEXEC)".to_owned())?;
    // If SIGCHLD is ignored, the kernel reaps the child, and its PID may be reused before kill(2).
    signals::default_sigchld();
    match syscalls::fork().context(|| "fork()".to_owned())? {
        ForkResult::Child => {
            syscalls::close_all_but(childs.as_fd());
            let result = encode(work());
            let _ = sys::retry(|| nix::unistd::write(&childs, &result));
            syscalls::exit_now(0)
        }
        ForkResult::Parent { child } => {
            drop(childs);
            beside();
            let result = read_result(mine);
            let answered = matches!(result, Ok(ref result) if *result != ProbeResult::TimedOut);
            let has_ended = reap(child, answered)?;
            Ok((result?, has_ended))
        }
    }
}

/// Runs in the child. The device must not be touched before the credentials are set.
fn probe_as_qemu(
    device: &Path,
    checked: &DeviceStat,
    who: &Credentials,
    kind: ProofKind,
) -> ProbeResult {
    if let Err((step, errno)) = open_as(who) {
        return ProbeResult::NotDropped(step as u8, errno);
    }
    // Opening some devices has side effects, so stat(2) confirms the inode before open(2).
    match sys::retry(|| stat(device)) {
        Ok(found) if same(&found.into(), checked) => {}
        Ok(_) => return ProbeResult::OtherInode,
        Err(errno) => return ProbeResult::Stat(errno),
    }
    let fd = match sys::open(device, OFlag::O_RDWR | OFlag::O_NOCTTY) {
        Ok(fd) => fd,
        Err(errno) => return ProbeResult::Open(errno),
    };
    match fstat(&fd) {
        Ok(found) if same(&found.into(), checked) => {}
        Ok(_) => return ProbeResult::OtherInode,
        Err(errno) => return ProbeResult::Open(errno),
    }
    let version = match kvm::api_version(fd.as_fd()) {
        Ok(kvm::API_VERSION) => kvm::API_VERSION,
        Ok(other) => return ProbeResult::OtherVersion(other),
        Err(errno) => return ProbeResult::Version(errno),
    };
    if kind == ProofKind::CreateVm
        && let Err(errno) = kvm::create_vm(fd.as_fd())
    {
        return ProbeResult::CreateVm(errno);
    }
    ProbeResult::Ok(version)
}

fn same(found: &DeviceStat, checked: &DeviceStat) -> bool {
    found.is_kvm() && found.inode == checked.inode
}

fn read_result(pipe: OwnedFd) -> sys::Result<ProbeResult> {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(ProbeResult::TimedOut),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context(|| "poll(the proof's result)".to_owned()),
        }
    }
    let mut bytes = [0; 12];
    // Writes of up to PIPE_BUF bytes are atomic (pipe(7)): the result arrives complete or not at all.
    match std::fs::File::from(pipe).read_exact(&mut bytes) {
        Ok(()) => Ok(decode(bytes)),
        Err(_) => Ok(ProbeResult::Killed),
    }
}

/// Kills and reaps the child, which has reported its result or exceeded its time limit. SIGKILL also ends a child
/// that another root process has stopped. It needs no capability, because the child's real and saved UIDs are
/// those of this process.
///
/// Returns false if the child hangs in the kernel and has not ended after a second. It is left behind, since it
/// holds no resource that this process needs.
fn reap(child: Pid, answered: bool) -> sys::Result<bool> {
    /// The number of waitpid(2) calls for an unkillable child, and the pause between two of them.
    const ASKS: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(10);
    let killed = kill(child, Signal::SIGKILL).is_ok();
    // A child that has reported its result makes no further call in which it could hang.
    let flags = (!(killed && answered)).then_some(WaitPidFlag::WNOHANG);
    for _ in 0..ASKS {
        match sys::retry(|| waitpid(child, flags)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(PAUSE),
            Ok(_) | Err(Errno::ECHILD) => return Ok(true),
            Err(errno) => return Err(errno).context(|| format!("waitpid({child})")),
        }
    }
    Ok(false)
}

fn encode(result: ProbeResult) -> [u8; 12] {
    let (kind, value, errno) = match result {
        ProbeResult::Ok(version) => (1, version, 0),
        ProbeResult::OtherInode => (2, 0, 0),
        ProbeResult::OtherVersion(version) => (3, version, 0),
        ProbeResult::NotDropped(step, errno) => (4, step.into(), errno as i32),
        ProbeResult::Stat(errno) => (5, 0, errno as i32),
        ProbeResult::Open(errno) => (6, 0, errno as i32),
        ProbeResult::Version(errno) => (7, 0, errno as i32),
        ProbeResult::CreateVm(errno) => (8, 0, errno as i32),
        ProbeResult::TimedOut => (9, 0, 0),
        ProbeResult::Killed => (10, 0, 0),
    };
    let mut bytes = [0; 12];
    for (slot, number) in bytes.chunks_exact_mut(4).zip([kind, value, errno]) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn decode(bytes: [u8; 12]) -> ProbeResult {
    let number =
        |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (value, errno) = (number(4), Errno::from_raw(number(8)));
    match number(0) {
        1 => ProbeResult::Ok(value),
        2 => ProbeResult::OtherInode,
        3 => ProbeResult::OtherVersion(value),
        4 => ProbeResult::NotDropped(u8::try_from(value).unwrap_or(0), errno),
        5 => ProbeResult::Stat(errno),
        6 => ProbeResult::Open(errno),
        7 => ProbeResult::Version(errno),
        8 => ProbeResult::CreateVm(errno),
        9 => ProbeResult::TimedOut,
        _ => ProbeResult::Killed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_reverses_encode_for_every_result() {
        let results = [
            ProbeResult::Ok(12),
            ProbeResult::OtherInode,
            ProbeResult::OtherVersion(13),
            ProbeResult::NotDropped(3, Errno::EPERM),
            ProbeResult::Stat(Errno::ENOENT),
            ProbeResult::Open(Errno::EACCES),
            ProbeResult::Version(Errno::ENOTTY),
            ProbeResult::CreateVm(Errno::EBUSY),
            ProbeResult::TimedOut,
            ProbeResult::Killed,
        ];
        for result in results {
            assert_eq!(decode(encode(result)), result);
        }
    }
}
