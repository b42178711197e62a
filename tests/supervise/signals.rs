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
                let _log = says(&mut child, "the configuration was read again");
                kill(pid, signal).unwrap();
                assert_eq!(code(child), want, "{signal} {is_first}");
            }
        }
    });
}
