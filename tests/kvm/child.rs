//! Tests of the proof's child: its credentials in the kernel, and what the QEMU user can do to it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use caps::Capability::CAP_DAC_OVERRIDE;
use libvirt_kvm_init::codes::ProofWord;
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::verdict::Verdict;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::held::{self, Held, status};
use crate::oracle::{self, Identity, drop_to, run_with};
use support::{Tree, fresh_dev, in_namespace, mknod_kvm, ok, require_commands, set_owner};

/// Unused UIDs, one for each test: a signal to all processes of a user must not reach those of another test.
const STOPPED: u32 = 1_951_515;
const KILLED: u32 = STOPPED + 1;
const TRACED: u32 = STOPPED + 2;
const TOUCHED: u32 = STOPPED + 3;
const SHOWN: u32 = STOPPED + 4;

fn pod(uid: u32) -> Tree {
    let pod = Tree::pod(108);
    pod.file(
        "etc/passwd",
        &format!("root:x:0:0::/:\nnova:x:{uid}:42424::/:\n"),
    );
    pod
}

fn command(pod: &Tree, host: &Tree) -> Command {
    let mut cmd = support::program_command("apply", pod.path(), host.path());
    cmd.arg("--format=json");
    cmd
}

fn check(pod: &Tree, host: &Tree, more: &[&str]) -> Command {
    let mut cmd = support::program_command("check", pod.path(), host.path());
    cmd.arg("--format=json").args(more);
    cmd
}

/// The QEMU user of [`pod`].
fn user(uid: u32) -> Identity {
    Identity {
        uid,
        gid: 108,
        groups: vec![108, 42424],
        name: Some("nova".to_owned()),
    }
}

/// A command that runs as the QEMU user.
fn as_user(uid: u32, words: &[&str]) -> Command {
    let drop = drop_to(&user(uid));
    let mut cmd = Command::new(&drop[0]);
    cmd.args(&drop[1..]).args(words);
    cmd
}

#[track_caller]
fn report(stdout: &str, stderr: &str) -> Report {
    serde_json::from_str(stdout).unwrap_or_else(|e| panic!("{e}\n{stdout}{stderr}"))
}

/// A process that repeatedly sends a signal to every other process of its user.
struct Attacker(std::process::Child);

impl Attacker {
    /// Starts the attacker and waits until a signal has reached a process of that user.
    fn start(signal: &str, uid: u32) -> Self {
        let script = format!("while :; do kill -s {signal} -- -1; done 2>&-");
        let mut cmd = as_user(uid, &["sh", "-c", &script]);
        let attacker = Self(cmd.stdin(Stdio::null()).spawn().unwrap());
        let victim = Self(as_user(uid, &["sleep", "60"]).spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(10);
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", victim.0.id())).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
        };
        while !['Z', 'T'].contains(&state()) {
            assert!(
                Instant::now() < end,
                "no signal reached a process of the user"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        attacker
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asserts that hundreds of runs under attack all succeed.
fn runs_are_not_affected(signal: &str, uid: u32) {
    /// A child with the UID of the QEMU user was hit within 20 runs.
    const RUNS: usize = 400;
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        mknod_kvm(Path::new("/dev/kvm"), 0, 108, 0o660);
        let (pod, host) = (pod(uid), Tree::host(108));
        ok(&mut command(&pod, &host));
        let mut attacker = Attacker::start(signal, uid);
        for run in 0..RUNS {
            // With timeout(1), a program that hangs fails this test instead of blocking it.
            let program = command(&pod, &host);
            let mut cmd = Command::new("timeout");
            cmd.args(["-s", "KILL", "15"])
                .arg(program.get_program())
                .args(program.get_args());
            // Every second child lives longer.
            if run % 2 == 1 {
                cmd.arg("--proof=create-vm");
            }
            let (code, stdout, stderr) = run_with(&mut cmd, b"");
            assert_eq!(code, 0, "run {run}: {stdout}{stderr}");
            let report = report(&stdout, &stderr);
            let proof = (report.proof.result.as_str(), report.proof.api_version);
            assert_eq!(proof, ("ok", Some(12)), "run {run}: {report:#?}");
            // An empty stderr shows that no second child was needed.
            assert_eq!(stderr, "", "run {run}");
        }
        let attacks = attacker.0.try_wait().unwrap().is_none();
        assert!(attacks, "the attack ended before the runs did");
        println!("{RUNS} runs under {signal}, none affected");
    });
}

#[test]
fn qemu_user_cannot_kill_the_proof() {
    runs_are_not_affected("KILL", KILLED);
}

#[test]
fn qemu_user_cannot_stop_the_proof() {
    runs_are_not_affected("STOP", STOPPED);
}

/// The attributes of a process that another process could change.
fn shown(pid: u32) -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let stat = read("stat");
    let stat: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let status = read("status");
    let lines = status
        .lines()
        .filter(|line| line.starts_with("Cpus_allowed:") || line.starts_with("TracerPid:"));
    format!(
        "{} priority {} nice {} policy {} {:?} {} {}",
        stat[0],
        stat[15],
        stat[16],
        stat[38],
        lines.collect::<Vec<_>>(),
        read("limits"),
        read("oom_score_adj")
    )
}

/// The QEMU user tries each way to affect a process of its own user on the proof's child, while the child opens the
/// device.
#[test]
fn qemu_user_cannot_signal_trace_or_renice_the_child() {
    let tools = ["renice", "taskset", "prlimit", "chrt", "ionice", "strace"];
    require_commands(&tools);
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        mknod_kvm(Path::new("/dev/kvm"), 0, 108, 0o660);
        let (pod, host) = (pod(TOUCHED), Tree::host(108));
        ok(&mut command(&pod, &host));
        // WINCH has no effect by default. CONT would be unsuitable: it is permitted within a session.
        let attacks = |pid: u32| {
            let script = |text: &str| vec!["sh".to_owned(), "-c".to_owned(), text.to_owned()];
            let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
            [
                ("kill", script(&format!("kill -WINCH {pid}"))),
                ("setpriority", words(&format!("renice -n 19 -p {pid}"))),
                (
                    "sched_setaffinity",
                    words(&format!("taskset -p -c 0 {pid}")),
                ),
                (
                    "prlimit",
                    words(&format!("prlimit --nofile=64:64 --pid {pid}")),
                ),
                (
                    "sched_setscheduler",
                    words(&format!("chrt --idle -p 0 {pid}")),
                ),
                ("ioprio_set", words(&format!("ionice -c 3 -p {pid}"))),
                (
                    "oom_score_adj",
                    script(&format!("echo 500 >/proc/{pid}/oom_score_adj")),
                ),
                ("descriptors", words(&format!("ls /proc/{pid}/fd/"))),
                (
                    "memory",
                    words(&format!("head -c 1 /proc/{pid}/maps /proc/{pid}/mem")),
                ),
                (
                    "ptrace",
                    words(&format!("timeout 5 strace -o /dev/null -p {pid}")),
                ),
            ]
        };
        // All of these work on a process of the user itself, except those that a setting of the machine may deny.
        let own = Attacker(as_user(TOUCHED, &["sleep", "60"]).spawn().unwrap());
        let became = || {
            let status = fs::read_to_string(format!("/proc/{}/status", own.0.id())).unwrap();
            status.contains(&format!("Uid:\t{TOUCHED}\t")) && status.contains("Name:\tsleep")
        };
        let end = Instant::now() + Duration::from_secs(10);
        while !became() {
            assert!(Instant::now() < end, "the user's own process did not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        let by_its_user = |words: &[String]| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            run_with(&mut as_user(TOUCHED, &words), b"")
        };
        for (what, words) in &attacks(own.0.id())[..7] {
            let (code, stdout, stderr) = by_its_user(words);
            assert_eq!(
                code, 0,
                "{what} on the user's own process: {stdout}{stderr}"
            );
        }
        let mut held = Held::start(&mut check(&pod, &host, &[]));
        let child = held.next().expect("a child that opens the device");
        let before = shown(child.pid);
        let mut succeeded = Vec::new();
        for (what, words) in attacks(child.pid) {
            let (code, stdout, stderr) = by_its_user(&words);
            let refused = ["Operation not permitted", "Permission denied"];
            let refused = refused.iter().any(|text| stderr.contains(text));
            if code == 0 || !refused {
                succeeded.push((what, code, stdout, stderr));
            }
        }
        assert!(succeeded.is_empty(), "not refused: {succeeded:#?}");
        assert_eq!(shown(child.pid), before);
        assert!(held.release(child));
        let (code, stdout, stderr) = held.finish();
        assert_eq!(code, 0, "{stdout}{stderr}");
        assert_eq!(report(&stdout, &stderr).proof.result, ProofWord::Ok);
    });
}

/// A child that root kills or stops returns no result about the device: the proof is repeated once, then the run
/// fails.
#[test]
fn interrupted_proof_is_retried_once_then_fails() {
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        mknod_kvm(Path::new("/dev/kvm"), 0, 108, 0o660);
        let (pod, host) = (pod(SHOWN), Tree::host(108));
        ok(&mut command(&pod, &host));
        let root = |signal: Signal, pid: u32| {
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        };
        for command_name in ["check", "apply"] {
            for (signal, how_often) in [
                (Signal::SIGKILL, 1),
                (Signal::SIGKILL, 2),
                (Signal::SIGSTOP, 1),
                (Signal::SIGSTOP, 2),
            ] {
                let shown = format!("{command_name}: {signal} for {how_often} of two");
                let mut cmd = match command_name {
                    "check" => check(&pod, &host, &[]),
                    _ => command(&pod, &host),
                };
                let mut held = Held::start(&mut cmd);
                let mut pids = Vec::new();
                while let Some(child) = held.next() {
                    pids.push(child.pid);
                    if pids.len() <= how_often {
                        root(signal, child.pid);
                    }
                    held.release(child);
                }
                let (code, stdout, stderr) = held.finish();
                let report = report(&stdout, &stderr);
                let details = format!("{shown}: {report:#?}{stderr}");
                assert_eq!(pids.len(), 2, "{details}");
                assert_ne!(pids[0], pids[1], "{details}");
                assert_eq!(code, i32::from(report.exit_code), "{details}");
                assert!(stderr.contains("trying once more"), "{details}");
                // The report has the device and the identity anyway.
                assert!(
                    report.device.is_some() && report.qemu.is_some(),
                    "{details}"
                );
                if how_often == 1 {
                    assert_eq!((code, report.proof.result.as_str()), (0, "ok"), "{details}");
                    assert_eq!(report.proof.api_version, Some(12), "{details}");
                    continue;
                }
                assert_eq!((code, report.verdict), (4, Verdict::Failed), "{details}");
                assert_eq!(report.proof.result, ProofWord::None, "{details}");
                assert_eq!(report.proof.api_version, None, "{details}");
                let line = stderr.lines().last().unwrap();
                assert_eq!(line, report.closing_line());
                let word = match signal {
                    Signal::SIGKILL => "killed",
                    _ => "did not respond within 5 s",
                };
                assert!(line.contains(word), "{details}");
                assert!(!line.contains("cannot open"), "{details}");
            }
        }
    });
}

/// setresuid(2) and similar calls treat 4294967295 as "unchanged", so a child with that ID would stay root.
#[test]
fn id_4294967295_is_refused() {
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        mknod_kvm(Path::new("/dev/kvm"), 0, 424, 0o660);
        let host = Tree::host(108);
        let refused = |pod: &Tree, more: &[&str]| {
            let (code, stdout, stderr) = run_with(command(pod, &host).args(more), b"");
            assert_eq!(code, 2, "{more:?}: {stdout}{stderr}");
        };
        for value in ["4294967295", "+4294967295", "4294967296", "-1", "+-1"] {
            for option in ["--qemu-user", "--qemu-group"] {
                refused(&Tree::pod(424), &[&format!("{option}={value}")]);
            }
            for (user, group) in [(value, "kvm"), ("nova", value)] {
                let pod = Tree::pod(424);
                let conf = format!("user = \"{user}\"\ngroup = \"{group}\"\n");
                pod.file("etc/libvirt/qemu.conf", &conf);
                refused(&pod, &[]);
            }
        }
        let pod = Tree::pod(424);
        pod.file("etc/passwd", "nova:x:4294967295:42424::/:\n");
        refused(&pod, &[]);
        refused(&Tree::pod(424), &["--gid=4294967295"]);
        refused(&Tree::pod(424), &["--gid=0"]);
    });
}

/// For open(2) the child has the credentials of QEMU; its other UIDs and GIDs are root's, so that no process of the
/// QEMU user may affect it. Both are read from /proc while the child opens the device.
#[test]
fn child_has_qemus_file_permissions_and_roots_uids() {
    require_commands(&["strace"]);
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        mknod_kvm(Path::new("/dev/kvm"), 0, 108, 0o660);
        let (pod, host) = (pod(TRACED), Tree::host(108));
        ok(&mut command(&pod, &host));
        let mut held = Held::start(&mut check(&pod, &host, &[]));
        let child = held.next().expect("a child that opens the device");
        // Real, effective, saved, file system.
        assert_eq!(status(child.pid, "Uid"), [0, 0, 0, TRACED.into()]);
        assert_eq!(status(child.pid, "Gid"), [0, 0, 0, 108]);
        assert_eq!(status(child.pid, "Groups"), [108, 42424]);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(child.pid, set), [0], "{set}");
        }
        held.release(child);
        let (code, stdout, stderr) = held.finish();
        assert_eq!(code, 0, "{stdout}{stderr}");
        // The groups must be set before the capabilities are dropped, and all credentials must be read back before
        // the device is accessed.
        let trace = pod.at("trace");
        let program = command(&pod, &host);
        ok(Command::new("strace")
            .args(["-f", "-o"])
            .arg(&trace)
            .arg(program.get_program())
            .args(program.get_args()));
        let trace = pod.read("trace");
        let dropped = trace.lines().find(|line| line.contains("setfsuid("));
        let pid = dropped
            .expect("a child that sets other credentials")
            .split(' ')
            .next()
            .unwrap();
        let calls: Vec<_> = trace
            .lines()
            .filter_map(|line| line.strip_prefix(pid).map(str::trim_start))
            .collect();
        let last = |what: &str| {
            let found = calls.iter().rposition(|call| call.starts_with(what));
            found.unwrap_or_else(|| panic!("no {what} in {calls:#?}"))
        };
        let device = |call: &str| call.contains("\"/dev/kvm\"");
        let opens: Vec<_> = (0..calls.len())
            .filter(|at| calls[*at].starts_with("open") && device(calls[*at]))
            .collect();
        assert_eq!(opens.len(), 1, "{calls:#?}");
        assert!(calls[opens[0]].contains("O_RDWR"), "{}", calls[opens[0]]);
        let order = [
            last("setgroups(2, [108, 42424])"),
            last("setfsgid(108)"),
            last(&format!("setfsuid({TRACED})")),
            last("capset("),
            last("capget("),
            last("getresuid("),
            last("getresgid("),
            last("setfsuid(-1)"),
            last("setfsgid(-1)"),
            last("getgroups("),
            opens[0],
            last("ioctl("),
        ];
        assert!(order.is_sorted(), "{order:?} in {calls:#?}");
        let touched = calls.iter().position(|call| device(call)).unwrap();
        assert!(
            touched > order[9],
            "the device was accessed too early: {calls:#?}"
        );
        let sets = |call: &&&str| call.starts_with("setres") || call.starts_with("setre");
        let sets: Vec<_> = calls.iter().filter(sets).collect();
        assert!(sets.is_empty(), "{sets:?}");
        let uses_access = calls
            .iter()
            .any(|call| call.contains("access(") || call.contains("accessat"));
        assert!(!uses_access, "access(2) must not be used: {calls:#?}");
    });
}

/// A system call that reports success without effect, or fails, is detected before the device is accessed.
#[test]
fn proof_fails_if_credentials_were_not_set() {
    require_commands(&["strace"]);
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        mknod_kvm(Path::new("/dev/kvm"), 0, 108, 0o660);
        let (pod, host) = (pod(TRACED), Tree::host(108));
        ok(&mut command(&pod, &host));
        let none = format!("retval={}", u32::MAX);
        for (call, how) in [
            ("setgroups", "retval=0"),
            ("setfsgid", "retval=0"),
            ("setfsuid", "retval=0"),
            ("setfsuid", none.as_str()),
            ("getresuid", "error=EIO"),
            ("getresgid", "error=EIO"),
            ("getgroups", "error=EIO"),
            ("setgroups", "error=ENOMEM"),
        ] {
            let trace = pod.at("trace");
            let program = command(&pod, &host);
            let mut cmd = Command::new("strace");
            cmd.args(["-f", "-e", &format!("inject={call}:{how}"), "-o"])
                .arg(&trace)
                .arg(program.get_program())
                .args(program.get_args());
            let (code, stdout, stderr) = run_with(&mut cmd, b"");
            let shown = format!("{call} {how}: {stdout}{stderr}");
            let report = report(&stdout, &stderr);
            assert_eq!((code, report.verdict), (4, Verdict::Failed), "{shown}");
            assert_eq!(report.proof.result, ProofWord::None, "{shown}");
            let trace = pod.read("trace");
            let opens = trace
                .lines()
                .filter(|line| line.contains("\"/dev/kvm\"") && line.contains("O_RDWR"));
            assert_eq!(opens.count(), 0, "{shown}\n{trace}");
            let children = trace.lines().filter(|line| line.contains("setgroups("));
            assert_eq!(children.count(), 2, "{shown}\n{trace}");
        }
    });
}

/// libvirt does not drop the capabilities of a QEMU that runs as root.
#[test]
fn proof_for_root_qemu_keeps_its_capabilities() {
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        let (pod, host) = (pod(TRACED), Tree::host(108));
        pod.file("etc/group", "root:x:0:\nkvm:x:108:root\n");
        pod.file(
            "etc/libvirt/qemu.conf",
            "user = \"root\"\ngroup = \"kvm\"\n",
        );
        let root = Identity {
            uid: 0,
            gid: 108,
            groups: vec![0, 108],
            name: Some("root".to_owned()),
        };
        // A device owned by root, then one that root can open only by CAP_DAC_OVERRIDE.
        for owner in [(0, 0), (1234, 1234)] {
            let _ = fs::remove_file("/dev/kvm");
            mknod_kvm(Path::new("/dev/kvm"), owner.0, owner.1, 0o600);
            assert!(oracle::qemu(&root).works);
            let mut held = Held::start(&mut check(&pod, &host, &[]));
            let child = held.next().expect("a child that opens the device");
            let held_by = |set: &str| status(child.pid, set)[0];
            let parent = status(child.pid, "PPid")[0];
            let parent = u32::try_from(parent).unwrap();
            assert_eq!(status(child.pid, "Uid"), [0; 4]);
            assert_eq!(status(child.pid, "Gid"), [0, 0, 0, 108]);
            assert_eq!(status(child.pid, "Groups"), [0, 108]);
            for set in ["CapPrm", "CapEff"] {
                assert_eq!(held_by(set), status(parent, set)[0], "{set}");
            }
            assert_ne!(held_by("CapEff") & CAP_DAC_OVERRIDE.bitmask(), 0);
            held.release(child);
            let (code, stdout, stderr) = held.finish();
            let report = report(&stdout, &stderr);
            assert_eq!(report.proof.result, ProofWord::Ok, "{code} {report:#?}");
        }
        // A container without CAP_DAC_OVERRIDE cannot prove what QEMU can do, and must not report a denial.
        let mut cmd = check(&pod, &host, &[]);
        let drop = || {
            caps::drop(None, caps::CapSet::Bounding, CAP_DAC_OVERRIDE)
                .map_err(std::io::Error::other)
        };
        held::before(&mut cmd, drop);
        let (code, stdout, stderr) = run_with(&mut cmd, b"");
        let report = report(&stdout, &stderr);
        assert_eq!(report.proof.result, ProofWord::None, "{code} {report:#?}");
        assert!(matches!(code, 1 | 5), "{code} {report:#?}");
        let advice = report.proof.advice.unwrap_or_default();
        assert!(advice.contains("CAP_DAC_OVERRIDE"), "{advice}");
    });
}

/// The child's effective GID is 0; open(2) uses the file-system GID instead.
#[test]
fn proof_does_not_use_the_groups_of_root() {
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        let (pod, host) = (pod(TRACED), Tree::host(108));
        let (dev, device) = (Path::new("/dev"), Path::new("/dev/kvm"));
        mknod_kvm(device, 0, 108, 0o660);
        ok(&mut command(&pod, &host));
        let mut opened = 0;
        // Owner and mode of the device, and of its directory.
        for (what, directory) in [
            ((0, 0, 0o660), (0, 0, 0o755)),
            ((0, 0, 0o060), (0, 0, 0o755)),
            ((0, 0, 0o606), (0, 0, 0o755)),
            ((0, 108, 0o660), (0, 0, 0o750)),
            ((0, 108, 0o660), (0, 0, 0o700)),
            ((0, 108, 0o660), (0, 0, 0o705)),
            ((0, 108, 0o660), (0, 108, 0o710)),
            ((0, 108, 0o606), (0, 0, 0o755)),
            ((TRACED, 0, 0o600), (TRACED, 0, 0o700)),
            ((TRACED, 108, 0o060), (0, 0, 0o755)),
            ((0, 42424, 0o660), (0, 42424, 0o710)),
        ] {
            set_owner(device, what.0, what.1, what.2);
            set_owner(dev, directory.0, directory.1, directory.2);
            let works = oracle::qemu(&user(TRACED)).works;
            let (_, stdout, stderr) = run_with(&mut check(&pod, &host, &[]), b"");
            let result = report(&stdout, &stderr).proof.result;
            let want = if works { "ok" } else { "EACCES" };
            assert_eq!(result.as_str(), want, "{what:?} in {directory:?}: {stderr}");
            opened += usize::from(works);
        }
        assert_eq!(opened, 5);
    });
}
