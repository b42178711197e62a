//! The proof: QEMU's own first steps, done by a child that has the QEMU user's rights to files.
//!
//! access(2) allows what open(2) denies (a `nodev` mount, no driver), and root may open what
//! QEMU may not. So the device is opened, by path as QEMU opens it, by a process with the
//! file-system IDs, the groups and the capabilities that libvirt gives to QEMU, and KVM is asked for its
//! API version. In everything else the child stays root: no process of the QEMU user can signal, trace or
//! slow it.

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

/// How long a child may take. There are two at most, so that the proof takes at most 10 s.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the child saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeResult {
    /// QEMU can open KVM; its API version.
    Ok(i32),
    /// The path leads to another inode than the one that was checked.
    OtherInode,
    /// The API version is not the one that QEMU accepts.
    OtherVersion(i32),
    /// The child could not take on the QEMU user's credentials: the step and its errno. Nothing was opened.
    NotDropped(u8, Errno),
    /// stat(2) on the way to the device.
    Stat(Errno),
    /// open(2) of the device.
    Open(Errno),
    /// `KVM_GET_API_VERSION`
    Version(Errno),
    /// `KVM_CREATE_VM`
    CreateVm(Errno),
    /// The child did not answer in time and was killed.
    TimedOut,
    /// The child ended without an answer.
    Killed,
}

impl ProbeResult {
    /// Whether the proof could not be done, though this process may do it: the child was killed, did not
    /// answer, or did not get the credentials. That says nothing of the device. (`EPERM` and `EINVAL` are
    /// what the kernel answers where this container lacks the capability or the ID.)
    pub fn is_undone(self) -> bool {
        match self {
            Self::TimedOut | Self::Killed => true,
            Self::NotDropped(_, errno) => !matches!(errno, Errno::EPERM | Errno::EINVAL),
            _ => false,
        }
    }
}

/// Opens `device` as `who` in a forked child, and reports what came of it. `checked` is the node that
/// was looked at; the child opens nothing else. `beside` is done here while the child is at work.
///
/// A proof that could not be done is tried once more, with another child; not where the first one cannot
/// be ended, since the second would hang in the same place.
///
/// # Errors
/// When no child could be made or waited for.
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
        .map_or(true, |(sight, has_ended)| sight.is_undone() && *has_ended)
    {
        log::warn!("the proof could not be done, and is tried once more");
        done = attempt();
    }
    done.map(|(sight, _)| sight)
}

/// One child that does `work`: what it saw, and whether it has ended.
fn attempt(
    work: impl FnOnce() -> ProbeResult,
    beside: impl FnOnce(),
) -> sys::Result<(ProbeResult, bool)> {
    let (mine, childs) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).context(|| "pipe2(O_CLOEXEC)".to_owned())?;
    // Where SIGCHLD is ignored the kernel takes the child away, and its number may be another's.
    signals::default_sigchld();
    match syscalls::fork().context(|| "fork()".to_owned())? {
        ForkResult::Child => {
            syscalls::close_all_but(childs.as_fd());
            let answer = encode(work());
            let _ = sys::retry(|| nix::unistd::write(&childs, &answer));
            syscalls::exit_now(0)
        }
        ForkResult::Parent { child } => {
            drop(childs);
            beside();
            let sight = read_result(mine);
            let answered = matches!(sight, Ok(ref sight) if *sight != ProbeResult::TimedOut);
            let has_ended = reap(child, answered)?;
            Ok((sight?, has_ended))
        }
    }
}

/// The child's part. Nothing before the identity is certain may touch the device.
fn probe_as_qemu(
    device: &Path,
    checked: &DeviceStat,
    who: &Credentials,
    kind: ProofKind,
) -> ProbeResult {
    if let Err((step, errno)) = open_as(who) {
        return ProbeResult::NotDropped(step as u8, errno);
    }
    // Some devices act on being opened, so the path is looked at once more before it is.
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
            Err(errno) => return Err(errno).context(|| "poll(the proof's answer)".to_owned()),
        }
    }
    let mut answer = [0; 12];
    // A pipe gives up to PIPE_BUF bytes in one piece or none at all.
    match std::fs::File::from(pipe).read_exact(&mut answer) {
        Ok(()) => Ok(decode(answer)),
        Err(_) => Ok(ProbeResult::Killed),
    }
}

/// Whatever the child still has to do does not matter: it has answered, or its time is over. Killed,
/// it ends at once, also where another process of root's stopped it after its answer. To kill it takes no
/// capability: its real and saved UIDs are this process' own.
///
/// A child that hangs in the kernel is left behind after a second: it holds nothing of ours. False for
/// such a one.
fn reap(child: Pid, answered: bool) -> sys::Result<bool> {
    /// How often an unkillable child is asked for, and how long between.
    const ASKS: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(10);
    let killed = kill(child, Signal::SIGKILL).is_ok();
    // One that has answered has nothing left to hang in.
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

fn encode(sight: ProbeResult) -> [u8; 12] {
    let (kind, value, errno) = match sight {
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
    fn answers_survive_the_pipe() {
        let answers = [
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
        for answer in answers {
            assert_eq!(decode(encode(answer)), answer);
        }
    }
}
