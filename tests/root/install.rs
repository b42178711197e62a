//! `install` puts the binary into a volume atomically, owned by root.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Instant;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use support::{
    Run, bind, command, go, in_namespace, inode, make_read_only, mount_tmpfs, names, ok, owner,
    program, scratch, set_owner, state,
};

const NAME: &str = "libvirt-kvm-init";

/// An empty volume that all users can write, as an emptyDir.
fn volume() -> PathBuf {
    let directory = scratch().join("v");
    fs::create_dir(&directory).unwrap();
    mount_tmpfs(&directory, "mode=777");
    directory
}

fn install(directory: &Path) -> Command {
    let mut cmd = command(&program(), &["install"]);
    cmd.arg(directory);
    cmd
}

/// Runs `install`, which must succeed, and returns whether it wrote the file.
#[track_caller]
fn written(directory: &Path) -> bool {
    let run = go(install(directory).arg("--format=json")).code(0);
    assert!(!run.err.contains("waiting up to"), "{run}");
    let report = run.json();
    let path = directory.join(NAME);
    assert_eq!(report["verdict"], "ok");
    assert_eq!(report["path"], path.to_str().unwrap());
    let meta = fs::symlink_metadata(&path).unwrap();
    assert!(meta.is_file() && meta.nlink() == 1, "{run}");
    assert_eq!(owner(&path), (0, 0, 0o755));
    assert!(fs::read(&path).unwrap() == ours(), "the content differs");
    assert_eq!(names(directory), [NAME]);
    report["written"].as_bool().unwrap()
}

fn ours() -> Vec<u8> {
    fs::read(program()).unwrap()
}

#[test]
fn binary_is_installed_once_and_runs() {
    in_namespace(|| {
        let volume = volume();
        let run = go(&mut install(&volume)).code(0);
        let path = volume.join(NAME);
        let version = env!("CARGO_PKG_VERSION");
        let line = |how| format!("{NAME} {version} -> {} ({how})\n", path.display());
        assert_eq!(run.out, line("written"));
        assert!(
            run.err.contains("from 0777, the kubelet's default") && run.err.lines().count() == 1
        );
        let before = state(&[&volume]);
        let run = go(&mut install(&volume)).code(0);
        assert_eq!(run.out, line("already there"));
        assert!(!written(&volume));
        // The installed copy can install itself again.
        ok(command(&path, &["install"]).arg(&volume));
        assert_eq!(state(&[&volume]), before);
        assert_eq!(
            ok(&mut command(&path, &["--version"])),
            format!("{NAME} {version}\n")
        );
    });
}

#[test]
fn other_file_at_the_target_is_replaced_never_written_through() {
    in_namespace(|| {
        let volume = volume();
        let path = volume.join(NAME);
        let victim = scratch().join("victim");
        let good = || {
            fs::write(&path, ours()).unwrap();
            set_owner(&path, 0, 0, 0o755);
        };
        let cases: [(&str, &dyn Fn()); 11] = [
            ("the same", &good),
            ("other bytes, same length", &|| {
                let mut bytes = ours();
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(&path, bytes).unwrap();
                set_owner(&path, 0, 0, 0o755);
            }),
            ("shorter", &|| {
                fs::write(&path, &ours()[..1000]).unwrap();
                set_owner(&path, 0, 0, 0o755);
            }),
            ("empty", &|| fs::write(&path, "").unwrap()),
            ("another owner", &|| {
                good();
                set_owner(&path, 42424, 0, 0o755);
            }),
            ("another group", &|| {
                good();
                set_owner(&path, 0, 42424, 0o755);
            }),
            ("writable by others", &|| {
                good();
                set_owner(&path, 0, 0, 0o777);
            }),
            ("a link", &|| symlink(&victim, &path).unwrap()),
            ("a link to nothing", &|| symlink("/nowhere", &path).unwrap()),
            ("another name of it", &|| {
                fs::write(volume.join("other"), ours()).unwrap();
                set_owner(&volume.join("other"), 0, 0, 0o755);
                fs::hard_link(volume.join("other"), &path).unwrap();
            }),
            ("a fifo", &|| mkfifo(&path, Mode::all()).unwrap()),
        ];
        for (what, make) in cases {
            let _ = fs::remove_file(&path);
            fs::write(&victim, "untouched\n").unwrap();
            set_owner(&victim, 0, 0, 0o755);
            make();
            let old = inode(&path);
            let other = volume.join("other");
            let had_other = fs::symlink_metadata(&other).is_ok();
            if had_other {
                go(&mut install(&volume)).code(0);
                assert_ne!(inode(&path), old, "{what}");
                assert_eq!(inode(&other), old, "{what}");
                fs::remove_file(&other).unwrap();
                assert!(!written(&volume));
            } else {
                assert_eq!(written(&volume), what != "the same", "{what}");
                assert_eq!(inode(&path) == old, what == "the same", "{what}");
            }
            assert_eq!(fs::read(&victim).unwrap(), b"untouched\n", "{what}");
        }
    });
}

#[test]
fn directory_mount_point_or_read_only_volume_fails_with_advice() {
    in_namespace(|| {
        let volume = volume();
        let path = volume.join(NAME);
        let fails = |what: &[&str]| -> Run {
            // The temporary file changes the times of the directory.
            let see = || {
                let mut all = state(&[&volume]);
                all.remove(&volume);
                all
            };
            let before = see();
            let run = go(&mut install(&volume)).code(4).last_line_has(what);
            assert_eq!(see(), before, "{run}");
            assert_eq!(run.out, "");
            let report = go(install(&volume).arg("--format=json")).code(4).json();
            assert_eq!(report["verdict"], "failed");
            run
        };
        fs::create_dir(&path).unwrap();
        fails(&[
            "failed: ",
            "EISDIR",
            "a directory exists where",
            "remove it",
        ]);
        fs::write(path.join("content"), "").unwrap();
        fails(&["a directory exists where"]);
        fs::remove_dir_all(&path).unwrap();
        // The target is a mount point, as in a container that uses it.
        fs::write(&path, "old").unwrap();
        bind(Path::new("/bin/true"), &path);
        fails(&["EBUSY", "mount point"]);
        support::detach(&path);
        make_read_only_file_system(&volume);
        fails(&["EROFS", "writable"]);
    });
}

fn make_read_only_file_system(directory: &Path) {
    bind(directory, directory);
    make_read_only(directory);
}

/// If the program already runs as root, the advice must not be to run it as root.
#[test]
fn immutable_file_fails_with_the_advice_lsattr() {
    in_namespace(|| {
        let volume = volume();
        let path = volume.join(NAME);
        fs::write(&path, "old").unwrap();
        let mut chattr = command(Path::new("chattr"), &["+i"]);
        // tmpfs has immutable files since Linux 6.6.
        if !chattr.arg(&path).status().unwrap().success() {
            eprintln!("skipped: this file system has no immutable files");
            return;
        }
        go(&mut install(&volume))
            .code(4)
            .last_line_has(&["EPERM", "lsattr"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(&volume), [NAME]);
    });
}

#[test]
fn full_volume_keeps_the_old_file() {
    in_namespace(|| {
        let directory = scratch().join("small");
        fs::create_dir(&directory).unwrap();
        mount_tmpfs(&directory, "mode=777,size=64k");
        fs::write(directory.join(NAME), "old").unwrap();
        go(&mut install(&directory))
            .code(4)
            .last_line_has(&["ENOSPC", "space"]);
        assert_eq!(fs::read(directory.join(NAME)).unwrap(), b"old");
        assert_eq!(names(&directory), [NAME]);
    });
}

#[test]
fn missing_target_directory_is_a_usage_error() {
    let file = program();
    for (directory, why) in [
        (Path::new("/nowhere/at/all"), "the directory does not exist"),
        (&file, "not a directory"),
    ] {
        go(&mut install(directory))
            .code(2)
            .last_line_has(&["usage: ", why, "mount the volume"]);
    }
    go(&mut command(&program(), &["install", ""]))
        .code(2)
        .last_line_has(&["usage: ", "<DIR>"]);
    go(&mut command(&program(), &["install"]))
        .code(2)
        .last_line_has(&["<DIR>"]);
    go(install(Path::new("/")).arg("--format=npd"))
        .code(2)
        .last_line_has(&["--format", "table or json"]);
}

#[test]
fn concurrent_installs_are_safe() {
    in_namespace(|| {
        let volume = volume();
        for _ in 0..4 {
            let spawn = |_| {
                let mut cmd = install(&volume);
                cmd.stdout(Stdio::piped()).stderr(Stdio::piped());
                cmd.spawn().unwrap()
            };
            let all: Vec<_> = (0..16).map(spawn).collect();
            let mut wrote = 0;
            for process in all {
                let out = process.wait_with_output().unwrap();
                let text = String::from_utf8(out.stdout).unwrap();
                assert_eq!(out.status.code(), Some(0));
                wrote += u32::from(text.contains("(written)"));
                // After a successful run the binary can be started.
                ok(&mut command(&volume.join(NAME), &["--version"]));
            }
            assert_eq!(wrote, 1);
            assert!(!written(&volume));
            fs::remove_file(volume.join(NAME)).unwrap();
        }
    });
}

#[test]
fn killed_install_leaves_old_or_new_file_and_the_next_run_cleans_up() {
    in_namespace(|| {
        let volume = volume();
        let path = volume.join(NAME);
        let (old, new) = (b"#!/bin/sh\n".to_vec(), ours());
        let start = Instant::now();
        go(&mut install(&volume)).code(0);
        let whole = start.elapsed();
        const RUNS: u32 = 100;
        let (mut olds, mut news, mut left_over) = (0, 0, 0);
        // After a kill that came too early the next one comes later, and the other way round: so most of them come
        // near the moment of the rename, however busy the machine is.
        let (mut delay, step) = (whole / 2, whole / 20);
        for n in 0..RUNS {
            fs::remove_file(&path).unwrap();
            fs::write(&path, &old).unwrap();
            let mut cmd = install(&volume);
            let cmd = cmd.stdout(Stdio::null()).stderr(Stdio::null());
            let mut process = cmd.spawn().unwrap();
            sleep(delay);
            let _ = process.kill();
            process.wait().unwrap();
            let found = fs::read(&path).unwrap();
            assert!(
                found == old || found == new,
                "run {n}: {} bytes",
                found.len()
            );
            let jump = step * (1 + n % 3);
            if found == old {
                olds += 1;
                delay += jump;
            } else {
                news += 1;
                delay = delay.saturating_sub(jump);
            }
            left_over += u32::from(names(&volume).len() > 1);
        }
        println!(
            "a run takes {whole:?}; old file left {olds} times, new file {news}, leftovers {left_over}"
        );
        assert!(
            olds > 0 && news > 0,
            "all kills came too early, or all too late"
        );
        // Leftovers are also removed if nothing is to be written.
        go(&mut install(&volume)).code(0);
        fs::write(volume.join(format!(".{NAME}.{NAME}")), "part").unwrap();
        assert!(!written(&volume));
    });
}

#[test]
fn root_without_capabilities_installs_into_a_world_writable_volume() {
    in_namespace(|| {
        let volume = volume();
        let mut cmd = install(&volume);
        for capability in caps::all() {
            support::without_capability(&mut cmd, capability);
        }
        let run = go(&mut cmd).code(0);
        assert!(!written(&volume), "{run}");
        assert!(!written(&volume));
    });
}

#[test]
fn install_without_root_fails_and_leaves_nothing() {
    use std::os::unix::process::CommandExt;
    in_namespace(|| {
        let volume = volume();
        go(&mut install(&volume)).code(0);
        let other = scratch().join("other");
        fs::create_dir(&other).unwrap();
        mount_tmpfs(&other, "mode=777");
        let as_nobody = |directory: &Path| {
            let mut cmd = command(&volume.join(NAME), &["install"]);
            go(cmd.arg(directory).uid(65_534).gid(65_534))
        };
        as_nobody(&other)
            .code(4)
            .last_line_has(&["EPERM", "as root"]);
        assert!(names(&other).is_empty());
        // An up-to-date binary needs no privilege.
        as_nobody(&volume).code(0);
    });
}
