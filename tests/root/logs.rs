//! The credentials with which `logs` reads, and the files that it can read.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use libvirt_kvm_init::commands::logs::report::LogReport;
use support::{program, require_root};

const FAILURE: &str = "2026-02-10T07:15:01.402211Z qemu-system-x86_64: Could not access KVM kernel \
                       module: Permission denied\n";

fn logs(program: &Path, path: &Path) -> Command {
    let mut cmd = Command::new(program);
    cmd.args(["logs", "--format", "json"]).arg(path);
    cmd
}

fn report(out: &Output) -> (i32, LogReport) {
    let report = serde_json::from_slice(&out.stdout);
    (
        out.status.code().unwrap(),
        report.unwrap_or_else(|e| panic!("{e}: {out:?}")),
    )
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let mut lines = status.lines();
    lines
        .find_map(|line| line.strip_prefix(name))
        .unwrap()
        .trim()
}

/// Starts `logs` on `fifo`, and returns the status of its worker once that sleeps in the read.
fn status_while_reading(fifo: &Path) -> (std::process::Child, File, String) {
    nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let child = logs(&program(), fifo).stdout(Stdio::piped()).spawn();
    let child = child.unwrap();
    // open(2) returns once the program has opened the read end.
    let writer = File::options().write(true).open(fifo).unwrap();
    let mut status = String::new();
    for _ in 0..500 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let worker = fs::read_to_string(children).unwrap();
        status = fs::read_to_string(format!("/proc/{}/status", worker.trim())).unwrap();
        if field(&status, "NoNewPrivs:") == "1" && field(&status, "State:").starts_with('S') {
            break;
        }
    }
    (child, writer, status)
}

#[test]
fn log_reading_process_is_nobody_without_capabilities() {
    require_root();
    let directory = tempfile::tempdir().unwrap();
    let (child, mut writer, status) = status_while_reading(&directory.path().join("fifo"));
    for name in ["Uid:", "Gid:"] {
        let ids: Vec<_> = field(&status, name).split_whitespace().collect();
        assert_eq!(ids, ["65534"; 4], "{status}");
    }
    assert_eq!(field(&status, "Groups:"), "");
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(&status, name), "0000000000000000", "{name}");
    }
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    writer.write_all(FAILURE.as_bytes()).unwrap();
    drop(writer);
    assert_eq!(report(&child.wait_with_output().unwrap()).0, 1);
}

#[test]
fn root_can_read_its_own_logs_and_other_users_get_eacces() {
    require_root();
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let log = directory.path().join("x.log");
    // More files than the usual soft limit of open files.
    for number in 0..1500 {
        fs::write(directory.path().join(format!("{number}.log")), "nothing\n").unwrap();
    }
    fs::write(&log, FAILURE).unwrap();
    fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).unwrap();
    let (code, found) = report(&logs(&program(), directory.path()).output().unwrap());
    assert_eq!(
        (code, found.read.files, found.unreadable.len()),
        (1, 1501, 0)
    );
    // Another user cannot read them, and the report lists them as unreadable.
    let parent = tempfile::tempdir().unwrap();
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let programs = tempfile::tempdir().unwrap();
    fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = programs.path().join("program");
    fs::copy(program(), &copy).unwrap();
    let run = |path: &Path| {
        let mut command = logs(&copy, path);
        report(&command.uid(65_534).gid(65_534).output().unwrap())
    };
    let (code, denied) = run(directory.path());
    assert_eq!(code, 4);
    assert!(denied.unreadable[0].error.contains("EACCES"), "{denied:?}");
    fs::copy(&log, parent.path().join("seen.log")).unwrap();
    fs::set_permissions(
        parent.path().join("seen.log"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    fs::copy(&log, parent.path().join("hidden.log")).unwrap();
    let (code, partly) = run(parent.path());
    assert_eq!(
        (code, partly.guests.len(), partly.unreadable.len()),
        (1, 1, 1),
        "{partly:?}"
    );
}
