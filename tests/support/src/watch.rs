//! A running `watch`, and its state in /proc.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{KVM, Scene, owner, scratch};

/// Time limit for waiting for an event, only reached if a test hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running `watch`, killed on drop.
pub struct Watch {
    child: Child,
    log: PathBuf,
    /// The first report.
    pub report: serde_json::Value,
}

/// The command `watch` for a pod on a node.
pub fn watch(scene: &Scene) -> Command {
    scene.command("watch")
}

impl Watch {
    /// Starts `watch`, and waits for its first report and until it is idle.
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
        // `watch` sets up its watches of directories just after the report.
        watch.is_idle();
        watch
    }

    /// Waits until `watch` is idle: its worker is in poll(2) with a timeout longer than 600 ms, and its supervisor waits
    /// without a time limit.
    #[track_caller]
    pub fn is_idle(&self) {
        let read = |pid: &str, name: &str| {
            fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()
        };
        // The innermost descendant, and its parent.
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
            // The supervisor waits without a limit after it has seen that the worker waits.
            let sleeps = format!("{} ", nix::libc::SYS_rt_sigtimedwait);
            let has_no_limit = supervisor.split(' ').nth(3) == Some("0x0");
            if !supervisor.starts_with(&sleeps) || !has_no_limit {
                return false;
            }
            let words: Vec<_> = call.split(' ').collect();
            // The timeout of poll(2) is an int of milliseconds, -1 for none.
            let limit = words.get(3).and_then(|word| word.strip_prefix("0x"));
            let limit = limit.and_then(|hex| u64::from_str_radix(hex, 16).ok());
            words[0] == nix::libc::SYS_poll.to_string()
                && limit.is_some_and(|limit| limit & 0xffff_ffff > 600)
        };
        // Check twice, in case a child has just ended and leaves work to do.
        let is = until(PATIENCE, || polls() && polls());
        assert!(
            is,
            "watch did not become idle: {:?}\n{}",
            calls(),
            self.log()
        );
    }

    /// The process ID of the supervisor.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process ID of the worker, the only child of the supervisor.
    pub fn worker(&self) -> u32 {
        let pid = self.pid();
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        list.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Sends a signal to the supervisor.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// A value in /proc/PID/status of the worker.
    pub fn status(&self, key: &str) -> u64 {
        status(self.worker(), key)
    }

    /// The number of voluntary context switches of both processes.
    pub fn wakeups(&self) -> u64 {
        let both = [self.pid(), self.worker()];
        both.map(|pid| status(pid, "voluntary_ctxt_switches"))
            .iter()
            .sum()
    }

    /// Processor time of both processes so far in nanoseconds, without the worker's children.
    pub fn nanoseconds(&self) -> u64 {
        let one = |pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
            let first = text.split_whitespace().next().unwrap();
            first.parse::<u64>().unwrap()
        };
        [self.pid(), self.worker()].map(one).iter().sum()
    }

    /// Processor time of both processes so far in ticks of 10 ms, with the worker's children.
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

    /// Waits until the log contains this text.
    #[track_caller]
    pub fn wait_for_log(&self, part: &str) {
        let is_logged = || self.log().contains(part);
        assert!(
            until(PATIENCE, is_logged),
            "`{part}` is not in\n{}",
            self.log()
        );
    }

    /// Waits until `watch` ends, and returns its exit code.
    pub fn end(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// True if `watch` is still running.
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
        // The kernel kills the worker with the supervisor (PR_SET_PDEATHSIG).
        let worker = workers.unwrap_or_default().trim().to_owned();
        let gone = || worker.is_empty() || !Path::new("/proc").join(&worker).exists();
        let is_gone = until(Duration::from_secs(5), gone);
        assert!(
            is_gone || std::thread::panicking(),
            "the worker {worker} did not end"
        );
        if std::thread::panicking() {
            eprintln!("log of watch:\n{}", self.log());
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

/// Polls until the condition is true, at most this long.
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

/// Waits until the device has this owner, group and mode.
#[track_caller]
pub fn wait_for_repair(want: (u32, u32, u32)) {
    let path = Path::new(KVM);
    let right = || fs::symlink_metadata(path).is_ok() && owner(path) == want;
    let in_time = until(PATIENCE, right);
    assert!(
        in_time,
        "{:?} is not {want:?}",
        fs::symlink_metadata(path).map(|_| owner(path))
    );
}

/// Runs a command to its end; returns its exit code and stderr.
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

/// Prints the distribution of times; returns the median and the maximum.
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
