//! The verb `logs`: which guests could not start for want of KVM, when, and why.
//!
//! ```text
//! paths -> open everything -> become nobody -> read -> lines -> incidents -> guests -> report
//! ```
//!
//! Guests have a say in what these files hold, so nothing is read before the process has become
//! uid 65534 without a capability. What is kept is bounded, however much is read.

pub mod causes;
pub mod fold;
pub mod patterns;
pub mod report;
pub mod scan;
pub mod time;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flate2::read::MultiGzDecoder;

use crate::exit::Verdict;
use crate::sys::identity::{Drop, become_nobody};
use crate::sys::progress;
use crate::sys::tree::{Log, Logs, raise_file_limit};
use fold::{Fold, Stream};
use patterns::{Who, domain_of_path, printable};
use report::{LogReport, Unreadable};
use scan::{Found, LARGE, Scanner};
use time::Stamp;

/// Where Nova and libvirt write their logs.
pub const PLACES: [&str; 3] = ["/var/log/libvirt", "/var/log/nova", "/var/log/kolla/nova"];

/// Reads `paths`, or the usual places, and says what was found.
pub fn run(paths: &[PathBuf], quiet: bool) -> LogReport {
    let usual: Vec<PathBuf>;
    let paths = match paths {
        [] => {
            let places = PLACES.iter().map(PathBuf::from);
            let is_there = |place: &PathBuf| {
                progress::at(&[place.as_os_str().as_encoded_bytes()]);
                place.is_dir()
            };
            usual = places.filter(is_there).collect();
            &usual
        }
        paths => paths,
    };
    if paths.is_empty() {
        let text = format!(
            "no PATH was given and none of {} exists: name files or folders, or - for standard \
             input",
            PLACES.join(", ")
        );
        return LogReport::failed(Verdict::Usage, text);
    }
    raise_file_limit();
    let mut logs = Logs::default();
    let mut stdin = false;
    for path in paths {
        if path == Path::new("-") {
            stdin = true;
        } else {
            logs.add(path);
        }
    }
    if let Err((step, errno)) = become_nobody() {
        let call = match step {
            Drop::Gid => "setresgid(65534)",
            Drop::Groups => "setgroups()",
            Drop::Uid => "setresuid(65534)",
            Drop::Capabilities => "capset(nothing)",
            Drop::Verify => "getresuid(), where others came back",
        };
        let text = format!(
            "{call}: {errno:?} ({}); logs are not read with more rights than needed: run it as \
             another user, or as root with CAP_SETUID and CAP_SETGID",
            errno.desc()
        );
        return LogReport::failed(Verdict::Failed, text);
    }
    read_all(logs, stdin, !quiet)
}

fn read_all(logs: Logs, stdin: bool, progress: bool) -> LogReport {
    let mut run = Run {
        scanner: Scanner::default(),
        fold: Fold::default(),
        read: report::Read::default(),
        unreadable: Vec::new(),
        progress: Progress::new(progress, logs.open.iter().map(|log| log.size).sum()),
    };
    run.read.skipped = logs.skipped;
    for (path, errno) in &logs.unreadable {
        let error = format!("{errno:?} ({})", errno.desc());
        run.unreadable(path, error);
    }
    if stdin {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(0));
        let path = Path::new("-");
        // Not std's own handle: that would copy once more.
        match io::stdin().as_fd().try_clone_to_owned() {
            Ok(fd) => run.stream(path, File::from(fd), 0, now),
            Err(error) => run.unreadable(path, said(&error)),
        }
    }
    for Log {
        path,
        file,
        size,
        modified,
    } in logs.open
    {
        run.stream(&path, file, size, modified);
    }
    run.progress.clear();
    LogReport::new(run.fold.finish(), run.read, run.unreadable)
}

struct Run {
    scanner: Scanner,
    fold: Fold,
    read: report::Read,
    unreadable: Vec<Unreadable>,
    progress: Progress,
}

impl Run {
    fn unreadable(&mut self, path: &Path, error: String) {
        use std::os::unix::ffi::OsStrExt;
        let path = printable(path.as_os_str().as_bytes());
        self.unreadable.push(Unreadable { path, error });
    }

    /// Reads one stream; `size` is 0 where that is not known, `reference` is when it was last
    /// written.
    fn stream(&mut self, path: &Path, file: File, size: u64, reference: i64) {
        progress::at(&[path.as_os_str().as_encoded_bytes()]);
        // Input that another process writes comes when it comes.
        let is_file = file.metadata().is_ok_and(|meta| meta.is_file());
        let _waits = (!is_file).then(progress::Wait::begin);
        let number = u32::try_from(self.read.files).unwrap_or(u32::MAX);
        self.read.files += 1;
        let bytes = Cell::new(0);
        let before = self.read.bytes;
        let mut lines = Lines::new(number, path, reference, &mut self.fold);
        let (scanner, progress) = (&mut self.scanner, &mut self.progress);
        let found = |found: Found<'_>| lines.take(found);
        let mut input = Counted {
            file: &file,
            bytes: &bytes,
        };
        let done = start(&mut input).and_then(|start| {
            let packed = start.starts_with(GZIP);
            if !packed && size >= LARGE {
                bytes.set(0);
                return scanner.scan_file(&file, found, |len| {
                    bytes.set(bytes.get() + len);
                    progress.tell(before + bytes.get());
                });
            }
            let whole = io::Cursor::new(start).chain(input);
            let told = |_| progress.tell(before + bytes.get());
            if packed {
                let blocks = BufReader::with_capacity(64 << 10, whole);
                return scanner.scan(MultiGzDecoder::new(blocks), found, told);
            }
            scanner.scan(whole, found, told)
        });
        lines.end();
        self.read.bytes += bytes.get();
        if let Err(error) = done {
            self.unreadable(path, said(&error));
        }
    }
}

fn said(error: &io::Error) -> String {
    match (error.raw_os_error(), error.kind()) {
        (Some(raw), _) => {
            let errno = nix::errno::Errno::from_raw(raw);
            format!("{errno:?} ({})", errno.desc())
        }
        (None, ErrorKind::UnexpectedEof) => "the gzip stream ends too early".to_owned(),
        (None, ErrorKind::InvalidInput | ErrorKind::InvalidData) => {
            format!("what comes is not gzip any more ({error})")
        }
        (None, _) => error.to_string(),
    }
}

/// How much was read of what is stored.
struct Counted<'a, R> {
    file: R,
    bytes: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buffer)?;
        progress::step();
        self.bytes.set(self.bytes.get() + got as u64);
        Ok(got)
    }
}

/// Gzip is known by its first bytes, not by a name.
const GZIP: &[u8] = b"\x1f\x8b\x08";

/// The first bytes of a stream, unless they say that it is packed in a way that is not unpacked.
fn start(input: &mut impl Read) -> io::Result<Vec<u8>> {
    const LENGTH: usize = 6;
    let mut start = Vec::with_capacity(LENGTH);
    input.take(LENGTH as u64).read_to_end(&mut start)?;
    let foreign = [
        (&b"\xfd7zXZ\0"[..], "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ];
    match foreign.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, name)) => {
            let text = format!("packed with {name}: unpack it, and give it as -");
            Err(io::Error::other(text))
        }
        None => Ok(start),
    }
}

/// The lines of one stream, with what those before say about those that follow.
#[derive(Debug)]
pub struct Lines<'a> {
    stream: Stream,
    fold: &'a mut Fold,
    /// By the file's name.
    domain: Option<Box<str>>,
    /// By libvirt's record of its start.
    guest: Who,
    start: Option<i64>,
    time: Option<Stamp>,
    reference: i64,
}

impl<'a> Lines<'a> {
    /// None yet of the stream with this number, which tells it from the others that go into `fold`.
    /// Its path may name the guest. `reference`, when it was last written, in seconds since 1970,
    /// gives syslog's lines a year.
    pub fn new(number: u32, path: &Path, reference: i64, fold: &'a mut Fold) -> Self {
        Self {
            stream: Stream::new(number),
            fold,
            domain: domain_of_path(path),
            guest: Who::default(),
            start: None,
            time: None,
            reference,
        }
    }

    /// Ends the stream.
    pub fn end(self) {
        self.stream.end(self.fold);
    }

    /// Takes in a line with a message.
    pub fn take(&mut self, found: Found<'_>) {
        if !found.whole {
            (self.guest, self.start, self.time) = (Who::default(), None, None);
        }
        let before = patterns::before(found.before, self.reference);
        if let Some(start) = before.start {
            (self.guest, self.start) = (start.who, start.time);
        }
        self.time = before.time.or(self.time);
        let mut hit = patterns::read_at(found.line, found.message, self.reference);
        let mut time = self.time;
        if let Some((who, at)) = before.record {
            complete(&mut hit.who, who);
            time = at.or(time);
        }
        complete(&mut hit.who, self.guest.clone());
        if self.domain.is_some() {
            hit.who.domain.clone_from(&self.domain);
        }
        let timed = hit.utc.is_some() || hit.local.is_some();
        // QEMU's output on a line of its own, within a record of Nova's: that one's time is this
        // one's too, by another clock, as long as the two may show the same moment.
        let continued = hit.local.is_none() && found.line.get(10) == Some(&b'T');
        if continued
            && let (Some(stamp), Some(utc)) = (time, hit.utc)
            && !stamp.zoned
            && (stamp.seconds - utc).abs() <= fold::DAY
        {
            hit.local = Some(stamp.seconds);
        }
        if let Some(seconds) = hit.local {
            self.time = Some(Stamp {
                seconds,
                zoned: false,
            });
        } else if !continued && let Some(seconds) = hit.utc {
            self.time = Some(Stamp {
                seconds,
                zoned: true,
            });
        }
        if !timed && let Some(Stamp { seconds, zoned }) = time {
            let slot = if zoned { &mut hit.utc } else { &mut hit.local };
            *slot = Some(seconds);
        }
        self.stream.take(hit, timed, self.start, self.fold);
    }
}

/// Fills in what a line does not say, unless it is about another guest.
fn complete(who: &mut Who, from: Who) {
    let other = who.instance.is_some() && from.instance.is_some() && who.instance != from.instance;
    if !other {
        who.instance = who.instance.or(from.instance);
        who.request = who.request.or(from.request);
        who.domain = who.domain.take().or(from.domain);
    }
}

/// How far the reading got, on a terminal, when it takes long.
struct Progress {
    shown: bool,
    wanted: bool,
    total: u64,
    next: Instant,
}

impl Progress {
    fn new(wanted: bool, total: u64) -> Self {
        let wanted = wanted && io::stderr().is_terminal();
        let next = Instant::now() + Duration::from_secs(1);
        Self {
            shown: false,
            wanted,
            total,
            next,
        }
    }

    fn tell(&mut self, bytes: u64) {
        progress::step();
        if !self.wanted || Instant::now() < self.next {
            return;
        }
        (self.shown, self.next) = (true, Instant::now() + Duration::from_millis(200));
        let read = bytes >> 20;
        let _ = match self.total >> 20 {
            0 => write!(io::stderr(), "\rread {read} MiB "),
            total => write!(io::stderr(), "\rread {read} of {total} MiB "),
        };
    }

    fn clear(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r{:40}\r", "");
        }
    }
}
