//! Runs and times whole processes, from before posix_spawn until after wait4.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::command;

/// A command that is run repeatedly.
pub struct Job {
    pub name: String,
    make: Box<dyn Fn() -> Command>,
    before: Option<Box<dyn Fn()>>,
}

impl Job {
    /// `words` is the program and its arguments. The environment contains only PATH.
    pub fn new<S: AsRef<OsStr>>(name: &str, words: &[S]) -> Self {
        let words: Vec<_> = words.iter().map(|word| word.as_ref().to_owned()).collect();
        let make = move || {
            let mut cmd = command(words[0].as_ref(), &[]);
            cmd.args(&words[1..]).stdin(Stdio::null());
            cmd.stdout(Stdio::null()).stderr(Stdio::null());
            cmd
        };
        Self {
            name: name.to_owned(),
            make: Box::new(make),
            before: None,
        }
    }

    /// Calls `act` before each run, outside the measured time.
    pub fn before(mut self, act: impl Fn() + 'static) -> Self {
        self.before = Some(Box::new(act));
        self
    }

    /// The command for one run, without output. Calls the action of [`Job::before`].
    pub fn command(&self) -> Command {
        if let Some(act) = &self.before {
            act();
        }
        (self.make)()
    }

    /// The command line in shell quoting, for hyperfine.
    pub fn line(&self) -> String {
        let words = self.words().into_iter();
        let quoted = words.map(|word| format!("'{}'", word.to_string_lossy()));
        quoted.collect::<Vec<_>>().join(" ")
    }

    /// The program and its arguments, for a tool that starts them.
    pub fn words(&self) -> Vec<OsString> {
        let cmd = (self.make)();
        let words = std::iter::once(cmd.get_program()).chain(cmd.get_args());
        words.map(OsStr::to_owned).collect()
    }

    #[allow(clippy::zombie_processes)] // `wait` waits for it.
    pub fn once(&self) -> Once {
        let mut cmd = self.command();
        let start = Instant::now();
        let child = cmd.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let (code, usage) = wait(&child);
        let wall = start.elapsed().as_secs_f64();
        Once {
            wall,
            cpu: time(usage.ru_utime) + time(usage.ru_stime),
            faults: u64::try_from(usage.ru_minflt + usage.ru_majflt).unwrap(),
            code,
        }
    }
}

fn time(of: libc::timeval) -> f64 {
    of.tv_sec as f64 + of.tv_usec as f64 / 1e6
}

/// Waits for the process. Returns its exit code and the resources that it and its reaped children used.
fn wait(child: &Child) -> (i32, libc::rusage) {
    let mut status = 0;
    // SAFETY: the fields are integers and structs of integers, for which zero is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = child.id().cast_signed();
    // SAFETY: both pointers are to locals; the process is our child, and nothing else waits for it.
    let got = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert_eq!(got, pid, "{}", std::io::Error::last_os_error());
    let code = match libc::WIFEXITED(status) {
        true => libc::WEXITSTATUS(status),
        false => 128 + libc::WTERMSIG(status),
    };
    (code, usage)
}

/// The result of one run. Times are in seconds.
#[derive(Clone, Copy)]
pub struct Once {
    pub wall: f64,
    pub cpu: f64,
    pub faults: u64,
    pub code: i32,
}

/// Runs the jobs in turn, each once per round, so that all of them run under the same conditions. The first two
/// rounds do not count. After `longest` no further round starts, but at least five rounds count.
pub fn in_turn(jobs: &[Job], rounds: usize, longest: Duration) -> Vec<Vec<Once>> {
    let mut all = vec![Vec::with_capacity(rounds); jobs.len()];
    let start = Instant::now();
    for round in 0..rounds + 2 {
        for (job, runs) in jobs.iter().zip(&mut all) {
            let run = job.once();
            if round >= 2 {
                runs.push(run);
            }
        }
        if round >= 6 && start.elapsed() > longest {
            break;
        }
    }
    all
}

/// The value at a quantile in thousandths.
pub fn part(mut values: Vec<f64>, thousandth: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * thousandth / 1000]
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    part(values.into_iter().collect(), 500)
}

/// The median wall-clock time in seconds.
pub fn wall(runs: &[Once]) -> f64 {
    median(runs.iter().map(|run| run.wall))
}
