//! Counts the system calls, page faults and instructions of one run of each command, and its peak memory.

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

/// System calls of a run and its children.
struct Calls {
    all: u64,
    /// Calls that allocate or free memory.
    memory: u64,
    /// The number of processes, the command itself included.
    processes: u64,
}

pub fn measure(page: &mut Page, setting: &Setting) {
    in_namespace(|| {
        let stage = Stage::new();
        let compared = compared(page, &stage);
        let strace = tool("strace");
        if strace.is_none() {
            page.paragraph("Not measured: system calls (strace is missing).");
        }
        let (counter, method) = instructions();
        page.paragraph(&format!(
            "System calls of the command and its children are counted by `strace -f -c`; the column *for memory* \
             contains mmap, brk, mremap, munmap and mprotect. Page faults are counted by wait4(2), median of {} \
             runs. Instructions in user space are counted by {method}. Peak memory is the largest VmHWM of the \
             command's own processes when they end, including the pages of the executable; programs that it starts do \
             not count.",
            setting.rounds(21, 5)
        ));
        let mut failed = Vec::new();
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
                    failed.push(format!("{} ({why})", job.name));
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
        if !failed.is_empty() {
            page.paragraph(&format!(
                "Instructions could not be counted this way for {}.",
                failed.join("; ")
            ));
        }
        page.paragraph(
            "(stepped): counted by single-stepping with ptrace(2). This takes minutes, so it is done only for \
             `apply`, and not in a quick run.",
        );
    });
}

/// The number of instructions counted by single-stepping, with a mark.
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
    let mut sum = Calls {
        all: 0,
        memory: 0,
        processes: 1,
    };
    for line in text.lines() {
        // Columns: % time, seconds, usecs/call, calls, errors (may be empty), name.
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, _, _, calls, .., name] = fields[..] else {
            continue;
        };
        let (Ok(calls), false) = (calls.parse::<u64>(), name == "total") else {
            continue;
        };
        sum.all += calls;
        match name {
            "mmap" | "brk" | "mremap" | "munmap" | "mprotect" => sum.memory += calls,
            "clone" | "clone3" | "fork" | "vfork" => sum.processes += calls,
            _ => {}
        }
    }
    (sum.all > 0).then_some(sum)
}

/// Counts the instructions of a command; fails if it does not end with the expected exit code.
type Counter = fn(&Job, i32) -> Result<u64, String>;

/// The best way to count instructions on this machine, and its description.
fn instructions() -> (Option<Counter>, String) {
    let mut why = "perf is missing".to_owned();
    if tool("perf").is_some() {
        match perf_count(&["true".into()]) {
            Some(_) => {
                return (
                    Some(|job, _| {
                        perf_count(&job.words()).ok_or_else(|| "no result from perf".to_owned())
                    }),
                    "perf, including children".to_owned(),
                );
            }
            None => why = "perf has no hardware counters on this machine".to_owned(),
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
            format!("single-stepping, since {why} and valgrind is missing"),
        )
    }
}

fn perf_count(words: &[OsString]) -> Option<u64> {
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
        return Err(format!("exit code {got} instead of {code} under valgrind"));
    }
    let collected = err.lines().filter_map(|line| {
        let (_, number) = line.split_once("Collected :")?;
        number.trim().parse::<u64>().ok()
    });
    match collected.sum() {
        0 => Err("no result from valgrind".to_owned()),
        sum => Ok(sum),
    }
}
