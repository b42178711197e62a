//! Measures peak memory: VmHWM in /proc/PID/status of a process that is about to end, the larger one of the started
//! process and the worker that it supervises. The value of wait4(2) would include the process before its exec.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{Run, Scene, command, go, is_release, program, scratch};

/// Limit in KiB for `apply` and `watch` with files of ordinary size. It is asserted only for the release binary, set by
/// KVM_INIT_TEST_BIN.
pub const AT_MOST: u64 = 3 * 1024;

/// A measured run.
pub struct Measured {
    /// Exit code and output.
    pub run: Run,
    /// Peak memory in KiB.
    pub peak: u64,
    /// The output of strace.
    pub trace: String,
}

/// Runs `of` under strace, which logs `calls` and delays exit_group(2), so that /proc can be read. `more` configures
/// the command.
pub fn measured(of: &Command, calls: &str, more: impl FnOnce(&mut Command)) -> Measured {
    let (pid, log) = (scratch().join("pid"), scratch().join("calls"));
    let _ = fs::remove_file(&pid);
    let script = "echo $$ >\"$1\"; shift; exec \"$@\"";
    let mut cmd = command(Path::new("sh"), &["-c", script, "sh"]);
    cmd.arg(&pid).args(["strace", "-D", "-f", "-y", "-q"]);
    cmd.args(["-e", &format!("trace={calls}exit_group")]);
    cmd.args(["-e", "inject=exit_group:delay_enter=100000", "-o"]);
    cmd.arg(&log).arg(of.get_program()).args(of.get_args());
    more(&mut cmd);
    let number = || {
        fs::read_to_string(&pid)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let is_over = AtomicBool::new(false);
    let (run, peak) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = 0;
            while !is_over.load(Ordering::Relaxed) {
                let first = number();
                let children = format!("/proc/{first}/task/{first}/children");
                let worker = fs::read_to_string(children).unwrap_or_default();
                for pid in [first.as_str(), worker.trim()] {
                    let status = fs::read_to_string(format!("/proc/{pid}/status"));
                    let now = status.ok().and_then(|text| of_program(&text));
                    peak = peak.max(now.unwrap_or(0));
                }
                sleep(Duration::from_millis(1));
            }
            peak
        });
        let run = go(&mut cmd);
        is_over.store(true, Ordering::Relaxed);
        (run, watcher.join().unwrap())
    });
    assert!(peak > 0, "no VmHWM could be read: {run}");
    // strace ends shortly after the traced process.
    let end = Instant::now() + Duration::from_secs(5);
    let last = format!("{} ", number());
    let read = || fs::read_to_string(&log).unwrap_or_default();
    let is_last = |line: &str| line.starts_with(&last) && line.contains("+++ ");
    while !read().lines().any(is_last) && Instant::now() < end {
        sleep(Duration::from_millis(1));
    }
    let trace = read();
    Measured { run, peak, trace }
}

/// The peak, if the process has executed the program: before, the same process ran the shell and strace.
fn of_program(status: &str) -> Option<u64> {
    let name = program().file_name()?.to_str()?.get(..15)?.to_owned();
    let field = |key: &str| {
        Some(
            status
                .lines()
                .find_map(|line| line.strip_prefix(key))?
                .trim(),
        )
    };
    let hwm = (field("Name:")? == name).then(|| field("VmHWM:"))??;
    hwm.strip_suffix(" kB")?.parse().ok()
}

/// Makes the files of a node and a pod as large as those of a machine in use: accounts, the distribution's commented
/// qemu.conf, and 80 rules files.
pub fn ordinary(scene: &Scene) {
    let lines = |line: &dyn Fn(u32) -> String| (0..80).map(line).collect::<String>();
    let groups = lines(&|n| format!("service{n}:x:{}:\n", 900 + n));
    let users = lines(&|n| {
        format!(
            "service{n}:x:{0}:{0}::/var/lib/service{n}:/usr/sbin/nologin\n",
            900 + n
        )
    });
    for tree in [&scene.host, &scene.pod] {
        for (name, more) in [("etc/group", &groups), ("etc/passwd", &users)] {
            tree.file(name, &format!("{}{more}", tree.read(name)));
        }
    }
    let comment =
        "# What the next line sets, and what happens where it is not set at all.\n#key = 1\n\n";
    let conf = format!(
        "{}{}",
        comment.repeat(450),
        scene.pod.read("etc/libvirt/qemu.conf")
    );
    scene.pod.file("etc/libvirt/qemu.conf", &conf);
    let rule = "SUBSYSTEM==\"block\", KERNEL!=\"loop*\", ENV{ID_SERIAL}==\"?*\", SYMLINK+=\"disk/by-id/$env{ID_SERIAL}\"\n";
    for n in 10..90 {
        let name = format!("usr/lib/udev/rules.d/{n}-of-a-package.rules");
        scene.host.file(&name, &rule.repeat(40));
    }
    let stock = "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";
    scene
        .host
        .file("usr/lib/udev/rules.d/50-udev-default.rules", stock);
}

/// Prints a peak and asserts the limit.
pub fn bounded(what: &str, peak: u64) {
    let bound = if is_release() {
        "at most 3072"
    } else {
        "no limit for a debug build"
    };
    println!("{what}: peak {peak} KiB (VmHWM), {bound}");
    assert!(!is_release() || peak <= AT_MOST, "{what}: {peak} KiB");
}
