//! Runs the machine's QEMU with devices that it cannot open, and checks that `logs` finds the error in its output and
//! reports the cause.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use libvirt_kvm_init::codes::Cause;
use libvirt_kvm_init::commands::logs::report::LogReport;
use support::{fresh_dev, in_namespace, mknod_char, mknod_kvm, program, require_commands};

/// The stderr of QEMU, run as an unprivileged user.
fn qemu() -> Vec<u8> {
    let out = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "kvm",
            "-machine",
            "none",
            "-nodefaults",
            "-display",
            "none",
        ])
        .args(["-msg", "timestamp=on"])
        .uid(65_534)
        .gid(65_534)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!out.status.success());
    out.stderr
}

fn logs(input: &[u8]) -> LogReport {
    let mut child = Command::new(program())
        .args(["logs", "--format", "json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(
        out.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(input)
    );
    serde_json::from_slice(&out.stdout).unwrap()
}

fn assert_cause(make: impl FnOnce(&Path) + Send, cause: Cause, result: &str) {
    require_commands(&["qemu-system-x86_64"]);
    in_namespace(|| {
        fresh_dev();
        make(Path::new("/dev/kvm"));
        let stderr = qemu();
        let report = logs(&stderr);
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(
            (report.guests.len(), report.guests[0].count),
            (1, 1),
            "{stderr}"
        );
        let guest = &report.guests[0];
        assert_eq!(
            (guest.cause, guest.result.as_str()),
            (cause, result),
            "{stderr}"
        );
        assert!(guest.first.is_some(), "{stderr}");
    });
}

#[test]
fn permission_denied_is_ownership() {
    assert_cause(
        |device| mknod_kvm(device, 0, 0, 0o600),
        Cause::Ownership,
        "EACCES",
    );
}

#[test]
fn missing_device_is_missing() {
    assert_cause(|_| (), Cause::Missing, "ENOENT");
}

#[test]
fn device_without_driver_is_no_driver() {
    assert_cause(
        |device| mknod_char(device, (10, 231), 0, 0, 0o666),
        Cause::NoDriver,
        "ENODEV",
    );
    assert_cause(
        |device| mknod_char(device, (241, 232), 0, 0, 0o666),
        Cause::NoDriver,
        "ENXIO",
    );
}

#[test]
fn directory_or_file_is_not_kvm() {
    assert_cause(
        |device| fs::create_dir(device).unwrap(),
        Cause::NotKvm,
        "EISDIR",
    );
    let file = |device: &Path| {
        fs::write(device, "").unwrap();
        support::set_owner(device, 0, 0, 0o666);
    };
    assert_cause(file, Cause::NotKvm, "ENOTTY");
}

#[test]
fn symlink_loop_is_missing() {
    assert_cause(
        |device| std::os::unix::fs::symlink("kvm", device).unwrap(),
        Cause::Missing,
        "ELOOP",
    );
}
