//! The pod's group file is replaced atomically, and no byte is changed without need.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Instant;

use support::{
    ALIGNED, KVM, Scene, bind, bind_read_only, detach, get_xattr, go, in_namespace, inode,
    mount_tmpfs, names, ok, owner, report, require_commands, set_owner, set_xattr,
};

const IRREGULAR: &[u8] =
    b"# \xff\xfe comment\nroot:x:0:\r\n\n kvm:x:424:a,b\n+:::\nbad line\nnova:x:42424:";
const IRREGULAR_ALIGNED: &[u8] =
    b"# \xff\xfe comment\nroot:x:0:\r\n\n kvm:x:108:a,b,nova\n+:::\nbad line\nnova:x:42424:";

#[test]
fn replaced_group_file_keeps_owner_mode_attributes_and_other_bytes() {
    require_commands(&["setfacl", "getfacl"]);
    in_namespace(|| {
        let scene = Scene::new();
        let file = scene.pod.at("etc/group");
        fs::write(&file, IRREGULAR).unwrap();
        set_owner(&file, 3, 4, 0o640);
        ok(std::process::Command::new("setfacl")
            .args(["-m", "u:1234:r"])
            .arg(&file));
        let acl = get_xattr(&file, "system.posix_acl_access").unwrap();
        // tmpfs has user attributes since Linux 6.6.
        let has_user = set_xattr(&file, "user.test", b"kept").is_ok();
        let (old, mode) = (inode(&file), owner(&file));
        let mut pinned = fs::File::open(&file).unwrap();
        go(&mut scene.apply()).code(0);
        assert_eq!(fs::read(&file).unwrap(), IRREGULAR_ALIGNED);
        assert_ne!(inode(&file), old);
        assert_eq!(owner(&file), mode);
        assert_eq!(get_xattr(&file, "system.posix_acl_access"), Some(acl));
        if has_user {
            assert_eq!(get_xattr(&file, "user.test").as_deref(), Some(&b"kept"[..]));
        }
        // A process that had the old file open still reads all of it.
        let mut content = Vec::new();
        pinned.read_to_end(&mut content).unwrap();
        assert_eq!(content, IRREGULAR);
        assert_eq!(
            names(&scene.pod.at("etc")),
            [".pwd.lock", "group", "libvirt", "passwd"]
        );
    });
}

#[test]
fn bind_mounted_group_file_is_written_in_place() {
    in_namespace(|| {
        let scene = Scene::new();
        let file = scene.pod.at("etc/group");
        let source = scene.pod.at("group.source");
        for (before, after) in [
            // Longer, of the same length, shorter.
            (
                "kvm:x:42:\nnova:x:42424:\n",
                "kvm:x:108:nova\nnova:x:42424:\n",
            ),
            (
                "kvm:x:424:nova\nnova:x:42424:\n",
                "kvm:x:108:nova\nnova:x:42424:\n",
            ),
            ("kvm:x:929292:nova\nz:x:1:", "kvm:x:108:nova\nz:x:1:"),
            ("nova:x:42424:", "nova:x:42424:\nkvm:x:108:nova\n"),
        ] {
            fs::write(&source, before).unwrap();
            bind(&source, &file);
            let old = inode(&file);
            go(&mut scene.apply()).code(0);
            assert_eq!(fs::read_to_string(&file).unwrap(), after);
            assert_eq!(fs::read_to_string(&source).unwrap(), after);
            assert_eq!(inode(&file), old);
            assert_eq!(
                names(&scene.pod.at("etc")),
                [".pwd.lock", "group", "libvirt", "passwd"]
            );
            detach(&file);
        }
    });
}

#[test]
fn read_only_file_system_fails_without_changes_and_advises_group_file_out() {
    in_namespace(|| {
        let scene = Scene::new();
        let etc = scene.pod.at("etc");
        bind_read_only(&etc.clone(), &etc);
        let before = scene.state();
        let run = go(&mut scene.apply()).code(4);
        run.last_line_has(&["failed: ", "EROFS", "--group-file-out"]);
        assert_eq!(scene.state(), before);
        assert_eq!(owner(KVM.as_ref()), (0, 424, 0o660));
    });
}

#[test]
fn writable_file_mounted_into_a_read_only_root_is_written() {
    in_namespace(|| {
        let scene = Scene::new();
        let etc = scene.pod.at("etc");
        let source = scene.pod.at("group.source");
        fs::copy(etc.join("group"), &source).unwrap();
        bind_read_only(&etc.clone(), &etc);
        bind(&source, &etc.join("group"));
        go(&mut scene.apply()).code(0);
        assert_eq!(scene.pod.read("group.source"), ALIGNED);
    });
}

#[test]
fn full_file_system_leaves_the_old_file() {
    in_namespace(|| {
        let scene = Scene::new();
        let etc = scene.pod.at("etc");
        let old = format!(
            "{}{}",
            "# filler\n".repeat(800),
            scene.pod.read("etc/group")
        );
        mount_tmpfs(&etc, "size=8k,mode=755");
        fs::write(etc.join("group"), &old).unwrap();
        // The mount hides passwd and qemu.conf.
        let run = go(scene
            .apply()
            .args(["--qemu-user=+42424", "--qemu-group=kvm"]));
        run.code(4).last_line_has(&["ENOSPC", "free up space"]);
        assert_eq!(scene.pod.read("etc/group"), old);
        assert_eq!(names(&etc), [".pwd.lock", "group"]);
        assert_eq!(owner(KVM.as_ref()), (0, 424, 0o660));
    });
}

#[test]
fn full_file_system_leaves_a_mounted_file_unchanged() {
    in_namespace(|| {
        let scene = Scene::new();
        let (volume, file) = (
            scene.pod.dir("volume").at("volume"),
            scene.pod.at("etc/group"),
        );
        mount_tmpfs(&volume, "size=8k,mode=755");
        // The file fills its page to the last byte, and another file occupies the only other page.
        let line = "kvm:x:42:nova\n";
        let old = format!("{line}#{}\n", "x".repeat(4096 - line.len() - 2));
        fs::write(volume.join("group"), &old).unwrap();
        fs::write(volume.join("filler"), "full").unwrap();
        bind(&volume.join("group"), &file);
        go(&mut scene.apply())
            .code(4)
            .last_line_has(&["ENOSPC", "free up space"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), old);
        fs::remove_file(volume.join("filler")).unwrap();
        go(&mut scene.apply()).code(0);
        let new = old.replacen("42", "108", 1);
        assert_eq!(fs::read_to_string(&file).unwrap(), new);
    });
}

#[test]
fn symbolic_link_as_group_file_is_refused() {
    in_namespace(|| {
        let scene = Scene::new();
        let target = scene.pod.at("usr/lib/group");
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::rename(scene.pod.at("etc/group"), &target).unwrap();
        symlink("/usr/lib/group", scene.pod.at("etc/group")).unwrap();
        let before = scene.state();
        let run = go(&mut scene.apply()).code(3);
        run.last_line_has(&["symbolic link", "--group-file-out"]);
        assert_eq!(scene.state(), before);
        // As the source of an output the link is accepted.
        let out = scene.pod.at("out");
        go(scene.apply().arg("--group-file-out").arg(&out)).code(0);
        assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED);
    });
}

#[test]
fn missing_pod_group_file_is_a_usage_error() {
    in_namespace(|| {
        let scene = Scene::new();
        fs::remove_file(scene.pod.at("etc/group")).unwrap();
        let before = scene.state();
        let run = go(&mut scene.apply()).code(2);
        run.last_line_has(&["usage: ", "etc/group does not exist", "--root"]);
        assert_eq!(scene.state(), before);
    });
}

#[test]
fn apply_aligns_100000_group_lines() {
    in_namespace(|| {
        let scene = Scene::new();
        let file = scene.pod.at("etc/group");
        for lines in [10, 1_000, 100_000] {
            let many: String = (0..lines)
                .map(|n| format!("group{n}:x:{}:a,b,c\n", 100_000 + n))
                .collect();
            fs::write(&file, format!("{many}kvm:x:424:\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
            let start = Instant::now();
            let (code, _) = report(&mut scene.apply());
            let changed = start.elapsed();
            assert_eq!(code, 0);
            let text = fs::read_to_string(&file).unwrap();
            assert_eq!(text, format!("{many}kvm:x:108:nova\n"));
            let start = Instant::now();
            go(&mut scene.apply()).code(0);
            println!(
                "{lines} lines: {changed:?} to change, {:?} with nothing to do",
                start.elapsed()
            );
        }
    });
}
