//! Files of the project, and the state of a test's files.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

use crate::bind;

/// A path in the project.
pub fn project(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.unwrap().join(path)
}

/// The text of a file of the project.
pub fn read(path: &str) -> String {
    let path = project(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Copies a directory recursively.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The results of stat(2) and read(2) for all files below some directories.
pub type State = BTreeMap<PathBuf, (String, Vec<u8>)>;

/// The state of these directories and everything below them, without the content of files of 16 MiB and more.
pub fn state(directories: &[&Path]) -> State {
    let mut all = State::new();
    let mut todo: Vec<_> = directories.iter().map(|path| path.to_path_buf()).collect();
    while let Some(path) = todo.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_dir() {
            let names = fs::read_dir(&path).unwrap();
            todo.extend(names.map(|entry| entry.unwrap().path()));
        }
        let small = meta.is_file() && meta.len() < 1 << 24;
        let content = if small {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        all.insert(path, (facts(&meta), content));
    }
    all
}

/// Inode, kind and mode, owner, links, size, modification and change time.
fn facts(meta: &fs::Metadata) -> String {
    let device = meta.file_type().is_char_device();
    format!(
        "{}:{} {:o} {}:{} {} {} {}.{} {}.{} {device}",
        meta.dev(),
        meta.ino(),
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    )
}

/// Waits until the condition is true; panics after a minute.
#[track_caller]
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < end, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a process that is not in `before` has the file open.
pub fn opened_by_another(path: &Path, before: &[u32]) {
    eventually("a process that opens the file", || {
        openers(path).iter().any(|pid| !before.contains(pid))
    });
}

/// Waits until a process or a child of it sleeps in clock_nanosleep(2), as the program does while it waits for a lock.
pub fn waits_for_lock(pid: u32) {
    let number = nix::libc::SYS_clock_nanosleep.to_string();
    let sleeps = |pid: u32| {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        call.split(' ').next() == Some(&number)
    };
    let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    eventually("a process that waits for the lock", || {
        let children = children().unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        children.chain([pid]).any(sleeps)
    });
}

/// The PIDs of the processes that have a file open.
pub fn openers(path: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        fds.flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == path))
    })
    .collect()
}

/// Owner, group, permission bits.
pub fn owner(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

/// The inode number.
pub fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// The names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Bind-mounts `source` read-only on `target`.
pub fn bind_read_only(source: &Path, target: &Path) {
    bind(source, target);
    make_read_only(target);
}

/// Makes a mount read-only in this namespace.
pub fn make_read_only(target: &Path) {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .unwrap_or_else(|e| panic!("remount {} read-only: {e}", target.display()));
}

/// Sets an extended attribute.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> std::io::Result<()> {
    let (path, name) = c_strings(path, name);
    // SAFETY: both strings end in NUL, and the length passed is the length of the value.
    let done = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// An extended attribute of at most 4096 bytes; `None` if it does not exist.
pub fn get_xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = c_strings(path, name);
    let mut value = vec![0_u8; 4096];
    // SAFETY: both strings end in NUL, and the length passed is the length of the buffer.
    let got = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(got).ok()?);
    Some(value)
}

fn c_strings(path: &Path, name: &str) -> (CString, CString) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    (path, CString::new(name).unwrap())
}
