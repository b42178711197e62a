//! What strace wrote of a clean run: which calls are there to fail.

use std::collections::{BTreeMap, BTreeSet};

use crate::scenes::Case;

/// One call to fail: the `ordinal`th of its name in a process.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    pub ordinal: usize,
    /// Whether it changes something outside of the process.
    pub writes: bool,
    /// Whether it asks for memory.
    pub is_memory: bool,
    /// Whether it says something on stderr.
    pub is_stderr: bool,
    /// Whether it comes after the report of `watch`.
    pub publishes: bool,
    /// The line of the trace.
    pub text: String,
}

/// Calls that a signal can interrupt (signal(7)), or a file system in user space.
const INTERRUPTIBLE: [&str; 16] = [
    "open",
    "openat",
    "openat2",
    "read",
    "write",
    "pwrite64",
    "poll",
    "ppoll",
    "wait4",
    "fcntl",
    "fsync",
    "ftruncate",
    "fstatfs",
    "renameat",
    "mkdirat",
    "linkat",
];
/// Calls that write, make or change a file.
const WRITING: [&str; 18] = [
    "write",
    "pwrite64",
    "fsync",
    "ftruncate",
    "fallocate",
    "rename",
    "renameat",
    "renameat2",
    "mkdirat",
    "unlinkat",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchownat",
    "fchown",
    "setxattr",
    "linkat",
    "fcntl",
];
/// Calls that always succeed when they are used as they are here, or do not return. Random numbers for the
/// standard library's hashes are asked for with `GRND_INSECURE`, which waits for nothing.
const CANNOT_FAIL: [&str; 8] = [
    "exit_group",
    "getpid",
    "getppid",
    "getrandom",
    "gettid",
    "rt_sigprocmask",
    "set_tid_address",
    "umask",
];

impl Call {
    /// Whether it is failed in this way.
    pub fn can(&self, kind: &str) -> bool {
        match kind {
            "ENOSPC" => self.writes && self.name != "fcntl" || self.name == "inotify_add_watch",
            "EINTR" => INTERRUPTIBLE.contains(&self.name.as_str()),
            "KILL" => true,
            _ => !CANNOT_FAIL.contains(&self.name.as_str()),
        }
    }
}

pub struct Trace {
    /// The program's own calls, in their order.
    pub own: Vec<Call>,
    /// How many of them cannot be failed without failing one of the start-up's as well.
    pub not_told: usize,
    /// How many strace shows by their number alone, and cannot fail.
    pub unknown: usize,
}

impl Trace {
    /// `text` is the output of `strace -f -o`.
    pub fn parse(text: &str, case: &Case) -> Self {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let mut runtime = BTreeSet::new();
        let mut own: Vec<Call> = Vec::new();
        let (mut first, mut begun, mut reported, mut over) = (None, false, false, false);
        for line in text.lines() {
            let Some((pid, rest)) = line.split_once(' ') else {
                continue;
            };
            let rest = rest.trim_start();
            let Some((name, args)) = rest.split_once('(') else {
                continue;
            };
            let is_name = name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if !is_name || name.is_empty() {
                continue;
            }
            let is_first = *first.get_or_insert(pid) == pid;
            // strace does not count the call by which it starts the program.
            if counts.is_empty() && name == "execve" {
                continue;
            }
            let count = counts.entry((pid, name)).or_default();
            *count += 1;
            let key = (name.to_owned(), *count);
            begun |= is_first && name == case.marker;
            if is_first && (!begun || over) {
                // The command writes its line only if all before went well.
                if name != "write" {
                    runtime.insert(key);
                }
                continue;
            }
            // What is run after that is another program.
            over |= is_first && name == "execve";
            // The report is out, and then all is left for others; where it waits the first pass is over.
            reported |= case.watches && is_first && name == "write" && args.starts_with("1,");
            over |= reported && is_first && ["poll", "ppoll"].contains(&name);
            let makes = ["O_CREAT", "O_TMPFILE"]
                .iter()
                .any(|flag| args.contains(flag));
            let makes = name == "openat" && makes;
            own.push(Call {
                name: key.0,
                ordinal: key.1,
                writes: makes || WRITING.contains(&name),
                is_memory: ["mmap", "brk", "mremap", "munmap", "mprotect"].contains(&name),
                is_stderr: name == "write" && args.starts_with("2,"),
                publishes: reported,
                text: rest.to_owned(),
            });
        }
        assert!(begun, "the program's own first call is not in\n{text}");
        let mut seen = BTreeSet::new();
        let all = own.len();
        own.retain(|call| !call.name.starts_with("syscall_0x"));
        let unknown = all - own.len();
        let mut not_told = 0;
        own.retain(|call| {
            let key = (call.name.clone(), call.ordinal);
            let is_told = !runtime.contains(&key);
            not_told += usize::from(!is_told);
            is_told && seen.insert(key)
        });
        Self {
            own,
            not_told,
            unknown,
        }
    }
}
