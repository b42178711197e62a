//! `exec` passes signal settings, limits, credentials and descriptors to its command unchanged.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, getpid};

use support::{Scene, command, in_namespace, ok, without_call, without_capability};

type Setting = (&'static str, fn(&mut Command));

/// Process settings that a container runtime, a shell or an operator may make.
const SETTINGS: [Setting; 13] = [
    // Without a closure between fork and exec Rust uses posix_spawn(3). In its child, glibc ignores its internal
    // signals.
    ("nothing", |cmd| before(cmd, || Ok(()))),
    ("SIGPIPE ignored", |cmd| ignore(cmd, &[libc::SIGPIPE])),
    ("SIGTERM and SIGINT ignored", |cmd| {
        ignore(cmd, &[libc::SIGTERM, libc::SIGINT]);
    }),
    ("SIGCHLD ignored", |cmd| ignore(cmd, &[libc::SIGCHLD])),
    ("every signal ignored", |cmd| {
        let all: Vec<_> = (1..=31).chain(34..=64).collect();
        ignore(cmd, &all);
    }),
    ("every signal blocked", |cmd| {
        before(cmd, || {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
            Ok(())
        });
    }),
    // An inherited child has ended, and the command must receive the signal.
    ("SIGCHLD blocked and pending", |cmd| {
        before(cmd, || {
            let mut set = SigSet::empty();
            set.add(Signal::SIGCHLD);
            sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
            Ok(kill(getpid(), Signal::SIGCHLD)?)
        });
    }),
    ("umask 077", |cmd| {
        before(cmd, || {
            umask(Mode::from_bits_truncate(0o077));
            Ok(())
        });
    }),
    ("a smaller bounding set", |cmd| {
        without_capability(cmd, caps::Capability::CAP_SYS_BOOT);
    }),
    ("no new privileges", |cmd| {
        before(cmd, || {
            nix::sys::prctl::set_no_new_privs()?;
            Ok(())
        });
    }),
    ("groups and a priority", |cmd| {
        before(cmd, || {
            nix::unistd::setgroups(&[Gid::from_raw(7), Gid::from_raw(4242)])?;
            // SAFETY: setpriority(2) takes three integers.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) };
            fs::File::options()
                .write(true)
                .open("/proc/self/oom_score_adj")
                .and_then(|mut file| io::Write::write_all(&mut file, b"123"))
        });
    }),
    ("limits, a seccomp filter, a directory", |cmd| {
        without_call(cmd, libc::SYS_acct, libc::EPERM);
        before(cmd, || {
            let limit = libc::rlimit {
                rlim_cur: 512,
                rlim_max: 2048,
            };
            // SAFETY: the structure outlives the call.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
            Ok(nix::unistd::chdir("/usr")?)
        });
    }),
    ("a stream closed, descriptors open", |cmd| {
        before(cmd, || {
            // SAFETY: the descriptors belong to this child.
            unsafe {
                libc::close(0);
                libc::dup2(1, 7);
                libc::dup2(2, 9);
            }
            Ok(())
        });
    }),
];

fn before(cmd: &mut Command, f: fn() -> io::Result<()>) {
    // SAFETY: system calls only.
    unsafe { cmd.pre_exec(f) };
}

fn ignore(cmd: &mut Command, signals: &[i32]) {
    let signals = signals.to_vec();
    let ignore = move || {
        for signal in &signals {
            // SAFETY: installs no handler. SIGKILL and SIGSTOP cannot be ignored.
            unsafe { libc::signal(*signal, libc::SIG_IGN) };
        }
        Ok(())
    };
    // SAFETY: system calls only.
    unsafe { cmd.pre_exec(ignore) };
}

/// Commands that print the settings of their own process.
const VIEW: [&str; 3] = [
    "cat /proc/self/status /proc/self/limits",
    "cat /proc/self/oom_score_adj /proc/self/cmdline /proc/self/environ /proc/self/cgroup",
    "readlink /proc/self/cwd /proc/self/root /proc/self/fd/0 /proc/self/fd/3 /proc/self/fd/4 \
     /proc/self/fd/5 /proc/self/fd/6 /proc/self/fd/8 /proc/self/fd/10",
];

/// The lines of /proc/PID/status that are equal in two processes with the same settings.
fn lasting(text: &str) -> String {
    const VARYING: [&str; 11] = [
        "Pid", "PPid", "Tgid", "NStgid", "NSpid", "NSpgid", "NSsid", "Ngid", "SigQ", "Mems",
        "FDSize",
    ];
    let counted = |name: &str| {
        name.starts_with("Vm") || name.starts_with("Rss") || name.ends_with("ctxt_switches")
    };
    let lines = text.lines().filter(|line| {
        let name = line.split(':').next().unwrap();
        !VARYING.contains(&name) && !counted(name)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn exec_passes_process_settings_unchanged() {
    in_namespace(|| {
        let scene = Scene::settled();
        for (name, set_up) in SETTINGS {
            for view in VIEW {
                let words: Vec<_> = view.split(' ').collect();
                let mut plain = command(Path::new(words[0]), &words[1..]);
                let mut wrapped = scene.exec(&["-q"]);
                wrapped.args(&words);
                let see = |cmd: &mut Command| {
                    set_up(cmd);
                    let Output {
                        status,
                        stdout,
                        stderr,
                    } = cmd.stdin(Stdio::null()).output().unwrap();
                    let err = String::from_utf8_lossy(&stderr).into_owned();
                    assert!(!err.contains("libvirt-kvm-init"), "{name}: {err}");
                    (status.code(), lasting(&String::from_utf8_lossy(&stdout)))
                };
                let (want, got) = (see(&mut plain), see(&mut wrapped));
                assert_eq!(got, want, "{name}: {view}");
                assert!(want.1.len() > 4, "{view}");
            }
        }
    });
}

#[test]
fn exec_keeps_open_descriptors_and_adds_none() {
    in_namespace(|| {
        let scene = Scene::settled();
        let script = "for fd in 0 1 2 3 4 5 6 7 8 9; do
            [ -e /proc/$$/fd/$fd ] && printf '%s ' $fd; done; [ ! -e /proc/$$/fd/7 ] || echo yes >&7";
        let mut cmd = scene.exec(&[]);
        cmd.args(["sh", "-c", script]);
        // SAFETY: the descriptors belong to this child.
        unsafe {
            cmd.pre_exec(|| {
                libc::close(0);
                libc::dup2(1, 7);
                Ok(())
            });
        }
        assert_eq!(ok(&mut cmd), "1 2 7 yes\n");
    });
}
