//! Every command on a file system that never answers ends by itself with exit code 4 and names the path.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fuse::Unanswered;
use support::{KVM, Scene, Tree, bind, command, in_namespace, program, run, scratch};

/// Time limit of a command: 30 s without progress, checked every 5 s, and a second for the worker to end.
const LONGEST: Duration = Duration::from_secs(45);

/// A running command with its output in files, because a process that is left behind would hold a pipe open.
struct Running {
    child: Child,
    shown: String,
    name: PathBuf,
}

impl Running {
    fn start(cmd: &mut Command) -> Self {
        let name = scratch().join(format!("output-{:?}", Instant::now()));
        cmd.stdin(Stdio::null());
        cmd.stdout(File::create(name.with_extension("out")).unwrap());
        cmd.stderr(File::create(name.with_extension("err")).unwrap());
        Self {
            child: cmd.spawn().unwrap(),
            shown: format!("{cmd:?}"),
            name,
        }
    }

    fn out(&self) -> String {
        fs::read_to_string(self.name.with_extension("out")).unwrap()
    }

    fn err(&self) -> String {
        fs::read_to_string(self.name.with_extension("err")).unwrap()
    }

    /// The exit code, if the command ends before `end`.
    fn code(&mut self, end: Instant) -> Option<i32> {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asserts that the command ends with this code and a closing line that names the path.
    fn hung(&mut self, end: Instant, code: i32, path: &Path) -> String {
        let got = self.code(end);
        let text = format!("{}\n{}{}", self.shown, self.out(), self.err());
        assert_eq!(got, Some(code), "{text}");
        let last = self.err().lines().last().unwrap_or_default().to_owned();
        let path = path.display();
        let want = format!("libvirt-kvm-init: failed: a call on {path}");
        assert!(
            last.starts_with(&want) && last.contains("did not return within 30 s"),
            "{want}: {text}"
        );
        last
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The state in /proc of the process that the closing line reports as left behind.
fn left_behind(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("; process ")?;
    let pid = rest.split(' ').next()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let state = status
        .lines()
        .find_map(|line| line.strip_prefix("State:"))?;
    Some(state.trim().chars().take(1).collect())
}

#[test]
fn every_command_ends_if_a_file_system_never_answers() {
    in_namespace(|| {
        let scene = Scene::settled();
        let dead = scratch().join("dead");
        fs::create_dir(&dead).unwrap();
        let status = scratch().join("status.json");
        let guard = Unanswered::mount(&dead);
        let bin = program();
        let start = |args: &[&str], paths: &[&Path]| {
            let mut cmd = command(&bin, args);
            for path in paths {
                cmd.arg(path);
            }
            cmd
        };
        let with = |name: &str| {
            let mut cmd = start(&[name, "--root"], &[scene.pod.path()]);
            cmd.arg("--host-root").arg(&dead);
            cmd
        };
        let watch_on = |host: &Tree, option: &str, path: &Path| {
            let mut cmd = start(&["watch", "--root"], &[scene.pod.path()]);
            cmd.arg("--host-root").arg(host.path());
            cmd.arg(option).arg(path);
            cmd
        };
        let watch = |option: &str, path: &Path| watch_on(&scene.host, option, path);
        // A `watch` that works until its node's rules are mounted over.
        let other = Tree::host(108);
        bind(Path::new("/dev"), &other.at("dev"));
        let rules = other.dir("etc/udev/rules.d").at("etc/udev/rules.d");
        let mut late = watch_on(&other, "--status-file", &status);
        let mut late = Running::start(&mut late);
        let ready = || run(start(&["ready"], &[&status]).stdin(Stdio::null()));
        let end = Instant::now() + Duration::from_secs(10);
        while ready().0 != 0 {
            assert!(Instant::now() < end, "{}", late.err());
            std::thread::sleep(Duration::from_millis(50));
        }
        let first = late.out();
        let late_guard = Unanswered::mount(&rules);

        let begin = Instant::now();
        let end = begin + LONGEST;
        let mark = scratch().join("started");
        let mut exec = with("exec");
        exec.args(["--", "touch"]).arg(&mark);
        let mut all: Vec<(Running, i32, PathBuf)> = [
            (with("apply"), 4, dead.clone()),
            (with("check"), 4, dead.clone()),
            (exec, 4, dead.clone()),
            (
                watch("--group-file-out", &dead.join("group")),
                4,
                dead.clone(),
            ),
            (watch("--device", &dead.join("kvm")), 4, dead.clone()),
            (
                watch("--config", &dead.join("config")),
                4,
                dead.join("config"),
            ),
            (
                start(&["logs"], &[&dead.join("nova.log")]),
                4,
                dead.join("nova.log"),
            ),
            (start(&["install"], &[&dead]), 4, dead.clone()),
            (
                start(&["ready"], &[&dead.join("status")]),
                4,
                dead.join("status"),
            ),
        ]
        .into_iter()
        .map(|(mut cmd, code, path)| (Running::start(&mut cmd), code, path))
        .collect();
        let mut formats: Vec<_> = ["json", "npd", "prometheus"]
            .into_iter()
            .map(|format| Running::start(with("check").args(["--format", format])))
            .collect();

        for (running, code, path) in &mut all {
            let line = running.hung(end, *code, path);
            assert_eq!(left_behind(&line).as_deref(), Some("D"), "{line}");
        }
        assert!(begin.elapsed() >= Duration::from_secs(29));
        assert!(!mark.exists(), "the command was started");
        let [json, npd, prometheus] = &mut formats[..] else {
            panic!("three formats")
        };
        json.hung(end, 4, &dead);
        let report: serde_json::Value = serde_json::from_str(&json.out()).unwrap();
        assert_eq!(
            (&report["verdict"], &report["exit_code"]),
            (&"failed".into(), &4.into())
        );
        npd.hung(end, 2, &dead);
        assert!(
            npd.out().lines().count() == 1 && npd.out().chars().count() <= 81,
            "{}",
            npd.out()
        );
        prometheus.hung(end, 4, &dead);
        assert!(
            prometheus.out().contains("verdict=\"failed\""),
            "{}",
            prometheus.out()
        );

        // This `watch` has reported before, and no process holds its status file although its worker still exists.
        let line = late.hung(end, 4, &rules);
        assert_eq!(left_behind(&line).as_deref(), Some("D"), "{line}");
        assert_eq!(late.out(), first);
        let (code, _, err) = ready();
        assert!(
            code == 4 && err.contains("no process holds its lock"),
            "{code} {err}"
        );
        drop((guard, late_guard));
        let end = Instant::now() + Duration::from_secs(5);
        while left_behind(&line).is_some_and(|state| state == "D") {
            assert!(Instant::now() < end, "{line}");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(Path::new(KVM).exists());
    });
}

/// A killed worker is not reported as a hang, and a worker ends when its supervisor is killed.
#[test]
fn supervisor_and_worker_end_together() {
    in_namespace(|| {
        let scene = Scene::without_device();
        let waiting = || {
            let mut child = scene
                .apply()
                .args(["--settle", "60s", "-v"])
                .stderr(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let list = format!("/proc/{0}/task/{0}/children", child.id());
            let end = Instant::now() + Duration::from_secs(10);
            let worker = loop {
                let worker = fs::read_to_string(&list).unwrap();
                // With an inotify descriptor it waits for the device.
                let fds = format!("/proc/{}/fd", worker.trim());
                let has_watch = fs::read_dir(&fds)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .any(|fd| {
                        fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("anon_inode:inotify"))
                    });
                if has_watch {
                    break worker.trim().parse::<i32>().unwrap();
                }
                assert!(Instant::now() < end, "{worker}");
                std::thread::sleep(Duration::from_millis(10));
            };
            let err = child.stderr.take().unwrap();
            (child, nix::unistd::Pid::from_raw(worker), err)
        };
        let (mut child, worker, _) = waiting();
        nix::sys::signal::kill(worker, nix::sys::signal::SIGKILL).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );

        let (mut child, _, err) = waiting();
        child.kill().unwrap();
        child.wait().unwrap();
        // Reading ends only once the worker has ended, which holds the write end as well.
        let lines: Vec<_> = BufReader::new(err).lines().collect();
        assert!(lines.iter().all(Result::is_ok));
    });
}

/// A signal ends a hanging command before the 30 s are over.
#[test]
fn signal_ends_a_hanging_command() {
    in_namespace(|| {
        let scene = Scene::settled();
        let dead = scratch().join("dead");
        fs::create_dir(&dead).unwrap();
        let guard = Unanswered::mount(&dead);
        for name in ["apply", "check", "watch", "exec", "logs"] {
            let mut cmd = command(&program(), &[name]);
            match name {
                "logs" => cmd.arg(dead.join("nova.log")),
                _ => cmd
                    .arg("--root")
                    .arg(scene.pod.path())
                    .arg("--host-root")
                    .arg(&dead),
            };
            if name == "exec" {
                cmd.args(["--", "true"]);
            }
            let mut running = Running::start(&mut cmd);
            let pid = running.child.id();
            // From outside nothing shows that it waits for this file system.
            std::thread::sleep(Duration::from_secs(1));
            assert!(
                running.child.try_wait().unwrap().is_none(),
                "{}",
                running.err()
            );
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.cast_signed()),
                nix::sys::signal::Signal::SIGTERM,
            )
            .unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            let status = loop {
                if let Some(status) = running.child.try_wait().unwrap() {
                    break status;
                }
                assert!(Instant::now() < end, "{name} does not end");
                std::thread::sleep(Duration::from_millis(20));
            };
            let signal = std::os::unix::process::ExitStatusExt::signal(&status);
            assert_eq!(signal, Some(15), "{name} {status}");
        }
        drop(guard);
    });
}
