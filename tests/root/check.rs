//! `check`: harmless wherever it runs, and what it only warns of.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::rights::reachable;
use support::{
    KVM, Scene, Tree, command, detach, fresh_dev, go, in_namespace, make_read_only, mknod_kvm,
    program, report, require_commands, require_kvm, run, scratch, set_owner, state, warnings,
};

/// `check` for this pod on this node, behind a wrapper.
fn behind(scene: &Scene, wrapper: &[&str]) -> Command {
    let program = reachable().display().to_string();
    let mut words = wrapper.to_vec();
    words.extend([program.as_str(), "check", "--root"]);
    let mut cmd = command(Path::new(words[0]), &words[1..]);
    cmd.arg(scene.pod.path());
    cmd.arg("--host-root").arg(scene.host.path());
    cmd
}

fn check(scene: &Scene) -> Command {
    behind(scene, &["env"])
}

/// What it is, the scene, more options, the exit code.
type Case<'a> = (&'a str, fn() -> Scene, &'a [&'a str], i32);

/// A system call's name and what it was called with, of a line that strace wrote.
fn call(line: &str) -> Option<(&str, &str)> {
    let (_pid, rest) = line.split_once(' ')?;
    rest.trim_start().split_once('(')
}

#[test]
fn nothing_is_written_and_no_lock_is_taken() {
    require_commands(&["strace"]);
    const NEVER: [&str; 16] = [
        "flock",
        "chmod",
        "chown",
        "setxattr",
        "removexattr",
        "rename",
        "unlink",
        "link",
        "mkdir",
        "rmdir",
        "mknod",
        "truncate",
        "fallocate",
        "utime",
        "mount",
        "creat",
    ];
    in_namespace(|| {
        let table: [Case; 5] = [
            ("all is well", Scene::settled, &[], 0),
            ("the incident", || Scene::with_device(0, 108, 0o660), &[], 1),
            ("the chart has taken the device", Scene::new, &[], 0),
            (
                "a new machine too",
                Scene::settled,
                &["--proof", "create-vm"],
                0,
            ),
            ("another group file", Scene::new, &["--group-file-out"], 1),
        ];
        for (what, scene, more, want) in table {
            let scene = scene();
            let (trace, out) = (scratch().join("trace"), scratch().join("out"));
            let trace = trace.to_str().unwrap();
            let mut cmd = behind(&scene, &["strace", "-f", "-q", "-o", trace]);
            cmd.args(more);
            if more.contains(&"--group-file-out") {
                cmd.arg(&out);
            }
            let before = scene.state();
            let ran = go(&mut cmd).code(want);
            assert_eq!(scene.state(), before, "{what}");
            assert!(!out.exists(), "{what}");
            let calls = fs::read_to_string(trace).unwrap();
            let mut writable = Vec::new();
            for line in calls.lines() {
                let Some((name, args)) = call(line) else {
                    continue;
                };
                let reads = name.starts_with("readlink");
                let never = NEVER.iter().find(|never| !reads && name.contains(*never));
                assert!(never.is_none(), "{what}: {line}\n{ran}");
                assert!(!args.contains("SETLK"), "{what}: {line}");
                let writes = ["O_RDWR", "O_WRONLY", "O_CREAT", "O_TRUNC"];
                if name.contains("open") && writes.iter().any(|flag| args.contains(flag)) {
                    writable.push(line);
                }
            }
            let main = calls.split_whitespace().next().unwrap();
            let [opened] = writable[..] else {
                panic!("{what}: {writable:?}");
            };
            assert!(opened.contains("\"/dev/kvm\", O_RDWR"), "{what}: {opened}");
            let opener = opened.split_whitespace().next().unwrap();
            assert_ne!(opener, main, "{what}: only the proof's child opens it");
        }
    });
}

#[test]
fn read_only_file_systems_make_no_difference() {
    let table: [(fn() -> Scene, i32); 2] = [
        (Scene::settled, 0),
        (|| Scene::with_device(0, 108, 0o660), 1),
    ];
    for (scene, code) in table {
        in_namespace(|| {
            let scene = scene();
            let writable = report(&mut check(&scene));
            assert_eq!(writable.0, code, "{}", writable.1);
            let device = scene.host.at("dev");
            let scratch = scratch();
            for place in [Path::new("/"), Path::new("/dev"), &scratch, &device] {
                make_read_only(place);
            }
            for file in ["/new", "/dev/new", &format!("{}/new", scratch.display())] {
                let error = fs::write(file, "").unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{file}");
            }
            assert_eq!(report(&mut check(&scene)), writable);
        });
    }
}

#[test]
fn two_capabilities_are_enough_and_none_is_not() {
    require_commands(&["setpriv"]);
    in_namespace(|| {
        let scene = Scene::settled();
        let before = scene.state();
        let with = |bounding: &str| {
            let bounding = format!("--bounding-set={bounding}");
            behind(&scene, &["setpriv", "--inh-caps=-all", &bounding])
        };
        let (code, found) = report(&mut with("-all,+setuid,+setgid"));
        assert_eq!((code, &found["proof"]["result"]), (0, &"ok".into()));
        for too_few in ["-all,+setuid", "-all,+setgid", "-all"] {
            let ran = go(&mut with(too_few)).code(5);
            let ran = ran.says(&[
                "could not test whether",
                "EPERM",
                "CAP_SETUID",
                "CAP_SETGID",
            ]);
            assert!(ran.out.contains("open(2) was not tried"), "{ran}");
        }
        assert_eq!(scene.state(), before);
    });
}

/// What is wrong with the container's own /dev is nothing to remove from the node's.
#[test]
fn the_nodes_device_is_not_removed_for_what_a_container_has() {
    in_namespace(|| {
        let scene = Scene::settled();
        detach(&scene.host.at("dev"));
        mknod_kvm(&scene.host.at("dev/kvm"), 0, 108, 0o660);
        for make in [
            |at: &Path| fs::write(at, "").unwrap(),
            |at: &Path| fs::create_dir(at).unwrap(),
        ] {
            fs::remove_file(KVM).unwrap();
            make(Path::new(KVM));
            let ran = go(&mut check(&scene)).code(3);
            let ran = ran.says(&["mount the node's /dev at /dev"]);
            assert!(!ran.err.contains("rm"), "{ran}");
        }
    });
}

/// libvirt leaves root its capabilities; where this process lacks the one that counts, it could not ask.
#[test]
fn root_without_its_rights_is_no_security_module() {
    require_commands(&["setpriv"]);
    in_namespace(|| {
        let scene = Scene::with_device(1000, 1000, 0o600);
        let conf = "user = \"root\"\ngroup = \"kvm\"\n";
        scene.pod.file("etc/libvirt/qemu.conf", conf);
        assert_eq!(report(&mut check(&scene)).1["proof"]["result"], "ok");
        let few = "--bounding-set=-all,+setuid,+setgid";
        let (code, found) = report(&mut behind(&scene, &["setpriv", "--inh-caps=-all", few]));
        assert_eq!((code, &found["proof"]["cause"]), (5, &"unknown".into()));
        assert_eq!(found["proof"]["result"], "none", "{found}");
        let advice = found["proof"]["advice"].as_str().unwrap();
        assert!(advice.contains("CAP_DAC_OVERRIDE"), "{advice}");
    });
}

#[test]
fn a_private_dev_is_shown_beside_the_nodes_and_apply_refuses_it() {
    in_namespace(|| {
        require_kvm();
        fresh_dev();
        let (host, pod) = (Tree::host(108), Tree::pod(108));
        mknod_kvm(Path::new(KVM), 0, 108, 0o666);
        mknod_kvm(&host.at("dev/kvm"), 0, 424, 0o660);
        let run = |verb: &str| support::verb(verb, pod.path(), host.path());
        let before = state(&[host.path(), pod.path(), Path::new("/dev")]);
        let (code, found) = report(&mut run("check"));
        assert_eq!(code, 0, "{found}");
        assert_eq!(warnings(&found), ["private-device", "open-to-others"]);
        assert_eq!(found["device"]["same_inode_as_host"], false);
        assert_eq!(found["device"]["gid"], 108);
        assert_eq!(found["host"]["device"]["gid"], 424);
        let table = go(&mut run("check")).code(0).out;
        assert!(
            table.contains("0:424 0660") && table.contains("0:108 0666"),
            "{table}"
        );
        go(&mut run("apply")).code(3);
        assert_eq!(state(&[host.path(), pod.path(), Path::new("/dev")]), before);
    });
}

#[test]
fn what_is_odd_is_a_warning_and_changes_no_exit_code() {
    type Odd = fn(&Scene);
    let table: [(&str, Odd); 3] = [
        ("nscd-socket", |scene| {
            scene.pod.file("run/nscd/socket", "");
        }),
        ("open-to-others", |_| {
            set_owner(Path::new(KVM), 0, 108, 0o666)
        }),
        ("other-members", |scene| {
            let file = scene
                .pod
                .read("etc/group")
                .replace(":nova\n", ":nova,ada,bob\n");
            scene.pod.file("etc/group", &file);
        }),
    ];
    in_namespace(|| {
        for (code, odd) in table {
            // All is well, with it and without it.
            let scene = Scene::settled();
            assert_eq!(warnings(&report(&mut check(&scene)).1), [""; 0]);
            odd(&scene);
            let (exit, found) = report(&mut check(&scene));
            assert_eq!(
                (exit, warnings(&found)),
                (0, vec![code.to_owned()]),
                "{found}"
            );
            // And nothing is well.
            let scene = Scene::with_device(0, 108, 0o660);
            assert_eq!(report(&mut check(&scene)).0, 1);
            odd(&scene);
            let want = i32::from(code != "open-to-others");
            let (exit, found) = report(&mut check(&scene));
            assert_eq!(exit, want, "{found}");
            assert!(
                warnings(&found).iter().any(|found| found == code),
                "{found}"
            );
        }
    });
}

#[test]
fn the_computed_permission_stands_beside_what_open_said() {
    in_namespace(|| {
        let scene = Scene::settled();
        for (mode, more, result, computed, line) in [
            (
                0o660,
                "api-version",
                "ok",
                "allowed",
                "mode allow it; open(2) succeeds",
            ),
            (
                0o600,
                "api-version",
                "EACCES",
                "denied",
                "mode deny it; open(2) fails: EACCES",
            ),
            (
                0o600,
                "off",
                "off",
                "denied",
                "mode deny it; open(2) was not tried",
            ),
        ] {
            set_owner(Path::new(KVM), 0, 108, mode);
            let (_, found) = report(check(&scene).args(["--proof", more]));
            assert_eq!(found["proof"]["result"], result, "{found}");
            assert_eq!(found["proof"]["computed"], computed, "{found}");
            let ran = go(check(&scene).args(["--proof", more]));
            assert!(ran.out.contains(line), "{ran}");
        }
    });
}

#[test]
fn monitors_get_what_they_can_read() {
    in_namespace(|| {
        for (scene, problem) in [
            (Scene::settled(), 0),
            (Scene::with_device(0, 108, 0o660), 1),
        ] {
            let ran = run(check(&scene).args(["--format", "npd"]));
            assert_eq!(ran.0, problem, "{ran:?}");
            assert!(ran.1.len() <= 81 && ran.1.lines().count() == 1, "{ran:?}");
            let ran = run(check(&scene).args(["--format", "prometheus"]));
            assert_eq!(ran.0, problem, "{ran:?}");
            let text = scratch().join("metrics");
            fs::write(&text, &ran.1).unwrap();
            let path = std::env::var_os("PATH").unwrap_or_default();
            if !std::env::split_paths(&path).any(|dir| dir.join("promtool").is_file()) {
                println!(
                    "promtool is not installed: only the checker of tests/pure/formats.rs ran"
                );
                continue;
            }
            let mut promtool = Command::new("promtool");
            promtool.args(["check", "metrics"]);
            let out = promtool.stdin(fs::File::open(&text).unwrap()).output();
            let out = out.unwrap();
            let said = [out.stdout, out.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(out.status.success() && said.trim().is_empty(), "{said}");
        }
        let mut unknown = command(
            &program(),
            &["check", "--format", "npd", "--root", "/nowhere"],
        );
        assert_eq!(run(&mut unknown).0, 2);
    });
}

#[test]
fn a_run_folder_that_leads_nowhere_hides_nothing() {
    in_namespace(|| {
        let scene = Scene::settled();
        scene.pod.dir("run");
        std::os::unix::fs::symlink("nscd", scene.pod.at("run/nscd")).unwrap();
        let (code, found) = report(&mut check(&scene));
        assert_eq!((code, warnings(&found)), (0, vec![]), "{found}");
    });
}

#[test]
fn of_very_many_members_a_few_are_named() {
    in_namespace(|| {
        let scene = Scene::settled();
        let names: Vec<_> = (0..3000).map(|number| format!("user{number}")).collect();
        let members = format!("nova,{}\n", names.join(","));
        let file = scene.pod.read("etc/group").replace("nova\n", &members);
        scene.pod.file("etc/group", &file);
        let (code, found) = report(&mut check(&scene));
        assert_eq!(
            (code, warnings(&found)),
            (0, vec!["other-members".to_owned()])
        );
        let text = found["warnings"][0]["text"].as_str().unwrap();
        assert!(text.contains("user4 and 2995 more;"), "{text}");
        // Where something is wrong the last line says everything once.
        let scene = Scene::with_device(0, 108, 0o660);
        let ran = go(&mut check(&scene)).code(1);
        let last = ran.err.lines().last().unwrap();
        assert_eq!(last.matches("to repair it").count(), 1, "{last}");
    });
}

/// Whoever is the QEMU user, nobody can say where there is nothing to prove.
#[test]
fn the_qemu_user_is_not_among_the_others() {
    in_namespace(|| {
        let scene = Scene::without_device();
        let (code, found) = report(&mut check(&scene));
        assert_eq!((code, warnings(&found)), (6, vec![]), "{found}");
    });
}

/// The exit code is that of the last line, and the one that the monitor knows.
#[test]
fn a_report_that_cannot_be_written_is_the_last_word() {
    in_namespace(|| {
        let scene = Scene::with_device(0, 108, 0o660);
        for (format, code) in [("table", 4), ("json", 4), ("prometheus", 4), ("npd", 2)] {
            let full = fs::File::options().write(true).open("/dev/full").unwrap();
            let mut cmd = check(&scene);
            cmd.args(["--format", format]).stdout(full);
            let ran = cmd
                .stdin(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let out = ran.wait_with_output().unwrap();
            let out = (
                out.status.code().unwrap(),
                String::from_utf8_lossy(&out.stderr).into_owned(),
            );
            assert_eq!(out.0, code, "{format}: {}", out.1);
            let last = out.1.lines().last().unwrap();
            assert!(last.contains("write(stdout)"), "{format}: {}", out.1);
        }
    });
}

/// The command that a report names is one to paste: it has the flags that were given.
#[test]
fn the_command_that_is_named_mends_it() {
    in_namespace(|| {
        let conf = scratch().join("it's qemu.conf");
        fs::write(&conf, "user = \"nova\"\ngroup = \"virt\"\n").unwrap();
        let conf = format!("--qemu-conf={}", conf.display());
        let options = ["--group=virt", "--gid=501", "--qemu-user=+42424", &conf];
        for more in [&[][..], &options, &["--persist"]] {
            let scene = Scene::with_device(0, 108, 0o660);
            scene.host.dir("etc/udev/rules.d");
            let check = || {
                let mut cmd = check(&scene);
                cmd.args(more);
                cmd
            };
            let (code, found) = report(&mut check());
            assert_eq!(code, 1, "{found}");
            let text = found["summary"].as_str().unwrap();
            let named = text.split('`').find(|part| part.contains("apply"));
            let named = named.unwrap_or_else(|| panic!("{found:#}"));
            assert!(named.contains(" --host-root="), "{found:#}");
            let advice = found["proof"]["advice"].as_str().unwrap();
            let same = advice.contains(&format!("`{named}`"));
            assert!(same || !advice.contains("kvm-init apply"), "{found:#}");
            let line = named.replace("libvirt-kvm-init", "\"$0\"");
            let mut shell = Command::new("sh");
            go(shell.args(["-c", &line]).arg(program())).code(0);
            go(&mut check()).code(0);
        }
    });
}
