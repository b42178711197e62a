//! `check` writes nothing, and reports advisory findings as warnings.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::rights::reachable;
use support::{
    KVM, Scene, Tree, command, detach, fresh_dev, go, in_namespace, make_read_only, mknod_kvm,
    program, report, require_commands, require_kvm, run, scratch, set_owner, state, warnings,
};

/// `check` for the scene's pod and node, started by a wrapper command.
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

/// Description, scene, further options, expected exit code.
type Case<'a> = (&'a str, fn() -> Scene, &'a [&'a str], i32);

/// Name and arguments of the system call in a line of strace's output.
fn call(line: &str) -> Option<(&str, &str)> {
    let (_pid, rest) = line.split_once(' ')?;
    rest.trim_start().split_once('(')
}

#[test]
fn check_writes_nothing_and_takes_no_lock() {
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
            ("everything right", Scene::settled, &[], 0),
            ("the incident", || Scene::with_device(0, 108, 0o660), &[], 1),
            ("device set by the chart", Scene::new, &[], 0),
            (
                "proof with a virtual machine",
                Scene::settled,
                &["--proof", "create-vm"],
                0,
            ),
            ("with an output", Scene::new, &["--group-file-out"], 1),
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
            assert_ne!(opener, main, "{what}: not opened by the proof's child");
        }
    });
}

#[test]
fn check_works_on_read_only_file_systems() {
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
fn check_needs_the_capabilities_setuid_and_setgid() {
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
            let ran = ran.last_line_has(&[
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

/// If the wrong file is in the container's private /dev, the advice must not remove the node's device.
#[test]
fn no_rm_advice_for_a_wrong_file_in_a_private_dev() {
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
            let ran = ran.last_line_has(&["mount the node's /dev at /dev"]);
            assert!(!ran.err.contains("rm"), "{ran}");
        }
    });
}

/// libvirt leaves the capabilities to a QEMU that runs as root. Without CAP_DAC_OVERRIDE this process cannot test its
/// access.
#[test]
fn missing_dac_override_is_not_reported_as_a_security_module() {
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
fn check_shows_private_and_node_device_and_apply_refuses() {
    in_namespace(|| {
        require_kvm();
        fresh_dev();
        let (host, pod) = (Tree::host(108), Tree::pod(108));
        mknod_kvm(Path::new(KVM), 0, 108, 0o666);
        mknod_kvm(&host.at("dev/kvm"), 0, 424, 0o660);
        let run =
            |command_name: &str| support::program_command(command_name, pod.path(), host.path());
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
fn advisory_findings_are_warnings_and_change_no_exit_code() {
    type Change = fn(&Scene);
    let table: [(&str, Change); 3] = [
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
        for (code, change) in table {
            // Without drift the exit code stays 0.
            let scene = Scene::settled();
            assert_eq!(warnings(&report(&mut check(&scene)).1), [""; 0]);
            change(&scene);
            let (exit, found) = report(&mut check(&scene));
            assert_eq!(
                (exit, warnings(&found)),
                (0, vec![code.to_owned()]),
                "{found}"
            );
            // With drift the exit code stays 1, except where the mode 0666 lets QEMU open the device.
            let scene = Scene::with_device(0, 108, 0o660);
            assert_eq!(report(&mut check(&scene)).0, 1);
            change(&scene);
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
fn report_shows_computed_permission_and_result_of_open() {
    in_namespace(|| {
        let scene = Scene::settled();
        for (mode, more, result, computed, line) in [
            (
                0o660,
                "api-version",
                "ok",
                "allowed",
                "mode allow access; open(2) succeeds",
            ),
            (
                0o600,
                "api-version",
                "EACCES",
                "denied",
                "mode deny access; open(2) fails: EACCES",
            ),
            (
                0o600,
                "off",
                "off",
                "denied",
                "mode deny access; open(2) was not tried",
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
fn npd_and_prometheus_formats_are_valid() {
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
                    "skipped: promtool is not installed; tests/pure/formats.rs checks the metrics"
                );
                continue;
            }
            let mut promtool = Command::new("promtool");
            promtool.args(["check", "metrics"]);
            let out = promtool.stdin(fs::File::open(&text).unwrap()).output();
            let out = out.unwrap();
            let output = [out.stdout, out.stderr].concat();
            let output = String::from_utf8_lossy(&output);
            assert!(out.status.success() && output.trim().is_empty(), "{output}");
        }
        let mut unknown = command(
            &program(),
            &["check", "--format", "npd", "--root", "/nowhere"],
        );
        assert_eq!(run(&mut unknown).0, 2);
    });
}

#[test]
fn dangling_link_in_run_causes_no_error() {
    in_namespace(|| {
        let scene = Scene::settled();
        scene.pod.dir("run");
        std::os::unix::fs::symlink("nscd", scene.pod.at("run/nscd")).unwrap();
        let (code, found) = report(&mut check(&scene));
        assert_eq!((code, warnings(&found)), (0, vec![]), "{found}");
    });
}

#[test]
fn warning_lists_at_most_five_members() {
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
        // With drift the closing line names the command only once.
        let scene = Scene::with_device(0, 108, 0o660);
        let ran = go(&mut check(&scene)).code(1);
        let last = ran.err.lines().last().unwrap();
        assert_eq!(last.matches("to repair it").count(), 1, "{last}");
    });
}

/// Without a device the QEMU user is not resolved, so it must not be listed among the other members of the group.
#[test]
fn absent_device_causes_no_warning_of_other_members() {
    in_namespace(|| {
        let scene = Scene::without_device();
        let (code, found) = report(&mut check(&scene));
        assert_eq!((code, warnings(&found)), (6, vec![]), "{found}");
    });
}

/// The exit code is that of the closing line, and 2 (unknown) for node-problem-detector.
#[test]
fn unwritable_report_sets_exit_code_and_closing_line() {
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

/// The command in the report can be pasted: it repeats the options of the run.
#[test]
fn command_in_the_report_repairs_the_drift() {
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
