//! `exec` starts its command as if it were started directly.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::{
    ALIGNED, KVM, Scene, bind, bind_read_only, command, detach, eventually, in_namespace,
    mknod_kvm, ok, owner, program, require_commands, run, warnings, without_call,
};

/// Runs `script` as the command of `exec`.
fn exec_sh(scene: &Scene, options: &[&str], script: &str) -> (i32, String, String) {
    run(scene.exec(options).args(["sh", "-c", script]))
}

fn last(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

#[test]
fn exec_aligns_reports_on_stderr_and_runs_the_command() {
    in_namespace(|| {
        let scene = Scene::new();
        let script = "echo out; echo err >&2; cat; exit 42";
        let (code, out, err) = exec_sh(&scene, &[], script);
        assert_eq!((code, out.as_str()), (42, "out\n"), "{err}");
        assert!(err.starts_with("info: set-group-gid 424 -> 108\n"), "{err}");
        assert!(err.contains("\nok         QEMU as nova"), "{err}");
        assert_eq!(last(&err), "err");
        assert_eq!(scene.pod.read("etc/group"), ALIGNED);
        assert_eq!(owner(Path::new(KVM)), (0, 108, 0o660));
        // After a restart of the container.
        let before = scene.state();
        let (code, ..) = exec_sh(&scene, &[], "true");
        assert_eq!(code, 0);
        assert_eq!(scene.state(), before);
        // No KVM on this node, with --missing=skip.
        let options = ["--device=/dev/absent", "--missing=skip"];
        let (code, out, err) = exec_sh(&scene, &options, "echo out");
        assert_eq!((code, out.as_str()), (0, "out\n"), "{err}");
        assert!(
            last(&err).starts_with("libvirt-kvm-init: absent: "),
            "{err}"
        );
        let quiet = exec_sh(&scene, &["-q"], "true");
        assert_eq!(quiet, (0, String::new(), String::new()));
    });
}

#[test]
fn exec_edits_the_files_of_its_own_container() {
    in_namespace(|| {
        let scene = Scene::new();
        bind(&scene.pod.at("etc"), Path::new("/etc"));
        let mut cmd = command(&program(), &["exec", "--host-root"]);
        cmd.arg(scene.host.path());
        let (code, out, err) = run(cmd.args(["--", "cat", "/etc/group"]));
        assert_eq!((code, out.as_str()), (0, ALIGNED), "{err}");
    });
}

#[test]
fn arguments_and_environment_are_passed_unchanged() {
    in_namespace(|| {
        let scene = Scene::settled();
        let bytes = OsStr::from_bytes(b"\xff\xfe --gid=\n");
        let mut cmd = scene.exec(&[]);
        cmd.args(["cat", "/proc/self/environ"]);
        cmd.env_clear()
            .env("PATH", "/bin:/usr/bin")
            .env("BYTES", bytes);
        let want = b"BYTES=\xff\xfe --gid=\n\0PATH=/bin:/usr/bin\0";
        assert_eq!(cmd.output().unwrap().stdout, want);
        for args in [vec!["--help", "", "--", "-x"], vec![]] {
            let mut cmd = scene.exec(&[]);
            cmd.args(["printf", "[%s]", "first"]).args(&args).arg(bytes);
            let mut want = b"[first]".to_vec();
            for arg in &args {
                want.extend(format!("[{arg}]").bytes());
            }
            want.extend(b"[\xff\xfe --gid=\n]");
            assert_eq!(cmd.output().unwrap().stdout, want);
        }
    });
}

#[test]
fn failed_apply_does_not_start_the_command() {
    in_namespace(|| {
        let scene = Scene::new();
        let mark = scene.pod.at("mark");
        let script = format!("touch {}", mark.display());
        let cases: [(&[&str], i32, &str); 6] = [
            (&["--gid=0"], 2, "libvirt-kvm-init: usage: --gid"),
            (&["--dry-run"], 2, "`check`"),
            (&["--host-root=/nowhere"], 2, "/nowhere"),
            (&["--device=/dev/null"], 3, "libvirt-kvm-init: refused: "),
            (&["--device=/dev/absent"], 6, "libvirt-kvm-init: absent: "),
            (&["--strict", "--gid=9"], 3, "libvirt-kvm-init: refused: "),
        ];
        let before = scene.state();
        for (options, want, says) in cases {
            let mut cmd = command(&program(), &["exec", "--root"]);
            cmd.arg(scene.pod.path()).args(options);
            if !options[0].starts_with("--host-root") {
                cmd.arg("--host-root").arg(scene.host.path());
            }
            let (code, out, err) = run(cmd.args(["--", "sh", "-c", &script]));
            assert_eq!((code, out.as_str()), (want, ""), "{options:?}: {err}");
            assert!(last(&err).contains(says), "{options:?}: {err}");
            assert!(!mark.exists(), "{options:?}");
            assert_eq!(scene.state(), before, "{options:?}");
        }
        // The proof fails on a nodev mount.
        let flags = nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_NODEV;
        nix::mount::mount(None::<&str>, "/dev", None::<&str>, flags, None::<&str>).unwrap();
        let mut cmd = scene.exec(&[]);
        // On a nodev mount /dev/null cannot be opened either.
        cmd.args(["sh", "-c", &script]).stdin(Stdio::inherit());
        let out = cmd.output().unwrap();
        let err = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(5), "{err}");
        assert!(last(&err).starts_with("libvirt-kvm-init: unproven: "));
        assert!(!mark.exists());
    });
}

#[test]
fn command_that_cannot_start_exits_with_126_or_127() {
    in_namespace(|| {
        let scene = Scene::settled();
        scene.pod.file("plain", "echo no").file("noexec", "echo no");
        scene.pod.file("bin/found", "#!/bin/sh\necho found\n");
        let mode = |name: &str, mode| {
            fs::set_permissions(scene.pod.at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode("noexec", 0o644);
        mode("plain", 0o755);
        mode("bin/found", 0o755);
        let at = |name: &str| scene.pod.at(name).display().to_string();
        for (name, want, says) in [
            ("no-such-command".to_owned(), 127, "not found"),
            (String::new(), 127, "not found"),
            (at("nothing"), 127, "not found"),
            (at("noexec"), 126, "EACCES"),
            (at("etc"), 126, "EACCES"),
            (at("plain"), 126, "ENOEXEC"),
        ] {
            let (code, out, err) = run(scene.exec(&["-q"]).arg(&name));
            assert_eq!((code, out.as_str()), (want, ""), "{name}: {err}");
            assert_eq!(err.lines().count(), 1, "{err}");
            assert!(err.starts_with(&format!("libvirt-kvm-init: {name}: ")));
            assert!(err.contains(says), "{err}");
        }
        // An unusable directory in PATH does not hide the next one.
        scene.pod.dir("first/found");
        let path = format!("/nowhere:{}:{}", at("first"), at("bin"));
        let mut cmd = scene.exec(&["-q"]);
        assert_eq!(ok(cmd.arg("found").env("PATH", path)), "found\n");
        // Nor does an unresolvable directory in PATH hide the next one: a link to itself, a name that is too long.
        std::os::unix::fs::symlink("circle", scene.pod.at("circle")).unwrap();
        let long = "x".repeat(300);
        for directory in [at("circle"), at(&long)] {
            let path = format!("{directory}:{}", at("bin"));
            let mut cmd = scene.exec(&["-q"]);
            assert_eq!(ok(cmd.arg("found").env("PATH", path)), "found\n");
        }
        for (name, want) in [(long.clone(), 127), (at(&long), 126), (at("circle"), 126)] {
            let (code, _, err) = run(scene.exec(&["-q"]).arg(&name));
            assert_eq!(code, want, "{err}");
        }
    });
}

#[test]
fn exec_without_a_command_is_a_usage_error() {
    for args in [&["exec"][..], &["exec", "--"], &["exec", "true"]] {
        let (code, _, err) = run(&mut command(&program(), args));
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(last(&err).starts_with("libvirt-kvm-init: usage: "), "{err}");
        assert!(!last(&err).ends_with(':'), "{err}");
    }
}

#[test]
fn read_only_root_fails_only_if_a_change_is_needed() {
    in_namespace(|| {
        for (scene, want) in [(Scene::settled(), 0), (Scene::new(), 4)] {
            bind_read_only(scene.pod.path(), scene.pod.path());
            let (code, out, err) = exec_sh(&scene, &[], "echo started");
            assert_eq!(code, want, "{err}");
            assert_eq!(out == "started\n", want == 0);
            if want == 4 {
                for part in [
                    "failed: ",
                    "EROFS",
                    "--group-file-out",
                    "helm-patch/kustomize",
                ] {
                    assert!(last(&err).contains(part), "{part}: {err}");
                }
            }
            detach(&scene.host.at("dev"));
        }
    });
}

#[test]
fn exec_warns_of_a_private_device() {
    in_namespace(|| {
        let scene = Scene::new();
        detach(&scene.host.at("dev"));
        mknod_kvm(&scene.host.at("dev/kvm"), 0, 108, 0o660);
        assert_eq!(run(&mut scene.apply()).0, 3);
        let (code, out, err) = exec_sh(&scene, &["--format=json"], "echo started");
        assert_eq!((code, out.as_str()), (0, "started\n"), "{err}");
        let json = err.lines().find(|line| line.starts_with('{')).unwrap();
        let report = serde_json::from_str(json).unwrap();
        assert_eq!(warnings(&report), ["private-device"]);
    });
}

/// Children of a process, by the parent PID in /proc/PID/stat.
fn children(of: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Ok(pid) = name.parse() else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit(')').next().unwrap_or_default();
        if rest.split_whitespace().nth(1) == Some(&of.to_string()) {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

/// Waits until a process has one child, and returns it.
fn child(of: Pid) -> Pid {
    eventually("the process has one child", || children(of).len() == 1);
    children(of)[0]
}

/// Whether a process has ended, or is a zombie not yet reaped by its new parent.
fn ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

#[test]
fn signal_ends_exec_and_its_child_also_as_pid_1() {
    in_namespace(|| {
        // The device is missing, so the child waits for it.
        let scene = Scene::without_device();
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            for first in [false, true] {
                let exec = scene.exec(&["--settle=60s"]);
                let mut cmd = exec;
                if first {
                    let mut unshare = command(Path::new("unshare"), &["--pid", "--fork"]);
                    unshare.arg(cmd.get_program()).args(cmd.get_args());
                    cmd = unshare;
                }
                let mut process = cmd
                    .args(["sh", "-c", "echo started"])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                let outer = Pid::from_raw(i32::try_from(process.id()).unwrap());
                let wrapper = if first { child(outer) } else { outer };
                let worker = child(wrapper);
                kill(wrapper, signal).unwrap();
                // Without the signal the command would run once the wait is over.
                let code = process.wait().unwrap().code();
                assert_eq!(code, Some(128 + signal as i32));
                eventually("the worker has ended", || ended(worker));
                let mut out = String::new();
                io::Read::read_to_string(&mut process.stdout.unwrap(), &mut out).unwrap();
                assert_eq!(out, "");
            }
        }
    });
}

/// Until PID 1 has installed its handlers the kernel discards the signal (pid_namespaces(7)).
#[test]
fn signal_before_main_ends_exec_as_pid_1() {
    require_commands(&["strace", "unshare"]);
    in_namespace(|| {
        let scene = Scene::settled();
        for (signal, code) in [("TERM", 143), ("INT", 130)] {
            // Rust's runtime makes this call before `main`; unshare(1) does not make it.
            let early = format!("inject=sigaltstack:signal={signal}:when=1");
            let strace = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=sigaltstack"];
            let mut cmd = command(Path::new("strace"), &strace);
            cmd.args(["-e", &early, "unshare", "--pid", "--fork"]);
            let mut exec = scene.exec(&[]);
            exec.args(["echo", "started"]);
            let (got, out, err) = run(cmd.arg(exec.get_program()).args(exec.get_args()));
            assert_eq!((got, out.as_str()), (code, ""), "{signal}: {err}");
        }
    });
}

#[test]
fn killed_child_is_a_failure_and_killed_parent_ends_the_child() {
    in_namespace(|| {
        let scene = Scene::without_device();
        for child_first in [true, false] {
            let mut process = scene
                .exec(&["--settle=60s"])
                .args(["sh", "-c", "echo started"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let wrapper = Pid::from_raw(i32::try_from(process.id()).unwrap());
            let worker = child(wrapper);
            // Once it waits for the device it has set its parent-death signal (prctl(2)).
            eventually("the worker waits for the device", || {
                let name = fs::read_link(format!("/proc/{worker}/fd/3")).unwrap_or_default();
                name == Path::new("anon_inode:inotify")
            });
            if child_first {
                kill(worker, Signal::SIGKILL).unwrap();
                let out = process.wait_with_output().unwrap();
                let err = String::from_utf8(out.stderr).unwrap();
                assert_eq!(out.status.code(), Some(4), "{err}");
                assert!(
                    last(&err).starts_with("libvirt-kvm-init: failed: "),
                    "{err}"
                );
                assert!(last(&err).contains("SIGKILL"), "{err}");
                assert!(out.stdout.is_empty());
            } else {
                process.kill().unwrap();
                process.wait().unwrap();
                eventually("the worker has ended", || ended(worker));
            }
        }
    });
}

#[test]
fn command_of_exec_stays_pid_1_and_gets_no_zombie() {
    in_namespace(|| {
        let scene = Scene::new();
        let exec = scene.exec(&["-q"]);
        let mut cmd = command(
            Path::new("unshare"),
            &[
                "--pid",
                "--fork",
                "--mount-proc",
                "--propagation",
                "private",
            ],
        );
        cmd.arg(exec.get_program()).args(exec.get_args());
        cmd.args(["sh", "-c", "echo $$ /proc/[0-9]*; cat /proc/1/comm"]);
        assert_eq!(ok(&mut cmd), "1 /proc/1\nsh\n");
        assert_eq!(owner(Path::new(KVM)), (0, 108, 0o660));
    });
}

/// Only EAGAIN is reported as a reached limit.
#[test]
fn failed_fork_does_not_start_the_command() {
    in_namespace(|| {
        let scene = Scene::new();
        let before = scene.state();
        for (errno, limit) in [(libc::EAGAIN, true), (libc::EPERM, false)] {
            let mut cmd = scene.exec(&[]);
            cmd.args(["sh", "-c", "echo started"]);
            without_call(&mut cmd, libc::SYS_clone, errno);
            #[cfg(target_arch = "x86_64")]
            without_call(&mut cmd, libc::SYS_fork, errno);
            let (code, out, err) = run(&mut cmd);
            assert_eq!((code, out.as_str()), (4, ""), "{err}");
            assert!(last(&err).starts_with("libvirt-kvm-init: failed: fork()"));
            assert_eq!(err.contains("pids.max"), limit, "{err}");
            assert_eq!(scene.state(), before);
        }
    });
}

#[test]
fn closed_stderr_does_not_prevent_the_command() {
    in_namespace(|| {
        let scene = Scene::new();
        let script = format!("echo started > {}", scene.pod.at("mark").display());
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let status = scene
            .exec(&[])
            .args(["sh", "-c", &script])
            .stderr(writer)
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(0));
        assert_eq!(scene.pod.read("mark"), "started\n");
    });
}

#[test]
fn concurrent_exec_runs_lose_no_update() {
    in_namespace(|| {
        let scene = Scene::new();
        let spawn = |_| {
            let mut cmd = scene.exec(&["-q"]);
            cmd.args(["cat", "/dev/null"]).spawn().unwrap()
        };
        let all: BTreeMap<_, _> = (0..16).map(spawn).enumerate().collect();
        for (_, mut process) in all {
            assert_eq!(process.wait().unwrap().code(), Some(0));
        }
        assert_eq!(scene.pod.read("etc/group"), ALIGNED);
    });
}
