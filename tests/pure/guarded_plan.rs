//! Plans for GIDs that grant more than KVM access (guarded groups), computed from observations built here.

use std::path::Path;
use std::sync::Arc;

use libvirt_kvm_init::codes::{Warning, WarningCode};
use libvirt_kvm_init::config::options::Flags;
use libvirt_kvm_init::config::variable;
use libvirt_kvm_init::formats::udev::RuleFile;
use libvirt_kvm_init::formats::userdb::Record;
use libvirt_kvm_init::observe::{Driver, Observation};
use libvirt_kvm_init::pipeline::Request;
use libvirt_kvm_init::plan::{GroupFile, GroupStep, Memory, Outcome, Plan, Step, plan};
use nix::unistd::Gid;

use crate::observation::{device, host, observation};

const STOCK: &str = "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";

/// How an option is set: on the command line, by an environment variable, or in the configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Flag,
    Env,
    File,
}

fn config(given: &[(&'static str, &str)], by: By) -> Request {
    let flags = given.iter().copied();
    let flags =
        flags.filter(|(name, _)| by == By::Flag || !["gid", "group", "strict"].contains(name));
    let file = (by == By::File).then_some(("config", "c.yaml"));
    let flags = Flags::new(flags.chain(file));
    let env = |name: &str| {
        let found = given.iter().find(|(known, _)| variable(known) == name);
        found.filter(|_| by == By::Env).map(|(_, text)| text.into())
    };
    let yaml = given.iter().map(|(name, text)| format!("{name}: {text}\n"));
    let yaml: String = yaml.collect();
    let read = |_: &Path| Ok(yaml.clone().into_bytes());
    Request::resolve(&flags, env, read).unwrap().0
}

fn decide(seen: &mut Observation, request: &Request, memory: Option<&Memory>) -> Plan {
    seen.pod
        .out_path
        .clone_from(&request.sources.group_file_out);
    plan(seen, &request.policy, memory).unwrap()
}

/// The kvm groups in the group file that the plan writes.
fn groups(plan: &Plan) -> Vec<String> {
    let content = &group_step(plan).unwrap().content;
    let content = std::str::from_utf8(content).unwrap();
    let names = content
        .lines()
        .map(|line| line.split(':').next().unwrap().to_owned());
    names.filter(|name| name.starts_with("kvm")).collect()
}

/// A node with these group lines and udev rules, and a pod with these group lines; `device` is the device's GID.
fn seen(node: &str, rules: &str, pod: &str, device: Option<u32>) -> Observation {
    let rules = RuleFile {
        path: "/etc/udev/rules.d/99-x.rules".to_owned(),
        content: rules.as_bytes().to_vec(),
    };
    observation(host(node, vec![rules], device), "/pod", pod)
}

fn steps(decision: &Plan) -> &[Step] {
    match &decision.outcome {
        Outcome::Act(steps) => steps,
        Outcome::NoKvm(no_kvm) => &no_kvm.steps,
        Outcome::Refuse(refusal) => panic!("{}", refusal.text),
    }
}

fn group_step(decision: &Plan) -> Option<&GroupStep> {
    steps(decision).iter().find_map(|step| match step {
        Step::GroupFile(step) => Some(step),
        _ => None,
    })
}

/// The pod's group file after all steps.
fn aligned(seen: &Observation, plan: &Plan) -> String {
    let file = seen.pod.image_group().unwrap();
    let content = group_step(plan).map_or(file, |step| &step.content);
    String::from_utf8(content.to_vec()).unwrap()
}

fn refusal(decision: &Plan) -> &str {
    match &decision.outcome {
        Outcome::Refuse(refusal) => &refusal.text,
        other => panic!("not refused: {other:?}"),
    }
}

fn guarded(warnings: &[Warning]) -> Vec<&str> {
    let found = warnings.iter();
    let found = found.filter(|warning| warning.code == WarningCode::GuardedGroup);
    found.map(|warning| warning.text.as_str()).collect()
}

/// Nodes whose add event sets GID 6 on the device, and the file in which one of the names of GID 6 is disk.
fn targets() -> Vec<(&'static str, Observation)> {
    let numeric = "KERNEL==\"kvm\", GROUP=\"6\", MODE=\"0660\"\n";
    let pod = "kvm:x:424:\n";
    let mut record = seen("kvm:x:6:\n", numeric, pod, Some(6));
    record.host.as_mut().unwrap().db.records.push(Record {
        name: "disk".to_owned(),
        gid: Gid::from_raw(6),
        at: "usr/lib/userdb/disk.group".to_owned(),
    });
    let mut other_file = seen("kvm:x:6:\n", numeric, pod, Some(6));
    let files = &mut other_file.host.as_mut().unwrap().db.files;
    files.push(("usr/lib/group", b"disk:x:6:\n".to_vec()));
    vec![
        ("/etc/group:2", seen("disk:x:6:\n", numeric, pod, Some(6))),
        (
            "/etc/group:3",
            seen("games:x:6:\ndisk:x:6:\n", numeric, pod, Some(6)),
        ),
        // The node's group kvm has the same GID.
        (
            "/etc/group:3",
            seen("kvm:x:6:\ndisk:x:6:\n", numeric, pod, Some(6)),
        ),
        ("/usr/lib/userdb/disk.group", record),
        ("/usr/lib/group:1", other_file),
        (
            "/pod/etc/group:3",
            seen("kvm:x:6:\n", numeric, "games:x:6:\ndisk:x:6:\n", Some(6)),
        ),
    ]
}

#[test]
fn guarded_target_needs_gid_from_command_line_or_file() {
    for (at, mut seen) in targets() {
        for strict in [false, true] {
            let strict = strict.then_some(("strict", "true"));
            let given: Vec<_> = strict.into_iter().collect();
            let decision = decide(&mut seen, &config(&given, By::Flag), None);
            let text = refusal(&decision);
            assert!(text.contains("disk") && text.contains(at), "{text}");
            assert!(text.contains("give --gid 6 if"), "{text}");
        }

        let decision = decide(&mut seen, &config(&[("gid", "6")], By::Env), None);
        let text = refusal(&decision);
        for part in ["LIBVIRT_KVM_INIT_GID", "disk", at, "--gid 6", "`gid: 6`"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // A GID that `watch` kept in memory does not permit it either.
        let kept = Memory {
            kept_gid: Some(Gid::from_raw(6)),
            ..Memory::default()
        };
        let decision = decide(&mut seen, &config(&[], By::Flag), Some(&kept));
        assert!(refusal(&decision).contains("disk"));

        for by in [By::Flag, By::File] {
            let decision = decide(&mut seen, &config(&[("gid", "6")], by), None);
            let text = aligned(&seen, &decision);
            assert!(text.contains("kvm:x:6:nova\n"), "{at} {by:?}: {text}");
        }
    }
}

#[test]
fn environment_variable_permits_gid_of_unguarded_group() {
    let mut seen = seen("games:x:6:\nkvm:x:108:\n", STOCK, "kvm:x:424:\n", Some(6));
    for by in [By::Flag, By::File, By::Env] {
        let decision = decide(&mut seen, &config(&[("gid", "6")], by), None);
        assert!(aligned(&seen, &decision).contains("kvm:x:6:nova\n"));
    }
}

/// `--group` sets the name of the target group in the pod.
#[test]
fn guarded_group_name_needs_explicit_gid() {
    let node = "kvm:x:108:\ndocker:x:99:\n";
    let mut seen = seen(node, STOCK, "docker:x:99:\n", Some(108));
    for by in [By::Flag, By::Env, By::File] {
        let decision = decide(&mut seen, &config(&[("group", "docker")], by), None);
        let text = refusal(&decision);
        assert!(text.contains("docker") && text.contains("--gid"), "{text}");
    }
}

#[test]
fn udev_event_adds_no_guarded_group() {
    // node's groups, GROUP of the event, pod's groups => a part of the warning; None if QEMU becomes a member
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
            // udevd applies a rule with static_node at its start, whatever its ACTION.
            let options = match event {
                "start" => ", OPTIONS+=\"static_node=kvm\"",
                _ => "",
            };
            let rules =
                format!("{STOCK}ACTION=={add}, KERNEL==\"kvm\", GROUP=\"{group}\"{options}\n");
            let node = format!("kvm:x:108:\n{node}");
            let pod = format!("kvm:x:424:nova\n{pod}");
            let mut seen = seen(&node, &rules, &pod, Some(108));
            for given in [&[][..], &[("gid", "108")]] {
                let decision = decide(&mut seen, &config(given, By::Flag), None);
                let names = groups(&decision);
                let warnings = guarded(&decision.warnings);
                match guard {
                    Some(guard) => {
                        assert_eq!(names, ["kvm"], "{event} {group}");
                        assert_eq!(warnings.len(), 1, "{event} {group}: {warnings:?}");
                        assert!(warnings[0].contains(guard), "{warnings:?}");
                        let strict: Vec<_> =
                            given.iter().copied().chain([("strict", "true")]).collect();
                        let decision = decide(&mut seen, &config(&strict, By::Flag), None);
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

/// `--gid 6` permits GID 6 and no other guarded GID.
#[test]
fn explicit_gid_permits_only_that_gid() {
    let rules = format!("{STOCK}ACTION==\"change\", KERNEL==\"kvm\", GROUP=\"shadow\"\n");
    let node = "kvm:x:108:\ndisk:x:6:\nshadow:x:42:\n";
    let mut seen = seen(node, &rules, "kvm:x:424:\n", Some(108));
    let decision = decide(&mut seen, &config(&[("gid", "6")], By::Flag), None);
    let text = aligned(&seen, &decision);
    assert_eq!(text, "root:x:0:\nkvm:x:6:nova\nkvm-108:x:108:nova\n");
    assert_eq!(guarded(&decision.warnings).len(), 1);
}

#[test]
fn previous_device_gid_is_not_kept_if_guarded() {
    for (node, pod, is_kept) in [
        ("disk:x:6:\n", "", false),
        ("", "disk:x:6:\n", false),
        ("", "", true),
    ] {
        let node = format!("kvm:x:108:\n{node}");
        let pod = format!("kvm:x:424:nova\n{pod}");
        let mut seen = seen(&node, STOCK, &pod, Some(6));
        let memory = Memory {
            last_good_gid: Some(Gid::from_raw(6)),
            ..Memory::default()
        };
        let decision = decide(&mut seen, &config(&[], By::Flag), Some(&memory));
        let text = aligned(&seen, &decision);
        assert_eq!(text.contains("kvm-6:x:6:nova"), is_kept, "{text}");
        assert_eq!(guarded(&decision.warnings).is_empty(), is_kept);
    }
}

#[test]
fn without_device_no_guarded_gid_in_pod_group_file() {
    let skip = [("missing", "skip"), ("group-file-out", "/out/group")];
    for (at, mut seen) in targets() {
        seen.device = None;
        seen.driver = Driver::Absent;
        seen.host.as_mut().unwrap().device = None;
        for gid in [None, Some(("gid", "6"))] {
            let given: Vec<_> = skip.into_iter().chain(gid).collect();
            for by in [By::Flag, By::Env] {
                let decision = decide(&mut seen, &config(&given, by), None);
                let step = group_step(&decision).unwrap();
                assert_eq!(step.content, seen.pod.image_group().unwrap(), "{at}");
                assert!(
                    matches!(&step.file, GroupFile::Out { path, .. } if path == Path::new("/out/group"))
                );
                let warnings = guarded(&decision.warnings);
                assert_eq!(warnings.len(), 1, "{at}: {warnings:?}");
                assert!(warnings[0].contains("disk"), "{warnings:?}");
            }
        }
    }
    // The GID that an event sets.
    let rules = format!("{STOCK}ACTION==\"change\", KERNEL==\"kvm\", GROUP=\"disk\"\n");
    let mut seen = seen("kvm:x:108:\ndisk:x:6:\n", &rules, "kvm:x:424:\n", None);
    let decision = decide(&mut seen, &config(&skip, By::Flag), None);
    assert_eq!(aligned(&seen, &decision), "root:x:0:\nkvm:x:108:nova\n");
    assert_eq!(guarded(&decision.warnings).len(), 1);
    // With --missing fail, no file is written.
    let fail = [("missing", "fail"), ("group-file-out", "/out/group")];
    let decision = decide(&mut seen, &config(&fail, By::Flag), None);
    assert_eq!(
        (steps(&decision), guarded(&decision.warnings).len()),
        (&[][..], 0)
    );
}

/// Without a device, a GID that belongs to another group on the node is not written to a file either.
#[test]
fn without_device_no_gid_of_another_node_group_in_pod_group_file() {
    let skip = [("missing", "skip"), ("group-file-out", "/out/group")];
    let rules = "KERNEL==\"kvm\", GROUP=\"games\", MODE=\"0660\"\n";
    let mut seen = seen("games:x:20:\n", rules, "kvm:x:424:\n", None);
    let decision = decide(&mut seen, &config(&skip, By::Flag), None);
    let content = &group_step(&decision).unwrap().content;
    assert_eq!(content, seen.pod.image_group().unwrap());
}

#[test]
fn unsafe_member_name_is_refused_if_it_must_be_written() {
    let long = "a".repeat(33);
    for name in ["x;id;#", "a/b", "a$(id)", "123", "no\u{1b}[2Jva", &long] {
        let mut seen = seen("kvm:x:108:\n", STOCK, "kvm:x:424:\n", Some(108));
        seen.pod.passwd = format!("root:x:0:0:::\n{name}:x:42424:42424:::\n").into_bytes();
        seen.pod.qemu_conf = Some(b"user = \"+42424\"\ngroup = \"kvm\"\n".to_vec());
        let decision = decide(&mut seen, &config(&[], By::Flag), None);
        let text = refusal(&decision);
        for part in [
            "/pod/etc/group: ",
            "member name",
            "/pod/etc/passwd",
            "qemu.conf",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // A pod without a device gets the image's group file unchanged.
        let skip = [("missing", "skip"), ("group-file-out", "/out/group")];
        let mut without = seen;
        without.device = None;
        without.driver = Driver::Absent;
        without.host.as_mut().unwrap().device = None;
        let decision = decide(&mut without, &config(&skip, By::Flag), None);
        let content = &group_step(&decision).unwrap().content;
        assert_eq!(content, without.pod.image_group().unwrap());
        // A member that the file already lists need not be written.
        let mut there = without;
        there.device = Some(device(108));
        there.driver = Driver::Present;
        let group = format!("root:x:0:\nkvm:x:108:{name}\n");
        there.pod.group = Some(Arc::new(group.into_bytes()));
        let decision = decide(&mut there, &config(&[], By::Flag), None);
        assert_eq!(steps(&decision), []);
    }
}
