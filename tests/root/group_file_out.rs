//! `--group-file-out`: an aligned copy of the image's group file, which exists after every exit 0.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use support::{
    ALIGNED, KVM, Scene, bind, go, in_namespace, inode, names, owner, report, set_owner, state,
};

#[test]
fn output_is_made_from_the_image_not_from_an_earlier_output() {
    in_namespace(|| {
        let scene = Scene::new();
        let image = state(&[&scene.pod.at("etc")]);
        scene.pod.dir("volume");
        let out = scene.pod.at("volume/group");
        fs::write(&out, "kvm:x:5:eve\neve:x:6:eve\n").unwrap();
        go(scene.apply().arg("--group-file-out").arg(&out)).code(0);
        assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED);
        assert_eq!(owner(&out), (0, 0, 0o644));
        assert_eq!(state(&[&scene.pod.at("etc")]), image);
        assert_eq!(names(&scene.pod.at("volume")), ["group"]);
        assert_eq!(owner(KVM.as_ref()), (0, 108, 0o660));
        // An equal output is not touched.
        let before = scene.state();
        go(scene.apply().arg("--group-file-out").arg(&out)).code(0);
        assert_eq!(scene.state(), before);
        // After a change of the image's file the output changes too.
        scene
            .pod
            .file("etc/group", "kvm:x:424:\nnova:x:42424:\nnew:x:9:\n");
        go(scene.apply().arg("--group-file-out").arg(&out)).code(0);
        let text = fs::read_to_string(&out).unwrap();
        assert_eq!(text, "kvm:x:108:nova\nnova:x:42424:\nnew:x:9:\n");
    });
}

#[test]
fn wrong_existing_output_is_replaced_never_written_through() {
    in_namespace(|| {
        let scene = Scene::settled();
        scene.pod.dir("volume").file("victim", "untouched\n");
        let out = scene.pod.at("volume/group");
        let victim = scene.pod.at("victim");
        let apply = || {
            let mut cmd = scene.apply();
            cmd.arg("--group-file-out").arg(&out);
            cmd
        };
        go(&mut apply()).code(0);
        type Spoil<'a> = (&'a str, &'a dyn Fn());
        let remove = || fs::remove_file(&out).unwrap();
        let table: [Spoil<'_>; 9] = [
            ("missing", &remove),
            ("owner", &|| set_owner(&out, 42424, 0, 0o644)),
            ("group", &|| set_owner(&out, 0, 108, 0o644)),
            ("mode", &|| set_owner(&out, 0, 0, 0o600)),
            ("writable by all", &|| set_owner(&out, 0, 0, 0o666)),
            ("another link", &|| {
                let _ = fs::remove_file(scene.pod.at("volume/link"));
                fs::hard_link(&out, scene.pod.at("volume/link")).unwrap();
            }),
            ("content", &|| fs::write(&out, "root:x:0:\n").unwrap()),
            ("a link", &|| {
                remove();
                symlink(&victim, &out).unwrap();
            }),
            ("a fifo", &|| {
                remove();
                mkfifo(&out, Mode::S_IRWXU).unwrap();
            }),
        ];
        for (what, spoil) in table {
            spoil();
            go(&mut apply()).code(0);
            assert!(fs::symlink_metadata(&out).unwrap().is_file(), "{what}");
            assert_eq!(owner(&out), (0, 0, 0o644), "{what}");
            assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED, "{what}");
            assert_eq!(scene.pod.read("victim"), "untouched\n", "{what}");
        }
    });
}

#[test]
fn directory_at_the_output_path_or_missing_parent_fails_with_advice() {
    in_namespace(|| {
        let scene = Scene::new();
        scene.pod.dir("volume/group").file("file", "");
        for (out, parts) in [
            ("volume/group", ["EISDIR", "subPath"]),
            ("nowhere/group", ["ENOENT", "mount the volume"]),
            ("file/group", ["ENOTDIR", "mount the volume"]),
        ] {
            let before = scene.state();
            let run = go(scene.apply().arg("--group-file-out").arg(scene.pod.at(out)));
            let run = run.code(4).last_line_has(&parts);
            let image = scene.state();
            // A temporary file may have changed the times of the directory.
            let strip = |state: support::State| state.into_keys().collect::<Vec<_>>();
            assert_eq!(strip(image), strip(before), "{run}");
            assert_eq!(owner(KVM.as_ref()), (0, 424, 0o660));
        }
    });
}

#[test]
fn output_exists_after_every_exit_0() {
    in_namespace(|| {
        // With nothing else to change.
        let scene = Scene::settled();
        let out = scene.pod.at("out");
        go(scene.apply().arg("--group-file-out").arg(&out)).code(0);
        assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED);
        // No KVM, with --missing skip.
        fs::remove_file(KVM).unwrap();
        for content in [ALIGNED, "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n"] {
            fs::remove_file(&out).unwrap();
            scene.pod.file("etc/group", content);
            let mut cmd = scene.apply();
            cmd.args(["--missing", "skip"]);
            let (code, report) = report(cmd.arg("--group-file-out").arg(&out));
            assert_eq!((code, &report["verdict"]), (0, &"absent".into()));
            assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED);
            assert_eq!(owner(&out), (0, 0, 0o644));
        }
        // Without any candidate GID the output equals the image's file.
        fs::remove_file(&out).unwrap();
        scene.host.file("etc/group", "root:x:0:\n");
        scene.pod.file("etc/group", "root:x:0:\n");
        let mut cmd = scene.apply();
        cmd.args(["--missing", "skip"]);
        go(cmd.arg("--group-file-out").arg(&out)).code(0);
        assert_eq!(fs::read_to_string(&out).unwrap(), "root:x:0:\n");
        // Without --missing skip: exit 6 and no output.
        fs::remove_file(&out).unwrap();
        go(scene.apply().arg("--group-file-out").arg(&out)).code(6);
        assert!(!out.exists());
    });
}

#[test]
fn mounted_output_gets_content_owner_and_mode_in_place() {
    in_namespace(|| {
        let scene = Scene::new();
        scene.pod.file("source", "").file("out", "");
        let (source, out) = (scene.pod.at("source"), scene.pod.at("out"));
        set_owner(&source, 42424, 0, 0o600);
        bind(&source, &out);
        let old = inode(&out);
        go(scene.apply().arg("--group-file-out").arg(&out)).code(0);
        assert_eq!(fs::read_to_string(&source).unwrap(), ALIGNED);
        assert_eq!((inode(&out), owner(&out)), (old, (0, 0, 0o644)));
    });
}

#[test]
fn output_must_not_be_its_source_file() {
    in_namespace(|| {
        let scene = Scene::new();
        // Under its own name, and under the name of a bind mount.
        let (own, other) = (scene.pod.at("etc/group"), scene.pod.at("other"));
        fs::write(&other, "").unwrap();
        bind(&own, &other);
        let before = scene.state();
        for out in [&own, &other] {
            let run = go(scene.apply().arg("--group-file-out").arg(out));
            let run = run.code(2);
            assert_eq!(scene.state(), before, "{run}");
        }
    });
}
