//! Tests of the systemd unit.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use clap::Parser;
use libvirt_kvm_init::cli::{self, Cli};

use support::{
    Tree, bind, fresh_dev, in_namespace, mknod_kvm, ok, program, read, require_kvm, run,
};

const UNIT: &str = "examples/systemd/libvirt-kvm-init.service";

/// The words that the unit sets for a key.
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
fn unit_starts_after_udev_and_before_the_kubelet() {
    let after = values("After");
    for unit in ["systemd-udevd.service", "systemd-udev-trigger.service"] {
        assert!(after.contains(&unit.to_owned()), "{after:?}");
    }
    assert!(values("Before").contains(&"kubelet.service".to_owned()));
    assert_eq!(values("Type"), ["oneshot"]);
    let command = values("ExecStart");
    assert!(matches!(
        Cli::try_parse_from(command).unwrap().command,
        cli::Command::Apply(_)
    ));
    assert_eq!(
        values("CapabilityBoundingSet"),
        ["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"]
    );
}

#[test]
fn unit_passes_systemd_verify_and_security() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libvirt-kvm-init.service");
    // `systemd-analyze verify` checks that the program exists.
    let program = program();
    let unit = read(UNIT).replace("/usr/local/bin/libvirt-kvm-init", program.to_str().unwrap());
    fs::write(&path, unit).unwrap();
    let (code, out, err) = run(Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&path));
    // On some machines it also warns about other units.
    let ours = |line: &&str| line.contains("libvirt-kvm-init");
    let warnings: Vec<_> = err.lines().chain(out.lines()).filter(ours).collect();
    assert!(code == 0 && warnings.is_empty(), "{code}: {warnings:?}");
    // The exposure of a unit without hardening is about 10; this one must stay below 3.
    let mut security = Command::new("systemd-analyze");
    security
        .args(["security", "--offline=true", "--threshold=30"])
        .arg(&path);
    let (code, out, err) = run(&mut security);
    assert_eq!(code, 0, "{out}{err}");
}

/// Tests that need root and KVM.
mod on_a_node {
    use super::*;

    /// The unit's capabilities suffice to repair a device with a foreign owner and an ACL.
    #[test]
    fn capabilities_of_the_unit_suffice() {
        in_namespace(|| {
            require_kvm();
            fresh_dev();
            let node = Tree::host(108);
            bind(Path::new("/dev"), &node.at("dev"));
            let device = Path::new("/dev/kvm");
            mknod_kvm(device, 5, 5, 0o600);
            ok(Command::new("setfacl").args(["-m", "u:7:rw"]).arg(device));
            let keep = values("CapabilityBoundingSet").join(",+").to_lowercase();
            let keep = format!("-all,+{}", keep.replace("cap_", ""));
            let command = values("ExecStart");
            let mut command = {
                let mut setpriv = Command::new("setpriv");
                setpriv.args(["--bounding-set", &keep, "--inh-caps=-all", "--no-new-privs"]);
                setpriv.arg(program()).args(&command[1..]);
                setpriv
            };
            command.arg("--host-root").arg(node.path());
            command.arg("--root").arg(node.path()).env_clear();
            let (code, out, err) = run(command.env("PATH", "/usr/bin:/bin"));
            assert_eq!(code, 0, "{out}{err}");
            let found = std::fs::metadata(device).unwrap();
            assert_eq!((found.uid(), found.gid()), (0, 108), "{out}");
            assert_eq!(found.mode() & 0o7777, 0o660, "{out}");
        });
    }
}
