//! The unit.

use std::fs;
use std::process::Command;

use clap::Parser;
use libvirt_kvm_init::cli::{Cli, Verb};

use crate::common::{program, run};
use crate::read;

const UNIT: &str = "examples/systemd/libvirt-kvm-init.service";

/// The values of a key.
fn values(key: &str) -> Vec<String> {
    let unit = read(UNIT);
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    let ours = lines.filter(|(name, _)| *name == key);
    ours.flat_map(|(_, value)| {
        value
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn it_comes_after_udev_and_before_the_kubelet() {
    let after = values("After");
    for unit in ["systemd-udevd.service", "systemd-udev-trigger.service"] {
        assert!(after.contains(&unit.to_owned()), "{after:?}");
    }
    assert!(values("Before").contains(&"kubelet.service".to_owned()));
    assert_eq!(values("Type"), ["oneshot"]);
    let command = values("ExecStart");
    assert!(matches!(
        Cli::try_parse_from(command).unwrap().verb,
        Verb::Apply(_)
    ));
    assert_eq!(
        values("CapabilityBoundingSet"),
        ["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"]
    );
}

#[test]
#[ignore = "tier: examples"]
fn systemd_verifies_it_and_finds_it_hardened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libvirt-kvm-init.service");
    // It asks whether the program is there.
    let program = program();
    let unit = read(UNIT).replace("/usr/local/bin/libvirt-kvm-init", program.to_str().unwrap());
    fs::write(&path, unit).unwrap();
    let (code, out, err) = run(Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&path));
    // Some machines' other units are warned about, too.
    let ours = |line: &&str| line.contains("libvirt-kvm-init");
    let said: Vec<_> = err.lines().chain(out.lines()).filter(ours).collect();
    assert!(code == 0 && said.is_empty(), "{code}: {said:?}");
    // 10 is a unit without any of it; no network, few capabilities, no writable files: below 3.
    let mut security = Command::new("systemd-analyze");
    security
        .args(["security", "--offline=true", "--threshold=30"])
        .arg(&path);
    let (code, out, err) = run(&mut security);
    assert_eq!(code, 0, "{out}{err}");
}
