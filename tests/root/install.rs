//! `install`: the binary in a volume, whole at every moment and nobody else's.

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

/// An empty volume, writable by everybody as an emptyDir is.
fn volume() -> PathBuf {
    let folder = scratch().join("v");
    fs::create_dir(&folder).unwrap();
    mount_tmpfs(&folder, "mode=777");
    folder
}

fn install(folder: &Path) -> Command {
    let mut cmd = command(&program(), &["install"]);
    cmd.arg(folder);
    cmd
}

/// Installs, which must succeed, and says whether it had to write.
#[track_caller]
fn written(folder: &Path) -> bool {
    let run = go(install(folder).arg("--format=json")).code(0);
    assert!(!run.err.contains("waits up to"), "{run}");
    let report = run.json();
    let path = folder.join(NAME);
    assert_eq!(report["verdict"], "ok");
    assert_eq!(report["path"], path.to_str().unwrap());
    let meta = fs::symlink_metadata(&path).unwrap();
    assert!(meta.is_file() && meta.nlink() == 1, "{run}");
    assert_eq!(owner(&path), (0, 0, 0o755));
    assert!(fs::read(&path).unwrap() == ours(), "other bytes");
    assert_eq!(names(folder), [NAME]);
    report["written"].as_bool().unwrap()
}

fn ours() -> Vec<u8> {
    fs::read(program()).unwrap()
}

#[test]
fn the_binary_is_put_there_once_and_runs() {
    in_namespace(|| {
        let volume = volume();
        let run = go(&mut install(&volume)).code(0);
        let path = volume.join(NAME);
        let version = env!("CARGO_PKG_VERSION");
        let line = |how| format!("{NAME} {version} -> {} ({how})\n", path.display());
        assert_eq!(run.out, line("written"));
        assert!(run.err.contains("had the mode 0777") && run.err.lines().count() == 1);
        let before = state(&[&volume]);
        let run = go(&mut install(&volume)).code(0);
        assert_eq!(run.out, line("already there"));
        assert!(!written(&volume));
        // The copy installs itself over itself, and elsewhere.
        ok(command(&path, &["install"]).arg(&volume));
        assert_eq!(state(&[&volume]), before);
        assert_eq!(
            ok(&mut command(&path, &["--version"])),
            format!("{NAME} {version}\n")
        );
    });
}

#[test]
fn anything_that_is_not_that_very_file_is_replaced_and_nothing_is_written_through() {
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
fn a_folder_in_its_place_and_other_hindrances_are_failures_that_say_so() {
    in_namespace(|| {
        let volume = volume();
        let path = volume.join(NAME);
        let fails = |what: &[&str]| -> Run {
            // The folder's own times tell of the temporary file.
            let see = || {
                let mut all = state(&[&volume]);
                all.remove(&volume);
                all
            };
            let before = see();
            let run = go(&mut install(&volume)).code(4).says(what);
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
        // Mounted over, as in a container that uses it.
        fs::write(&path, "old").unwrap();
        bind(Path::new("/bin/true"), &path);
        fails(&["EBUSY", "mount point"]);
        support::detach(&path);
        make_read_only_file_system(&volume);
        fails(&["EROFS", "writable"]);
    });
}

fn make_read_only_file_system(folder: &Path) {
    bind(folder, folder);
    make_read_only(folder);
}

/// Root is not told to become root.
#[test]
fn what_may_not_be_changed_by_root_either_is_told() {
    in_namespace(|| {
        let volume = volume();
        let path = volume.join(NAME);
        fs::write(&path, "old").unwrap();
        let mut chattr = command(Path::new("chattr"), &["+i"]);
        // tmpfs can do that since Linux 6.6.
        if !chattr.arg(&path).status().unwrap().success() {
            eprintln!("not run: this file system has no immutable files");
            return;
        }
        go(&mut install(&volume)).code(4).says(&["EPERM", "lsattr"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(&volume), [NAME]);
    });
}

#[test]
fn a_full_volume_keeps_what_was_there() {
    in_namespace(|| {
        let folder = scratch().join("small");
        fs::create_dir(&folder).unwrap();
        mount_tmpfs(&folder, "mode=777,size=64k");
        fs::write(folder.join(NAME), "old").unwrap();
        go(&mut install(&folder)).code(4).says(&["ENOSPC", "space"]);
        assert_eq!(fs::read(folder.join(NAME)).unwrap(), b"old");
        assert_eq!(names(&folder), [NAME]);
    });
}

#[test]
fn a_folder_that_is_missing_is_a_usage_error() {
    let file = program();
    for folder in [Path::new("/nowhere/at/all"), &file] {
        go(&mut install(folder))
            .code(2)
            .says(&["usage: ", "mount the volume"]);
    }
    go(&mut command(&program(), &["install", ""]))
        .code(2)
        .says(&["usage: ", "<DIR>"]);
    go(&mut command(&program(), &["install"]))
        .code(2)
        .says(&["<DIR>"]);
    go(install(Path::new("/")).arg("--format=npd"))
        .code(2)
        .says(&["--format", "table or json"]);
}

#[test]
fn many_at_once_are_safe() {
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
                // Whoever is told that it is there can start it.
                ok(&mut command(&volume.join(NAME), &["--version"]));
            }
            assert_eq!(wrote, 1);
            assert!(!written(&volume));
            fs::remove_file(volume.join(NAME)).unwrap();
        }
    });
}

#[test]
fn a_run_that_is_killed_leaves_the_old_file_or_the_new_one_and_the_next_clears_up() {
    in_namespace(|| {
        let volume = volume();
        let path = volume.join(NAME);
        let (old, new) = (b"#!/bin/sh\n".to_vec(), ours());
        let start = Instant::now();
        go(&mut install(&volume)).code(0);
        let whole = start.elapsed();
        const RUNS: u32 = 100;
        let (mut olds, mut news, mut left_over) = (0, 0, 0);
        // Each run is killed a little later after one that came too early, and the other way round: so most
        // of them end about where the new file takes the old one's place, however busy the machine is.
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
        println!("{whole:?} for a run; {olds} times old, {news} new, {left_over} with a leftover");
        assert!(olds > 0 && news > 0, "killed always too early or too late");
        // Cleared up also where nothing is to be written.
        go(&mut install(&volume)).code(0);
        fs::write(volume.join(format!(".{NAME}.{NAME}")), "part").unwrap();
        assert!(!written(&volume));
    });
}

#[test]
fn root_without_capabilities_installs_into_a_volume_that_everybody_may_write() {
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
fn who_is_not_root_is_told_and_leaves_nothing() {
    use std::os::unix::process::CommandExt;
    in_namespace(|| {
        let volume = volume();
        go(&mut install(&volume)).code(0);
        let other = scratch().join("other");
        fs::create_dir(&other).unwrap();
        mount_tmpfs(&other, "mode=777");
        let as_nobody = |folder: &Path| {
            let mut cmd = command(&volume.join(NAME), &["install"]);
            go(cmd.arg(folder).uid(65_534).gid(65_534))
        };
        as_nobody(&other).code(4).says(&["EPERM", "as root"]);
        assert!(names(&other).is_empty());
        // What is right needs no right.
        as_nobody(&volume).code(0);
    });
}
