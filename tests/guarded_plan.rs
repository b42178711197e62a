//! What is planned where a GID means more than KVM, from observations that are put together here.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use libvirt_kvm_init::cli::Options;
use libvirt_kvm_init::config::{Config, Origin, variable};
use libvirt_kvm_init::hostdb::HostDb;
use libvirt_kvm_init::observe::{Driver, Host, Node, Observed, Pod};
use libvirt_kvm_init::plan::{Course, Decision, GroupStep, Step, align_all, decide};
use libvirt_kvm_init::report::{Code, Warning};
use libvirt_kvm_init::sys::device::Facts;
use libvirt_kvm_init::udev::own::Rules;
use libvirt_kvm_init::udev::{Prediction, RuleFile, Udevd};
use libvirt_kvm_init::userdb::Record;
use libvirt_kvm_init::view::View;
use nix::sys::stat::SFlag;
use nix::unistd::{Gid, Uid};

const STOCK: &str = "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";

/// How `--gid` and the like are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Flag,
    Env,
    File,
}

fn config(given: &[(&'static str, &str)], by: By) -> Config {
    let value = |name: &str| {
        let found = given.iter().find(|(known, _)| *known == name);
        found.map(|(_, text)| (*text).to_owned())
    };
    let flag = |name: &str| value(name).filter(|_| by == By::Flag || name == "missing");
    let options = Options {
        gid: flag("gid"),
        group: flag("group"),
        strict: flag("strict"),
        missing: flag("missing"),
        group_file_out: value("group-file-out"),
        config: (by == By::File).then(|| "c.yaml".to_owned()),
        ..Options::default()
    };
    let env = |name: &str| {
        let found = given.iter().find(|(known, _)| variable(known) == name);
        found.filter(|_| by == By::Env).map(|(_, text)| text.into())
    };
    let yaml = given.iter().map(|(name, text)| format!("{name}: {text}\n"));
    let yaml: String = yaml.collect();
    Config::resolve(&options, env, |_| Ok(yaml.clone().into_bytes())).unwrap()
}

fn facts(gid: u32) -> Facts {
    Facts {
        kind: SFlag::S_IFCHR,
        major: 10,
        minor: 232,
        uid: Uid::from_raw(0),
        gid: Gid::from_raw(gid),
        mode: 0o660,
        inode: (1, 2),
        ctime: (0, 0),
    }
}

/// A node with these group lines and rules, and a pod with these group lines; `device` is its GID.
fn seen(node: &str, rules: &str, pod: &str, device: Option<u32>) -> Observed {
    let mut host = Host {
        root: "/host".into(),
        db: HostDb {
            files: vec![("etc/group", format!("root:x:0:\n{node}").into_bytes())],
            ..HostDb::default()
        },
        group_files: Vec::new(),
        node: device.map(facts),
        udev: Prediction::default(),
        others: None,
        spot: None,
        udevd: Udevd {
            version: Some(252),
            ..Udevd::default()
        },
        rules: Rules {
            files: vec![RuleFile {
                path: "/etc/udev/rules.d/99-x.rules".to_owned(),
                content: rules.as_bytes().to_vec(),
            }],
            hidden: None,
        },
        passwd: Vec::new(),
        view: View::Whole,
        unseen: Vec::new(),
        not_shown: Vec::new(),
    };
    host.foresee();
    Observed {
        host: Some(host),
        pod: Pod {
            root: "/pod".into(),
            is_host: false,
            is_others: false,
            etc: None,
            group_stamp: None,
            group: Some(format!("root:x:0:\n{pod}").into_bytes()),
            group_out: None,
            passwd: b"root:x:0:0:::\nnova:x:42424:42424:::\n".to_vec(),
            qemu_conf: Some(b"user = \"nova\"\ngroup = \"kvm\"\n".to_vec()),
            qemu_conf_name: "qemu.conf".to_owned(),
            os_release: None,
            nscd: None,
        },
        device: device.map(|gid| Node {
            facts: facts(gid),
            acl: None,
            nodev: false,
            unmapped: false,
        }),
        driver: match device {
            Some(_) => Driver::Present,
            None => Driver::Absent,
        },
    }
}

fn steps(decision: &Decision) -> &[Step] {
    match &decision.course {
        Course::Act(steps) | Course::Absent { steps, .. } => steps,
        Course::Refuse(refusal) => panic!("{}", refusal.text),
    }
}

fn group_step(decision: &Decision) -> Option<&GroupStep> {
    steps(decision).iter().find_map(|step| match step {
        Step::GroupFile(step) => Some(step),
        _ => None,
    })
}

/// The pod's group file once the steps are done.
fn aligned(seen: &Observed, decision: &Decision) -> String {
    let file = seen.pod.group.as_deref().unwrap();
    let wants = group_step(decision).map_or(&[][..], |step| &step.wants);
    let (text, _) = align_all(file, wants).unwrap();
    String::from_utf8(text.into_owned()).unwrap()
}

fn refusal(decision: &Decision) -> &str {
    match &decision.course {
        Course::Refuse(refusal) => &refusal.text,
        other => panic!("not refused: {other:?}"),
    }
}

fn guarded(warnings: &[Warning]) -> Vec<&str> {
    let found = warnings.iter();
    let found = found.filter(|warning| warning.code == Code::GuardedGroup);
    found.map(|warning| warning.text.as_str()).collect()
}

/// A node whose add event gives the device the GID 6, which is disk by one of its names, wherever that is.
fn targets() -> Vec<(&'static str, Observed)> {
    let number = "KERNEL==\"kvm\", GROUP=\"6\", MODE=\"0660\"\n";
    let pod = "kvm:x:424:\n";
    let mut record = seen("kvm:x:6:\n", number, pod, Some(6));
    record.host.as_mut().unwrap().db.records.push(Record {
        name: "disk".to_owned(),
        gid: Gid::from_raw(6),
        at: "usr/lib/userdb/disk.group".to_owned(),
    });
    let mut other_file = seen("kvm:x:6:\n", number, pod, Some(6));
    let files = &mut other_file.host.as_mut().unwrap().db.files;
    files.push(("usr/lib/group", b"disk:x:6:\n".to_vec()));
    vec![
        ("/etc/group:2", seen("disk:x:6:\n", number, pod, Some(6))),
        (
            "/etc/group:3",
            seen("games:x:6:\ndisk:x:6:\n", number, pod, Some(6)),
        ),
        // Also where the node's kvm has it as well.
        (
            "/etc/group:3",
            seen("kvm:x:6:\ndisk:x:6:\n", number, pod, Some(6)),
        ),
        ("/usr/lib/userdb/disk.group", record),
        ("/usr/lib/group:1", other_file),
        (
            "/pod/etc/group:3",
            seen("kvm:x:6:\n", number, "games:x:6:\ndisk:x:6:\n", Some(6)),
        ),
    ]
}

#[test]
fn a_guarded_target_takes_a_gid_from_the_command_line_or_the_file() {
    for (at, seen) in targets() {
        for strict in [false, true] {
            let strict = strict.then_some(("strict", "true"));
            let given: Vec<_> = strict.into_iter().collect();
            let decision = decide(&seen, &config(&given, By::Flag)).unwrap();
            let text = refusal(&decision);
            assert!(text.contains("disk") && text.contains(at), "{text}");
            assert!(text.contains("give --gid 6 if"), "{text}");
        }

        let decision = decide(&seen, &config(&[("gid", "6")], By::Env)).unwrap();
        let text = refusal(&decision);
        for part in ["LIBVIRT_KVM_INIT_GID", "disk", at, "--gid 6", "`gid: 6`"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // What `watch` found out is no permission, either.
        let mut kept = config(&[], By::Flag);
        kept.gid = Some((Gid::from_raw(6), Origin::Kept));
        assert!(refusal(&decide(&seen, &kept).unwrap()).contains("disk"));

        for by in [By::Flag, By::File] {
            let decision = decide(&seen, &config(&[("gid", "6")], by)).unwrap();
            let text = aligned(&seen, &decision);
            assert!(text.contains("kvm:x:6:nova\n"), "{at} {by:?}: {text}");
        }
    }
}

#[test]
fn a_gid_of_another_group_is_permitted_by_a_variable() {
    let seen = seen("games:x:6:\nkvm:x:108:\n", STOCK, "kvm:x:424:\n", Some(6));
    for by in [By::Flag, By::File, By::Env] {
        let decision = decide(&seen, &config(&[("gid", "6")], by)).unwrap();
        assert!(aligned(&seen, &decision).contains("kvm:x:6:nova\n"));
    }
}

/// The name that the pod gives the target is the option's.
#[test]
fn a_guarded_name_for_the_group_takes_an_explicit_gid() {
    let node = "kvm:x:108:\ndocker:x:99:\n";
    let seen = seen(node, STOCK, "docker:x:99:\n", Some(108));
    for by in [By::Flag, By::Env, By::File] {
        let decision = decide(&seen, &config(&[("group", "docker")], by)).unwrap();
        let text = refusal(&decision);
        assert!(text.contains("docker") && text.contains("--gid"), "{text}");
    }
}

#[test]
fn an_event_gives_no_guarded_group() {
    // The node's groups, the event's GROUP, the pod's groups => what the warning contains; nothing where QEMU
    // becomes a member.
    let table = [
        (
            "disk:x:6:\n",
            "disk",
            "",
            Some("the node's group disk (/etc/group:3)"),
        ),
        (
            "disk:x:6:\n",
            "6",
            "",
            Some("the node's group disk (/etc/group:3)"),
        ),
        (
            "shadow:x:42:\n",
            "shadow",
            "",
            Some("the node's group shadow"),
        ),
        ("games:x:42:\nshadow:x:42:\n", "games", "", Some("shadow")),
        (
            "",
            "42",
            "games:x:42:\nshadow:x:42:\n",
            Some("the pod's group shadow (/pod/etc/group:4)"),
        ),
        ("", "6", "disk:x:6:\n", Some("the pod's group disk")),
        ("", "root", "", Some("the group root")),
        ("", "777", "", None),
        ("games:x:20:\n", "games", "", None),
    ];
    for (node, group, pod, guard) in table {
        for (event, add) in [("change", "\"change\""), ("start", "\"remove\"")] {
            // A static node's rule counts when udevd starts, whatever its ACTION.
            let options = match event {
                "start" => ", OPTIONS+=\"static_node=kvm\"",
                _ => "",
            };
            let rules =
                format!("{STOCK}ACTION=={add}, KERNEL==\"kvm\", GROUP=\"{group}\"{options}\n");
            let node = format!("kvm:x:108:\n{node}");
            let pod = format!("kvm:x:424:nova\n{pod}");
            let seen = seen(&node, &rules, &pod, Some(108));
            for given in [&[][..], &[("gid", "108")]] {
                let decision = decide(&seen, &config(given, By::Flag)).unwrap();
                let names = group_step(&decision).unwrap().wants.iter();
                let names: Vec<_> = names.map(|want| want.group.as_str()).collect();
                let warnings = guarded(&decision.warnings);
                match guard {
                    Some(guard) => {
                        assert_eq!(names, ["kvm"], "{event} {group}");
                        assert_eq!(warnings.len(), 1, "{event} {group}: {warnings:?}");
                        assert!(warnings[0].contains(guard), "{warnings:?}");
                        let strict: Vec<_> =
                            given.iter().copied().chain([("strict", "true")]).collect();
                        let decision = decide(&seen, &config(&strict, By::Flag)).unwrap();
                        let text = refusal(&decision);
                        assert!(
                            text.starts_with("--strict: ") && text.contains(guard),
                            "{text}"
                        );
                    }
                    None => {
                        assert_eq!(names.len(), 2, "{event} {group}");
                        assert!(warnings.is_empty(), "{warnings:?}");
                    }
                }
            }
        }
    }
}

/// `--gid 6` permits the target 6, and 6 alone.
#[test]
fn a_permission_is_for_one_gid() {
    let rules = format!("{STOCK}ACTION==\"change\", KERNEL==\"kvm\", GROUP=\"shadow\"\n");
    let node = "kvm:x:108:\ndisk:x:6:\nshadow:x:42:\n";
    let seen = seen(node, &rules, "kvm:x:424:\n", Some(108));
    let decision = decide(&seen, &config(&[("gid", "6")], By::Flag)).unwrap();
    let text = aligned(&seen, &decision);
    assert_eq!(text, "root:x:0:\nkvm:x:6:nova\nkvm-108:x:108:nova\n");
    assert_eq!(guarded(&decision.warnings).len(), 1);
}

#[test]
fn the_gid_that_the_device_leaves_is_not_kept_where_it_is_guarded() {
    for (node, pod, is_kept) in [
        ("disk:x:6:\n", "", false),
        ("", "disk:x:6:\n", false),
        ("", "", true),
    ] {
        let node = format!("kvm:x:108:\n{node}");
        let pod = format!("kvm:x:424:nova\n{pod}");
        let seen = seen(&node, STOCK, &pod, Some(6));
        let mut config = config(&[], By::Flag);
        config.kept = Some(Gid::from_raw(6));
        let decision = decide(&seen, &config).unwrap();
        let text = aligned(&seen, &decision);
        assert_eq!(text.contains("kvm-6:x:6:nova"), is_kept, "{text}");
        assert_eq!(guarded(&decision.warnings).is_empty(), is_kept);
    }
}

#[test]
fn without_a_device_no_guarded_gid_goes_into_the_pods_file() {
    let skip = [("missing", "skip"), ("group-file-out", "/out/group")];
    for (at, mut seen) in targets() {
        seen.device = None;
        seen.driver = Driver::Absent;
        seen.host.as_mut().unwrap().node = None;
        for gid in [None, Some(("gid", "6"))] {
            let given: Vec<_> = skip.into_iter().chain(gid).collect();
            for by in [By::Flag, By::Env] {
                let decision = decide(&seen, &config(&given, by)).unwrap();
                let step = group_step(&decision).unwrap();
                assert_eq!(step.wants, [], "{at}");
                assert_eq!(step.out, Some(PathBuf::from("/out/group")));
                let warnings = guarded(&decision.warnings);
                assert_eq!(warnings.len(), 1, "{at}: {warnings:?}");
                assert!(warnings[0].contains("disk"), "{warnings:?}");
            }
        }
    }
    // An event's GID.
    let rules = format!("{STOCK}ACTION==\"change\", KERNEL==\"kvm\", GROUP=\"disk\"\n");
    let seen = seen("kvm:x:108:\ndisk:x:6:\n", &rules, "kvm:x:424:\n", None);
    let decision = decide(&seen, &config(&skip, By::Flag)).unwrap();
    assert_eq!(aligned(&seen, &decision), "root:x:0:\nkvm:x:108:nova\n");
    assert_eq!(guarded(&decision.warnings).len(), 1);
    // Nobody is given a file where a missing KVM is a failure.
    let fail = [("missing", "fail"), ("group-file-out", "/out/group")];
    let decision = decide(&seen, &config(&fail, By::Flag)).unwrap();
    assert_eq!(
        (steps(&decision), guarded(&decision.warnings).len()),
        (&[][..], 0)
    );
}

/// A GID that is another group's on the node goes into no file without a device, either.
#[test]
fn without_a_device_another_groups_gid_stays_out_of_the_pods_file() {
    let skip = [("missing", "skip"), ("group-file-out", "/out/group")];
    let rules = "KERNEL==\"kvm\", GROUP=\"games\", MODE=\"0660\"\n";
    let seen = seen("games:x:20:\n", rules, "kvm:x:424:\n", None);
    let decision = decide(&seen, &config(&skip, By::Flag)).unwrap();
    assert_eq!(group_step(&decision).unwrap().wants, []);
}

#[test]
fn a_name_that_is_more_than_a_name_is_refused_where_it_would_be_written() {
    let long = "a".repeat(33);
    for name in ["x;id;#", "a/b", "a$(id)", "123", "no\u{1b}[2Jva", &long] {
        let mut seen = seen("kvm:x:108:\n", STOCK, "kvm:x:424:\n", Some(108));
        seen.pod.passwd = format!("root:x:0:0:::\n{name}:x:42424:42424:::\n").into_bytes();
        seen.pod.qemu_conf = Some(b"user = \"+42424\"\ngroup = \"kvm\"\n".to_vec());
        let decision = decide(&seen, &config(&[], By::Flag)).unwrap();
        let text = refusal(&decision);
        for part in [
            "/pod/etc/group: ",
            "member name",
            "/pod/etc/passwd",
            "qemu.conf",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // The image's own file serves a pod without a device.
        let skip = [("missing", "skip"), ("group-file-out", "/out/group")];
        let mut without = seen;
        without.device = None;
        without.driver = Driver::Absent;
        without.host.as_mut().unwrap().node = None;
        let decision = decide(&without, &config(&skip, By::Flag)).unwrap();
        assert_eq!(group_step(&decision).unwrap().wants, []);
        // What is in the file already has not to be written.
        let mut there = without;
        there.device = Some(Node {
            facts: facts(108),
            acl: None,
            nodev: false,
            unmapped: false,
        });
        there.driver = Driver::Present;
        there.pod.group = Some(format!("root:x:0:\nkvm:x:108:{name}\n").into_bytes());
        let decision = decide(&there, &config(&[], By::Flag)).unwrap();
        assert_eq!(steps(&decision), []);
    }
}
