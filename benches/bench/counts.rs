//! What one run of each command asks of the kernel and the processor: numbers that do not vary.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use crate::Setting;
use crate::machine::tool;
use crate::page::{Page, count};
use crate::runs::{Job, median};
use crate::stage::Stage;
use crate::startup::compared;
use crate::traced::{peak, steps};
use support::{in_namespace, scratch};

const NO: &str = "-";

/// System calls of a run with its children: all, those that ask for memory, and how many processes.
struct Calls {
    all: u64,
    memory: u64,
    processes: u64,
}

pub fn measure(page: &mut Page, setting: &Setting) {
    in_namespace(|| {
        let stage = Stage::new();
        let compared = compared(page, &stage);
        let strace = tool("strace");
        if strace.is_none() {
            page.say("Not measured: system calls, no strace here.");
        }
        let (counter, why) = instructions();
        page.say(&format!(
            "System calls by `strace -f -c`, of the command and all its children; *for memory* are mmap, brk, \
             mremap, munmap and mprotect among them. Page faults by wait4(2), median of {} runs. Instructions \
             in user space: {why}. Peak memory is VmHWM of the command's own process as it ends, its program's pages \
             included.",
            setting.rounds(21, 5)
        ));
        let mut left = Vec::new();
        let mut rows = Vec::new();
        for job in &compared.jobs {
            let calls = strace.is_some().then(|| calls(job)).flatten();
            let cell = |of: fn(&Calls) -> u64| {
                calls
                    .as_ref()
                    .map_or(NO.to_owned(), |calls| count(of(calls)))
            };
            let runs: Vec<_> = (0..setting.rounds(21, 5)).map(|_| job.once()).collect();
            let faults = median(runs.iter().map(|run| run.faults as f64));
            let instructions = counter.map(|counter| counter(job, runs[0].code));
            let instructions = match instructions {
                Some(Ok(number)) => count(number),
                Some(Err(why)) => {
                    left.push(format!("{} ({why})", job.name));
                    stepped(job, setting)
                }
                None => stepped(job, setting),
            };
            rows.push(vec![
                job.name.clone(),
                cell(|calls| calls.processes),
                cell(|calls| calls.all),
                cell(|calls| calls.memory),
                count(faults as u64),
                instructions,
                peak(&mut job.command()).map_or(NO.to_owned(), |kib| format!("{} KiB", count(kib))),
            ]);
        }
        page.table(
            &[
                "command",
                "processes",
                "system calls",
                "for memory",
                "page faults",
                "instructions",
                "peak memory",
            ],
            &rows,
        );
        if !left.is_empty() {
            page.say(&format!(
                "What valgrind does not run here: {}.",
                left.join("; ")
            ));
        }
        page.say(
            "(stepped): counted by single steps with ptrace(2). That takes minutes, so it is done for `apply` \
             alone, and not in a quick run.",
        );
    });
}

/// Another way to count, and marked.
fn stepped(job: &Job, setting: &Setting) -> String {
    if setting.quick || !job.name.starts_with("`apply`") {
        return NO.to_owned();
    }
    let steps = steps(&mut job.command());
    steps.map_or(NO.to_owned(), |steps| format!("{} (stepped)", count(steps)))
}

fn calls(job: &Job) -> Option<Calls> {
    let out = scratch().join("strace.txt");
    let mut cmd = Command::new("strace");
    cmd.args(["-f", "-qq", "-c", "-o"]).arg(&out);
    cmd.args(job.words()).env_clear();
    support::run(cmd.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
    let text = fs::read_to_string(&out).ok()?;
    let mut found = Calls {
        all: 0,
        memory: 0,
        processes: 1,
    };
    for line in text.lines() {
        // % time, seconds, usecs/call, calls, errors where there are any, name.
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, _, _, calls, .., name] = fields[..] else {
            continue;
        };
        let (Ok(calls), false) = (calls.parse::<u64>(), name == "total") else {
            continue;
        };
        found.all += calls;
        match name {
            "mmap" | "brk" | "mremap" | "munmap" | "mprotect" => found.memory += calls,
            "clone" | "clone3" | "fork" | "vfork" => found.processes += calls,
            _ => {}
        }
    }
    (found.all > 0).then_some(found)
}

/// Counts the instructions of a command that ends with this code.
type Counter = fn(&Job, i32) -> Result<u64, String>;

/// How instructions can be counted here, and what to say of it.
fn instructions() -> (Option<Counter>, String) {
    let mut why = "no perf here".to_owned();
    if tool("perf").is_some() {
        match perf_says(&["true".into()]) {
            Some(_) => {
                return (
                    Some(|job, _| {
                        perf_says(&job.words()).ok_or_else(|| "perf says nothing".to_owned())
                    }),
                    "perf's counters, children included".to_owned(),
                );
            }
            None => why = "this machine gives perf no counters".to_owned(),
        }
    }
    if tool("valgrind").is_some() {
        (
            Some(callgrind),
            format!("callgrind with `--trace-children=yes`, since {why}"),
        )
    } else {
        (
            None,
            format!("by single steps, since {why}, and no valgrind"),
        )
    }
}

fn perf_says(words: &[OsString]) -> Option<u64> {
    let out = scratch().join("perf.txt");
    let mut cmd = Command::new("perf");
    cmd.args(["stat", "-x,", "-e", "instructions:u", "-o"])
        .arg(&out);
    support::run(cmd.arg("--").args(words));
    let text = fs::read_to_string(&out).ok()?;
    let line = text.lines().find(|line| line.contains("instructions"))?;
    line.split(',').next()?.parse().ok()
}

fn callgrind(job: &Job, code: i32) -> Result<u64, String> {
    let mut cmd = Command::new("valgrind");
    cmd.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    cmd.args(["--trace-children=yes", "--vgdb=no"]);
    cmd.args(job.words()).env_clear();
    let (got, _, err) = support::run(cmd.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
    if got != code {
        return Err(format!(
            "under valgrind it ends with {got} instead of {code}"
        ));
    }
    let collected = err.lines().filter_map(|line| {
        let (_, number) = line.split_once("Collected :")?;
        number.trim().parse::<u64>().ok()
    });
    match collected.sum() {
        0 => Err("valgrind says nothing".to_owned()),
        sum => Ok(sum),
    }
}
