//! What the machine's own QEMU says when it cannot open KVM, for each state of the node: `logs`
//! finds it and names the cause.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use libvirt_kvm_init::codes::Cause;
use libvirt_kvm_init::commands::logs::report::LogReport;
use support::{fresh_dev, in_namespace, mknod_char, mknod_kvm, program, require_commands};

/// What QEMU says on stderr, run by a user that is no one in particular.
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

fn says(make: impl FnOnce(&Path) + Send, cause: Cause, result: &str) {
    require_commands(&["qemu-system-x86_64"]);
    in_namespace(|| {
        fresh_dev();
        make(Path::new("/dev/kvm"));
        let said = qemu();
        let report = logs(&said);
        let said = String::from_utf8_lossy(&said);
        assert_eq!(
            (report.guests.len(), report.guests[0].count),
            (1, 1),
            "{said}"
        );
        let guest = &report.guests[0];
        assert_eq!(
            (guest.cause, guest.result.as_str()),
            (cause, result),
            "{said}"
        );
        assert!(guest.first.is_some(), "{said}");
    });
}

#[test]
fn permission_denied_is_ownership() {
    says(
        |node| mknod_kvm(node, 0, 0, 0o600),
        Cause::Ownership,
        "EACCES",
    );
}

#[test]
fn missing_device_is_missing() {
    says(|_| (), Cause::Missing, "ENOENT");
}

#[test]
fn device_without_driver_is_no_driver() {
    says(
        |node| mknod_char(node, (10, 231), 0, 0, 0o666),
        Cause::NoDriver,
        "ENODEV",
    );
    says(
        |node| mknod_char(node, (241, 232), 0, 0, 0o666),
        Cause::NoDriver,
        "ENXIO",
    );
}

#[test]
fn directory_or_file_is_not_kvm() {
    says(
        |node| fs::create_dir(node).unwrap(),
        Cause::NotKvm,
        "EISDIR",
    );
    let file = |node: &Path| {
        fs::write(node, "").unwrap();
        support::set_owner(node, 0, 0, 0o666);
    };
    says(file, Cause::NotKvm, "ENOTTY");
}

#[test]
fn symlink_loop_is_missing() {
    says(
        |node| std::os::unix::fs::symlink("kvm", node).unwrap(),
        Cause::Missing,
        "ELOOP",
    );
}
