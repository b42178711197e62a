//! Runs with fewer privileges: another user, fewer capabilities, a user namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use caps::Capability::{CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SETGID, CAP_SETUID};

use support::{
    ALIGNED, KVM, Scene, bind, command, go, in_namespace, owner, program, require_commands, run,
    scratch, set_owner, warnings, without_capability,
};

/// The program at a path that every user can reach.
pub fn reachable() -> PathBuf {
    let copy = scratch().join("kvm-init");
    if !copy.exists() {
        fs::write(&copy, "").unwrap();
        bind(&program(), &copy);
    }
    copy
}

/// `apply` on this scene, started by a wrapper that changes the credentials.
fn behind(scene: &Scene, wrapper: &[&str]) -> Command {
    let program = reachable().display().to_string();
    let mut cmd = command(Path::new(wrapper[0]), &wrapper[1..]);
    cmd.args([program.as_str(), "apply", "--root"])
        .arg(scene.pod.path());
    cmd.arg("--host-root").arg(scene.host.path());
    cmd
}

const NOBODY: [&str; 4] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];

#[test]
fn unprivileged_run_reports_the_capabilities_that_the_proof_needs() {
    require_commands(&["setpriv"]);
    in_namespace(|| {
        let scene = Scene::settled();
        let before = scene.state();
        let run = go(&mut behind(&scene, &NOBODY)).code(5);
        run.last_line_has(&["unproven: ", "EPERM", "CAP_SETUID", "CAP_SETGID"]);
        go(behind(&scene, &NOBODY).args(["--proof", "off"])).code(0);
        assert_eq!(scene.state(), before);
    });
}

#[test]
fn unprivileged_run_changes_nothing_and_names_the_failed_call() {
    require_commands(&["setpriv"]);
    in_namespace(|| {
        let scene = Scene::new();
        let before = scene.state();
        let run = go(&mut behind(&scene, &NOBODY)).code(4);
        run.last_line_has(&["failed: ", "EACCES", "etc", "as root"]);
        // With an aligned group file the next failure is at the device.
        assert_eq!(scene.state(), before);
        scene.pod.file("etc/group", ALIGNED);
        for (gid, mode, call) in [(424, 0o660, "fchownat("), (108, 0o640, "fchmodat(")] {
            set_owner(Path::new(KVM), 0, gid, mode);
            let run = go(&mut behind(&scene, &NOBODY)).code(4);
            run.last_line_has(&["failed: ", call, "EPERM", "CAP_CHOWN"]);
            assert_eq!(owner(Path::new(KVM)), (0, gid, mode));
        }
    });
}

#[test]
fn missing_capability_is_reported_with_the_failed_call() {
    in_namespace(|| {
        let scene = Scene::new();
        // Root owns everything here, so only the device's group needs CAP_CHOWN.
        let run = go(without_capability(&mut scene.apply(), CAP_CHOWN)).code(4);
        run.last_line_has(&["fchownat(", "EPERM", "CAP_CHOWN"]);
        assert_eq!(scene.pod.read("etc/group"), ALIGNED);
        for capability in [CAP_DAC_OVERRIDE, CAP_FOWNER] {
            set_owner(Path::new(KVM), 0, 424, 0o600);
            go(without_capability(&mut scene.apply(), capability)).code(0);
        }
        for capability in [CAP_SETUID, CAP_SETGID] {
            let run = go(without_capability(&mut scene.apply(), capability)).code(5);
            run.last_line_has(&["EPERM", "CAP_SETUID", "CAP_SETGID"]);
        }
    });
}

#[test]
fn unmapped_ids_in_a_user_namespace_are_left_alone() {
    require_commands(&["unshare"]);
    in_namespace(|| {
        let (code, _, err) = run(Command::new("unshare").args(["-Ur", "true"]));
        assert_eq!(code, 0, "this test needs user namespaces: {err}");
        let inside = ["unshare", "--user", "--map-root-user"];
        // GID 424 has no mapping and shows as 65534, so the group is unknown.
        let scene = Scene::settled();
        set_owner(Path::new(KVM), 0, 424, 0o600);
        let run = go(behind(&scene, &inside).args(["--format", "json"])).code(5);
        assert_eq!(warnings(&run.json()), ["unmapped-owner"]);
        let run = run.last_line_has(&["unproven: ", "user namespace"]);
        assert_eq!(owner(Path::new(KVM)).1, 424, "{run}");
        // The device belongs to root, but the target GID has no mapping.
        set_owner(Path::new(KVM), 0, 0, 0o660);
        let run = go(&mut behind(&scene, &inside)).code(4);
        run.last_line_has(&["fchownat(", "EINVAL", "user namespace"]);
        assert_eq!(owner(Path::new(KVM)), (0, 0, 0o660));
    });
}
