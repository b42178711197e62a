//! `--group-file-out`: a file for a volume, made from the image's own and there after every success.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use support::{
    ALIGNED, KVM, Scene, bind, go, in_namespace, inode, names, owner, report, set_owner, state,
};

#[test]
fn it_is_made_from_the_image_and_not_from_an_earlier_output() {
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
        // Equal: not touched, whatever the clock says.
        let before = scene.state();
        go(scene.apply().arg("--group-file-out").arg(&out)).code(0);
        assert_eq!(scene.state(), before);
        // The image changed: so does it.
        scene
            .pod
            .file("etc/group", "kvm:x:424:\nnova:x:42424:\nnew:x:9:\n");
        go(scene.apply().arg("--group-file-out").arg(&out)).code(0);
        let text = fs::read_to_string(&out).unwrap();
        assert_eq!(text, "kvm:x:108:nova\nnova:x:42424:\nnew:x:9:\n");
    });
}

#[test]
fn what_stands_there_and_is_not_as_it_shall_be_is_replaced_and_never_written_through() {
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
fn a_folder_in_its_place_or_none_around_it_fails_with_advice() {
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
            let run = run.code(4).says(&parts);
            let image = scene.state();
            // A temporary file came and went.
            let strip = |state: support::State| state.into_keys().collect::<Vec<_>>();
            assert_eq!(strip(image), strip(before), "{run}");
            assert_eq!(owner(KVM.as_ref()), (0, 424, 0o660));
        }
    });
}

#[test]
fn it_is_there_after_every_success() {
    in_namespace(|| {
        // Nothing to change anywhere else.
        let scene = Scene::settled();
        let out = scene.pod.at("out");
        go(scene.apply().arg("--group-file-out").arg(&out)).code(0);
        assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED);
        // No KVM, and that is accepted.
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
        // No number to be found either: then it is the image's own.
        fs::remove_file(&out).unwrap();
        scene.host.file("etc/group", "root:x:0:\n");
        scene.pod.file("etc/group", "root:x:0:\n");
        let mut cmd = scene.apply();
        cmd.args(["--missing", "skip"]);
        go(cmd.arg("--group-file-out").arg(&out)).code(0);
        assert_eq!(fs::read_to_string(&out).unwrap(), "root:x:0:\n");
        // Not accepted: 6, and nothing is left behind.
        fs::remove_file(&out).unwrap();
        go(scene.apply().arg("--group-file-out").arg(&out)).code(6);
        assert!(!out.exists());
    });
}

#[test]
fn a_mounted_one_gets_content_owner_and_mode_in_place() {
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
fn it_is_never_the_file_that_it_is_made_from() {
    in_namespace(|| {
        let scene = Scene::new();
        // Under its own name, and under another that a mount gives it.
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
