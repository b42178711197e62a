//! A FUSE file system whose server reads every request and never answers, so that no signal ends a call on it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use support::{mknod_char, scratch};

/// The first request of a connection, the only one that is answered (linux/fuse.h).
const FUSE_INIT: u32 = 26;

/// The mounted file system. Dropping the value aborts its connection, also after a failed test, and every call on the
/// file system ends with `ENOTCONN`.
pub struct Unanswered {
    abort: PathBuf,
}

impl Unanswered {
    /// Mounts the file system on a directory.
    pub fn mount(target: &Path) -> Self {
        let node = scratch().join("fuse");
        if !node.exists() {
            mknod_char(&node, (10, 229), 0, 0, 0o600);
        }
        let mut options = File::options();
        let device = options.read(true).write(true).open(&node).unwrap();
        let options = format!(
            "fd={},rootmode=40755,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        mount(
            Some("unanswered"),
            target,
            Some("fuse"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        let number = connection(target);
        // The connection ends at the latest with this process, which holds the last descriptor of /dev/fuse.
        std::thread::spawn(move || serve(device));
        let control = Path::new("/sys/fs/fuse/connections");
        let abort = control.join(number).join("abort");
        if !abort.exists() {
            let none = None::<&str>;
            mount(none, control, Some("fusectl"), MsFlags::empty(), none).unwrap();
        }
        Self { abort }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let done = fs::write(&self.abort, "1");
        assert!(done.is_ok() || std::thread::panicking(), "{done:?}");
    }
}

/// The minor number of the mount's device, from mountinfo, because stat(2) of the file system would hang.
fn connection(target: &Path) -> String {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let target = target.to_str().unwrap();
    let line = mounts
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(4) == Some(target))
        .unwrap();
    let device = line.split(' ').nth(2).unwrap();
    device.split_once(':').unwrap().1.to_owned()
}

/// Reads requests until the connection ends.
fn serve(mut device: File) {
    let mut request = vec![0; 1 << 20];
    while let Ok(length) = device.read(&mut request) {
        // fuse_in_header: length, opcode, unique, …
        if length >= 16 && request[4..8] == FUSE_INIT.to_ne_bytes() {
            let mut answer = Vec::new();
            // fuse_out_header: length, error, unique.
            answer.extend(80_u32.to_ne_bytes());
            answer.extend(0_u32.to_ne_bytes());
            answer.extend(&request[8..16]);
            // fuse_init_out: major, minor, readahead, flags, background, max_write, time granularity, zeroes.
            for number in [7_u32, 31, 0, 0, 12 << 16 | 16, 1 << 16, 1] {
                answer.extend(number.to_ne_bytes());
            }
            answer.resize(80, 0);
            device.write_all(&answer).unwrap();
        }
    }
}
