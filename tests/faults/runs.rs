//! Runs a command under strace; a `watch` until it has repaired a drift.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::scenes::Stage;
use support::{KVM, owner, scratch, set_owner};

/// How a run ended.
pub struct Ended {
    /// The exit code, or the signal that ended the run.
    pub code: Result<i32, i32>,
    /// Whether it is a `watch` that repaired a drift before it was ended.
    pub went_on: bool,
    pub out: String,
    pub err: String,
    /// The output of strace.
    pub trace: String,
}

/// Runs a command under strace with `-D`: strace is not its parent, so signals and exit code are the program's own.
pub fn traced(stage: &Stage, inject: Option<&str>) -> Ended {
    let at = |name: &str| scratch().join(name);
    let mut cmd = Command::new("strace");
    cmd.args(["-D", "-f", "-o"]).arg(at("trace"));
    if let Some(inject) = inject {
        let (call, _) = inject.split_once(':').unwrap();
        cmd.args(["-e", &format!("trace={call}")]);
        cmd.args(["-e", &format!("inject={inject}")]);
    }
    let of = stage.command();
    cmd.arg(of.get_program()).args(of.get_args());
    let _ = fs::remove_file(at("trace"));
    let mut ended = kept(stage, &mut cmd);
    // strace ends a moment after the traced process.
    let read = || fs::read_to_string(at("trace")).unwrap_or_default();
    let written = |text: &str| text.contains("+++ exited") || text.contains("+++ killed");
    let end = Instant::now() + Duration::from_secs(5);
    ended.trace = read();
    while inject.is_none() && !written(&ended.trace) && Instant::now() < end {
        sleep(Duration::from_millis(1));
        ended.trace = read();
    }
    ended
}

/// Whether the program waits for events, and not for one of its children.
fn waits() -> bool {
    let waiting = [libc::SYS_ppoll, poll_number()].map(|number| format!("{number} "));
    // The supervising process always waits for signals.
    let supervises = format!("{} ", libc::SYS_rt_sigtimedwait);
    let is = || {
        let mut calls = calls();
        calls.retain(|call| !call.starts_with(&supervises));
        matches!(&calls[..], [call] if waiting.iter().any(|number| call.starts_with(number)))
    };
    // The second check sees a child that was forked during the first.
    is() && is()
}

/// The system call in which each process of the program is.
fn calls() -> Vec<String> {
    let call = |entry: fs::DirEntry| {
        let of = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        // A child whose wait4 was failed stays as a zombie.
        let ended = of("stat")
            .rsplit_once(") ")
            .is_some_and(|(_, state)| state.starts_with('Z'));
        let ours = of("comm").starts_with("libvirt-kvm-ini") && !ended;
        ours.then(|| of("syscall"))
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(call).collect()
}

/// The system call number of poll(2), or of ppoll(2) on architectures without poll(2).
const fn poll_number() -> libc::c_long {
    #[cfg(target_arch = "x86_64")]
    return libc::SYS_poll;
    #[cfg(not(target_arch = "x86_64"))]
    return libc::SYS_ppoll;
}

/// Runs a command to its end. A `watch` is ended once it has reported, written its files, and then repaired a drifted
/// device.
pub fn kept(stage: &Stage, cmd: &mut Command) -> Ended {
    let at = |name: &str| scratch().join(name);
    cmd.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    cmd.stdin(Stdio::null());
    cmd.stdout(fs::File::create(at("out")).unwrap());
    cmd.stderr(fs::File::create(at("err")).unwrap());
    let mut child = cmd.spawn().unwrap();
    let read = |name: &str| {
        let bytes = fs::read(at(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let right = || fs::symlink_metadata(KVM).is_ok() && owner(Path::new(KVM)) == (0, 108, 0o660);
    let reported = || read("out").ends_with('\n') || read("err").contains("write(stdout)");
    let end = Instant::now() + Duration::from_secs(25);
    let (mut drifted, mut went_on) = (None, false);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if stage.case.watches && !went_on {
            if drifted.is_none() && reported() && waits() {
                drifted = Some(owner(Path::new(KVM)));
                set_owner(Path::new(KVM), 0, 424, 0o660);
            } else if drifted.is_some() && right() && waits() {
                went_on = true;
                kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
            }
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{cmd:?}: hangs\n{}{}", read("err"), read("trace"));
        }
        sleep(Duration::from_millis(1));
    };
    let code = status.code().ok_or_else(|| status.signal().unwrap());
    // The kernel ends a worker a moment after its supervisor.
    let gone = Instant::now() + Duration::from_secs(5);
    while code.is_err() && !calls().is_empty() && Instant::now() < gone {
        sleep(Duration::from_millis(1));
    }
    if let Some((uid, gid, mode)) = drifted.filter(|_| code.is_err()) {
        // A killed `watch` cannot report a drift after its end, so the drift is undone.
        set_owner(Path::new(KVM), uid, gid, mode);
    }
    Ended {
        code,
        went_on,
        out: read("out"),
        err: read("err"),
        trace: String::new(),
    }
}
