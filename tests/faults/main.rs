//! Each system call fails once: `cargo test --test faults -- --nocapture` as root, with strace
//! and a KVM driver, prints a table of calls and outcomes.
//!
//! **Which calls.** A run without faults is recorded first. Calls are failed from the program's own first call on:
//! the umask, before it drops capabilities (for `exec`, the first call before it forks its child). The calls before it
//! are the start-up of Rust and the C library, which inspects the standard streams and makes a stack for signal
//! handlers. If one of them fails, the start-up ends the process before the program has inspected or changed
//! anything. A process without that start-up (`#![no_main]`) would have to do the same. strace counts the calls of
//! each process separately, so the Nth call of a name is failed in the program and in its children alike. A call is
//! left out here if that would also fail a call of the start-up; `child` fails the calls of the proof's child alone.
//!
//! **How often.** One call is failed at each site (`trace::site`): the same call with the same path and flags in the
//! same part of the run. Each site gets an I/O error in each part of the run in which it is called. The other errnos
//! are injected once at each site, since only the code at the site distinguishes them; EPERM in `apply` and
//! `apply --persist`, whose code the other commands run. A run is killed before each call that changes something:
//! a kill before any other call leaves the same state. A `watch` waits most of the time, so several run at once.
//!
//! **Memory.** If the kernel refuses memory (mmap, brk) Rust ends the process with SIGABRT and its own message.
//! This is accepted: the files are complete in this case as well, and the next run recovers.
//!
//! **In place.** A mounted file is written in place. The test uses at most one page: a longer file can be torn by
//! SIGKILL, as docs/design.md documents.
#![allow(clippy::disallowed_methods)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod child;
mod runs;
mod scenes;
mod table;
mod trace;

use std::collections::BTreeSet;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::runs::{Ended, traced};
use crate::scenes::{Case, Stage};
use crate::table::{Table, outcome};
use crate::trace::{Call, Kind, Trace};
use support::{in_namespace, ok, require_commands, scratch};

/// A PID namespace for the commands of this thread: a run inspects every process in /proc, and the tests that fail
/// these calls must not depend on the machine's processes.
struct OwnProcesses(Child);

impl OwnProcesses {
    fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWPID).unwrap();
        // A waiting shell reaps orphans, as PID 1 must.
        let mut first = Command::new("sh");
        let first = first.args(["-c", "sleep infinity; :"]).spawn().unwrap();
        ok(Command::new("mount").args(["-t", "proc", "proc", "/proc"]));
        Self(first)
    }
}

impl Drop for OwnProcesses {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fails one call in one way, and checks what must hold after every outcome.
fn fail_once(stage: &Stage, call: &Call, had_begun: bool, kind: Kind) -> &'static str {
    let inject = format!("{}:{}:when={}", call.name, kind.injected(), call.ordinal);
    stage.reset();
    let before = stage.node_and_pod();
    let Ended {
        mut code,
        went_on,
        out,
        err,
        ..
    } = traced(stage, Some(&inject));
    let shown = format!("{}: {inject}: {}\n{out}{err}", stage.case.name, call.text);
    assert!(!err.contains("panicked"), "{shown}");
    if stage.case.watches && code == Ok(0) {
        assert!(went_on, "{shown}");
        // `watch` ends with 0 because of the signal; the result is in its report.
        let lost = r#"{"exit_code": 4}"#;
        let report: serde_json::Value = serde_json::from_str(out.lines().next().unwrap_or(lost))
            .unwrap_or_else(|e| panic!("{e}: {shown}"));
        code = Ok(i32::try_from(report["exit_code"].as_i64().unwrap()).unwrap());
    }
    let mut what = outcome(code);
    match code {
        Ok(0) => stage.assert_aligned(&shown),
        Ok(number) => {
            // The failed call may be the write of the closing line.
            let closing = err.lines().last().unwrap_or_default();
            // `watch` writes its report first, and may have ended before a closing line.
            let is_closing = closing.starts_with("libvirt-kvm-init: ")
                || stage.case.watches && (!closing.is_empty() || !out.contains("\"summary\":\"\""));
            assert!(is_closing || call.is_stderr, "no closing line: {shown}");
            if [2, 3, 6].contains(&number) && !went_on {
                let after = stage.node_and_pod();
                let changed: Vec<_> = after
                    .iter()
                    .filter(|(path, facts)| before.get(*path) != Some(facts))
                    .collect();
                assert!(
                    after == before,
                    "a refused run changed {changed:?}: {shown}"
                );
            }
        }
        Err(6) => assert!(
            call.is_memory && err.contains("memory allocation of"),
            "{shown}"
        ),
        Err(_) => assert!(kind == Kind::Kill, "{shown}"),
    }
    if kind != Kind::Kill && code != Err(6) {
        assert_eq!(stage.left_over(), [""; 0], "{shown}");
        let wait = Instant::now() + Duration::from_secs(5);
        let injected = || {
            let trace = fs::read_to_string(scratch().join("trace")).unwrap_or_default();
            trace.contains("(INJECTED)")
        };
        while !injected() {
            assert!(Instant::now() < wait, "the call was not reached: {shown}");
            sleep(Duration::from_millis(1));
        }
    }
    stage.assert_whole(&shown);
    if stage.case.watches {
        let had_begun = had_begun || code.is_ok();
        let is_current = stage.assert_published(had_begun, &shown);
        if code == Ok(0) && !is_current {
            what = "outdated";
            assert!(
                err.contains("is not up to date: "),
                "outdated files are not logged: {shown}"
            );
        }
    }
    stage.recover(&shown);
    what
}

/// Calls `f` with a stage after one successful run, and with the trace of that run.
fn on_stage<T: Send>(case: &'static Case, f: impl FnOnce(&Stage, &str) -> T + Send) -> T {
    in_namespace(|| {
        let _processes = OwnProcesses::enter();
        let stage = Stage::new(case);
        stage.reset();
        let clean = traced(&stage, None);
        assert_eq!(clean.code, Ok(0), "{}{}", clean.out, clean.err);
        stage.assert_aligned(&clean.err);
        f(&stage, &clean.trace)
    })
}

fn fail_each(case: &'static Case) {
    require_commands(&["strace", "mount", "sleep"]);
    let start = Instant::now();
    let trace = on_stage(case, |_, trace| Trace::parse(trace, case));
    let chosen = Call::chosen(&trace.own, case.kinds);
    let (next, table) = (AtomicUsize::new(0), Mutex::new(Table::default()));
    let worker = || {
        on_stage(case, |stage, _| {
            while let Some((index, kind)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                let call = &trace.own[*index];
                let mut before = trace.own[..*index].iter();
                let had_begun = before.any(|call| Stage::removes_status(&call.text));
                let what = fail_once(stage, call, had_begun, *kind);
                if *kind == Kind::Eintr {
                    assert_eq!(what, "ok", "EINTR of {} {}", call.name, call.text);
                }
                table.lock().unwrap().add(&call.name, what);
            }
        });
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..case.workers).map(|_| scope.spawn(worker)).collect();
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        if let Some(panic) = results.into_iter().find_map(Result::err) {
            resume_unwind(panic);
        }
    });
    let sites: BTreeSet<_> = trace.own.iter().map(|call| &call.site).collect();
    let title = format!(
        "{}: {} own calls at {} sites, {} runs; not failed: {} not distinguishable from the \
         start-up's, {} without a name in this strace; {:.0?}",
        case.name,
        trace.own.len(),
        sites.len(),
        chosen.len(),
        trace.ambiguous,
        trace.unknown,
        start.elapsed()
    );
    table.into_inner().unwrap().print(&title);
}

/// Many strace versions do not know fchmodat2(2), so a seccomp filter fails it.
fn without_fchmodat2(stage: &Stage) {
    const FCHMODAT2: nix::libc::c_long = 452;
    for errno in [Errno::EIO, Errno::ENOSPC, Errno::EPERM, Errno::ENOSYS] {
        stage.reset();
        let mut cmd = stage.command();
        let run = support::go(support::without_call(&mut cmd, FCHMODAT2, errno as i32));
        // The errors of a filter and of an older kernel: the program has a fallback.
        let known = [Errno::EPERM, Errno::ENOSYS].contains(&errno);
        assert_eq!(run.code, if known { 0 } else { 4 }, "{run}");
        stage.assert_whole(&run.err);
        stage.recover(&run.err);
        println!("fchmodat2 fails with {errno:?}: exit code {}", run.code);
    }
}

#[test]
fn apply_handles_failure_of_each_system_call() {
    fail_each(&scenes::APPLY);
    on_stage(&scenes::APPLY, |stage, _| without_fchmodat2(stage));
}

#[test]
fn apply_with_rule_and_output_handles_failure_of_each_system_call() {
    fail_each(&scenes::PERSIST);
}

#[test]
fn apply_in_place_handles_failure_of_each_system_call() {
    fail_each(&scenes::IN_PLACE);
}

#[test]
fn exec_handles_failure_of_each_system_call() {
    fail_each(&scenes::EXEC);
}

#[test]
fn first_pass_of_watch_handles_failure_of_each_system_call() {
    fail_each(&scenes::WATCH);
}

#[test]
fn watch_with_rule_and_output_handles_failure_of_each_system_call() {
    fail_each(&scenes::WATCH_PERSIST);
}

/// Whether this is a temporary file of the program.
fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') && name.ends_with(".libvirt-kvm-init")
}

/// The temporary files below these directories.
fn temporary_below(directories: &[&Path]) -> Vec<PathBuf> {
    let all = support::state(directories).into_keys();
    all.filter(|path| is_temporary(path)).collect()
}
