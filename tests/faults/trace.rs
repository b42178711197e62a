//! What strace wrote of a clean run: which calls are there to fail.

use std::collections::{BTreeMap, BTreeSet};

use crate::scenes::Case;

/// One call to fail: the `ordinal`th of its name in a process.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    pub ordinal: usize,
    /// What tells it from calls of other places in the code: its name, its path or data, and its flags.
    pub site: String,
    /// Which milestones of the run came before it.
    position: BTreeSet<&'static str>,
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

/// How a call is failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What the code handles as it handles any error.
    Eio,
    /// What a filter or a lack of rights causes.
    Eperm,
    /// A full file system, or no watch that is left.
    Enospc,
    /// What is tried again.
    Eintr,
    /// The process is killed before the call.
    Kill,
}

impl Kind {
    /// As strace is told.
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
    /// Whether it is failed in this way.
    fn can(&self, kind: Kind) -> bool {
        match kind {
            Kind::Enospc => self.writes && self.name != "fcntl" || self.name == "inotify_add_watch",
            Kind::Eintr => INTERRUPTIBLE.contains(&self.name.as_str()),
            // A kill before a call that changes nothing leaves what a kill before the next change leaves.
            Kind::Kill => self.writes || self.publishes || self.name == "exit_group",
            Kind::Eio | Kind::Eperm => !CANNOT_FAIL.contains(&self.name.as_str()),
        }
    }

    /// What two calls have in common of which one is enough for this kind. An error is met in each part of
    /// the run, since what follows from it differs there; how it is handled at the place itself does not.
    fn place(&self, kind: Kind) -> (Kind, String, Option<&BTreeSet<&'static str>>) {
        let position = matches!(kind, Kind::Eio | Kind::Kill).then_some(&self.position);
        (kind, self.site.clone(), position)
    }

    /// The calls that are failed, by their index, and how: of those that are alike the first one.
    pub fn chosen(all: &[Self], kinds: &'static [Kind]) -> Vec<(usize, Kind)> {
        let mut seen = BTreeSet::new();
        let pairs = (0..all.len()).flat_map(|index| kinds.iter().map(move |kind| (index, *kind)));
        pairs
            .filter(|(index, kind)| all[*index].can(*kind) && seen.insert(all[*index].place(*kind)))
            .collect()
    }
}

/// The milestone that a call is, if it is one.
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

/// A call without what differs from run to run, or from round to round of a loop: its name, its first string, and the
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

/// A path or text whose numbers, and whose random parts, are all the same.
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
        assert!(begun, "the program's own first call is not in\n{text}");
        let mut seen = BTreeSet::new();
        let all = own.len();
        own.retain(|call| !call.name.starts_with("syscall_0x"));
        // How often a supervisor wakes up depends on the time that its worker takes.
        let wakes_up =
            |call: &Call| call.name == "rt_sigtimedwait" || call.text.contains("WNOHANG");
        own.retain(|call| call.ordinal == 1 || !wakes_up(call));
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
