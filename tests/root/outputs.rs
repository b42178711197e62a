//! Outputs and other users of the node: a user's links and swapped directories redirect no output, and a user's files
//! and locks block none.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use libvirt_kvm_init::sys::file::{CHANGED, LockFile, OwnerAndMode};
use libvirt_kvm_init::sys::output_dir::{Purpose, open_output};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use support::holders::{OTHER, as_other, greedy, lease, lock};
use support::{
    ALIGNED, KVM, Run, Scene, bind, bind_read_only, command, go, in_namespace, inode, mount_tmpfs,
    names, ok, opened_by_another, openers, owner, program, require_commands, scratch, set_owner,
    state,
};

const RULES: &str = "etc/udev/rules.d";
const RULE: &str = "etc/udev/rules.d/99-libvirt-kvm-init.rules";
const OWN_LOCK: &str = ".libvirt-kvm-init.lock";
const BINARY: &str = "libvirt-kvm-init";
/// A volume as the kubelet makes it: a mount point that all users can write.
fn volume(name: &str) -> PathBuf {
    let directory = scratch().join(name);
    fs::create_dir(&directory).unwrap();
    mount_tmpfs(&directory, "mode=777");
    directory
}

fn to(scene: &Scene, out: &Path) -> Command {
    let mut cmd = scene.apply();
    cmd.arg("--group-file-out").arg(out);
    cmd
}

fn install(directory: &Path) -> Command {
    let mut cmd = command(&program(), &["install"]);
    cmd.arg(directory);
    cmd
}

/// Runs a command that must succeed without waiting.
#[track_caller]
fn at_once(cmd: &mut Command) {
    let run = go(cmd).code(0);
    assert!(!run.err.contains("waiting up to"), "{run}");
}

#[test]
fn locks_of_another_user_do_not_block_a_run() {
    in_namespace(|| {
        let scene = Scene::new();
        scene.host.dir(RULES);
        let shared = volume("volume");
        let out = shared.join("group");
        // Modes that an image may have: a user who can read the file can lock it.
        for mode in [0o644, 0o666] {
            let passwords = scene.pod.at("etc/.pwd.lock");
            fs::write(&passwords, "").unwrap();
            set_owner(&passwords, 0, 0, mode);
            fs::write(
                scene.pod.at("etc/group"),
                "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n",
            )
            .unwrap();
            let all = [&scene.pod, &scene.host].map(|tree| state(&[tree.path()]).into_keys());
            let mut all: Vec<_> = all.into_iter().flatten().collect();
            all.extend([shared.clone(), scratch()]);
            let _holder = greedy(all);
            let apply = |gid: u32| {
                let mut cmd = scene.apply();
                cmd.args(["--persist", &format!("--gid={gid}")]);
                cmd
            };
            at_once(&mut apply(500));
            let group = scene.pod.read("etc/group");
            assert!(group.contains("\nkvm:x:500:nova\n"), "{group}");
            assert!(scene.host.read(RULE).contains("GROUP=\"500\""));
            assert_eq!(owner(&passwords), (0, 0, 0o600));
            at_once(to(&scene, &out).arg("--gid=501"));
            assert!(
                fs::read_to_string(&out)
                    .unwrap()
                    .contains("\nkvm:x:501:nova\n")
            );
            at_once(&mut install(&shared));
            // Also locked: the files that the runs have made.
            let all = names(&shared).into_iter().map(|name| shared.join(name));
            let _holder = greedy(all.chain([shared.clone(), passwords]).collect());
            at_once(to(&scene, &out).arg("--gid=502"));
            at_once(&mut apply(503));
            assert!(scene.pod.read("etc/group").contains("\nkvm:x:503:nova\n"));
            fs::remove_file(&out).unwrap();
            fs::remove_file(shared.join(BINARY)).unwrap();
            fs::remove_file(scene.host.at(RULE)).unwrap();
        }
    });
}

/// groupadd and the other tools of the package passwd take the lock of lckpwdf(3).
#[test]
fn groupadd_waits_for_the_lock_of_a_run() {
    require_commands(&["groupadd"]);
    in_namespace(|| {
        let scene = Scene::new();
        let file = scene.pod.at("etc/group");
        let (mut directory, _) = open_output(&file, Purpose::Look).unwrap();
        directory
            .lock(LockFile::Passwords, Duration::from_secs(5))
            .unwrap();
        assert!(lock(&scene.pod.at("etc/.pwd.lock")).is_none());
        let mut tool = Command::new("groupadd");
        tool.args(["--gid", "4711", "--root"]).arg(scene.pod.path());
        let passwords = scene.pod.at("etc/.pwd.lock");
        let before = openers(&passwords);
        let mut tool = tool.arg("late").spawn().unwrap();
        opened_by_another(&passwords, &before);
        assert!(tool.try_wait().unwrap().is_none(), "groupadd did not wait");
        assert!(!scene.pod.read("etc/group").contains("late"));
        drop(directory);
        assert!(tool.wait().unwrap().success());
        assert!(scene.pod.read("etc/group").contains("\nlate:x:4711:\n"));
        // Neither of the two edits is lost.
        go(&mut scene.apply()).code(0);
        let text = scene.pod.read("etc/group");
        assert!(
            text.contains("\nkvm:x:108:nova\n") && text.contains("\nlate:x:4711:\n"),
            "{text}"
        );
    });
}

#[test]
fn held_output_lock_fails_the_run_after_ten_seconds() {
    in_namespace(|| {
        let scene = Scene::settled();
        let shared = volume("volume");
        set_owner(&shared, 0, 0, 0o755);
        let held = lock(&shared.join(OWN_LOCK)).unwrap();
        let before = scene.state();
        std::thread::scope(|scope| {
            let group = scope.spawn(|| go(&mut to(&scene, &shared.join("group"))).code(4));
            let binary = scope.spawn(|| go(&mut install(&shared)).code(4));
            for run in [group, binary] {
                let run = run.join().unwrap();
                run.last_line_has(&["/.libvirt-kvm-init.lock, F_OFD_SETLK) for 10 s", "lslocks"]);
            }
        });
        assert_eq!(scene.state(), before);
        assert_eq!(names(&shared), [OWN_LOCK]);
        drop(held);
        at_once(&mut to(&scene, &shared.join("group")));
        at_once(&mut install(&shared));
        assert_eq!(names(&shared), ["group", BINARY]);
    });
}

/// Outputs that must not be redirected: the option, and the name of the file that it writes below a directory.
const OUTPUTS: [(&str, &str); 4] = [
    ("--group-file-out", "group"),
    ("install", BINARY),
    ("--status-file", "shadow"),
    ("--metrics-file", "passwd"),
];

/// The end of a run, or the log of a `watch`.
enum Ending {
    Ended(Run),
    Logged(String),
}

impl Ending {
    #[track_caller]
    fn refused(self) {
        match self {
            Self::Ended(run) => drop(
                run.code(3)
                    .last_line_has(&["refused: ", "only root can write"]),
            ),
            Self::Logged(log) => {
                assert!(
                    log.contains("only root can write") && log.contains("EACCES"),
                    "{log}"
                );
            }
        }
    }
}

fn run_with_output(scene: &Scene, option: &str, directory: &Path, name: &str) -> Ending {
    let path = directory.join(name);
    match option {
        "install" => Ending::Ended(go(&mut install(directory))),
        "--group-file-out" => Ending::Ended(go(&mut to(scene, &path))),
        _ => {
            let mut cmd = command(Path::new("timeout"), &["0.7"]);
            cmd.arg(program())
                .args(["watch", "--root"])
                .arg(scene.pod.path());
            cmd.arg("--host-root").arg(scene.host.path());
            cmd.arg(option).arg(&path);
            Ending::Logged(String::from_utf8(cmd.output().unwrap().stderr).unwrap())
        }
    }
}

/// Another user replaces a directory on the output's path with a link to the node's files.
#[test]
fn directory_swapped_for_a_link_redirects_no_output() {
    in_namespace(|| {
        let scene = Scene::settled();
        let node = scratch().join("node-etc");
        fs::create_dir(&node).unwrap();
        for (_, name) in OUTPUTS {
            // A valid group file, because any other file at the output's path would be refused.
            fs::write(node.join(name), "victim:x:9:\n").unwrap();
            set_owner(&node.join(name), 0, 0, 0o600);
        }
        let before = state(&[&node, Path::new(KVM)]);
        for (uid, mode) in [(OTHER, 0o755), (0, 0o777), (0, 0o775), (0, 0o1777)] {
            let shared = scratch().join(format!("shared-{uid}-{mode:o}"));
            fs::create_dir_all(shared.join("state/below")).unwrap();
            set_owner(&shared, uid, OTHER, mode);
            fs::remove_dir_all(shared.join("state")).unwrap();
            // The first link is made by a user who can write there, the second one by root.
            let (from, target) = (shared.join("state"), node.clone());
            as_other(move || symlink(&target, &from));
            for (option, name) in OUTPUTS {
                let ending = run_with_output(&scene, option, &shared.join("state"), name);
                assert_eq!(
                    state(&[&node, Path::new(KVM)]),
                    before,
                    "{option} {uid} {mode:o}"
                );
                ending.refused();
            }
            fs::remove_file(shared.join("state")).unwrap();
            symlink(scratch(), shared.join("state")).unwrap();
            for (option, name) in OUTPUTS {
                let ending = run_with_output(&scene, option, &shared.join("state/node-etc"), name);
                assert_eq!(
                    state(&[&node, Path::new(KVM)]),
                    before,
                    "{option} {uid} {mode:o}"
                );
                ending.refused();
            }
        }
    });
}

#[test]
fn output_directory_that_another_user_can_write_is_refused() {
    in_namespace(|| {
        let scene = Scene::settled();
        let place = scratch().join("place");
        let make = |uid, gid, mode| {
            let _ = fs::remove_dir_all(&place);
            fs::create_dir(&place).unwrap();
            set_owner(&place, uid, gid, mode);
        };
        let refused = |what: &str| {
            for (option, name) in OUTPUTS {
                let before = (scene.state(), state(&[&place]));
                let ending = run_with_output(&scene, option, &place, name);
                assert!(
                    (scene.state(), state(&[&place])) == before,
                    "{option}: {what}"
                );
                ending.refused();
            }
        };
        for (uid, gid, mode) in [
            (OTHER, 0, 0o755),
            (OTHER, OTHER, 0o700),
            (0, OTHER, 0o775),
            (0, 0, 0o775),
            (0, 0, 0o757),
            // Like an emptyDir, but no mount point.
            (0, 0, 0o777),
        ] {
            make(uid, gid, mode);
            refused(&format!("{uid}:{gid} {mode:o}"));
        }
        // Mount points that differ from an emptyDir.
        for options in ["mode=1777", "mode=2777", "mode=775", "mode=777,uid=42424"] {
            make(0, 0, 0o755);
            mount_tmpfs(&place, options);
            refused(options);
            support::detach(&place);
        }
        // In a directory that another user can rename.
        make(0, 0, 0o755);
        mount_tmpfs(&place, "mode=777");
        fs::create_dir(place.join("below")).unwrap();
        let before = state(&[&place]);
        for (option, name) in OUTPUTS {
            let ending = run_with_output(&scene, option, &place.join("below"), name);
            assert_eq!(state(&[&place]), before, "{option}");
            ending.refused();
        }
        // The node's rules directory, for --persist.
        scene.host.dir(RULES);
        for at in [RULES, "etc/udev"] {
            set_owner(&scene.host.at(at), 0, 0, 0o777);
            let before = scene.state();
            let mut cmd = scene.apply();
            let run = go(cmd.args(["--persist", "--gid=500"])).code(3);
            let run = run.last_line_has(&["refused: --persist: ", "0777"]);
            assert_eq!(scene.state(), before, "{run}");
            set_owner(&scene.host.at(at), 0, 0, 0o755);
        }
    });
}

#[test]
fn empty_dir_is_made_writable_for_root_only_and_used() {
    in_namespace(|| {
        let scene = Scene::settled();
        let shared = volume("volume");
        // A bind mount of the volume, as the container runtime makes it.
        let inside = scratch().join("inside");
        fs::create_dir(&inside).unwrap();
        bind(&shared, &inside);
        // `check` changes nothing.
        let mut check = command(&program(), &["check"]);
        check.args(to(&scene, &inside.join("group")).get_args().skip(1));
        go(&mut check).code(1);
        assert_eq!(owner(&shared), (0, 0, 0o777));
        go(&mut to(&scene, &inside.join("group"))).code(0);
        assert_eq!(owner(&shared), (0, 0, 0o755));
        assert_eq!(fs::read_to_string(shared.join("group")).unwrap(), ALIGNED);
        let plant = shared.join("planted");
        as_other(move || match fs::write(&plant, "") {
            Err(_) => Ok(()),
            Ok(()) => Err(std::io::Error::other("another user could create a file")),
        });
        assert_eq!(names(&shared), ["group"]);
        // The mode is also changed if version 0.1.0 left a correct file and nothing else needs to change.
        set_owner(&shared, 0, 0, 0o777);
        go(&mut to(&scene, &inside.join("group"))).code(0);
        assert_eq!(owner(&shared), (0, 0, 0o755));
        assert_eq!(names(&shared), ["group"]);
        // A link of root is followed if only root can write its directory.
        symlink("volume", scratch().join("link")).unwrap();
        fs::remove_file(shared.join("group")).unwrap();
        go(&mut to(&scene, &scratch().join("link/../volume/./group"))).code(0);
        assert_eq!(names(&shared), ["group"]);
        // Links in /proc are refused, because their text does not show their target.
        fs::remove_file(shared.join("group")).unwrap();
        let mut cmd = to(&scene, Path::new("/proc/self/cwd/group"));
        go(cmd.current_dir(&shared))
            .code(3)
            .last_line_has(&["in /proc"]);
        let mut cmd = to(&scene, Path::new("group"));
        go(cmd.current_dir(&shared)).code(0);
        assert_eq!(names(&shared), ["group"]);
    });
}

/// Files that another user put into an emptyDir while all users could write it.
#[test]
fn files_planted_in_an_empty_dir_are_replaced() {
    in_namespace(|| {
        let scene = Scene::settled();
        let victim = scratch().join("victim");
        fs::write(&victim, "victim:x:9:\n").unwrap();
        set_owner(&victim, 0, 0, 0o600);
        let before = state(&[&victim]);
        type Plant = fn(&Path, &Path) -> std::io::Result<()>;
        let plants: [(&str, Plant); 8] = [
            ("nothing", |_, _| Ok(())),
            ("file", |at, _| fs::write(at, "kvm:x:666:\n")),
            ("directory", |at, _| fs::create_dir(at)),
            ("full directory", |at, _| {
                fs::create_dir(at)?;
                fs::write(at.join("file"), "")
            }),
            ("link", |at, victim| symlink(victim, at)),
            ("fifo", |at, _| Ok(mkfifo(at, Mode::all())?)),
            ("socket", |at, _| {
                std::os::unix::net::UnixListener::bind(at).map(drop)
            }),
            ("lease", |at, _| fs::write(at, "kvm:x:666:\n")),
        ];
        type Output<'a> = (&'a str, &'a dyn Fn(&Path));
        let outputs: [Output<'_>; 3] = [
            ("group", &|shared| {
                at_once(&mut to(&scene, &shared.join("group")))
            }),
            (BINARY, &|shared| at_once(&mut install(shared))),
            ("status.json", &|shared| {
                let mut cmd = command(Path::new("timeout"), &["0.7"]);
                cmd.arg(program())
                    .args(["watch", "--root"])
                    .arg(scene.pod.path());
                cmd.arg("--host-root").arg(scene.host.path());
                cmd.arg("--status-file").arg(shared.join("status.json"));
                let out = cmd.output().unwrap();
                let text = fs::read_to_string(shared.join("status.json"));
                let text = text.unwrap_or_else(|e| panic!("{e}: {out:?}"));
                assert!(text.contains("\"verdict\":\"ok\""), "{text}");
            }),
        ];
        let mut n = 0;
        for (name, write) in outputs {
            for at in [name, OWN_LOCK] {
                for (what, plant) in plants {
                    n += 1;
                    let shared = volume(&format!("volume{n}"));
                    let planted = shared.join(at);
                    let (place, led) = (planted.clone(), victim.clone());
                    as_other(move || plant(&place, &led));
                    let had = fs::symlink_metadata(&planted).ok().map(|meta| meta.ino());
                    let _lease = (what == "lease").then(|| lease(&planted));
                    write(&shared);
                    let made = shared.join(name);
                    let meta = fs::symlink_metadata(&made).unwrap();
                    assert!(meta.is_file() && meta.nlink() == 1, "{what} at {at}");
                    assert_eq!((meta.uid(), meta.gid()), (0, 0), "{what} at {at}");
                    assert_eq!(meta.mode() & 0o022, 0, "{what} at {at}");
                    assert_ne!(Some(meta.ino()), had, "{what} at {at}");
                    if name == "group" {
                        assert_eq!(fs::read_to_string(&made).unwrap(), ALIGNED);
                    }
                    assert_eq!(state(&[&victim]), before, "{what} at {at}");
                    // A full directory is renamed and stays.
                    let left = names(&shared).len();
                    let stays = usize::from(what == "full directory");
                    let unasked = name == "status.json" && at == OWN_LOCK && what != "nothing";
                    assert!(
                        left == 1 + stays || unasked,
                        "{what} at {at}: {:?}",
                        names(&shared)
                    );
                }
            }
        }
        println!("{n} planted files: all replaced");
    });
}

/// The kubelet makes a directory as root where the file of a subPath is missing.
#[test]
fn directory_of_root_at_the_output_path_is_a_failure() {
    in_namespace(|| {
        let scene = Scene::settled();
        let shared = volume("volume");
        fs::create_dir(shared.join("group")).unwrap();
        fs::create_dir(shared.join(BINARY)).unwrap();
        go(&mut to(&scene, &shared.join("group")))
            .code(4)
            .last_line_has(&["EISDIR", "subPath"]);
        go(&mut install(&shared))
            .code(4)
            .last_line_has(&["EISDIR", "subPath"]);
        assert_eq!(names(&shared), ["group", BINARY]);
    });
}

/// On a file system without O_TMPFILE a random name is used.
#[test]
fn outputs_are_written_without_o_tmpfile() {
    in_namespace(|| {
        let scene = Scene::new();
        scene.host.dir(RULES);
        let shared = volume("volume");
        let mut cmd = scene.apply();
        go(without_tmpfile(cmd.arg("--persist"))).code(0);
        assert_eq!(scene.pod.read("etc/group"), ALIGNED);
        assert_eq!(names(&scene.host.at(RULES)), ["99-libvirt-kvm-init.rules"]);
        go(without_tmpfile(&mut to(&scene, &shared.join("group")))).code(0);
        go(without_tmpfile(&mut install(&shared))).code(0);
        assert_eq!(names(&shared), ["group", BINARY]);
        assert_eq!(owner(&shared.join("group")), (0, 0, 0o644));
        assert_eq!(owner(&shared.join(BINARY)), (0, 0, 0o755));
        assert_eq!(
            names(&scene.pod.at("etc")),
            [".pwd.lock", "group", "libvirt", "passwd"]
        );
    });
}

/// Makes openat(2) with `O_TMPFILE` fail as on a file system without it.
fn without_tmpfile(cmd: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    let code = |op: u32| u16::try_from(op).unwrap();
    let step = |op: u32, k: u32, jt, jf| libc::sock_filter {
        code: code(op),
        jt,
        jf,
        k,
    };
    let word = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let number = u32::try_from(libc::SYS_openat).unwrap();
    // The bit of O_TMPFILE that is not in O_DIRECTORY.
    let bit = u32::try_from(libc::O_TMPFILE & !libc::O_DIRECTORY).unwrap();
    let answer = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EOPNOTSUPP).unwrap();
    let filter = [
        step(word, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number, 0, 3),
        // The third argument's lower half.
        step(word, 32, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, bit, 0, 1),
        step(libc::BPF_RET | libc::BPF_K, answer, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let install = move || {
        let program = libc::sock_fprog {
            len: 6,
            filter: filter.as_ptr().cast_mut(),
        };
        let mode = libc::SECCOMP_MODE_FILTER;
        // SAFETY: the program outlives the call, which copies it.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: one system call, no allocation.
    unsafe { cmd.pre_exec(install) }
}

/// As in the sidecar: all is read-only except the file that the libvirt container has mounted.
#[test]
fn single_mounted_file_is_written_without_a_lock() {
    in_namespace(|| {
        let scene = Scene::settled();
        scene
            .pod
            .file("run/source", "root:x:0:\n")
            .file("run/own/group", "");
        let directory = scene.pod.at("run/own");
        bind_read_only(&directory.clone(), &directory);
        let (source, out) = (scene.pod.at("run/source"), directory.join("group"));
        bind(&source, &out);
        let was = inode(&source);
        at_once(&mut to(&scene, &out));
        assert_eq!(fs::read_to_string(&source).unwrap(), ALIGNED);
        assert_eq!(
            (inode(&source), names(&directory)),
            (was, vec!["group".to_owned()])
        );
    });
}

/// Without a lock the change of another process since the read is not lost.
#[test]
fn file_changed_since_the_read_is_not_overwritten() {
    in_namespace(|| {
        let (file, source) = (scratch().join("group"), scratch().join("source"));
        fs::write(&file, "").unwrap();
        fs::write(&source, "root:x:0:\n").unwrap();
        bind(&source, &file);
        let (directory, name) = open_output(&file, Purpose::Write).unwrap();
        let found = directory.find(&name).unwrap();
        let write = |base: &str| {
            let base = Some(base.as_bytes());
            directory.replace(
                &name,
                found.as_ref(),
                base,
                b"new:x:1:\n",
                OwnerAndMode::Kept,
            )
        };
        fs::write(&source, "root:x:0:\nlater:x:7:\n").unwrap();
        assert_eq!(write("root:x:0:\n").unwrap_err().errno, CHANGED);
        assert_eq!(
            fs::read_to_string(&source).unwrap(),
            "root:x:0:\nlater:x:7:\n"
        );
        write("root:x:0:\nlater:x:7:\n").unwrap();
        assert_eq!(fs::read_to_string(&source).unwrap(), "new:x:1:\n");
        // After a rename the name belongs to another file.
        let other = scratch().join("other");
        fs::write(&other, "root:x:0:\n").unwrap();
        let (directory, name) = open_output(&other, Purpose::Write).unwrap();
        let found = directory.find(&name).unwrap();
        fs::write(scratch().join("next"), "next:x:7:\n").unwrap();
        fs::rename(scratch().join("next"), &other).unwrap();
        let done = directory.replace(
            &name,
            found.as_ref(),
            None,
            b"new:x:1:\n",
            OwnerAndMode::Kept,
        );
        let error = done.unwrap_err().to_string();
        assert!(
            error.contains("which another process replaced during the run: EXDEV"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&other).unwrap(), "next:x:7:\n");
        assert_eq!(names(&scratch()), ["group", "other", "source"]);
    });
}

/// Run by another user in that user's directory: the error names the missing privilege.
#[test]
fn install_into_a_users_own_directory_fails_at_fchown() {
    use std::os::unix::process::CommandExt;
    in_namespace(|| {
        let own = scratch().join("own");
        fs::create_dir(&own).unwrap();
        set_owner(&own, OTHER, OTHER, 0o755);
        let copy = crate::rights::reachable();
        let mut cmd = command(&copy, &["install"]);
        let run = go(cmd.arg(&own).uid(OTHER).gid(OTHER)).code(4);
        run.last_line_has(&["fchown", "EPERM", "as root"]);
        assert_eq!(names(&own), [""; 0]);
        assert_eq!(ok(&mut command(&copy, &["--version"])).lines().count(), 1);
    });
}
