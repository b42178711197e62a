//! Files of the node are not edited, by whichever path a pod reaches them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use support::impostor::Impostor;
use support::{
    ALIGNED, KVM, Scene, bind, go, in_namespace, mknod_char, ok, require_commands, scratch, state,
};

#[test]
fn node_group_file_mounted_into_the_pod_is_not_edited() {
    in_namespace(|| {
        for whole_directory in [false, true] {
            let scene = Scene::with_device(0, 424, 0o660);
            scene.host.file("etc/passwd", "nova:x:42424:42424:::\n");
            scene.host.file(
                "etc/libvirt/qemu.conf",
                "user = \"nova\"\ngroup = \"kvm\"\n",
            );
            let (node, pod) = if whole_directory {
                ("etc", "etc")
            } else {
                ("etc/group", "etc/group")
            };
            bind(&scene.host.at(node), &scene.pod.at(pod));
            let before = scene.host.read("etc/group");
            for more in [&[][..], &["--gid", "500"]] {
                go(scene.apply().args(more).arg("--proof=off")).code(0);
                assert_eq!(scene.host.read("etc/group"), before);
            }
        }
    });
}

#[test]
fn group_file_out_refuses_devices_and_other_files() {
    in_namespace(|| {
        let scene = Scene::settled();
        scene.pod.dir("volume");
        let null = scene.pod.at("volume/null");
        mknod_char(&null, (1, 3), 0, 0, 0o666);
        let secrets = scene.pod.at("volume/secrets");
        fs::write(&secrets, "password=1\n").unwrap();
        let node = scene.host.at("etc/group");
        let before = scene.state();
        for (out, why) in [
            (Path::new(KVM), "outside /dev"),
            (&null, "device"),
            (&secrets, "not a group file"),
            (&node, "the node's own group file"),
        ] {
            let run = go(scene.apply().arg("--group-file-out").arg(out));
            let run = run.code(2).last_line_has(&["--group-file-out", why]);
            assert_eq!(scene.state(), before, "{run}");
        }
        // A link to one of them is replaced, not followed.
        let link = scene.pod.at("volume/link");
        symlink(&node, &link).unwrap();
        go(scene.apply().arg("--group-file-out").arg(&link)).code(0);
        assert_eq!(fs::read_to_string(&link).unwrap(), ALIGNED);
        assert_eq!(scene.host.read("etc/group"), "root:x:0:\nkvm:x:108:\n");
    });
}

#[test]
fn group_file_mounted_in_another_namespace_is_written_in_place() {
    in_namespace(|| {
        let scene = Scene::new();
        let volume = scene.pod.at("volume");
        fs::write(&volume, scene.pod.read("etc/group")).unwrap();
        // Another container: a separate mount namespace in which the file is mounted.
        let script = format!(
            "mount --bind {} {} && echo ready && exec sleep 60",
            volume.display(),
            scene.pod.at("etc/group").display()
        );
        let mut other = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let root = format!("/proc/{}/root{}", other.id(), scene.pod.path().display());
        let mut cmd = support::apply();
        cmd.args(["--root", &root, "--host-root"])
            .arg(scene.host.path());
        let run = go(&mut cmd);
        let seen = fs::read_to_string(format!("{root}/etc/group"));
        let mounts = ok(Command::new("cat").arg(format!("/proc/{}/mountinfo", other.id())));
        other.kill().unwrap();
        other.wait().unwrap();
        let run = run.code(0);
        assert_eq!(seen.unwrap(), ALIGNED);
        assert_eq!(fs::read_to_string(&volume).unwrap(), ALIGNED, "{run}");
        assert!(mounts.contains("/etc/group"), "{mounts}");
    });
}

/// The command of an old report, pasted when its PID belongs to another process.
#[test]
fn root_of_an_unprivileged_process_is_refused() {
    require_commands(&["setpriv", "unshare"]);
    in_namespace(|| {
        let scene = Scene::new();
        let script = scratch().join("script");
        fs::write(&script, "#!/bin/sh\necho backup\n").unwrap();
        let before = state(&[&script]);
        let impostor = Impostor::start(&[], &script);
        let root = impostor.root();
        for name in ["apply", "check", "watch"] {
            let run = go(&mut support::program_command(
                name,
                &root,
                scene.host.path(),
            ));
            assert!(state(&[&script]) == before, "{run}");
            run.code(3)
                .last_line_has(&[root.to_str().unwrap(), "does not run as root"]);
        }
        // A process with UID 0 in another user namespace is not trusted either.
        drop(impostor);
        let mut other = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .arg("echo ready && exec sleep 60")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let root = format!("/proc/{}/root", other.id());
        let run = go(&mut support::program_command(
            "apply",
            Path::new(&root),
            scene.host.path(),
        ));
        other.kill().unwrap();
        other.wait().unwrap();
        run.code(3).last_line_has(&["another user namespace"]);
    });
}

#[test]
fn dry_run_lists_a_missing_output() {
    in_namespace(|| {
        let scene = Scene::settled();
        let out = scene.pod.at("out");
        let mut cmd = scene.apply();
        cmd.arg("--group-file-out").arg(&out);
        let run = go(cmd.args(["--dry-run", "--format=json"]));
        let run = run.code(1);
        assert_eq!(run.json()["changes"][0]["action"], "write-group-file");
        assert!(!out.exists());
        let run = go(scene
            .apply()
            .args(["--format=json", "--group-file-out"])
            .arg(&out));
        let run = run.code(0);
        assert_eq!(run.json()["changes"][0]["applied"], true);
    });
}

#[test]
fn control_characters_of_qemu_conf_are_escaped() {
    in_namespace(|| {
        let scene = Scene::new();
        let conf = "user = \"\"\"no\nva\u{1b}[2J\"\"\"\ngroup = \"kvm\"\n";
        scene.pod.file("etc/libvirt/qemu.conf", conf);
        let run = go(&mut scene.apply());
        run.code(2).last_line_has(&["no\\nva\\u{1b}[2J"]);
    });
}
