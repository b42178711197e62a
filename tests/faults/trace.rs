//! Reads strace's output of a run without faults, and selects the calls to fail.

use std::collections::{BTreeMap, BTreeSet};

use crate::scenes::Case;

/// One call to fail: the `ordinal`th of its name in a process.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    pub ordinal: usize,
    /// Distinguishes it from calls at other places in the code: its name, its path or data, and its flags.
    pub site: String,
    /// The milestones of the run before this call.
    position: BTreeSet<&'static str>,
    /// Whether it changes something outside of the process.
    pub writes: bool,
    /// Whether it manages memory.
    pub is_memory: bool,
    /// Whether it writes to stderr.
    pub is_stderr: bool,
    /// Whether it comes after the report of `watch`.
    pub publishes: bool,
    /// The line of the trace.
    pub text: String,
}

/// Calls that a signal (signal(7)) or a file system in user space can interrupt.
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
/// Calls that write, create or change a file.
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
/// Calls that always succeed as they are used here, or do not return. The standard library requests random numbers
/// for its hashes with `GRND_INSECURE`, which never blocks.
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

/// The kind of failure that is injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An errno without special handling.
    Eio,
    /// The errno of a filter or of missing privileges.
    Eperm,
    /// A full file system, or no inotify watch left.
    Enospc,
    /// An interrupted call, which is repeated.
    Eintr,
    /// The process is killed before the call.
    Kill,
}

impl Kind {
    /// The action in the syntax of strace's option `inject`.
    pub fn injected(self) -> &'static str {
        match self {
            Self::Eio => "error=EIO",
            Self::Eperm => "error=EPERM",
            Self::Enospc => "error=ENOSPC",
            Self::Eintr => "error=EINTR",
            Self::Kill => "signal=KILL",
        }
    }
}

impl Call {
    /// Whether the call is failed in this way.
    fn can(&self, kind: Kind) -> bool {
        match kind {
            Kind::Enospc => self.writes && self.name != "fcntl" || self.name == "inotify_add_watch",
            Kind::Eintr => INTERRUPTIBLE.contains(&self.name.as_str()),
            // A kill before a call that changes nothing leaves the same state as a kill before the next change.
            Kind::Kill => self.writes || self.publishes || self.name == "exit_group",
            Kind::Eio | Kind::Eperm => !CANNOT_FAIL.contains(&self.name.as_str()),
        }
    }

    /// A key: of all calls with equal keys, only one is failed. EIO and kills are injected in each part of the run,
    /// because their consequences depend on it; for the other kinds only the handling at the site counts.
    fn place(&self, kind: Kind) -> (Kind, String, Option<&BTreeSet<&'static str>>) {
        let position = matches!(kind, Kind::Eio | Kind::Kill).then_some(&self.position);
        (kind, self.site.clone(), position)
    }

    /// The indexes of the calls to fail, each with the kind of failure. Of calls with equal keys, the first is chosen.
    pub fn chosen(all: &[Self], kinds: &'static [Kind]) -> Vec<(usize, Kind)> {
        let mut seen = BTreeSet::new();
        let pairs = (0..all.len()).flat_map(|index| kinds.iter().map(move |kind| (index, *kind)));
        pairs
            .filter(|(index, kind)| all[*index].can(*kind) && seen.insert(all[*index].place(*kind)))
            .collect()
    }
}

/// The milestone that a call marks, if any.
fn milestone(name: &str, args: &str) -> Option<&'static str> {
    match name {
        "fcntl" if args.contains("SETLK") => Some("locked"),
        "renameat" | "pwrite64" => Some("wrote"),
        "fchownat" | "fchmodat2" | "setxattr"
            if args.contains("/proc/") || args.contains("AT_EMPTY_PATH") =>
        {
            Some("device")
        }
        "fork" | "vfork" | "clone" | "clone3" => Some("child"),
        "write" if args.starts_with("1,") => Some("reported"),
        _ => None,
    }
}

/// The parts of a call that are equal in every run and in every round of a loop: its name, its first string, and the
/// constants among its arguments.
fn site(name: &str, args: &str) -> String {
    let args = args.rsplit_once(" = ").map_or(args, |(args, _)| args);
    let mut site = name.to_owned();
    if name == "getrandom" {
        return site;
    }
    let (before, literal, after) = match args.split('"').collect::<Vec<_>>()[..] {
        [before, literal, ref after @ ..] => (before, literal, after.join(" ")),
        _ => (args, "", String::new()),
    };
    site.extend([" ", &without_numbers(literal)]);
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for word in before
        .split(|c| !is_word(c))
        .chain(after.split(|c| !is_word(c)))
    {
        let starts = word.starts_with(|c: char| c.is_ascii_uppercase());
        let is_one_of_all = name == "prctl" && word.starts_with("CAP_");
        if starts && word.len() > 2 && !is_one_of_all {
            site.extend([" ", word]);
        }
    }
    site
}

/// A path or text with all numbers and random parts replaced by 0.
fn without_numbers(text: &str) -> String {
    let is_random = |part: &str| part.len() == 16 && part.bytes().all(|b| b.is_ascii_hexdigit());
    let parts = text
        .split('.')
        .map(|part| if is_random(part) { "0" } else { part });
    let mut short = String::new();
    for c in parts.collect::<Vec<_>>().join(".").chars() {
        if !c.is_ascii_digit() {
            short.push(c);
        } else if !short.ends_with('0') {
            short.push('0');
        }
    }
    short
}

pub struct Trace {
    /// The program's own calls, in their order.
    pub own: Vec<Call>,
    /// The number of these calls that cannot be failed without also failing a call of the start-up.
    pub ambiguous: usize,
    /// The number of calls that strace shows only by number and cannot fail.
    pub unknown: usize,
}

impl Trace {
    /// `text` is the output of `strace -f -o`.
    pub fn parse(text: &str, case: &Case) -> Self {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let mut runtime = BTreeSet::new();
        let (mut own, mut position): (Vec<Call>, _) = (Vec::new(), BTreeSet::new());
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
            // strace does not count its own execve of the program.
            if counts.is_empty() && name == "execve" {
                continue;
            }
            let count = counts.entry((pid, name)).or_default();
            *count += 1;
            let key = (name.to_owned(), *count);
            begun |= is_first && name == case.marker;
            if is_first && (!begun || over) {
                // The command writes its line only if all calls before succeeded.
                if name != "write" {
                    runtime.insert(key);
                }
                continue;
            }
            // After this call another program runs.
            over |= is_first && name == "execve";
            // After its report `watch` publishes its state. The first pass ends where it waits.
            reported |= case.watches && is_first && name == "write" && args.starts_with("1,");
            over |= reported && is_first && ["poll", "ppoll"].contains(&name);
            let makes = ["O_CREAT", "O_TMPFILE"]
                .iter()
                .any(|flag| args.contains(flag));
            let makes = name == "openat" && makes;
            own.push(Call {
                site: site(name, args),
                position: position.clone(),
                name: key.0,
                ordinal: key.1,
                writes: makes || WRITING.contains(&name),
                is_memory: ["mmap", "brk", "mremap", "munmap", "mprotect"].contains(&name),
                is_stderr: name == "write" && args.starts_with("2,"),
                publishes: reported,
                text: rest.to_owned(),
            });
            position.extend(milestone(name, args));
        }
        assert!(begun, "no call {} in\n{text}", case.marker);
        let mut seen = BTreeSet::new();
        let all = own.len();
        own.retain(|call| !call.name.starts_with("syscall_0x"));
        // The number of wake-ups of a supervisor depends on the time that its worker takes.
        let wakes_up =
            |call: &Call| call.name == "rt_sigtimedwait" || call.text.contains("WNOHANG");
        own.retain(|call| call.ordinal == 1 || !wakes_up(call));
        let unknown = all - own.len();
        let mut ambiguous = 0;
        own.retain(|call| {
            let key = (call.name.clone(), call.ordinal);
            let is_distinct = !runtime.contains(&key);
            ambiguous += usize::from(!is_distinct);
            is_distinct && seen.insert(key)
        });
        Self {
            own,
            ambiguous,
            unknown,
        }
    }
}
