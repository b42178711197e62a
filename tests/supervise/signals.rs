//! Signals that are sent to the process that was started, as the first of a PID namespace and as any other.

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

/// The same command, perhaps as the first process of a PID namespace.
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

/// The process that was started, once it has a worker: what unshare(1) forked, or what env(1) became.
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

/// The code of a shell.
fn code(mut child: Child) -> i32 {
    let end = Instant::now() + SOON;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= end {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap()
}

/// A pipe that is full, so that who writes into it waits.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut file = std::fs::File::from(writer);
    while file.write(&[b'x'; 4096]).is_ok() {}
    let writer = OwnedFd::from(file);
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// Once the log has a line with this.
fn says(child: &mut Child, part: &str) -> BufReader<std::process::ChildStderr> {
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
fn signals_end_what_waits() {
    require_commands(&["unshare", "env"]);
    in_namespace(|| {
        let scene = Scene::settled();
        for is_first in [false, true] {
            for signal in ALL {
                // Both wait for a reader of their report.
                for verb in ["apply", "check"] {
                    let (_reader, writer) = full_pipe();
                    let mut cmd = command(&program(), &[verb, "-v", "--root"]);
                    cmd.arg(scene.pod.path());
                    cmd.arg("--host-root").arg(scene.host.path());
                    let mut cmd = as_first_process(&cmd, is_first);
                    let child = cmd.stdout(writer).spawn().unwrap();
                    let pid = started(&child, is_first);
                    kill(pid, signal).unwrap();
                    let want = 128 + signal as i32;
                    assert_eq!(code(child), want, "{verb} {signal} {is_first}");
                }
            }
        }
    });
}

#[test]
fn watch_ends_well_and_reads_its_configuration_again() {
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
                let _log = says(&mut child, "the configuration was reloaded");
                kill(pid, signal).unwrap();
                assert_eq!(code(child), want, "{signal} {is_first}");
            }
        }
    });
}

/// The worker of `logs` runs as nobody: its supervisor can still end it, and an ignored signal stays ignored.
#[test]
fn logs_that_waits_for_input_sleeps_and_ends_when_asked() {
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
                assert!(Instant::now() < end, "{worker} is not nobody");
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
        assert!(woken < 12, "{woken} times in 3 s");
        drop(child.stdin.take());
        assert_eq!(code(child), 0);
    });
}

/// What /proc/PID/status says.
fn field(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = status.lines().filter_map(|line| line.split_once(":\t"));
    lines.find(|line| line.0 == name).unwrap().1.to_owned()
}

/// `unshare --pid` alone leaves the process where it is: its first child is the first of the new namespace.
#[test]
fn a_worker_may_be_alone_in_a_pid_namespace() {
    require_commands(&["unshare"]);
    in_namespace(|| {
        let scene = Scene::settled();
        let check = scene.verb("check");
        let mut cmd = command(std::path::Path::new("unshare"), &["--pid"]);
        cmd.arg(check.get_program()).args(check.get_args());
        support::go(&mut cmd).code(0);
    });
}

/// `exec` ends by the signal that it was sent, and does not report a failure.
#[test]
fn exec_ends_by_its_signal_while_it_waits() {
    require_commands(&["env"]);
    in_namespace(|| {
        let scene = Scene::without_device();
        for signal in ALL {
            let mark = support::scratch().join(format!("mark-{signal}"));
            let mut cmd = scene.verb("exec");
            cmd.args(["-v", "--settle", "60s", "--", "touch"])
                .arg(&mark);
            let mut cmd = as_first_process(&cmd, false);
            let mut child = cmd.stdout(Stdio::null()).spawn().unwrap();
            let pid = started(&child, false);
            let err = child.stderr.take().unwrap();
            // It unblocks these once it has read its command line.
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
