//! Invalid input to the program: the exit code, the message, and that nothing is written.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use support::{
    ALIGNED, KVM, Scene, apply, go, in_namespace, mknod_char, owner, report, run, set_owner,
};

#[test]
fn invalid_options_and_files_are_usage_errors() {
    in_namespace(|| {
        let scene = Scene::new();
        scene.pod.file("bad.yaml", "gid: 108\n\nguid: 108\n");
        scene
            .pod
            .file("bad.conf", "# x\nuser = \"nova\"\ngroup = kvm\n");
        scene
            .pod
            .file("unknown.conf", "user = \"nobody-here\"\ngroup = \"kvm\"\n");
        scene.pod.file(
            "unknown-group.conf",
            "user = \"nova\"\ngroup = \"no-group\"\n",
        );
        scene.pod.file("empty.conf", "");
        let at = |name: &str| scene.pod.at(name).display().to_string();
        let bad_yaml = format!("--config={}", at("bad.yaml"));
        let no_yaml = format!("--config={}", at("nowhere.yaml"));
        let directory_yaml = format!("--config={}", at("etc"));
        let bad_conf = format!("--qemu-conf={}", at("bad.conf"));
        let no_conf = format!("--qemu-conf={}", at("nowhere.conf"));
        let unknown = format!("--qemu-conf={}", at("unknown.conf"));
        let unknown_group = format!("--qemu-conf={}", at("unknown-group.conf"));
        let empty = format!("--qemu-conf={}", at("empty.conf"));
        let table: &[(&[&str], &[&str])] = &[
            (&["--guid=1"], &["--guid"]),
            (&["stray"], &["stray"]),
            (&["--gid"], &["--gid"]),
            (&["--gid=0"], &["--gid", "`0`", "1 to 4294967294"]),
            (&["--gid=4294967295"], &["1 to 4294967294"]),
            (&["--gid=kvm"], &["`kvm`"]),
            (&["--mode=0640"], &["--mode", "0660"]),
            (&["--mode=rw"], &["--mode", "octal"]),
            (&["--settle=5"], &["--settle", "unit"]),
            (&["--group=a:b"], &["--group"]),
            (&["--format=xml"], &["--format"]),
            (&["--proof=maybe"], &["--proof"]),
            (&[&bad_yaml], &["bad.yaml:3", "`guid`"]),
            (&[&no_yaml], &["nowhere.yaml", "ENOENT"]),
            (&[&directory_yaml], &["/etc", "directory"]),
            (
                &[&bad_conf],
                &["bad.conf:3", "group", "libvirtd would not start"],
            ),
            (&[&no_conf], &["--qemu-conf", "nowhere.conf", "ENOENT"]),
            (&[&unknown], &["unknown.conf:1", "user", "`nobody-here`"]),
            (
                &[&unknown_group],
                &["unknown-group.conf:2", "group", "`no-group`"],
            ),
            (&["--qemu-user=eve"], &["--qemu-user", "`eve`"]),
            (&["--qemu-group=eve"], &["--qemu-group", "`eve`"]),
            (
                &[&empty],
                &["cannot determine the QEMU user", "--qemu-user"],
            ),
            (&["--root=/nowhere"], &["--root", "/nowhere", "ENOENT"]),
            (&["--host-root=/nowhere"], &["--host-root", "ENOENT"]),
        ];
        let before = scene.state();
        for (args, parts) in table {
            // An option of the case replaces the scene's, because it must not be repeated.
            let given = |name: &str| args.iter().any(|arg| arg.starts_with(name));
            let mut cmd = apply();
            cmd.args(*args);
            if !given("--root") {
                cmd.arg("--root").arg(scene.pod.path());
            }
            if !given("--host-root") {
                cmd.arg("--host-root").arg(scene.host.path());
            }
            go(&mut cmd)
                .code(2)
                .last_line_has(&["usage: "])
                .last_line_has(parts);
        }
        let run = go(scene.apply().arg(OsStr::from_bytes(b"--group=\xff"))).code(2);
        run.last_line_has(&["UTF-8"]);
        let raw = OsString::from(OsStr::from_bytes(b"\xff"));
        let run = go(scene.apply().env("LIBVIRT_KVM_INIT_GROUP", raw)).code(2);
        run.last_line_has(&["LIBVIRT_KVM_INIT_GROUP", "UTF-8"]);
        assert_eq!(scene.state(), before);
    });
}

#[test]
fn missing_command_is_a_usage_error_and_help_exits_with_0() {
    in_namespace(|| {
        let program = support::program();
        for args in [&[][..], &["frobnicate"], &["apply", "apply"]] {
            let (code, out, err) = run(&mut support::command(&program, args));
            assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
            let last = err.lines().last().unwrap();
            assert!(last.starts_with("libvirt-kvm-init: usage: "), "{err}");
            assert_eq!(err.lines().count() == 1, !args.is_empty(), "{err}");
        }
        for args in [
            &["--help"][..],
            &["-h"],
            &["--version"],
            &["apply", "--help"],
        ] {
            let (code, out, err) = run(&mut support::command(&program, args));
            assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
            assert!(!out.is_empty(), "{args:?}");
        }
    });
}

#[test]
fn ambiguous_qemu_user_is_a_usage_error() {
    in_namespace(|| {
        let scene = Scene::new();
        scene.pod.file("etc/libvirt/qemu.conf", "");
        let users = "libvirt-qemu:x:64055:108:::\nqemu:x:107:107:::\n";
        scene.pod.file("etc/passwd", users);
        let before = scene.state();
        let run = go(&mut scene.apply()).code(2);
        run.last_line_has(&[
            "usage: ",
            "ambiguous",
            "libvirt-qemu",
            "qemu",
            "--qemu-user",
        ]);
        assert_eq!(scene.state(), before);
        scene.pod.file("etc/os-release", "ID=ubuntu\n");
        let (code, report) = report(&mut scene.apply());
        assert_eq!((code, &report["qemu"]["user"]), (0, &"libvirt-qemu".into()));
    });
}

fn fifo(at: &Path) {
    mkfifo(at, Mode::S_IRWXU).unwrap();
}

fn huge(at: &Path) {
    fs::File::create(at).unwrap().set_len(100 << 30).unwrap();
}

fn loop_of_links(at: &Path) {
    symlink(at.file_name().unwrap(), at).unwrap();
}

fn null(at: &Path) {
    mknod_char(at, (1, 3), 0, 0, 0o666);
}

#[test]
fn special_files_as_input_fail_without_being_opened() {
    in_namespace(|| {
        let scene = Scene::new();
        let directory = |at: &Path| fs::create_dir(at).unwrap();
        type Row<'a> = (bool, &'a str, fn(&Path), &'a [&'a str]);
        let table: &[Row<'_>] = &[
            (false, "etc/group", directory, &["etc/group", "directory"]),
            (false, "etc/group", fifo, &["etc/group", "fifo"]),
            (false, "etc/group", null, &["etc/group", "character device"]),
            (false, "etc/group", huge, &["etc/group", "EFBIG"]),
            (false, "etc/group", loop_of_links, &["etc/group", "ELOOP"]),
            (false, "etc/passwd", fifo, &["etc/passwd", "fifo"]),
            (false, "etc/passwd", huge, &["etc/passwd", "EFBIG"]),
            (false, "etc/libvirt/qemu.conf", fifo, &["qemu.conf", "fifo"]),
            (
                false,
                "etc/libvirt/qemu.conf",
                directory,
                &["qemu.conf", "directory"],
            ),
            (true, "etc/group", fifo, &["etc/group", "fifo"]),
            (true, "etc/group", null, &["etc/group", "character device"]),
            (true, "etc/group", huge, &["etc/group", "EFBIG"]),
            (true, "etc/group", loop_of_links, &["etc/group", "ELOOP"]),
        ];
        for (on_host, name, make, parts) in table {
            let tree = if *on_host { &scene.host } else { &scene.pod };
            let (at, kept) = (tree.at(name), tree.at("kept"));
            fs::rename(&at, &kept).unwrap();
            make(&at);
            let before = scene.state();
            let run = go(&mut scene.apply()).code(4).last_line_has(parts);
            assert_eq!(scene.state(), before, "{run}");
            if at.is_dir() {
                fs::remove_dir(&at).unwrap();
            } else {
                fs::remove_file(&at).unwrap();
            }
            fs::rename(&kept, &at).unwrap();
        }
    });
}

#[test]
fn link_chain_beyond_the_kernel_limit_fails_with_eloop() {
    in_namespace(|| {
        let scene = Scene::new();
        let chain = |length: usize| {
            fs::rename(scene.host.at("etc/group"), scene.host.at("etc/l0")).unwrap();
            for n in 1..length {
                symlink(format!("l{}", n - 1), scene.host.at(&format!("etc/l{n}"))).unwrap();
            }
            symlink(format!("l{}", length - 1), scene.host.at("etc/group")).unwrap();
        };
        chain(30);
        go(&mut scene.apply()).code(0);
        for entry in fs::read_dir(scene.host.at("etc")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        scene.host.file("etc/group", "kvm:x:108:\n");
        chain(60);
        go(&mut scene.apply()).code(4).last_line_has(&["ELOOP"]);
    });
}

#[test]
fn unwritable_stdout_and_stderr_cause_no_panic() {
    in_namespace(|| {
        let scene = Scene::settled();
        let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
        let closed = || {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            drop(reader);
            Stdio::from(writer)
        };
        for format in ["table", "json"] {
            let apply = || {
                let mut cmd = scene.apply();
                cmd.args(["--format", format]).stdin(Stdio::null());
                cmd
            };
            // A full stdout is a reported failure; a pipe without a reader is none.
            let out = apply().stdout(full()).output().unwrap();
            let err = String::from_utf8_lossy(&out.stderr).into_owned();
            assert_eq!(out.status.code(), Some(4), "{err}");
            let last = err.lines().last().unwrap_or_default();
            assert!(
                last.starts_with("libvirt-kvm-init: failed: write(stdout)"),
                "{err}"
            );
            let out = apply().stdout(closed()).output().unwrap();
            assert_eq!((out.status.code(), out.stderr), (Some(0), Vec::new()));
            for stderr in [full(), closed()] {
                let status = apply()
                    .arg("-v")
                    .stdout(Stdio::null())
                    .stderr(stderr)
                    .status();
                assert_eq!(status.unwrap().code(), Some(0));
            }
            // Both closed before the start.
            let shell = format!("{:?} >&- 2>&-", apply()).replace("env -i", "exec env -i");
            let status = Command::new("sh").args(["-c", &shell]).status().unwrap();
            assert_eq!(status.code(), Some(0), "{shell}");
        }
        // The exit code of a failure stays if its message cannot be written.
        let mut cmd = apply();
        let status = cmd.arg("--gid=0").stdout(full()).stderr(full()).status();
        assert_eq!(status.unwrap().code(), Some(2));
    });
}

#[test]
fn json_report_has_all_documented_fields() {
    in_namespace(|| {
        let scene = Scene::new();
        let (_, said) = report(scene.apply().args(["--gid", "500"]));
        for pointer in [
            "/schema",
            "/verdict",
            "/exit_code",
            "/summary",
            "/target/gid",
            "/target/mode",
            "/target/source",
            "/candidates/0/gid",
            "/candidates/0/source",
            "/device/path",
            "/device/kind",
            "/device/major",
            "/device/minor",
            "/device/uid",
            "/device/gid",
            "/device/mode",
            "/device/acl",
            "/device/same_inode_as_host",
            "/host/root",
            "/host/device",
            "/host/kvm_gid",
            "/host/udev",
            "/pod/root",
            "/pod/kvm_gid",
            "/pod/group_file",
            "/qemu/user",
            "/qemu/uid",
            "/qemu/gid",
            "/qemu/groups",
            "/changes/0/action",
            "/changes/0/from",
            "/changes/0/to",
            "/changes/0/applied",
            "/proof/result",
            "/proof/cause",
            "/proof/api_version",
            "/proof/advice",
            "/warnings/0/code",
            "/warnings/0/text",
        ] {
            assert!(
                said.pointer(pointer).is_some(),
                "{pointer} is not in {said}"
            );
        }
        assert_eq!(said["schema"], 1);
        for no_colour in ["", "1"] {
            let run = go(scene
                .apply()
                .env("NO_COLOR", no_colour)
                .env("TERM", "xterm-256color"));
            assert!(!run.out.is_empty());
        }
    });
}

/// Output of the program on a terminal, by script(1).
fn on_a_terminal(scene: &Scene, no_color: Option<&str>) -> String {
    let inner = format!("{:?}", scene.apply());
    let mut cmd = Command::new("script");
    cmd.args(["-qec", &inner.replacen("env -i ", "env ", 1), "/dev/null"]);
    cmd.env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .stdin(Stdio::null());
    if let Some(value) = no_color {
        cmd.env("NO_COLOR", value);
    }
    support::ok(&mut cmd)
}

#[test]
fn terminal_output_is_coloured_unless_no_color_is_set() {
    support::require_commands(&["script"]);
    in_namespace(|| {
        let scene = Scene::settled();
        assert!(on_a_terminal(&scene, None).contains("\x1b[1;32mok\x1b[0m"));
        assert!(on_a_terminal(&scene, Some("")).contains("\x1b[1;32m"));
        assert!(!on_a_terminal(&scene, Some("1")).contains('\x1b'));
    });
}

#[test]
fn dry_run_lists_the_changes_and_makes_none() {
    in_namespace(|| {
        let scene = Scene::with_device(0, 0, 0o600);
        let before = scene.state();
        let (code, said) = report(scene.apply().arg("--dry-run"));
        assert_eq!((code, &said["verdict"]), (1, &"drift".into()));
        let changes = said["changes"].as_array().unwrap().iter();
        let actions: Vec<_> = changes
            .map(|change| {
                assert_eq!(change["applied"], false);
                change["action"].as_str().unwrap()
            })
            .collect();
        let want = ["set-group-gid", "set-device-owner", "set-device-mode"];
        assert_eq!(actions, want);
        let out = scene.pod.at("out");
        go(scene
            .apply()
            .arg("--dry-run")
            .arg("--group-file-out")
            .arg(&out))
        .code(1);
        assert_eq!(scene.state(), before);
    });
}

#[test]
fn apply_works_with_unusual_process_settings() {
    in_namespace(|| {
        let scene = Scene::new();
        let out = scene.pod.at("out");
        for setting in [
            "trap '' CHLD TERM HUP",
            "umask 0777",
            "umask 0",
            "ulimit -n 16",
            "mkdir gone && cd gone && rmdir ../gone",
            "exec <&-",
        ] {
            set_owner(Path::new(KVM), 0, 0, 0o600);
            let _ = fs::remove_file(&out);
            let mut cmd = Command::new("sh");
            cmd.args(["-c", &format!("{setting}\nexec \"$@\""), "sh"]);
            let program = fs::canonicalize(support::program()).unwrap();
            cmd.arg(program)
                .args(["apply", "--root"])
                .arg(scene.pod.path());
            cmd.arg("--host-root").arg(scene.host.path());
            cmd.arg("--group-file-out").arg(&out);
            cmd.env_clear()
                .env("PATH", "/usr/bin:/bin")
                .current_dir(scene.pod.path());
            go(&mut cmd).code(0);
            assert_eq!(owner(Path::new(KVM)), (0, 108, 0o660), "{setting}");
            assert_eq!(owner(&out), (0, 0, 0o644), "{setting}");
            assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED, "{setting}");
        }
    });
}

#[test]
fn root_as_qemu_user_needs_no_membership() {
    in_namespace(|| {
        let scene = Scene::new();
        scene.pod.file("etc/group", "root:x:0:\nkvm:x:424:\n");
        scene.pod.file(
            "etc/libvirt/qemu.conf",
            "user = \"root\"\ngroup = \"root\"\n",
        );
        let (code, said) = report(&mut scene.apply());
        assert_eq!((code, &said["qemu"]["uid"]), (0, &0.into()));
        assert_eq!(scene.pod.read("etc/group"), "root:x:0:\nkvm:x:108:\n");
        // A UID without a name needs no membership either, but its group must have access.
        scene.pod.file(
            "etc/libvirt/qemu.conf",
            "user = \"+4242\"\ngroup = \"kvm\"\n",
        );
        let (code, said) = report(&mut scene.apply());
        assert_eq!(
            (code, &said["qemu"]["groups"]),
            (0, &serde_json::json!([108]))
        );
        scene.pod.file(
            "etc/libvirt/qemu.conf",
            "user = \"+4242\"\ngroup = \"+77\"\n",
        );
        let (code, said) = report(&mut scene.apply());
        assert_eq!((code, &said["proof"]["cause"]), (5, &"ownership".into()));
    });
}

#[test]
fn qemu_user_in_too_many_groups_is_reported() {
    in_namespace(|| {
        let scene = Scene::new();
        let many: String = (0..65_537)
            .map(|n| format!("g{n}:x:{}:nova\n", 100_000 + n))
            .collect();
        scene
            .pod
            .file("etc/group", &format!("kvm:x:108:nova\n{many}"));
        let run = go(&mut scene.apply()).code(5);
        run.last_line_has(&["setgroups(", "EINVAL", "65536"]);
    });
}
