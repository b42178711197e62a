//! What is in a folder.
//!
//! getdents64(2) is called here, and not readdir(3): that one asks for memory of its own, for copies of
//! the descriptor and for what kind of file it is, all for a handful of names.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

use super::{raw, retry};

/// For a folder of a hundred names or more one call, and one more finds the end.
const ROOM: usize = 4096;
/// Where a record's length, the kind of its file and its name are (getdents64(2), `linux_dirent64`).
const LENGTH: usize = 16;
const KIND: usize = 18;
const NAME: usize = 19;
/// The kind of a regular file (`DT_REG`).
const REGULAR: u8 = 8;

/// Calls `each` with every name in an open folder but `.` and `..`, from where it was read last, and with
/// whether that is a regular file's for certain: not every file system says.
///
/// # Errors
/// What getdents64(2) answers, and what `each` does.
pub(super) fn entries(
    folder: BorrowedFd<'_>,
    mut each: impl FnMut(&OsStr, bool) -> nix::Result<()>,
) -> nix::Result<()> {
    let mut room = [0; ROOM];
    loop {
        let filled = match retry(|| raw::getdents64(folder, &mut room)) {
            // A folder that was removed has no names any more.
            Ok(0) | Err(Errno::ENOENT) => return Ok(()),
            filled => filled?,
        };
        let mut rest = room.get(..filled).unwrap_or_default();
        while let Some((record, after)) = record(rest) {
            let name = record.get(NAME..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let is_file = record.get(KIND) == Some(&REGULAR);
            if name != b"." && name != b".." {
                each(OsStr::from_bytes(name), is_file)?;
            }
            rest = after;
        }
    }
}

fn record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = [*records.get(LENGTH)?, *records.get(LENGTH + 1)?];
    let length = usize::from(u16::from_ne_bytes(length)).max(NAME);
    records.split_at_checked(length)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn every_name_comes_once_however_many_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let mut want = Vec::new();
        for number in 0..1000 {
            let name = format!("{number}-{}", "x".repeat(number % 250));
            fs::write(folder.path().join(&name), "").unwrap();
            want.push((name, true));
        }
        let odd = OsStr::from_bytes(b"...\xff\n");
        fs::create_dir(folder.path().join(odd)).unwrap();
        let open = File::open(folder.path()).unwrap();
        let mut found = Vec::new();
        let mut odds = 0;
        entries(open.as_fd(), |name, is_file| {
            match name.to_str() {
                Some(name) => found.push((name.to_owned(), is_file)),
                None => {
                    assert_eq!((name, is_file), (odd, false));
                    odds += 1;
                }
            }
            Ok(())
        })
        .unwrap();
        found.sort_unstable();
        want.sort_unstable();
        assert_eq!(found, want);
        assert_eq!(odds, 1);
    }

    #[test]
    fn a_removed_folder_is_empty_and_a_file_is_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let open = File::open(&inner).unwrap();
        fs::remove_dir(&inner).unwrap();
        let none = |_: &OsStr, _| Err(Errno::EEXIST);
        assert_eq!(entries(open.as_fd(), none), Ok(()));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(entries(file.as_fd(), none), Err(Errno::ENOTDIR));
    }
}
