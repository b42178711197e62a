//! How `watch` starts and ends.
#![allow(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal::{SIGINT, SIGTERM};
use nix::sys::signal::{SigSet, Signal};

use support::watch::{Watch, refused, wait_for_repair, watch};
use support::{
    KVM, Scene, command, in_namespace, mknod_kvm, program, require_commands, run, scratch,
    set_owner, waits_for_lock, without_call,
};

/// Asserts that `watch` ends by the signal, not after the next full check minutes later.
fn ends(watch: Watch, signal: Signal) {
    watch.signal(signal);
    assert_eq!(watch.end(), Some(0), "{signal}");
}

#[test]
fn signals_end_watch_with_exit_0() {
    in_namespace(|| {
        let scene = Scene::settled();
        ends(Watch::start(&mut watch(&scene)), SIGTERM);
        ends(Watch::start(&mut watch(&scene)), SIGINT);
        // With signals blocked by the parent process.
        let mut cmd = watch(&scene);
        // SAFETY: one system call.
        unsafe {
            cmd.pre_exec(|| Ok(SigSet::all().thread_block()?));
        }
        ends(Watch::start(&mut cmd), SIGTERM);
        // While another process keeps changing the device.
        let running = Watch::start(&mut watch(&scene));
        for _ in 0..40 {
            set_owner(Path::new(KVM), 0, 424, 0o660);
            std::thread::sleep(Duration::from_millis(3));
        }
        ends(running, SIGTERM);
    });
}

/// The kernel discards signals for which PID 1 has no handler (pid_namespaces(7)).
#[test]
fn signals_end_watch_as_pid_1() {
    in_namespace(|| {
        let scene = Scene::settled();
        for signal in ["TERM", "INT"] {
            let report = scratch().join(signal);
            let report = report.display();
            let script = format!(
                "unshare --pid --fork {} watch --root {} --host-root {} --format json >{report} 2>&1 &
                 p=$!; until [ -s {report} ]; do sleep 0.01; done
                 c=$(cat /proc/$p/task/$p/children); kill -{signal} $c; wait $p; echo $?",
                program().display(), scene.pod.path().display(), scene.host.path().display()
            );
            let (_, out, err) = run(Command::new("timeout").args(["60", "sh", "-c", &script]));
            assert_eq!(out.trim(), "0", "{err}");
        }
    });
}

/// Until PID 1 has installed its handlers the kernel would discard the signal.
#[test]
fn signal_before_main_ends_watch_as_pid_1() {
    require_commands(&["strace", "unshare"]);
    in_namespace(|| {
        let scene = Scene::settled();
        for signal in ["TERM", "INT"] {
            let mut cmd = as_first_process(signal);
            let watch = watch(&scene);
            let (code, out, err) = run(cmd.arg(watch.get_program()).args(watch.get_args()));
            assert_eq!((code, out.as_str()), (0, ""), "{err}");
        }
    });
}

/// A SIGHUP before `main` is not lost either.
#[test]
fn sighup_before_main_reloads_the_configuration() {
    require_commands(&["strace", "unshare"]);
    in_namespace(|| {
        let scene = Scene::settled();
        let mut cmd = as_first_process("HUP");
        let watch = watch(&scene);
        cmd.arg(watch.get_program()).args(watch.get_args());
        let mut child = cmd
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let heard = lines.find(|line| line.as_ref().unwrap().contains("was reloaded"));
        assert!(heard.is_some());
        // timeout(1) forwards the signal, and --kill-child ends `watch`.
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, SIGTERM).unwrap();
        child.wait().unwrap();
    });
}

/// The words before a command that make it PID 1 and send it `signal` in a call that Rust's runtime makes before
/// `main` and unshare(1) does not make.
fn as_first_process(signal: &str) -> Command {
    let early = format!("inject=sigaltstack:signal={signal}:when=1");
    let strace = [
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=sigaltstack",
        "-e",
        &early,
    ];
    let mut cmd = command(Path::new("timeout"), &["--signal=KILL", "10", "strace"]);
    cmd.args(strace)
        .args(["unshare", "--pid", "--fork", "--kill-child"]);
    cmd
}

#[test]
fn signals_end_watch_while_it_waits_for_a_lock() {
    in_namespace(|| {
        let scene = Scene::new();
        let lock = scene.pod.at("etc/.pwd.lock");
        let _lock = support::holders::lock(&lock).unwrap();
        let child = watch(&scene)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        waits_for_lock(child.id());
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id().cast_signed()),
            SIGTERM,
        )
        .unwrap();
        // The lock is never released, and `watch` must not try again.
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{err}");
        assert!(err.matches("F_OFD_SETLK").count() <= 1, "{err}");
    });
}

#[test]
fn invalid_options_and_missing_descriptors_end_watch_at_once() {
    in_namespace(|| {
        let scene = Scene::settled();
        let bin = program();
        let refuses = |cmd: &mut Command, code: i32, part: &str| {
            let (got, text) = refused(cmd);
            assert_eq!(got, Some(code), "{cmd:?}\n{text}");
            let last = text.lines().last().unwrap_or_default();
            assert!(
                last.starts_with("libvirt-kvm-init: ") && last.contains(part),
                "{text}"
            );
        };
        refuses(
            watch(&scene).arg("--dry-run"),
            2,
            "--dry-run cannot be used with watch",
        );
        refuses(watch(&scene).args(["--recheck", "1ms"]), 2, "at least 1s");
        refuses(
            &mut command(&bin, &["watch", "--nonsense"]),
            2,
            "--nonsense",
        );
        refuses(
            &mut command(&bin, &["watch", "--root", "/nowhere"]),
            2,
            "/nowhere",
        );
        // No file descriptor left for signalfd(2).
        let mut cmd = watch(&scene);
        without_call(&mut cmd, libc::SYS_signalfd4, libc::EMFILE);
        refuses(
            &mut cmd,
            4,
            "signalfd(SIGHUP): EMFILE (Too many open files); raise the limit",
        );
    });
}

#[test]
fn watch_continues_after_a_refusal_or_without_privileges() {
    in_namespace(|| {
        let scene = Scene::settled();
        fs::remove_file(KVM).unwrap();
        fs::create_dir(KVM).unwrap();
        let running = Watch::start(&mut watch(&scene));
        assert_eq!(running.report["verdict"], "refused");
        fs::remove_dir(KVM).unwrap();
        mknod_kvm(Path::new(KVM), 0, 0, 0o600);
        wait_for_repair((0, 108, 0o660));
        let log = running.log();
        let first = log.lines().next().unwrap_or_default().to_owned();
        assert_eq!(log.matches(&first).count(), 1, "not logged once\n{log}");
        drop(running);

        // Run by a user without any privilege.
        let bin = scratch().join("program");
        fs::copy(program(), &bin).unwrap();
        let mut cmd = command(&bin, &["watch"]);
        cmd.arg("--root")
            .arg(scene.pod.path())
            .arg("--host-root")
            .arg(scene.host.path());
        cmd.uid(65534).gid(65534);
        let mut running = Watch::start(&mut cmd);
        assert_eq!(running.report["verdict"], "unproven", "{}", running.report);
        set_owner(Path::new(KVM), 0, 424, 0o660);
        running.wait_for_log("failed");
        assert!(running.runs());
    });
}

/// A proof that fails for another reason than owner or mode is logged once, not at every event.
#[test]
fn failing_proof_is_logged_once() {
    in_namespace(|| {
        let scene = Scene::settled();
        let mut list = String::from("user = \"nova\"\ngroup = \"kvm\"\n");
        list.push_str("cgroup_device_acl = [ \"/dev/null\" ]\n");
        scene.pod.file("etc/libvirt/qemu.conf", &list);
        let running = Watch::start(&mut watch(&scene));
        assert_eq!(running.report["verdict"], "unproven");
        for _ in 0..20 {
            set_owner(Path::new(KVM), 0, 424, 0o600);
            wait_for_repair((0, 108, 0o660));
            std::thread::sleep(Duration::from_millis(30));
        }
        running.is_idle();
        let log = running.log();
        assert!(log.matches("cgroup_device_acl").count() <= 2, "{log}");
        scene.pod.file(
            "etc/libvirt/qemu.conf",
            "user = \"nova\"\ngroup = \"kvm\"\n",
        );
        running.wait_for_log("info: QEMU as nova");
    });
}
