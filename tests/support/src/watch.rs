//! A running `watch`, and what /proc says of it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{KVM, Scene, owner, scratch};

/// How long an event is waited for: so long that only a test that hangs comes to it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `watch`, killed with the value.
pub struct Watch {
    child: Child,
    log: PathBuf,
    /// The first report.
    pub report: serde_json::Value,
}

/// `watch` for a pod on a node.
pub fn watch(scene: &Scene) -> Command {
    scene.verb("watch")
}

impl Watch {
    /// Starts it, and waits for its first report.
    pub fn start(cmd: &mut Command) -> Self {
        let log = scratch().join(format!("watch-{:?}.log", Instant::now()));
        cmd.args(["--format", "json"]);
        cmd.stdin(Stdio::null()).stdout(Stdio::piped());
        cmd.stderr(File::create(&log).unwrap());
        let mut child = cmd.spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let report = serde_json::from_str(&line);
        let report = report.unwrap_or_else(|e| {
            panic!(
                "{e}: {cmd:?}\n{line}\n{}",
                fs::read_to_string(&log).unwrap()
            )
        });
        let watch = Self { child, log, report };
        // The directories of files are followed just after the report.
        watch.is_idle();
        watch
    }

    /// Waits until nothing is left to do: it polls for the next event with no shorter limit than that for the next
    /// look at everything. What it is started by, or a child of its own, has no such limit.
    #[track_caller]
    pub fn is_idle(&self) {
        let read = |pid: &str, name: &str| {
            fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()
        };
        // The last one of parents, children and their children, and its supervisor.
        let calls = || {
            let (mut above, mut pid) = (String::new(), self.pid().to_string());
            loop {
                let children = read(&pid, &format!("task/{pid}/children"));
                match children.split_whitespace().next() {
                    Some(child) => above = std::mem::replace(&mut pid, child.to_owned()),
                    None => return (read(&above, "syscall"), read(&pid, "syscall")),
                }
            }
        };
        let polls = || {
            let (supervisor, call) = calls();
            // That one has no limit for its wait once it has seen that the worker waits.
            let sleeps = format!("{} ", nix::libc::SYS_rt_sigtimedwait);
            let has_no_limit = supervisor.split(' ').nth(3) == Some("0x0");
            if !supervisor.starts_with(&sleeps) || !has_no_limit {
                return false;
            }
            let words: Vec<_> = call.split(' ').collect();
            // The limit of poll(2) is an int of milliseconds, -1 for none.
            let limit = words.get(3).and_then(|word| word.strip_prefix("0x"));
            let limit = limit.and_then(|hex| u64::from_str_radix(hex, 16).ok());
            words[0] == nix::libc::SYS_poll.to_string()
                && limit.is_some_and(|limit| limit & 0xffff_ffff > 600)
        };
        // What a child leaves to do is seen the second time.
        let is = until(PATIENCE, || polls() && polls());
        assert!(is, "it never waits: {:?}\n{}", calls(), self.log());
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that does the work: the only child of the one that supervises it.
    pub fn worker(&self) -> u32 {
        let pid = self.pid();
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        list.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// A number of /proc/PID/status of the worker.
    pub fn status(&self, key: &str) -> u64 {
        status(self.worker(), key)
    }

    /// How often both processes were woken up, or gave their place to another process.
    pub fn wakeups(&self) -> u64 {
        let both = [self.pid(), self.worker()];
        both.map(|pid| status(pid, "voluntary_ctxt_switches"))
            .iter()
            .sum()
    }

    /// Processor time of both so far, in nanoseconds, without that of the worker's children.
    pub fn nanoseconds(&self) -> u64 {
        let one = |pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
            let first = text.split_whitespace().next().unwrap();
            first.parse::<u64>().unwrap()
        };
        [self.pid(), self.worker()].map(one).iter().sum()
    }

    /// Processor time of both so far, in ticks of 10 ms, with that of the worker's children.
    pub fn ticks(&self) -> u64 {
        let one = |pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let (_, rest) = stat.rsplit_once(')').unwrap();
            let fields: Vec<_> = rest.split_whitespace().collect();
            let ticks = fields[11..15]
                .iter()
                .map(|ticks| ticks.parse::<u64>().unwrap());
            ticks.sum::<u64>()
        };
        [self.pid(), self.worker()].map(one).iter().sum()
    }

    /// Waits for a line that contains this.
    #[track_caller]
    pub fn says(&self, part: &str) {
        let said = || self.log().contains(part);
        assert!(until(PATIENCE, said), "`{part}` is not in\n{}", self.log());
    }

    /// Its exit code, once it has ended.
    pub fn end(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let pid = self.pid();
        let workers = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The kernel ends the worker with it.
        let worker = workers.unwrap_or_default().trim().to_owned();
        let gone = || worker.is_empty() || !Path::new("/proc").join(&worker).exists();
        let is_gone = until(Duration::from_secs(5), gone);
        assert!(is_gone || std::thread::panicking(), "{worker} goes on");
        if std::thread::panicking() {
            eprintln!("watch said:\n{}", self.log());
        }
    }
}

fn status(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix(key)).unwrap();
    let digits = line.trim_start_matches(':').trim();
    digits.split_whitespace().next().unwrap().parse().unwrap()
}

/// Asks again and again, at most so long.
pub fn until(longest: Duration, mut is: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + longest;
    while Instant::now() < end {
        if is() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    is()
}

/// Waits for the device to be as it shall be.
#[track_caller]
pub fn healed(want: (u32, u32, u32)) {
    let path = Path::new(KVM);
    let right = || fs::symlink_metadata(path).is_ok() && owner(path) == want;
    let in_time = until(PATIENCE, right);
    assert!(
        in_time,
        "{:?} is not {want:?}",
        fs::symlink_metadata(path).map(|_| owner(path))
    );
}

/// What a command says on stderr until it ends.
pub fn refused(cmd: &mut Command) -> (Option<i32>, String) {
    let mut child = cmd
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    (child.wait().unwrap().code(), text)
}

/// Half, worst, and how many were over two bounds.
pub fn distribution(what: &str, mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 1000];
    let over = |ms| {
        times
            .iter()
            .filter(|time| **time > Duration::from_millis(ms))
            .count()
    };
    println!(
        "{what}: {} drifts, median {:?}, 90% {:?}, 99% {:?}, worst {:?}; over 2 ms: {}, over 20 ms: {}",
        times.len(),
        at(500),
        at(900),
        at(990),
        at(1000),
        over(2),
        over(20)
    );
    (at(500), at(1000))
}
