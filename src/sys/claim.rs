//! Who keeps a status file up to date: a lock that the kernel gives back when that process ends, however it ends.
//!
//! An OFD write lock (fcntl(2), `F_OFD_SETLK`) belongs to the open file, so that it is seen from every container,
//! whatever PID namespace it has, and takes a descriptor that is open for writing. Byte 0 says that the process
//! lives, byte 1 that its proof is ok. The lock needs no space in the file system, which may be full.

use std::fs::File;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::file::record;
use super::{progress, retry};

/// What the lock on a status file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Nobody keeps it up to date.
    Nobodys,
    /// A process does, and its proof is not ok.
    Kept,
    /// A process does, and its proof is ok.
    Proven,
}

/// A file that this process claims, for as long as the value lives.
#[derive(Debug)]
pub struct Claimed(pub File);

impl Drop for Claimed {
    fn drop(&mut self) {
        progress::locked(&self.0, false);
    }
}

const ALIVE: i64 = 0;
const PROVEN: i64 = 1;

/// Claims a file that is open for writing, for as long as it is open.
///
/// # Errors
/// What fcntl(2) answers: `EAGAIN` where another process claims it, `EBADF` where it is open for reading alone.
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

/// What is claimed of a file that is open for reading. A read lock, which everybody may take who can read the file,
/// is no claim.
///
/// # Errors
/// What fcntl(2) answers.
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
    fn a_claim_lasts_as_long_as_its_file_is_open_for_writing() {
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
        // Neither another process nor a reader can claim it.
        assert_eq!(claim(&open(), true), Err(Errno::EAGAIN));
        assert_eq!(claim(&reader, true), Err(Errno::EBADF));
        drop(keeper);
        assert_eq!(claimed(&reader), Ok(Claim::Nobodys));
        // A read lock says nothing.
        let read = record(libc::F_RDLCK, PROVEN, 1).unwrap();
        fcntl(reader.as_fd(), FcntlArg::F_OFD_SETLK(&read)).unwrap();
        let other = File::open(file.path()).unwrap();
        assert_eq!(claimed(&other), Ok(Claim::Nobodys));
    }
}
