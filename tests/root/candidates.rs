//! Choice of the target GID, and the cases in which it is refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use support::{KVM, Scene, Tree, go, in_namespace, mknod_kvm, owner, report, set_owner, warnings};

const GUARDED: [&str; 9] = [
    "root", "disk", "kmem", "shadow", "sudo", "adm", "tty", "docker", "libvirt",
];

#[test]
fn gid_collision_is_a_warning_and_refused_for_guarded_groups() {
    in_namespace(|| {
        let scene = Scene::new();
        let with = |other: &str| {
            set_owner(Path::new(KVM), 0, 424, 0o660);
            let text = format!("{other}:x:108:eve\nkvm:x:424:nova\nnova:x:42424:\n");
            scene.pod.file("etc/group", &text);
        };
        with("games");
        let (code, said) = report(&mut scene.apply());
        assert_eq!((code, warnings(&said)), (0, vec!["collision".to_owned()]));
        let text = said["warnings"].to_string();
        for part in [
            "108",
            "games",
            "its members get access to KVM",
            "QEMU gets the privileges of games",
        ] {
            assert!(text.contains(part), "{text}");
        }
        for name in GUARDED {
            with(name);
            let before = scene.state();
            let run = go(&mut scene.apply()).code(3);
            let run = run.last_line_has(&["refused: ", name, "--gid 108"]);
            assert_eq!(scene.state(), before, "{run}");
            let (code, said) = report(scene.apply().args(["--gid", "108"]));
            assert_eq!(
                (code, warnings(&said)),
                (0, vec!["collision".to_owned()]),
                "{name}"
            );
        }
        for name in GUARDED.into_iter().chain(["games"]) {
            for gid in [None, Some("--gid=108")] {
                with(name);
                let before = scene.state();
                let run = go(scene.apply().arg("--strict").args(gid)).code(3);
                assert_eq!(scene.state(), before, "{run}");
            }
        }
    });
}

#[test]
fn gid_of_another_group_on_the_node_needs_the_gid_option() {
    in_namespace(|| {
        let scene = Scene::with_device(0, 6, 0o660);
        scene.host.file("etc/group", "root:x:0:\ndisk:x:6:\n");
        let before = scene.state();
        let run = go(&mut scene.apply()).code(3);
        run.last_line_has(&["refused: ", "disk", "/etc/group:2", "--gid 6"]);
        assert_eq!(scene.state(), before);
        go(scene.apply().args(["--gid", "6"])).code(0);
        assert!(scene.pod.read("etc/group").contains("kvm:x:6:nova\n"));
    });
}

#[test]
fn gid_option_that_differs_from_the_node_is_a_warning_and_refused_with_strict() {
    in_namespace(|| {
        let scene = Scene::new();
        let before = scene.state();
        let run = go(scene.apply().args(["--strict", "--gid=500"])).code(3);
        run.last_line_has(&["--gid sets GID 500", "/etc/group:2 sets GID 108"]);
        assert_eq!(scene.state(), before);
        let (code, report) = report(scene.apply().args(["--gid", "500"]));
        assert_eq!(
            (code, warnings(&report)),
            (0, vec!["disagreement".to_owned()])
        );
        assert_eq!(owner(Path::new(KVM)), (0, 500, 0o660));
    });
}

/// The target GID, its place and the warnings, with the host root that `fill` has filled.
fn target(fill: impl Fn(&Tree), device: u32) -> (u64, String, Vec<String>) {
    let scene = Scene::with_device(0, device, 0o660);
    fs::remove_file(scene.host.at("etc/group")).unwrap();
    fill(&scene.host);
    let (code, report) = report(scene.apply().arg("--dry-run"));
    assert!([0, 1].contains(&code), "{report}");
    let at = report["target"]["at"].as_str().unwrap().to_owned();
    let gid = report["target"]["gid"].as_u64().unwrap();
    (gid, at, warnings(&report))
}

#[test]
fn node_group_is_found_in_every_known_group_database() {
    in_namespace(|| {
        let json = r#"{"groupName":"kvm","gid":45,"disposition":"system"}"#;
        type Row<'a> = (&'a str, &'a str, u64, &'a str);
        let table: [Row<'_>; 8] = [
            ("etc/group", "a:x:1:\nkvm:x:41:\n", 41, "/etc/group:2"),
            ("usr/lib/group", "kvm:x:42:\n", 42, "/usr/lib/group:1"),
            (
                "usr/share/baselayout/group",
                "kvm:x:43:\n",
                43,
                "/usr/share/baselayout/group:1",
            ),
            ("etc/userdb/kvm.group", json, 45, "/etc/userdb/kvm.group"),
            ("run/userdb/45.group", json, 45, "/run/userdb/45.group"),
            ("run/host/userdb/kvm.group", json, 45, "kvm.group"),
            ("usr/local/lib/userdb/kvm.group", json, 45, "kvm.group"),
            ("usr/lib/userdb/kvm.group", json, 45, "kvm.group"),
        ];
        for (file, text, gid, at) in table {
            let got = target(
                |host| {
                    host.file(file, text);
                },
                424,
            );
            assert_eq!(got.0, gid, "{file}: {got:?}");
            assert!(got.1.contains(at), "{file}: {got:?}");
        }
        // The first database with the name is used.
        let all = |host: &Tree| {
            host.file("etc/group", "root:x:0:\n");
            host.file("usr/lib/group", "kvm:x:42:\n");
            host.file("usr/lib/userdb/kvm.group", json);
        };
        assert_eq!(target(all, 424).0, 42);
        // If no database has the name, the device's GID is used, then the pod's, and never GID 0.
        let none = |host: &Tree| {
            host.file("etc/group", "root:x:0:\n");
        };
        assert_eq!(target(none, 77).0, 77);
        let (gid, at, codes) = target(none, 0);
        assert_eq!((gid, codes), (424, vec![]));
        assert!(at.ends_with("/etc/group:2"), "{at}");
        let zero = |host: &Tree| {
            host.file("etc/group", "kvm:x:0:\n");
        };
        let (gid, _, codes) = target(zero, 77);
        assert_eq!((gid, codes), (77, vec!["candidate-skipped".to_owned()]));
    });
}

#[test]
fn links_below_the_host_root_cannot_leave_it() {
    in_namespace(|| {
        // An absolute link leads to the node's /usr, not to this machine's.
        let absolute = |host: &Tree| {
            host.file("usr/lib/group", "kvm:x:42:\n");
            symlink("/usr/lib/group", host.at("etc/group")).unwrap();
        };
        let (gid, at, _) = target(absolute, 424);
        assert_eq!(gid, 42, "{at}");
        // A file outside of the host root that the links below try to reach.
        let ours = Tree::new();
        ours.file("group", "kvm:x:666:\n");
        let ours = ours.at("group");
        let up = format!("{}{}", "../".repeat(40), ours.display());
        let links = [
            up,
            ours.display().to_string(),
            format!("/proc/self/root{}", ours.display()),
            format!("/proc/1/root{}", ours.display()),
            "/proc/self/fd/0".to_owned(),
        ];
        for link in links {
            for mounted in [false, true] {
                let leaving = |host: &Tree| {
                    symlink(&link, host.at("etc/group")).unwrap();
                    if mounted {
                        host.dir("proc");
                        support::bind(Path::new("/proc"), &host.at("proc"));
                    }
                };
                let scene = Scene::with_device(0, 77, 0o660);
                fs::remove_file(scene.host.at("etc/group")).unwrap();
                leaving(&scene.host);
                let run = go(scene.apply().args(["--dry-run", "--format=json"]));
                // Either the link dangles, or the kernel refuses to follow it.
                assert!(!run.out.contains("666"), "{link}: {run}");
                match run.code {
                    0 | 1 => assert_eq!(run.json()["target"]["gid"], 77, "{link}: {run}"),
                    // EACCES: the root of PID 1 cannot be inspected.
                    _ => {
                        let looped = run.err.contains("ELOOP") || run.err.contains("EACCES");
                        assert!(run.code == 4 && looped, "{link}: {run}");
                    }
                }
            }
        }
    });
}

#[test]
fn run_without_any_candidate_gid_is_refused() {
    in_namespace(|| {
        let scene = Scene::with_device(0, 0, 0o600);
        scene.host.file("etc/group", "root:x:0:\n");
        scene.pod.file("etc/group", "root:x:0:\nnova:x:42424:\n");
        let before = scene.state();
        let run = go(&mut scene.apply()).code(3);
        run.last_line_has(&["refused: ", "kvm", "--gid"]);
        assert_eq!(scene.state(), before);
        go(scene.apply().args(["--gid", "108"])).code(0);
        assert!(scene.pod.read("etc/group").ends_with("kvm:x:108:nova\n"));
    });
}

#[test]
fn device_and_group_options_replace_the_defaults() {
    in_namespace(|| {
        let scene = Scene::without_device();
        mknod_kvm(Path::new("/dev/other"), 0, 0, 0o600);
        let mut cmd = scene.apply();
        cmd.args(["--device=/dev/other", "--group=virt", "--gid=501"]);
        go(&mut cmd).code(0);
        assert_eq!(owner(Path::new("/dev/other")), (0, 501, 0o660));
        let text = scene.pod.read("etc/group");
        assert!(
            text.ends_with("kvm:x:424:nova\nnova:x:42424:\nvirt:x:501:nova\n"),
            "{text}"
        );
    });
}
