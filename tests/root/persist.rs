//! `--persist`: the rules file on the node, and the cases in which the run is refused before it changes anything.
//! tests/kvm/persist.rs applies the file with a real udevd.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, umask};

use crate::place::{Jail, require_initial_pid_namespace};
use support::holders::lock;
use support::{
    ALIGNED, KVM, Run, Scene, Tree, bind, bind_read_only, command, fresh_dev, go, in_namespace,
    make_read_only, mknod_kvm, names, ok, owner, program, report, require_commands, run, state,
    warnings,
};

const RULES: &str = "etc/udev/rules.d";
const OWN: &str = "etc/udev/rules.d/99-libvirt-kvm-init.rules";
/// The lock file of this program's runs.
const LOCK: &str = "etc/udev/rules.d/.libvirt-kvm-init.lock";
const STOCK: &str = "usr/lib/udev/rules.d/50-udev-default.rules";
const DEBIAN: &str =
    "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";
const RULE: &str = "SUBSYSTEM==\"misc\", KERNEL==\"kvm\", OWNER=\"0\", GROUP=\"108\", MODE=\"0660\", \
    OPTIONS+=\"static_node=kvm\"\n";

/// The incident on a node whose udev has no rule for kvm.
fn scene() -> Scene {
    let scene = Scene::new();
    scene.host.dir(RULES);
    scene
}

fn persist(scene: &Scene) -> Command {
    let mut cmd = scene.apply();
    cmd.arg("--persist");
    cmd
}

/// Asserts that the run is refused with these words and changes nothing.
#[track_caller]
fn refused(scene: &Scene, cmd: &mut Command, parts: &[&str]) -> Run {
    let before = scene.state();
    let run = go(cmd.arg("--format=json")).code(3);
    assert_eq!(scene.state(), before, "{run}");
    assert_eq!(run.json()["changes"], serde_json::json!([]), "{run}");
    run.last_line_has(&["refused: --persist: "])
        .last_line_has(parts)
}

/// Checks owner, mode and comments of the rules file, and returns its rule.
#[track_caller]
fn rule(host: &Tree) -> String {
    assert_eq!(owner(&host.at(OWN)), (0, 0, 0o644));
    assert_eq!(names(&host.at(RULES)), ["99-libvirt-kvm-init.rules"]);
    let text = host.read(OWN);
    let (comment, rule): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('#'));
    assert!(comment.len() == 3 && rule.len() == 1, "{text}");
    format!("{}\n", rule[0])
}

#[test]
fn rules_file_is_written_once_and_only_with_persist() {
    in_namespace(|| {
        let scene = scene();
        go(&mut scene.apply()).code(0);
        assert_eq!(names(&scene.host.at(RULES)), [""; 0]);
        // The umask has no effect on the mode.
        let old = umask(Mode::from_bits_truncate(0o077));
        let run = go(persist(&scene).args(["--format", "json"])).code(0);
        umask(old);
        let log = "info: write-udev-rule /etc/udev/rules.d/99-libvirt-kvm-init.rules\ninfo: udevd applies \
                    the rule after at most 3 s";
        assert!(run.err.contains(log), "{run}");
        let report = run.json();
        let change = serde_json::json!([{
            "action": "write-udev-rule",
            "from": null,
            "to": "/etc/udev/rules.d/99-libvirt-kvm-init.rules",
            "applied": true,
        }]);
        assert_eq!(report["changes"], change);
        for event in ["start", "add", "change"] {
            let predicted = &report["host"]["udev"][event];
            assert_eq!(predicted["gid"], 108, "{report}");
            assert_eq!(predicted["mode"], "0660", "{report}");
        }
        assert_eq!(rule(&scene.host), RULE);
        // With nothing to do the run also succeeds on a read-only node.
        bind_read_only(scene.host.path(), scene.host.path());
        bind(Path::new("/dev"), &scene.host.at("dev"));
        let before = scene.state();
        go(&mut persist(&scene)).code(0);
        go(&mut scene.apply()).code(0);
        assert_eq!(scene.state(), before);
    });
}

#[test]
fn persist_works_as_option_variable_and_key_but_not_in_a_dry_run() {
    in_namespace(|| {
        let scene = scene();
        let before = scene.state();
        let yaml = scene.pod.at("config.yaml");
        for dry in ["--dry-run", "--dry-run=true"] {
            let (code, report) = report(persist(&scene).arg(dry));
            assert_eq!(code, 1, "{report}");
            let changes = report["changes"].as_array().unwrap();
            let actions: Vec<_> = changes.iter().map(|change| &change["action"]).collect();
            // The group file, the device, the rule.
            let want = ["set-group-gid", "set-device-owner", "write-udev-rule"];
            assert_eq!(actions, want, "{report}");
            assert!(changes.iter().all(|change| change["applied"] == false));
        }
        assert_eq!(scene.state(), before);
        type Way<'a> = &'a dyn Fn(&mut Command);
        let ways: [Way<'_>; 3] = [
            &|cmd| {
                cmd.arg("--persist");
            },
            &|cmd| {
                cmd.env("LIBVIRT_KVM_INIT_PERSIST", "yes");
            },
            &|cmd| {
                fs::write(&yaml, "persist: true\n").unwrap();
                cmd.arg("--config").arg(&yaml);
            },
        ];
        for way in ways {
            let _ = fs::remove_file(scene.host.at(OWN));
            let mut cmd = scene.apply();
            way(&mut cmd);
            go(&mut cmd).code(0);
            assert_eq!(rule(&scene.host), RULE);
        }
    });
}

#[test]
fn check_reports_a_missing_rule_if_the_next_event_denies_qemu() {
    in_namespace(|| {
        let scene = Scene::settled();
        scene.host.dir(RULES);
        let check = |more: &[&str]| {
            let mut check = command(&program(), &["check"]);
            check.args(scene.apply().get_args().skip(1)).args(more);
            go(&mut check)
        };
        check(&[]).code(0);
        check(&["--persist"]).code(1).last_line_has(&[
            "drift: ",
            "a module reload or reboot (no udev rule matches it) will set it to 0:0 0600",
            "`libvirt-kvm-init apply --persist --",
            "` to write a udev rule that prevents it",
        ]);
        go(&mut persist(&scene)).code(0);
        check(&["--persist"]).code(0);
        // A rule that `apply` cannot override without --persist.
        scene.host.file(STOCK, &DEBIAN.replace("0660", "0640"));
        fs::remove_file(scene.host.at(OWN)).unwrap();
        check(&[]).code(1).last_line_has(&[
            "0:108 0640",
            "change the rule on the node",
            "apply --persist",
        ]);
        check(&["--persist"]).code(1).last_line_has(&[
            "0:108 0640",
            "`libvirt-kvm-init apply --persist --",
            "` to write a udev rule",
        ]);
        go(&mut persist(&scene)).code(0);
        for more in [&[][..], &["--persist"]] {
            check(more).code(0);
        }
    });
}

#[test]
fn read_only_node_is_refused_before_any_change() {
    in_namespace(|| {
        let scene = scene();
        // The container's mount of the node, as in charts.
        let mount = scene.pod.dir("node").at("node");
        bind(scene.host.path(), &mount);
        make_read_only(&mount);
        bind(Path::new("/dev"), &mount.join("dev"));
        let on_it = |how: &str| {
            let mut cmd = support::program_command("apply", scene.pod.path(), &mount);
            cmd.arg(how);
            cmd
        };
        refused(
            &scene,
            &mut on_it("--persist"),
            &["read-only here", "/etc/udev/rules.d", "writable"],
        );
        // With the mount that the advice names it works.
        bind(&scene.host.at(RULES), &mount.join(RULES));
        go(&mut on_it("--persist")).code(0);
        assert_eq!(rule(&scene.host), RULE);
        assert_eq!(scene.pod.read("etc/group"), ALIGNED);
        // Without --persist a read-only node is accepted.
        fs::remove_file(scene.host.at(OWN)).unwrap();
        make_read_only(&mount.join(RULES));
        refused(&scene, &mut on_it("--persist"), &["read-only here"]);
        go(&mut on_it("--persist=false")).code(0);
    });
}

#[test]
fn persist_without_a_host_root_is_refused() {
    in_namespace(|| {
        let pod = Jail::new(Tree::pod(424));
        let before = state(&[&pod.tree.at("etc"), &pod.tree.at("dev")]);
        let mut cmd = pod.on_the_node("/kvm-init", &["apply", "--persist"]);
        cmd.env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
        let run = go(&mut cmd).code(3);
        let run =
            run.last_line_has(&["refused: --persist: ", "cannot read the node's file system"]);
        let after = state(&[&pod.tree.at("etc"), &pod.tree.at("dev")]);
        assert_eq!(after, before, "{run}");
    });
}

/// The run is killed before an fchmod(2) of the new directory, if it makes that call.
#[test]
fn rules_directory_made_by_a_killed_run_has_mode_0755() {
    require_commands(&["strace"]);
    in_namespace(|| {
        let scene = Scene::new();
        scene.host.dir("etc/udev");
        let apply = persist(&scene);
        let kill = [
            "-qq",
            "-e",
            "inject=fchmod:signal=KILL:when=1",
            "-o",
            "/dev/null",
        ];
        let mut cmd = command(Path::new("strace"), &kill);
        cmd.args(["-P"]).arg(scene.host.at(RULES));
        let (code, _, err) = run(cmd.arg(apply.get_program()).args(apply.get_args()));
        assert!([0, 137].contains(&code), "{code}: {err}");
        assert_eq!(owner(&scene.host.at(RULES)), (0, 0, 0o755));
    });
}

/// A default ACL of the parent directory replaces the umask (acl(5)).
#[test]
fn rules_directory_below_a_default_acl_has_mode_0755() {
    require_commands(&["setfacl"]);
    in_namespace(|| {
        let scene = Scene::new();
        scene.host.dir("etc/udev");
        let mut acl = Command::new("setfacl");
        acl.args(["-d", "-m", "u::rwx,g::-,o::-"]);
        ok(acl.arg(scene.host.at("etc/udev")));
        go(&mut persist(&scene)).code(0);
        assert_eq!(owner(&scene.host.at(RULES)), (0, 0, 0o755));
    });
}

#[test]
fn rules_directory_is_made_only_in_an_existing_etc_udev() {
    in_namespace(|| {
        let scene = Scene::new();
        refused(
            &scene,
            &mut persist(&scene),
            &["mkdir -p /etc/udev/rules.d"],
        );
        scene.host.dir("etc/udev");
        let old = umask(Mode::from_bits_truncate(0o077));
        let run = go(&mut persist(&scene));
        umask(old);
        run.code(0);
        assert_eq!(owner(&scene.host.at(RULES)), (0, 0, 0o755));
        assert_eq!(rule(&scene.host), RULE);
        // A link is resolved below the host root.
        for to in ["/srv/rules", "../../srv/rules"] {
            scene.host.dir("srv/rules");
            fs::remove_dir_all(scene.host.at(RULES)).unwrap_or_else(|_| {
                fs::remove_file(scene.host.at(RULES)).unwrap();
            });
            symlink(to, scene.host.at(RULES)).unwrap();
            go(&mut persist(&scene)).code(0);
            fs::remove_file(scene.host.at("srv/rules/99-libvirt-kvm-init.rules")).unwrap();
        }
        assert!(!Path::new("/srv/rules").exists());
    });
}

#[test]
fn persist_does_not_overwrite_foreign_rule_file() {
    in_namespace(|| {
        let scene = scene();
        let own = scene.host.at(OWN);
        scene.host.file("victim", "untouched\n");
        type Put<'a> = (&'a str, &'a dyn Fn());
        let table: [Put<'_>; 6] = [
            ("a symbolic link", &|| symlink("/dev/null", &own).unwrap()),
            ("a symbolic link", &|| {
                symlink(scene.host.at("victim"), &own).unwrap()
            }),
            ("a directory", &|| fs::create_dir(&own).unwrap()),
            ("an empty file", &|| fs::write(&own, "").unwrap()),
            ("a file that this program did not write", &|| {
                fs::write(&own, "KERNEL==\"kvm\", MODE=\"0600\"\n").unwrap();
            }),
            ("a fifo", &|| {
                nix::unistd::mkfifo(&own, Mode::S_IRWXU).unwrap()
            }),
        ];
        for (what, put) in table {
            put();
            refused(
                &scene,
                &mut persist(&scene),
                &[what, "not overwritten", "remove it"],
            );
            fs::remove_file(&own).unwrap_or_else(|_| fs::remove_dir(&own).unwrap());
        }
        // An edited file of another version is replaced, because its rule is not sufficient.
        let old = "# Written by libvirt-kvm-init, long ago\nKERNEL==\"kvm\", GROUP=\"5\"\n";
        scene.host.file(OWN, old);
        let (code, report) = report(&mut persist(&scene));
        assert_eq!(code, 0, "{report}");
        let changes = report["changes"].as_array().unwrap();
        let rules = |change: &&serde_json::Value| change["action"] == "write-udev-rule";
        let change = changes.iter().find(rules).unwrap();
        assert_eq!(change["from"], "other content", "{report}");
        assert_eq!(rule(&scene.host), RULE);
    });
}

#[test]
fn rule_that_the_nodes_systemd_would_drop_is_refused() {
    in_namespace(|| {
        let scene = scene();
        let library = |version: u32| {
            let _ = fs::remove_dir_all(scene.host.at("usr/lib/systemd"));
            let name = format!("usr/lib/systemd/libsystemd-shared-{version}.so");
            scene.host.file(&name, "");
        };
        let with_gid = |gid: u32| {
            let mut cmd = persist(&scene);
            cmd.arg(format!("--gid={gid}"));
            cmd
        };
        refused(
            &scene,
            &mut with_gid(929_292),
            &[
                "cannot determine the node's systemd version",
                "usr/lib",
                "1 to 999",
            ],
        );
        for version in [258, 259] {
            library(version);
            let parts = [
                &format!("systemd {version} ignores"),
                "929292",
                "1 to 999",
                "--gid",
            ];
            refused(&scene, &mut with_gid(929_292), &parts);
        }
        scene.host.file("etc/login.defs", "SYS_GID_MAX 499\n");
        refused(&scene, &mut with_gid(500), &["1 to 499"]);
        go(&mut with_gid(499)).code(0);
        for version in [252, 257, 260] {
            library(version);
            let _ = fs::remove_file(scene.host.at(OWN));
            go(&mut with_gid(929_292)).code(0);
            assert!(rule(&scene.host).contains("GROUP=\"929292\""), "{version}");
        }
    });
}

#[test]
fn persist_on_a_bare_node_writes_only_rule_and_device() {
    in_namespace(|| {
        require_initial_pid_namespace();
        let node = Jail::new(Tree::host(108));
        node.tree.dir(RULES);
        let group = state(&[&node.tree.at("etc/group")]);
        let apply = |more: &[&str]| {
            let args = [&["apply", "--persist"], more].concat();
            report(&mut node.on_the_node("/kvm-init", &args))
        };
        let (code, report) = apply(&["--gid=500"]);
        assert_eq!(code, 0, "{report}");
        assert_eq!(owner(&node.tree.at("dev/kvm")), (0, 500, 0o660));
        assert!(rule(&node.tree).contains("GROUP=\"500\""));
        assert_eq!(state(&[&node.tree.at("etc/group")]), group);
        let (code, report) = apply(&["--gid=500"]);
        assert_eq!(
            (code, &report["changes"]),
            (0, &serde_json::json!([])),
            "{report}"
        );
        assert_eq!(
            warnings(&report),
            ["disagreement", "limited-proof"],
            "{report}"
        );
    });
}

#[test]
fn no_rule_is_written_for_a_private_device_or_without_kvm() {
    in_namespace(|| {
        let scene = Scene::without_device();
        nix::mount::umount(&scene.host.at("dev")).unwrap();
        mknod_kvm(&scene.host.at("dev/kvm"), 0, 108, 0o660);
        scene.host.dir(RULES);
        mknod_kvm(Path::new(KVM), 0, 0, 0o600);
        let (code, report) = report(persist(&scene).arg("--device=/dev/kvm"));
        assert_eq!(code, 0, "{report}");
        assert!(warnings(&report).contains(&"private-device".to_owned()));
        assert_eq!(names(&scene.host.at(RULES)), [""; 0]);
        // No rule is written without KVM either.
        fresh_dev();
        fs::remove_file(scene.host.at("dev/kvm")).unwrap();
        go(&mut persist(&scene)).code(6);
        go(persist(&scene).arg("--missing=skip")).code(0);
        assert_eq!(names(&scene.host.at(RULES)), [""; 0]);
    });
}

#[test]
fn concurrent_persist_runs_succeed_and_a_held_lock_fails() {
    in_namespace(|| {
        let scene = scene();
        let spawn = |_| {
            let mut cmd = persist(&scene);
            cmd.stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let runs: Vec<_> = (0..16).map(spawn).collect();
        for run in runs {
            let out = run.wait_with_output().unwrap();
            let err = String::from_utf8_lossy(&out.stderr).into_owned();
            assert_eq!(out.status.code(), Some(0), "{err}");
        }
        assert_eq!(rule(&scene.host), RULE);
        // A run with nothing to write does not wait for the lock.
        let lock = lock(&scene.host.at(LOCK)).unwrap();
        go(&mut persist(&scene)).code(0);
        let run = go(persist(&scene).arg("--gid=500")).code(4);
        let held = "/.libvirt-kvm-init.lock, F_OFD_SETLK) for 10 s";
        run.last_line_has(&["failed: --persist: fcntl(", held, "lslocks"]);
        // The rule is written last: guests can start until the node's next event.
        assert_eq!(owner(Path::new(KVM)), (0, 500, 0o660));
        assert!(scene.host.read(OWN).ends_with(RULE));
        drop(lock);
        go(persist(&scene).arg("--gid=500")).code(0);
        assert!(
            !scene.host.at(LOCK).exists(),
            "the lock file is left although no run holds it"
        );
    });
}

/// A killed run leaves the old file or the new one, and no other rules file beside it.
#[test]
fn killed_persist_leaves_old_or_new_rules_file() {
    in_namespace(|| {
        let scene = scene();
        let apply = |gid: &str| {
            let mut cmd = persist(&scene);
            cmd.args([gid, "--proof=off"]);
            cmd
        };
        let start = Instant::now();
        go(&mut apply("--gid=500")).code(0);
        let whole = start.elapsed();
        let new = scene.host.read(OWN);
        go(&mut apply("--gid=501")).code(0);
        let old = scene.host.read(OWN);
        let (mut olds, mut news) = (0, 0);
        const RUNS: u32 = 300;
        for n in 0..RUNS {
            fs::write(scene.host.at(OWN), &old).unwrap();
            let mut cmd = apply("--gid=500");
            let cmd = cmd.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = cmd.spawn().unwrap();
            sleep(whole * (n * 37 % RUNS) / RUNS);
            let _ = child.kill();
            child.wait().unwrap();
            match scene.host.read(OWN) {
                text if text == old => olds += 1,
                text if text == new => news += 1,
                text => panic!("neither old nor new: {text}"),
            }
            let rules: Vec<PathBuf> = names(&scene.host.at(RULES))
                .into_iter()
                .filter(|name| name.ends_with(".rules"))
                .map(PathBuf::from)
                .collect();
            assert_eq!(rules.len(), 1, "{rules:?}");
        }
        assert!(olds > 0 && news > 0, "{olds} old, {news} new");
        sleep(Duration::from_millis(1));
        go(&mut apply("--gid=500")).code(0);
        go(&mut apply("--gid=501")).code(0);
        assert!(rule(&scene.host).contains("GROUP=\"501\""));
    });
}
