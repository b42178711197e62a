//! Tests `apply --persist` with a real systemd-udevd. After a rule is written, every event leaves the device in the
//! target state and QEMU can open it. If another rule would override ours, nothing is changed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use libvirt_kvm_init::codes::{Action, WarningCode};
use libvirt_kvm_init::report::Report;

use crate::udevd::{
    DEBIAN, DEFAULTS, FEDORAS, GENESTACKS, KOLLA_ALONE, KOLLAS, NONE, P108, P424, PINNED, Rules,
    install, live_through, pod, run, run_more, set_device, warns, who, with_udevd,
};
use support::Tree;
use support::udevd::{Oracle, State, shown, state};

use support::rule_sets::{GENESTACK, K};

const OWN: &str = "/etc/udev/rules.d/99-libvirt-kvm-init.rules";
const LATER: &str = "etc/udev/rules.d/zz.rules";
const EARLIER: &str = "etc/udev/rules.d/60-x.rules";
const IN_RUN: &str = "run/udev/rules.d/99-libvirt-kvm-init.rules";

/// The expected outcome of a run with `--persist`.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// No rule is written, and no udev event changes this GID.
    Needless(u32),
    /// A rule is written; after each event the device has owner 0, this GID and this mode.
    Rule(u32, u32),
    /// The run is refused with a message that contains these parts.
    Refused(&'static [&'static str]),
}

use Outcome::{Needless, Refused, Rule};

type Case = (&'static str, Rules, &'static [&'static str], Outcome);

const CASES: [Case; 27] = [
    ("Debian", DEBIAN, &[], Needless(108)),
    (
        "Debian, another GID",
        DEBIAN,
        &["--gid=500"],
        Rule(500, 0o660),
    ),
    (
        "Debian, another mode",
        DEBIAN,
        &["--mode=0666"],
        Rule(108, 0o666),
    ),
    ("Fedora", FEDORAS, &[], Needless(108)),
    (
        "Fedora, another GID",
        FEDORAS,
        &["--gid=500"],
        Rule(500, 0o666),
    ),
    (
        "Fedora, the exact mode",
        FEDORAS,
        &["--mode=0660"],
        Rule(108, 0o660),
    ),
    ("Genestack", GENESTACKS, &[], Rule(929_292, 0o660)),
    (
        "Genestack, the node's group",
        GENESTACKS,
        &["--gid=108"],
        Rule(108, 0o660),
    ),
    ("kolla", KOLLAS, &[], Rule(42427, 0o660)),
    ("kolla without defaults", KOLLA_ALONE, &[], Needless(42427)),
    ("no rules", NONE, &[], Rule(108, 0o660)),
    (
        "a mode that QEMU cannot use",
        &[(DEFAULTS, "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0640\"\n")],
        &[],
        Rule(108, 0o660),
    ),
    (
        "another owner",
        &[(
            DEFAULTS,
            "KERNEL==\"kvm\", OWNER=\"nova\", GROUP=\"kvm\", OPTIONS+=\"static_node=kvm\"\n",
        )],
        &[],
        Rule(108, 0o660),
    ),
    (
        "a group that does not exist on the node",
        &[(
            DEFAULTS,
            "KERNEL==\"kvm\", GROUP=\"nosuch\", MODE=\"0666\"\n",
        )],
        &[],
        Rule(108, 0o666),
    ),
    (
        "an earlier rule with PROGRAM",
        &[
            (DEFAULTS, K),
            (
                EARLIER,
                "KERNEL==\"kvm\", PROGRAM==\"/bin/true\", GROUP=\"5\", MODE=\"0606\"\n",
            ),
        ],
        &["--gid=108"],
        Rule(108, 0o660),
    ),
    (
        "a file of that name in a directory of lower precedence",
        &[(DEFAULTS, K), (IN_RUN, "KERNEL==\"kvm\", GROUP=\"5\"\n")],
        &["--gid=108"],
        Rule(108, 0o660),
    ),
    (
        "a later rule for the same GID",
        &[(DEFAULTS, K), (LATER, "KERNEL==\"kvm\", GROUP=\"5\"\n")],
        &[],
        Rule(5, 0o660),
    ),
    (
        "a later rule",
        &[(DEFAULTS, K), (LATER, "KERNEL==\"kvm\", GROUP=\"5\"\n")],
        &["--gid=500"],
        Refused(&[
            "at an add event",
            "/etc/udev/rules.d/zz.rules:1",
            "0:5 0660",
        ]),
    ),
    (
        "a later rule for the mode",
        &[
            (DEFAULTS, K),
            (
                LATER,
                "ACTION==\"change\", KERNEL==\"kvm\", MODE=\"0600\"\n",
            ),
        ],
        &[],
        Refused(&[
            "at a change event",
            "/etc/udev/rules.d/zz.rules:1",
            "0:108 0600",
        ]),
    ),
    (
        "a later rule for the owner",
        &[(DEFAULTS, K), (LATER, "KERNEL==\"kvm\", OWNER=\"42424\"\n")],
        &[],
        Refused(&["/etc/udev/rules.d/zz.rules:1", "42424:108"]),
    ),
    (
        "a later static node",
        &[
            (DEFAULTS, K),
            (
                LATER,
                "ACTION==\"remove\", GROUP=\"5\", OPTIONS+=\"static_node=kvm\"\n",
            ),
        ],
        &[],
        Refused(&[
            "when udevd starts",
            "/etc/udev/rules.d/zz.rules:1",
            "0:5 0660",
        ]),
    ),
    (
        "a later rule with PROGRAM",
        &[
            (DEFAULTS, K),
            (
                LATER,
                "KERNEL==\"kvm\", PROGRAM==\"/bin/true\", GROUP=\"5\"\n",
            ),
        ],
        &[],
        Refused(&["is unknown", "/etc/udev/rules.d/zz.rules:1", "PROGRAM"]),
    ),
    (
        "a final group",
        &[(DEFAULTS, "KERNEL==\"kvm\", GROUP:=\"kvm\", MODE=\"0660\"\n")],
        &["--gid=500"],
        Refused(&["50-udev-default.rules:1", "0:108 0660", ":="]),
    ),
    (
        "a final mode",
        &[(DEFAULTS, "KERNEL==\"kvm\", GROUP=\"kvm\", MODE:=\"0640\"\n")],
        &[],
        Refused(&["50-udev-default.rules:1", "0:108 0640"]),
    ),
    (
        "a final group that is the right one",
        &[(DEFAULTS, "KERNEL==\"kvm\", GROUP:=\"kvm\", MODE=\"0640\"\n")],
        &[],
        Rule(108, 0o660),
    ),
    (
        "a file of another author",
        &[
            (DEFAULTS, K),
            (PINNED, GENESTACK),
            ("etc/udev/rules.d/99-libvirt-kvm-init.rules", "# mine\n"),
        ],
        &[],
        Refused(&[
            "99-libvirt-kvm-init.rules",
            "did not write",
            "not overwritten",
        ]),
    ),
    (
        "an empty file",
        &[
            (DEFAULTS, K),
            (PINNED, GENESTACK),
            ("etc/udev/rules.d/99-libvirt-kvm-init.rules", ""),
        ],
        &[],
        Refused(&["99-libvirt-kvm-init.rules", "empty", "not overwritten"]),
    ),
];

fn persist(more: &[&str], pod: &Tree) -> Report {
    run_more("apply", &[&["--persist"], more].concat(), pod)
}

fn own() -> Option<(String, u64, (i64, i64))> {
    let meta = fs::symlink_metadata(OWN).ok()?;
    let content = fs::read_to_string(OWN).unwrap();
    Some((content, meta.ino(), (meta.ctime(), meta.ctime_nsec())))
}

/// The rule changes in the report: from, to, applied.
fn written(report: &Report) -> Vec<(Option<&str>, &str, bool)> {
    let rules = report.changes.iter();
    let rules = rules.filter(|change| change.action == Action::WriteUdevRule);
    let details = rules.map(|change| (change.from.as_deref(), change.to.as_str(), change.applied));
    details.collect()
}

fn foreseen(report: &Report) -> Vec<Option<(u32, String)>> {
    let udev = report.host.as_ref().unwrap().udev.as_ref().unwrap();
    let events = [&udev.start, &udev.add, &udev.change].into_iter();
    let details = events.map(|event| {
        let event = event.as_ref()?;
        Some((event.gid?, event.mode.clone()?))
    });
    details.collect()
}

/// Asserts that every event sets a new device to this state, and that QEMU can open it after each event.
fn lasts(oracle: &Oracle, pod: &Tree, want: State, details: &str) {
    assert_eq!(state(), want, "after apply: {details}");
    let states = oracle.ask();
    assert_eq!(states, [want; 3], "{:?} {details}", states.map(shown));
    set_device(want);
    let locked_out = live_through(oracle, pod);
    let locked_out: Vec<_> = locked_out
        .iter()
        .map(|(event, node)| format!("{event:?}: {}", shown(*node)))
        .collect();
    assert!(locked_out.is_empty(), "{locked_out:?} {details}");
}

#[test]
fn rule_is_written_only_if_needed_and_effective() {
    with_udevd(|oracle| {
        for (name, rules, more, outcome) in CASES {
            install(oracle, name, rules);
            set_device((0, 0, 0o600));
            let pod = pod(P424);
            let before = (own(), pod.read("etc/group"), state());
            let planned = run_more("apply", &[&["--persist", "--dry-run"], more].concat(), &pod);
            assert_eq!((own(), pod.read("etc/group"), state()), before, "{name}");
            let report = persist(more, &pod);
            let details = format!("{name}: {report:#?}");
            match outcome {
                Needless(gid) => {
                    assert_eq!(
                        (report.exit_code, written(&report)),
                        (0, vec![]),
                        "{details}"
                    );
                    assert_eq!(own(), None, "{details}");
                    assert_eq!(state().1, gid, "{details}");
                    assert_eq!(written(&planned), [], "{planned:#?}");
                    // udevd.rs covers kolla without defaults.
                    if rules != KOLLA_ALONE {
                        assert_eq!(live_through(oracle, &pod), [], "{details}");
                    }
                }
                Rule(gid, mode) => {
                    assert_eq!(report.exit_code, 0, "{details}");
                    assert_eq!(written(&report), [(None, OWN, true)], "{details}");
                    assert_eq!(written(&planned), [(None, OWN, false)], "{planned:#?}");
                    let meta = fs::symlink_metadata(OWN).unwrap();
                    let rights = (meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777);
                    assert_eq!(rights, (0, 0, 0o644), "{details}");
                    let want = Some((gid, format!("{mode:04o}")));
                    assert_eq!(foreseen(&report), vec![want; 3], "{details}");
                    assert!(!warns(&report, WarningCode::UdevEventsDiffer), "{details}");
                    // All events set the same GID, so no group for another GID is added.
                    assert!(!pod.read("etc/group").contains("kvm-"), "{details}");
                    let existing = (own(), pod.read("etc/group"));
                    let again = persist(more, &pod);
                    assert_eq!((again.exit_code, again.changes.len()), (0, 0), "{again:#?}");
                    assert_eq!((own(), pod.read("etc/group")), existing, "{again:#?}");
                    // Without --mode, apply keeps a wider mode of the device.
                    set_device((0, gid, mode));
                    lasts(oracle, &pod, (0, gid, mode), &details);
                    let checked = run_more("check", more, &pod);
                    assert_eq!(checked.exit_code, 0, "{checked:#?}");
                }
                Refused(parts) => {
                    assert_eq!(report.exit_code, 3, "{details}");
                    assert!(report.summary.starts_with("--persist: "), "{details}");
                    for part in parts {
                        assert!(report.summary.contains(part), "`{part}` in {details}");
                    }
                    assert_eq!((own(), pod.read("etc/group"), state()), before, "{details}");
                    assert_eq!(planned.summary, report.summary);
                }
            }
        }
    });
}

/// Checks the refusals: with the refused rule installed, udevd sets another state.
#[test]
fn udevd_overrides_every_rule_that_persist_refuses() {
    with_udevd(|oracle| {
        install(oracle, "Debian", DEBIAN);
        let pod = pod(P424);
        let mut rule = std::collections::BTreeMap::new();
        for gid in ["108", "500"] {
            let gid_option = format!("--gid={gid}");
            let _ = fs::remove_file(OWN);
            assert_eq!(persist(&[&gid_option, "--mode=0666"], &pod).exit_code, 0);
            let text = fs::read_to_string(OWN).unwrap().replace("0666", "0660");
            rule.insert(gid, text);
        }
        for (name, rules, more, outcome) in CASES {
            let gid = match more {
                ["--gid=500"] => "500",
                _ => "108",
            };
            let others = rules
                .iter()
                .any(|(path, _)| path.ends_with("kvm-init.rules"));
            let (Refused(_), false) = (outcome, others) else {
                continue;
            };
            install(oracle, name, rules);
            fs::write(OWN, &rule[gid]).unwrap();
            let want = (0, gid.parse().unwrap(), 0o660);
            let states = oracle.ask();
            assert!(
                states.iter().any(|state| *state != want),
                "{name}: {states:?}"
            );
        }
    });
}

/// With --persist, our rule may be rewritten, so the target GID is determined without it. Without --persist, our rule
/// is part of what udev does, and the pod follows it.
#[test]
fn own_rule_is_updated_when_the_gid_changes() {
    with_udevd(|oracle| {
        for rules in [DEBIAN, NONE] {
            fs::write("/etc/group", "root:x:0:\nkvm:x:108:\n").unwrap();
            install(oracle, "the node", rules);
            set_device((0, 0, 0o600));
            let pod = pod(P424);
            let report = persist(&["--gid=500"], &pod);
            assert_eq!(written(&report), [(None, OWN, true)], "{report:#?}");
            lasts(oracle, &pod, (0, 500, 0o660), "--gid");

            // Runs without --persist follow the rule and warn.
            let existing = own();
            let report = run("apply", &pod);
            assert_eq!(
                (report.exit_code, report.changes.len()),
                (0, 0),
                "{report:#?}"
            );
            assert_eq!(report.target.as_ref().unwrap().gid, 500);
            assert!(warns(&report, WarningCode::UdevRuleOutdated), "{report:#?}");
            assert!(warns(&report, WarningCode::Disagreement), "{report:#?}");
            assert_eq!(own(), existing);

            // A run with --persist and without --gid writes the node's GID for kvm.
            let report = persist(&[], &pod);
            assert_eq!(report.exit_code, 0, "{report:#?}");
            let needed = [(Some("0:500 0660"), OWN, true)];
            assert_eq!(written(&report), needed, "{report:#?}");
            assert_eq!(report.warnings, [], "{report:#?}");
            lasts(oracle, &pod, (0, 108, 0o660), "the node's GID");

            // The node's GID for kvm changes.
            fs::write("/etc/group", "root:x:0:\nkvm:x:777:\n").unwrap();
            let checked = run_more("check", &["--persist"], &pod);
            let needed = [(Some("0:108 0660"), OWN, false)];
            assert_eq!(written(&checked), needed, "{checked:#?}");
            let report = persist(&[], &pod);
            let needed = [(Some("0:108 0660"), OWN, true)];
            assert_eq!(written(&report), needed, "{report:#?}");
            assert_eq!(who(&pod).groups, [777, 42424]);
            lasts(oracle, &pod, (0, 777, 0o660), "the node's new GID");

            // A rule that is no longer needed is kept.
            let existing = own();
            let kvm =
                "KERNEL==\"kvm\", GROUP=\"777\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";
            fs::write(Path::new("/").join(DEFAULTS), kvm).unwrap();
            let report = persist(&[], &pod);
            assert_eq!(
                (report.exit_code, report.changes.len()),
                (0, 0),
                "{report:#?}"
            );
            assert_eq!(own(), existing);
        }
    });
}

/// At an event, udevd compares the times of its rules directories, at most once in 3 s.
#[test]
fn running_udevd_loads_the_rule_without_restart() {
    with_udevd(|oracle| {
        install(oracle, "Debian", DEBIAN);
        let pod = pod(P108);
        set_device((0, 108, 0o660));
        let daemon = oracle.start();
        oracle.trigger("add");
        assert_eq!(state(), (0, 108, 0o660));
        // udevd compares file times, which may be coarse.
        std::thread::sleep(Duration::from_millis(50));
        let report = persist(&["--gid=500"], &pod);
        assert_eq!(report.exit_code, 0, "{report:#?}");
        let since = Instant::now();
        loop {
            set_device((0, 0, 0o600));
            oracle.trigger("add");
            if state() == (0, 500, 0o660) {
                break;
            }
            assert!(
                since.elapsed() < Duration::from_secs(60),
                "{}",
                shown(state())
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        eprintln!(
            "udevd loaded the rule after {:.1} s",
            since.elapsed().as_secs_f64()
        );
        drop(daemon);
    });
}

/// The two commands in the rule file remove the rule and restore the device.
#[test]
fn commands_in_the_rule_file_remove_it() {
    with_udevd(|oracle| {
        install(oracle, "Debian", DEBIAN);
        let pod = pod(P108);
        set_device((0, 108, 0o660));
        let daemon = oracle.start();
        assert_eq!(persist(&["--gid=500"], &pod).exit_code, 0);
        let content = own().unwrap().0;
        let commands: Vec<_> = content
            .lines()
            .filter_map(|line| line.strip_prefix("#   "))
            .collect();
        assert_eq!(commands.len(), 2, "{content}");
        std::thread::sleep(Duration::from_millis(3100));
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", oracle.directory().display());
        let mut shell = std::process::Command::new("sh");
        let script = format!("{} && {} --settle", commands[0], commands[1]);
        support::ok(shell.args(["-ec", &script]).env("PATH", path));
        assert_eq!(own(), None);
        assert_eq!(state(), (0, 108, 0o660));
        drop(daemon);
    });
}

/// An administrator masks a rule file by a link to /dev/null.
#[test]
fn masked_rule_stays_masked() {
    with_udevd(|oracle| {
        install(oracle, "Genestack", GENESTACKS);
        symlink("/dev/null", OWN).unwrap();
        set_device((0, 108, 0o660));
        let report = persist(&[], &pod(P424));
        assert_eq!(report.exit_code, 3, "{report:#?}");
        assert!(report.summary.contains("symbolic link"), "{report:#?}");
        assert_eq!(fs::read_link(OWN).unwrap(), Path::new("/dev/null"));
        assert_eq!(state(), (0, 108, 0o660));
    });
}
