//! A lock on the status file that shows whether a process keeps the file up to date. The kernel releases it whenever
//! and however that process ends.
//!
//! An OFD write lock (fcntl(2), `F_OFD_SETLK`) belongs to the open file description, so it is visible in every
//! container regardless of PID namespaces, and requires a descriptor that is open for writing. A lock on byte 0 means
//! that the process is alive, one on byte 1 that its proof is ok. The lock needs no space in the file system, which may
//! be full.

use std::fs::File;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::file::record;
use super::{progress, retry};

/// The state of the lock on a status file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// No process keeps the file up to date.
    Nobodys,
    /// A process keeps the file up to date; its proof is not ok.
    Kept,
    /// A process keeps the file up to date; its proof is ok.
    Proven,
}

/// A claimed file. Dropping the value releases the claim.
#[derive(Debug)]
pub struct Claimed(pub File);

impl Drop for Claimed {
    fn drop(&mut self) {
        progress::locked(&self.0, false);
    }
}

const ALIVE: i64 = 0;
const PROVEN: i64 = 1;

/// Claims a file that is open for writing, until it is closed.
///
/// # Errors
/// `EAGAIN` if another process claims the file, `EBADF` if it is open for reading only.
pub fn claim(file: &File, is_proven: bool) -> nix::Result<()> {
    let proven = if is_proven {
        libc::F_WRLCK
    } else {
        libc::F_UNLCK
    };
    for (at, kind) in [(ALIVE, libc::F_WRLCK), (PROVEN, proven)] {
        let lock = record(kind, at, 1)?;
        retry(|| fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)))?;
    }
    progress::locked(file, true);
    Ok(())
}

/// The claim on a file that is open for reading. Read locks do not count, because any user who can read the file can
/// take one.
pub fn claimed(file: impl AsFd) -> nix::Result<Claim> {
    let is_locked = |at| {
        let mut lock = record(libc::F_RDLCK, at, 1)?;
        retry(|| fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock)))?;
        Ok::<_, nix::errno::Errno>(libc::c_int::from(lock.l_type) == libc::F_WRLCK)
    };
    Ok(match (is_locked(ALIVE)?, is_locked(PROVEN)?) {
        (true, true) => Claim::Proven,
        (true, false) => Claim::Kept,
        (false, _) => Claim::Nobodys,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_claim_lasts_until_its_file_is_closed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = File::open(file.path()).unwrap();
        assert_eq!(claimed(&reader), Ok(Claim::Nobodys));
        let open = || File::options().write(true).open(file.path()).unwrap();
        let keeper = open();
        for (is_proven, want) in [
            (false, Claim::Kept),
            (true, Claim::Proven),
            (false, Claim::Kept),
        ] {
            claim(&keeper, is_proven).unwrap();
            assert_eq!(claimed(&reader), Ok(want));
        }
        // Neither another descriptor nor a reader can claim the file.
        assert_eq!(claim(&open(), true), Err(Errno::EAGAIN));
        assert_eq!(claim(&reader, true), Err(Errno::EBADF));
        drop(keeper);
        assert_eq!(claimed(&reader), Ok(Claim::Nobodys));
        // A read lock is no claim.
        let read = record(libc::F_RDLCK, PROVEN, 1).unwrap();
        fcntl(reader.as_fd(), FcntlArg::F_OFD_SETLK(&read)).unwrap();
        let other = File::open(file.path()).unwrap();
        assert_eq!(claimed(&other), Ok(Claim::Nobodys));
    }
}
