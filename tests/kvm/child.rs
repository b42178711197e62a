//! The proof's child: whom it becomes, and what others of that user can do to it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libvirt_kvm_init::exit::Verdict;
use libvirt_kvm_init::report::Report;

use crate::common::{Tree, fresh_dev, in_namespace, mknod_kvm, ok, program, require_commands};
use crate::oracle::{self, Identity, drop_to, run_with};

/// Uids that no process of any machine has, one for each test: a signal to all of a user's processes
/// must not meet another test's.
const STOPPED: u32 = 1_951_515;
const KILLED: u32 = STOPPED + 1;
const TRACED: u32 = STOPPED + 2;

fn pod(uid: u32) -> Tree {
    let pod = Tree::pod(108);
    pod.file(
        "etc/passwd",
        &format!("root:x:0:0::/:\nnova:x:{uid}:42424::/:\n"),
    );
    pod
}

fn command(pod: &Tree, host: &Tree) -> Command {
    let mut cmd = Command::new(program());
    cmd.args(["apply", "--format=json", "--root"])
        .arg(pod.path())
        .arg("--host-root")
        .arg(host.path());
    cmd
}

/// A process that sends a signal to every other process of its user, again and again.
struct Attacker(std::process::Child);

impl Attacker {
    fn start(signal: &str, uid: u32) -> Self {
        let who = Identity {
            uid,
            gid: 42424,
            groups: vec![42424],
            name: None,
        };
        let words = drop_to(&who);
        let script = format!("while :; do kill -s {signal} -- -1; done 2>&-");
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs under attack until a proof was hit, and gives each answer with how long it took.
fn under_attack(signal: &str, uid: u32) -> Vec<(Report, Duration)> {
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        mknod_kvm(Path::new("/dev/kvm"), 0, 108, 0o660);
        let (pod, host) = (pod(uid), Tree::host(108));
        let _attacker = Attacker::start(signal, uid);
        let mut seen = Vec::new();
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end && seen.len() < 3000 {
            let start = Instant::now();
            // timeout(1) is the alarm: a program that never comes back must fail this test, not stop it.
            let program = command(&pod, &host);
            let mut cmd = Command::new("timeout");
            cmd.args(["-s", "KILL", "15"])
                .arg(program.get_program())
                .args(program.get_args());
            let (code, stdout, stderr) = run_with(&mut cmd, b"");
            let took = start.elapsed();
            let report: Report = serde_json::from_str(&stdout)
                .unwrap_or_else(|e| panic!("code {code} after {took:?}: {e}\n{stdout}{stderr}"));
            assert_eq!(code, i32::from(report.exit_code));
            let hit = report.exit_code != 0;
            seen.push((report, took));
            if hit {
                break;
            }
        }
        seen
    })
}

#[track_caller]
fn assert_held(seen: &[(Report, Duration)]) {
    let mut hits = 0;
    for (report, took) in seen {
        assert!(*took < Duration::from_secs(12), "{took:?}");
        // Either it was proven before the signal came, or it was not.
        let proven = report.proof.result == "ok" && report.proof.api_version == Some(12);
        assert_eq!(report.verdict == Verdict::Ok, proven, "{report:#?}");
        assert!(matches!(report.exit_code, 0 | 5), "{report:#?}");
        hits += usize::from(report.exit_code == 5);
    }
    assert!(hits > 0, "{} runs, and no signal met a proof", seen.len());
    let ends = seen.iter().filter(|(report, _)| report.exit_code == 5);
    let ends: Vec<_> = ends
        .map(|(report, took)| format!("{} after {took:.1?}", report.proof.result))
        .collect();
    println!(
        "{} runs, {hits} of them hit: {}",
        seen.len(),
        ends.join(", ")
    );
}

#[test]
#[ignore = "tier: kvm"]
fn a_killed_proof_proves_nothing() {
    let mut seen = under_attack("KILL", KILLED);
    assert_held(&seen);
    let (last, _) = seen.pop().unwrap();
    assert_eq!(last.proof.result, "EINTR");
}

#[test]
#[ignore = "tier: kvm"]
fn a_stopped_proof_ends_in_time() {
    let mut seen = under_attack("STOP", STOPPED);
    assert_held(&seen);
    let (last, took) = seen.pop().unwrap();
    assert_eq!(last.proof.result, "ETIMEDOUT");
    assert!(took >= Duration::from_secs(10));
}

/// setresuid(2) and its like take 4294967295 for "unchanged": a child that was told so stays root.
#[test]
#[ignore = "tier: kvm"]
fn the_id_that_means_unchanged_is_refused() {
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

/// The order of the calls is the contract: groups can only be set before the uid goes, and nothing
/// may touch the device before all of it is done (libvirt `virSetUIDGIDWithCaps`).
#[test]
#[ignore = "tier: kvm"]
fn the_child_becomes_qemu_in_libvirts_order() {
    require_commands(&["strace"]);
    in_namespace(|| {
        oracle::require();
        fresh_dev();
        mknod_kvm(Path::new("/dev/kvm"), 0, 108, 0o660);
        let (pod, host) = (pod(TRACED), Tree::host(108));
        let trace = pod.at("trace");
        let program = command(&pod, &host);
        ok(Command::new("strace")
            .args(["-f", "-o"])
            .arg(&trace)
            .arg(program.get_program())
            .args(program.get_args()));
        let trace = pod.read("trace");
        let dropped = trace.lines().find(|line| line.contains("setresuid("));
        let pid = dropped
            .expect("a child that drops")
            .split(' ')
            .next()
            .unwrap();
        let calls: Vec<_> = trace
            .lines()
            .filter_map(|line| line.strip_prefix(pid).map(str::trim_start))
            .collect();
        let find = |what: &str| {
            let found = calls.iter().position(|call| call.starts_with(what));
            found.unwrap_or_else(|| panic!("no {what} in {calls:#?}"))
        };
        let device = |call: &str| call.contains("\"/dev/kvm\"");
        let opens: Vec<_> = (0..calls.len())
            .filter(|at| calls[*at].starts_with("open") && device(calls[*at]))
            .collect();
        assert_eq!(opens.len(), 1, "{calls:#?}");
        assert!(calls[opens[0]].contains("O_RDWR"), "{}", calls[opens[0]]);
        let order = [
            find("setresgid(108, 108, 108)"),
            find("setgroups(2, [108, 42424])"),
            find(&format!("setresuid({TRACED}, {TRACED}, {TRACED})")),
            find("getresuid("),
            find("getresgid("),
            find("getgroups("),
            opens[0],
            find("ioctl("),
        ];
        assert!(order.is_sorted(), "{order:?} in {calls:#?}");
        let touched = calls.iter().position(|call| device(call)).unwrap();
        assert!(
            touched > order[5],
            "the device was touched too early: {calls:#?}"
        );
        let asks = calls
            .iter()
            .any(|call| call.contains("access(") || call.contains("accessat"));
        assert!(!asks, "access(2) is no proof: {calls:#?}");
    });
}
