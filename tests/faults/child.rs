//! Fails each call of the proof's child alone: the child is stopped at its first call, traced by another strace, and
//! continued.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::scenes::{self, Stage};
use crate::table::{Table, outcome};
use support::{in_namespace, require_commands, scratch};

/// The calls of the child from the stop on. The C library's own calls around them only block signals.
const CALLS: [&str; 17] = [
    "close_range",
    "getresuid",
    "getresgid",
    "setgroups",
    "setfsgid",
    "setfsuid",
    "capget",
    "capset",
    "prctl",
    "getgroups",
    "stat",
    "openat",
    "fstat",
    "ioctl",
    "close",
    "write",
    "exit_group",
];

const LONGEST: Duration = Duration::from_secs(15);

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONGEST;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(1));
    }
}

fn tracer(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    line?.trim().parse().ok()
}

fn strace(args: &[&str], log: &str) -> Command {
    let mut cmd = Command::new("strace");
    cmd.args(["-o", log]).args(args);
    cmd.stdin(Stdio::null()).stdout(Stdio::null());
    cmd.stderr(Stdio::null());
    cmd
}

fn end(mut child: Child) {
    let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
    let _ = child.wait();
}

/// One run with `inject` in the proof's child; `None` if the child makes no such call.
fn run(stage: &Stage, inject: &str) -> Option<(Result<i32, i32>, String)> {
    let at = |name: &str| scratch().join(name).display().to_string();
    let (first, second) = (at("first"), at("second"));
    let _ = fs::remove_file(&first);
    let program = stage.command();
    // Stopped before its first instruction, so that strace attaches in time.
    let mut stopped = Command::new("sh");
    stopped.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
    stopped.arg(program.get_program()).args(program.get_args());
    stopped.stdin(Stdio::null()).stdout(Stdio::null());
    stopped.stderr(fs::File::create(at("err")).unwrap());
    let mut child = stopped.spawn().unwrap();
    let parent = child.id().cast_signed();
    let state = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    until("the program is not stopped", || {
        (state(parent) == Some('T')).then_some(())
    });
    let pid = parent.to_string();
    let stop = "inject=close_range:signal=STOP:when=1";
    let args = ["-f", "-e", "trace=close_range", "-e", stop, "-p", &pid];
    let before = strace(&args, &first).spawn().unwrap();
    until("the program is not traced", || {
        tracer(parent).filter(|pid| *pid != 0)
    });
    kill(Pid::from_raw(parent), Signal::SIGCONT).unwrap();
    let proof: i32 = until("no child is stopped", || {
        let text = fs::read_to_string(&first).ok()?;
        // The program itself was stopped first.
        let stopped = text
            .lines()
            .filter(|line| line.contains("stopped by SIGSTOP"));
        let mut pids = stopped.filter_map(|line| line.split(' ').next()?.parse().ok());
        pids.find(|pid| *pid != parent)
    });
    end(before);
    until("the child is still traced", || {
        tracer(proof).filter(|pid| *pid == 0)
    });
    let call = inject.split(':').next().unwrap();
    let (trace, inject) = (format!("trace={call}"), format!("inject={inject}"));
    let after = strace(
        &["-e", &trace, "-e", &inject, "-p", &proof.to_string()],
        &second,
    );
    let mut after = { after }.spawn().unwrap();
    until("the child is not traced again", || {
        tracer(proof).filter(|pid| *pid != 0)
    });
    kill(Pid::from_raw(proof), Signal::SIGCONT).unwrap();
    let status = until("the program hangs", || child.try_wait().unwrap());
    after.wait().unwrap();
    let code = status.code().ok_or_else(|| status.signal().unwrap());
    let err = fs::read_to_string(at("err")).unwrap();
    let trace = fs::read_to_string(&second).unwrap();
    let met = trace.contains("(INJECTED)") || inject.contains("signal");
    met.then_some((code, err))
}

#[test]
fn proof_handles_failure_of_each_system_call_of_its_child() {
    require_commands(&["strace"]);
    in_namespace(|| {
        let stage = Stage::new(&scenes::APPLY);
        let mut table = Table::default();
        for call in CALLS {
            let hows = ["error=EIO", "error=EPERM", "error=EINTR", "signal=KILL"];
            // exit_group does not return, and it is called once.
            let is_last = call == "exit_group";
            let hows = if is_last { &hows[3..] } else { &hows[..] };
            'all: for n in 1.. {
                for how in hows {
                    // The child is stopped in its first close_range, so a kill before that call is not possible.
                    if call == "close_range" && n == 1 && *how == "signal=KILL" {
                        continue;
                    }
                    stage.reset();
                    let inject = format!("{call}:{how}:when={n}");
                    let Some((code, err)) = run(&stage, &inject) else {
                        assert!(n > 1 && *how == hows[0], "{inject} was not reached");
                        break 'all;
                    };
                    let shown = format!("{inject}: {code:?}\n{err}");
                    assert!(!err.contains("panicked"), "{shown}");
                    match code {
                        Ok(0) => stage.assert_aligned(&shown),
                        _ => {
                            let last = err.lines().last().unwrap_or_default();
                            assert!(last.starts_with("libvirt-kvm-init: "), "{shown}");
                            // A second child would not get the fault, so exit code 5 means that there was none.
                            assert_eq!(code, Ok(5), "{shown}");
                            assert!(!err.contains("trying once more"), "{shown}");
                        }
                    }
                    table.add(call, outcome(code));
                    stage.recover(&shown);
                }
                if is_last {
                    break;
                }
            }
        }
        table.print("the proof's child, alone");
        // A call that does nothing but returns success is detected, because the child reads its credentials back. The
        // second child succeeds.
        for call in ["setgroups", "setfsgid", "setfsuid", "capset"] {
            stage.reset();
            let (code, err) = run(&stage, &format!("{call}:retval=0:when=1")).unwrap();
            assert_eq!(code, Ok(0), "{call} that does nothing: {err}");
            assert!(err.contains("trying once more"), "{call}: {err}");
            stage.assert_aligned(&err);
        }
        println!("4 calls that did nothing but returned success: 4 detected");
    });
}
