//! Signals to the started process, as PID 1 of a PID namespace and as any other process.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal::{self, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use support::{Scene, command, in_namespace, program, require_commands};

const ALL: [Signal; 4] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT];
const SOON: Duration = Duration::from_secs(10);

/// The command, as PID 1 of a new PID namespace if `is_first`.
fn as_first_process(cmd: &Command, is_first: bool) -> Command {
    let mut outer = command(
        std::path::Path::new("unshare"),
        &["--pid", "--fork", "--kill-child"],
    );
    if !is_first {
        outer = command(std::path::Path::new("env"), &[]);
    }
    outer.arg(cmd.get_program()).args(cmd.get_args());
    outer.stdin(Stdio::null()).stderr(Stdio::piped());
    outer
}

/// The started process, once it has a worker: the child of unshare(1), or the process that env(1) became.
fn started(child: &Child, is_first: bool) -> Pid {
    let started = match is_first {
        true => only_child(child.id()),
        false => child.id(),
    };
    only_child(started);
    Pid::from_raw(started.cast_signed())
}

fn only_child(pid: u32) -> u32 {
    let end = Instant::now() + SOON;
    loop {
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        if let Ok(child) = list.unwrap().trim().parse() {
            return child;
        }
        assert!(Instant::now() < end, "{pid} has no child");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The exit code as a shell reports it.
fn code(mut child: Child) -> i32 {
    let end = Instant::now() + SOON;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= end {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the process did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap()
}

/// A full pipe: a write to it blocks.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut file = std::fs::File::from(writer);
    while file.write(&[b'x'; 4096]).is_ok() {}
    let writer = OwnedFd::from(file);
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// Reads the log until a line contains `part`.
fn wait_for_line(child: &mut Child, part: &str) -> BufReader<std::process::ChildStderr> {
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(part) {
        line.clear();
        assert_ne!(
            lines.read_line(&mut line).unwrap(),
            0,
            "no line with {part}"
        );
    }
    lines
}

#[test]
fn signals_end_apply_and_check_while_they_write() {
    require_commands(&["unshare", "env"]);
    in_namespace(|| {
        let scene = Scene::settled();
        for is_first in [false, true] {
            for signal in ALL {
                // Both are blocked in writing their report.
                for name in ["apply", "check"] {
                    let (_reader, writer) = full_pipe();
                    let mut cmd = command(&program(), &[name, "-v", "--root"]);
                    cmd.arg(scene.pod.path());
                    cmd.arg("--host-root").arg(scene.host.path());
                    let mut cmd = as_first_process(&cmd, is_first);
                    let child = cmd.stdout(writer).spawn().unwrap();
                    let pid = started(&child, is_first);
                    kill(pid, signal).unwrap();
                    let want = 128 + signal as i32;
                    assert_eq!(code(child), want, "{name} {signal} {is_first}");
                }
            }
        }
    });
}

#[test]
fn watch_reloads_on_sighup_and_ends_on_signals() {
    require_commands(&["unshare", "env"]);
    in_namespace(|| {
        let scene = Scene::settled();
        for is_first in [false, true] {
            for (signal, want) in [(SIGTERM, 0), (SIGINT, 0), (SIGQUIT, 128 + 3)] {
                let mut cmd = command(&program(), &["watch", "--root"]);
                cmd.arg(scene.pod.path());
                cmd.arg("--host-root").arg(scene.host.path());
                let mut cmd = as_first_process(&cmd, is_first);
                let mut child = cmd.stdout(Stdio::null()).spawn().unwrap();
                let pid = started(&child, is_first);
                kill(pid, SIGHUP).unwrap();
                let _log = wait_for_line(&mut child, "the configuration was reloaded");
                kill(pid, signal).unwrap();
                assert_eq!(code(child), want, "{signal} {is_first}");
            }
        }
    });
}

/// The worker of `logs` runs as nobody: its supervisor can still end it, and an ignored signal stays ignored.
#[test]
fn logs_waiting_for_input_sleeps_and_ends_on_signals() {
    require_commands(&["env", "sh"]);
    in_namespace(|| {
        let ignoring = "trap '' HUP; exec \"$@\"";
        let start = || {
            let mut cmd = command(std::path::Path::new("sh"), &["-c", ignoring, "sh"]);
            cmd.arg(program()).args(["logs", "-"]);
            cmd.stdin(Stdio::piped()).stdout(Stdio::null());
            let child = cmd.spawn().unwrap();
            let worker = only_child(child.id());
            let end = Instant::now() + SOON;
            while !field(worker, "Uid").starts_with("65534") {
                assert!(
                    Instant::now() < end,
                    "process {worker} does not run as nobody"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
            (Pid::from_raw(child.id().cast_signed()), child)
        };
        for signal in [SIGTERM, SIGINT, SIGQUIT] {
            let (pid, child) = start();
            kill(pid, SIGHUP).unwrap();
            kill(pid, signal).unwrap();
            assert_eq!(code(child), 128 + signal as i32, "{signal}");
        }
        let (pid, mut child) = start();
        let switches = || {
            let count = field(pid.as_raw().unsigned_abs(), "voluntary_ctxt_switches");
            count.parse::<u64>().unwrap()
        };
        let before = switches();
        std::thread::sleep(Duration::from_secs(3));
        let woken = switches() - before;
        assert!(woken < 12, "woken up {woken} times in 3 s");
        drop(child.stdin.take());
        assert_eq!(code(child), 0);
    });
}

/// The value of a field in /proc/PID/status.
fn field(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = status.lines().filter_map(|line| line.split_once(":\t"));
    lines.find(|line| line.0 == name).unwrap().1.to_owned()
}

/// `unshare --pid` without --fork leaves the process in its namespace: only its first child is PID 1 of the new one.
#[test]
fn worker_may_be_pid_1_of_a_pid_namespace() {
    require_commands(&["unshare"]);
    in_namespace(|| {
        let scene = Scene::settled();
        let check = scene.command("check");
        let mut cmd = command(std::path::Path::new("unshare"), &["--pid"]);
        cmd.arg(check.get_program()).args(check.get_args());
        support::go(&mut cmd).code(0);
    });
}

/// `exec` ends by the signal that it receives, and reports no failure.
#[test]
fn signal_ends_exec_while_it_waits_for_the_device() {
    require_commands(&["env"]);
    in_namespace(|| {
        let scene = Scene::without_device();
        for signal in ALL {
            let mark = support::scratch().join(format!("mark-{signal}"));
            let mut cmd = scene.command("exec");
            cmd.args(["-v", "--settle", "60s", "--", "touch"])
                .arg(&mark);
            let mut cmd = as_first_process(&cmd, false);
            let mut child = cmd.stdout(Stdio::null()).spawn().unwrap();
            let pid = started(&child, false);
            let err = child.stderr.take().unwrap();
            // The worker unblocks the signals once it has read its command line.
            let end = Instant::now() + SOON;
            let worker = only_child(child.id());
            while field(worker, "SigBlk") != "0000000000000000" {
                assert!(Instant::now() < end, "signals stay blocked");
                std::thread::sleep(Duration::from_millis(1));
            }
            kill(pid, signal).unwrap();
            assert_eq!(code(child), 128 + signal as i32, "{signal}");
            let text = std::io::read_to_string(err).unwrap();
            assert!(!text.contains("failed"), "{text}");
            assert!(!mark.exists(), "the command was started");
        }
    });
}
