//! Guarded GIDs: no event, variable or missing device grants one to QEMU. User names with shell syntax are not
//! written.

use std::fs;
use std::path::Path;

use support::{ALIGNED, KVM, Scene, go, in_namespace, owner, report, run, set_owner, warnings};

const STOCK: &str = "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";

/// A node with the further groups `node` and a rule that sets `group` on a change event, and a pod with the further
/// groups `pod`.
fn attacked(node: &str, group: &str, pod: &str) -> Scene {
    let scene = Scene::new();
    scene
        .host
        .file("etc/group", &format!("root:x:0:\nkvm:x:108:\n{node}"));
    scene
        .host
        .file("usr/lib/udev/rules.d/50-udev-default.rules", STOCK);
    let rule = format!("ACTION==\"change\", KERNEL==\"kvm\", GROUP=\"{group}\"\n");
    scene.host.file("etc/udev/rules.d/99-backup.rules", &rule);
    let own = "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n";
    scene.pod.file("etc/group", &format!("{own}{pod}"));
    scene
}

const ATTACKS: [(&str, &str, &str); 6] = [
    ("disk:x:6:\n", "disk", ""),
    ("disk:x:6:\n", "6", ""),
    ("shadow:x:42:\n", "shadow", ""),
    ("games:x:42:\nshadow:x:42:\n", "games", ""),
    ("", "42", "games:x:42:\nshadow:x:42:\n"),
    ("", "root", ""),
];

#[test]
fn change_event_rule_adds_no_guarded_group() {
    in_namespace(|| {
        for (node, group, pod) in ATTACKS {
            let aligned = format!("{ALIGNED}{pod}");
            let scene = attacked(node, group, pod);
            let out = scene.pod.dir("volume").at("volume/group");
            let before = scene.state();
            let run = go(scene.apply().arg("--strict")).code(3);
            let run = run.last_line_has(&["refused: ", "--strict: an event of the node"]);
            assert_eq!(scene.state(), before, "{group}: {run}");

            let (code, said) = report(&mut scene.apply());
            assert_eq!(scene.pod.read("etc/group"), aligned, "{group}: {said}");
            assert_eq!(code, 0, "{group}: {said}");
            let codes = warnings(&said);
            assert!(codes.contains(&"guarded-group".to_owned()), "{said}");
            assert_eq!(owner(Path::new(KVM)), (0, 108, 0o660), "{group}");
            // The dry run reports that the event denies QEMU.
            let mut check = scene.apply();
            check.arg("--dry-run");
            let (code, said) = report(&mut check);
            assert_eq!(
                (code, said["verdict"].as_str()),
                (1, Some("drift")),
                "{said}"
            );
            assert!(
                said["summary"].to_string().contains("a change event"),
                "{said}"
            );
            assert!(
                warnings(&said).contains(&"guarded-group".to_owned()),
                "{said}"
            );

            // The result is the same with an output, with `exec` and with --gid.
            let scene = attacked(node, group, pod);
            go(scene.apply().arg("--group-file-out").arg(&out)).code(0);
            assert_eq!(fs::read_to_string(&out).unwrap(), aligned, "{group}");
            let (code, text, err) = run_exec(&scene);
            assert_eq!((code, text), (0, aligned.clone()), "{group}: {err}");
            let scene = attacked(node, group, pod);
            go(scene.apply().arg("--gid=108")).code(0);
            assert_eq!(scene.pod.read("etc/group"), aligned, "{group}");
        }
    });
}

/// Runs `exec` with a command that prints the pod's group file.
fn run_exec(scene: &Scene) -> (i32, String, String) {
    let mut cmd = scene.exec(&[]);
    cmd.arg("cat").arg(scene.pod.at("etc/group"));
    run(&mut cmd)
}

/// QEMU gets the GID of an event if no guarded group has it.
#[test]
fn unguarded_gid_of_an_event_is_added_as_membership() {
    in_namespace(|| {
        let scene = attacked("", "777", "");
        let (code, said) = report(&mut scene.apply());
        assert_eq!(code, 0, "{said}");
        let text = scene.pod.read("etc/group");
        assert_eq!(text, format!("{ALIGNED}kvm-777:x:777:nova\n"));
        assert_eq!(warnings(&said), ["udev-events-differ"]);
    });
}

#[test]
fn variable_does_not_permit_a_guarded_gid() {
    in_namespace(|| {
        let config = |scene: &Scene| {
            let path = scene.pod.at("c.yaml");
            fs::write(&path, "gid: 6\n").unwrap();
            path
        };
        for (node, pod) in [("disk:x:6:\n", ""), ("", "disk:x:6:\n")] {
            let scene = attacked(node, "kvm", pod);
            let before = scene.state();
            let run = go(scene.apply().env("LIBVIRT_KVM_INIT_GID", "6")).code(3);
            let run = run.last_line_has(&["refused: ", "disk", "LIBVIRT_KVM_INIT_GID", "--gid 6"]);
            assert_eq!(scene.state(), before, "{run}");
            let aligned =
                format!("root:x:0:\nkvm:x:6:nova\nnova:x:42424:\n{pod}kvm-108:x:108:nova\n");
            go(scene.apply().arg("--gid=6")).code(0);
            assert_eq!(scene.pod.read("etc/group"), aligned);
            assert_eq!(owner(Path::new(KVM)), (0, 6, 0o660));

            let scene = attacked(node, "kvm", pod);
            let config = config(&scene);
            go(scene.apply().arg("--config").arg(&config)).code(0);
            assert_eq!(scene.pod.read("etc/group"), aligned);
        }
        // The variable is enough for the GID of an unguarded group.
        let scene = attacked("", "kvm", "games:x:20:\n");
        go(scene.apply().env("LIBVIRT_KVM_INIT_GID", "20")).code(0);
        let text = scene.pod.read("etc/group");
        assert!(text.contains("kvm:x:20:nova\n"), "{text}");
    });
}

/// On the node the GID belongs to kvm and to disk.
#[test]
fn gid_with_one_guarded_name_on_the_node_is_refused() {
    in_namespace(|| {
        for (file, text) in [
            ("etc/group", "root:x:0:\nkvm:x:6:\ndisk:x:6:\n"),
            ("usr/lib/group", "disk:x:6:\n"),
            (
                "usr/lib/userdb/disk.group",
                r#"{"groupName":"disk","gid":6}"#,
            ),
        ] {
            let scene = Scene::new();
            scene.host.file("etc/group", "root:x:0:\nkvm:x:6:\n");
            scene.host.file(file, text);
            let before = scene.state();
            let run = go(&mut scene.apply()).code(3);
            let run = run.last_line_has(&["refused: ", "disk", file, "--gid 6"]);
            assert_eq!(scene.state(), before, "{run}");
        }
    });
}

#[test]
fn pod_without_a_device_gets_no_guarded_group() {
    in_namespace(|| {
        let image = "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n";
        // A rule for every event, without and with --gid, and a rule for change events only.
        for (rule, args, want) in [
            ("KERNEL==\"kvm\", GROUP=\"disk\"\n", &[][..], image),
            ("KERNEL==\"kvm\", GROUP=\"disk\"\n", &["--gid=6"], image),
            (
                "ACTION==\"change\", KERNEL==\"kvm\", GROUP=\"disk\"\n",
                &[],
                ALIGNED,
            ),
        ] {
            let scene = Scene::without_device();
            scene
                .host
                .file("etc/group", "root:x:0:\nkvm:x:108:\ndisk:x:6:\n");
            scene
                .host
                .file("usr/lib/udev/rules.d/50-udev-default.rules", STOCK);
            scene.host.file("etc/udev/rules.d/99-x.rules", rule);
            let out = scene.pod.dir("volume").at("volume/group");
            // The output of an earlier release.
            fs::write(&out, "root:x:0:\nkvm:x:6:nova\nnova:x:42424:\n").unwrap();
            let mut apply = scene.apply();
            apply.arg("--missing=skip").args(args);
            apply.arg("--group-file-out").arg(&out);
            let (code, said) = report(&mut apply);
            assert_eq!(fs::read_to_string(&out).unwrap(), want, "{rule} {args:?}");
            assert_eq!(scene.pod.read("etc/group"), image, "{rule}");
            assert_eq!(code, 0, "{said}");
            assert!(
                warnings(&said).contains(&"guarded-group".to_owned()),
                "{said}"
            );
        }
    });
}

/// useradd(8) accepts these names.
#[test]
fn user_name_with_shell_syntax_is_refused() {
    in_namespace(|| {
        let long = "a".repeat(33);
        for name in ["x;id;#", "a/b", "a$(id)", "123", "`id`", &long] {
            let scene = Scene::new();
            let passwd =
                format!("root:x:0:0:root:/root:/bin/sh\n{name}:x:42424:42424::/:/bin/sh\n");
            scene.pod.file("etc/passwd", &passwd);
            let conf = "user = \"+42424\"\ngroup = \"kvm\"\n";
            scene.pod.file("etc/libvirt/qemu.conf", conf);
            let out = scene.pod.dir("volume").at("volume/group");
            let before = scene.state();
            let passwd = scene.pod.at("etc/passwd");
            let parts = ["refused: ", "etc/group", passwd.to_str().unwrap(), name];
            let run = go(&mut scene.apply()).code(3).last_line_has(&parts);
            assert_eq!(scene.state(), before, "{run}");
            let run = go(scene.apply().arg("--group-file-out").arg(&out));
            let run = run.code(3).last_line_has(&parts);
            assert_eq!(scene.state(), before, "{run}");
            let mut exec = scene.exec(&[]);
            let (code, text, err) = support::run(exec.args(["echo", "started"]));
            assert_eq!((code, text.as_str()), (3, ""), "{err}");
            assert_eq!(scene.state(), before, "{err}");

            // A group file that is already aligned is accepted with such a name.
            let right = format!("root:x:0:\nkvm:x:108:{name}\nnova:x:42424:\n");
            scene.pod.file("etc/group", &right);
            set_owner(Path::new(KVM), 0, 108, 0o660);
            let before = scene.state();
            let run = go(&mut scene.apply()).code(0);
            assert_eq!(scene.state(), before, "{run}");
        }
    });
}

#[test]
fn control_characters_and_document_ends_in_a_configuration_are_errors() {
    in_namespace(|| {
        let scene = Scene::new();
        let config = scene.pod.at("c.yaml");
        for (text, line) in [
            ("strict: true\n\0unknown: 1\n", 2),
            ("strict: true\0\nunknown: 1\n", 1),
            ("strict: true\n...\nunknown: 1\n", 3),
            ("{strict: true}\nunknown: 1\n", 2),
            ("strict: true\n# \rgid: 6\n", 2),
            ("strict: true\n# \u{1b}[2J\n", 2),
            ("strict: true\n# \u{85}gid: 6\n", 2),
            ("strict: true\n# \u{2028}gid: 6\n", 2),
            ("strict: true\n#\u{feff}\n", 2),
        ] {
            fs::write(&config, text).unwrap();
            let before = scene.state();
            for command in ["apply", "check"] {
                let run = go(scene.command(command).arg("--config").arg(&config)).code(2);
                let place = format!("{}:{line}: ", config.display());
                let run = run.last_line_has(&["usage: ", &place]);
                assert_eq!(scene.state(), before, "{text:?}: {run}");
            }
        }
    });
}
