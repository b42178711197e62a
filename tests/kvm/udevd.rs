//! Compares the predictions of `check` with a real systemd-udevd and with QEMU, and shows that after `apply` no event
//! of the node takes KVM away from QEMU.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use libvirt_kvm_init::codes::{ProofWord, WarningCode};
use libvirt_kvm_init::report::Report;

use nix::mount::{MsFlags, mount};

use crate::oracle::{self, Identity, qemu, run_with};
use support::rule_sets::{Content, FEDORA, GENESTACK, K, KOLLA, set, text};
use support::udevd::{NODE, Oracle, State, machines_own, shown, state, turn};
use support::{Tree, bind, in_namespace, ok, program, scratch, set_owner};

pub(super) const DEFAULTS: &str = "usr/lib/udev/rules.d/50-udev-default.rules";
pub(super) const PINNED: &str = "etc/udev/rules.d/99-kvm.rules";
const NODES_GROUPS: &str = "root:x:0:\nkvm:x:108:\n";
const USERS: &str = "root:x:0:0::/:/bin/sh\nnova:x:42424:42424::/:/bin/sh\n";

pub(super) type Rules = &'static [(&'static str, &'static str)];

pub(super) const NONE: Rules = &[];
pub(super) const DEBIAN: Rules = &[(DEFAULTS, K)];
pub(super) const FEDORAS: Rules = &[(DEFAULTS, FEDORA)];
pub(super) const GENESTACKS: Rules = &[(DEFAULTS, K), (PINNED, GENESTACK)];
pub(super) const KOLLAS: Rules = &[(DEFAULTS, K), (PINNED, KOLLA)];
pub(super) const KOLLA_ALONE: Rules = &[(PINNED, KOLLA)];

/// An event that changes the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A start of udevd.
    Start,
    /// A module reload: a device as the kernel creates it, then an add event.
    Reload,
    /// An add event.
    Add,
    /// A change event.
    Change,
    /// `chmod 660 /dev/kvm; chown root:kvm /dev/kvm` in the pod.
    LibvirtSh,
}

use Event::{Add, Change, LibvirtSh, Reload, Start};

impl Event {
    /// The name of the event in the summary of `check`.
    fn called(self) -> &'static str {
        match self {
            Start => "a udevd restart",
            Reload => "a module reload or reboot",
            Add => "an add event",
            Change => "a change event",
            LibvirtSh => "the chart's libvirt.sh",
        }
    }
}

/// The expected result of `check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// QEMU can open KVM, and no event changes that.
    Fine,
    /// QEMU can open KVM until this event, the first that takes access away.
    Until(Event),
    /// QEMU cannot open KVM, and `apply` repairs that permanently.
    Repairs,
}

use Expected::{Fine, Repairs, Until};

/// A node and a pod, the expected result of `check`, and the events that lock QEMU out.
struct Case {
    name: &'static str,
    rules: Rules,
    node: State,
    /// Group lines of the pod, with members.
    pod: &'static str,
    expected: Expected,
    locks_out: &'static [Event],
}

pub(super) const P108: &str = "kvm:x:108:nova\n";
pub(super) const P424: &str = "kvm:x:424:nova\n";
const P929292: &str = "kvm:x:929292:nova\n";

const fn case(
    name: &'static str,
    rules: Rules,
    node: State,
    pod: &'static str,
    expected: Expected,
    locks_out: &'static [Event],
) -> Case {
    Case {
        name,
        rules,
        node,
        pod,
        expected,
        locks_out,
    }
}

const CASES: [Case; 17] = [
    case(
        "Debian, all agree",
        DEBIAN,
        (0, 108, 0o660),
        P108,
        Fine,
        &[],
    ),
    case(
        "Debian, the node follows the pod",
        DEBIAN,
        (0, 424, 0o660),
        P424,
        Until(Start),
        &[Start, Reload, Add, Change],
    ),
    case(
        "Debian, the incident",
        DEBIAN,
        (0, 108, 0o660),
        P424,
        Repairs,
        &[],
    ),
    case(
        "Debian, device as the kernel creates it",
        DEBIAN,
        (0, 0, 0o600),
        P424,
        Repairs,
        &[],
    ),
    case(
        "Debian, open to all for now",
        DEBIAN,
        (0, 108, 0o666),
        P424,
        Until(Start),
        &[Start, Reload, Add, Change],
    ),
    case(
        "Fedora, two GIDs",
        FEDORAS,
        (0, 108, 0o666),
        P424,
        Fine,
        &[],
    ),
    case("Fedora, one GID", FEDORAS, (0, 108, 0o660), P108, Fine, &[]),
    case(
        "Fedora, QEMU in no group",
        FEDORAS,
        (0, 108, 0o666),
        "kvm:x:424:\n",
        Until(LibvirtSh),
        &[LibvirtSh],
    ),
    case(
        "Fedora, no group in the pod",
        FEDORAS,
        (0, 108, 0o666),
        "",
        Until(LibvirtSh),
        &[LibvirtSh],
    ),
    case(
        "Genestack, one of two GIDs",
        GENESTACKS,
        (0, 929_292, 0o660),
        P929292,
        Until(Start),
        &[Start],
    ),
    case(
        "Genestack, the other one",
        GENESTACKS,
        (0, 108, 0o660),
        P108,
        Until(Reload),
        &[Reload, Add, Change],
    ),
    case(
        "Genestack, both GIDs",
        GENESTACKS,
        (0, 929_292, 0o660),
        "kvm:x:929292:nova\nkvm-108:x:108:nova\n",
        Fine,
        &[],
    ),
    case(
        "kolla",
        KOLLAS,
        (0, 42427, 0o660),
        "kvm:x:42427:nova\n",
        Until(Start),
        &[Start],
    ),
    case(
        "kolla without defaults",
        KOLLA_ALONE,
        (0, 42427, 0o660),
        "kvm:x:42427:nova\n",
        Fine,
        &[],
    ),
    case(
        "kolla without defaults, by the group file",
        KOLLA_ALONE,
        (0, 108, 0o660),
        P108,
        Until(Reload),
        &[Reload, Add, Change],
    ),
    // No rule covers the device that the kernel creates at a module reload, so `check` predicts nothing.
    case("no rules", NONE, (0, 424, 0o660), P424, Fine, &[Reload]),
    case(
        "no rules, the incident",
        NONE,
        (0, 108, 0o660),
        P424,
        Repairs,
        &[Reload],
    ),
];

pub(super) fn pod(groups: &str) -> Tree {
    let pod = Tree::new();
    pod.file("etc/passwd", USERS);
    pod.file("etc/group", &format!("root:x:0:\n{groups}nova:x:42424:\n"));
    pod.file(
        "etc/libvirt/qemu.conf",
        "user = \"nova\"\ngroup = \"nova\"\n",
    );
    pod
}

/// The identity with which libvirt starts QEMU in such a pod.
pub(super) fn who(pod: &Tree) -> Identity {
    let mut groups = vec![42424];
    for line in pod.read("etc/group").lines() {
        let fields: Vec<_> = line.split(':').collect();
        if fields[3].split(',').any(|member| member == "nova") {
            groups.push(fields[2].parse().unwrap());
        }
    }
    groups.sort_unstable();
    groups.dedup();
    Identity {
        uid: 42424,
        gid: 42424,
        groups,
        name: Some("nova".to_owned()),
    }
}

pub(super) fn set_device((uid, gid, mode): State) {
    set_owner(Path::new(NODE), uid, gid, mode);
}

/// A container with the node's root file system at /host, the node's /dev, and only those image directories that
/// programs need to run.
fn container() {
    let root = scratch().join("container");
    fs::create_dir(&root).unwrap();
    let below = |name: &str| Path::new("/").join(name);
    for name in ["usr", "lib", "lib64", "dev", "proc"] {
        let (there, here) = (below(name), root.join(name));
        if there.is_symlink() {
            symlink(fs::read_link(there).unwrap(), here).unwrap();
        } else if there.is_dir() {
            fs::create_dir(&here).unwrap();
            bind(&there, &here);
        }
    }
    let (host, all) = (root.join("host"), MsFlags::MS_BIND | MsFlags::MS_REC);
    fs::create_dir(&host).unwrap();
    mount(Some("/"), &host, None::<&str>, all, None::<&str>).unwrap();
}

/// Runs the program for this pod in the container; this namespace acts as the node.
pub(super) fn run(command: &str, pod: &Tree) -> Report {
    run_more(command, &[], pod)
}

/// Like [`run`], with additional options.
pub(super) fn run_more(command: &str, more: &[&str], pod: &Tree) -> Report {
    let at_host = |path: &Path| Path::new("/host").join(path.strip_prefix("/").unwrap());
    let mut cmd = Command::new("chroot");
    cmd.arg(scratch().join("container"));
    cmd.arg(at_host(&program().canonicalize().unwrap()));
    cmd.args([command, "--format=json", "--host-root=/host", "--root"]);
    cmd.arg(at_host(pod.path())).args(more);
    let (code, stdout, stderr) = run_with(&mut cmd, b"");
    let report: Report = serde_json::from_str(&stdout)
        .unwrap_or_else(|e| panic!("{cmd:?}: code {code}, not a report: {e}\n{stdout}{stderr}"));
    assert_eq!(code, i32::from(report.exit_code));
    report
}

pub(super) fn warns(report: &Report, code: WarningCode) -> bool {
    report.warnings.iter().any(|warning| warning.code == code)
}

/// Applies each event to the current device, restores the device after each, and returns the events that lock QEMU
/// out.
pub(super) fn live_through(oracle: &Oracle, pod: &Tree) -> Vec<(Event, State)> {
    let (before, who) = (state(), who(pod));
    let mut known = BTreeMap::new();
    let mut locked_out = Vec::new();
    let mut record = |event| {
        let now = state();
        if !*known.entry(now).or_insert_with(|| qemu(&who).works) {
            locked_out.push((event, now));
        }
        set_device(before);
    };
    let daemon = oracle.start();
    record(Start);
    set_device((0, 0, 0o600));
    oracle.trigger("add");
    record(Reload);
    oracle.trigger("add");
    record(Add);
    oracle.trigger("change");
    record(Change);
    drop(daemon);
    ok(Command::new("chmod").args(["660", NODE]));
    let groups = pod.read("etc/group");
    let kvm = groups.lines().find_map(|line| line.strip_prefix("kvm:x:"));
    if let Some((gid, _)) = kvm.and_then(|fields| fields.split_once(':')) {
        ok(Command::new("chown").args([&format!("0:{gid}"), NODE]));
    }
    record(LibvirtSh);
    locked_out
}

/// Runs `f` in a namespace whose device udevd manages, and checks that the machine's own device is unchanged.
pub(super) fn with_udevd(f: impl FnOnce(&Oracle) + Send) {
    support::require_root();
    let _turn = turn();
    let before = machines_own();
    in_namespace(|| {
        oracle::require_tools();
        let oracle = Oracle::new(NODES_GROUPS, USERS);
        container();
        f(&oracle);
    });
    assert_eq!(
        machines_own(),
        before,
        "the machine's own {NODE} was changed"
    );
}

pub(super) fn install(oracle: &Oracle, name: &str, rules: Rules) {
    let file = |&(path, rules): &(&'static str, &str)| -> (&str, Content) { (path, text(rules)) };
    oracle.install(&set(name, rules.iter().map(file).collect()));
}

#[test]
fn check_predicts_what_udevd_does() {
    with_udevd(|oracle| {
        for case in &CASES {
            install(oracle, case.name, case.rules);
            set_device(case.node);
            let pod = pod(case.pod);
            let mut report = run("check", &pod);
            let details = |report: &Report| format!("{}: {report:#?}", case.name);
            let works = qemu(&who(&pod)).works;
            assert_eq!(
                works,
                report.proof.result == ProofWord::Ok,
                "{}",
                details(&report)
            );
            assert_eq!(works, case.expected != Repairs, "{}", details(&report));
            if case.expected == Repairs {
                assert_eq!(report.exit_code, 1, "{}", details(&report));
                assert_eq!(run("apply", &pod).exit_code, 0, "{}", details(&report));
                report = run("check", &pod);
            }
            match case.expected {
                Fine | Repairs => assert_eq!(report.exit_code, 0, "{}", details(&report)),
                Until(first) => {
                    assert_eq!(report.exit_code, 1, "{}", details(&report));
                    let named = report.summary.contains(first.called());
                    assert!(named, "{}", details(&report));
                }
            }
            let locked_out = live_through(oracle, &pod);
            let shown: Vec<_> = locked_out
                .iter()
                .map(|(event, node)| format!("{event:?}: {}", shown(*node)))
                .collect();
            let locks_out: Vec<_> = locked_out.iter().map(|(event, _)| *event).collect();
            assert_eq!(locks_out, case.locks_out, "{shown:?} {}", details(&report));
            if let Until(first) = case.expected {
                let named = |(event, node): &(Event, State)| {
                    let (uid, gid, mode) = node;
                    *event == first && report.summary.contains(&format!("{uid}:{gid} {mode:04o}"))
                };
                assert!(
                    locked_out.iter().any(named),
                    "{shown:?} {}",
                    details(&report)
                );
            }
        }
    });
}

/// The pinned rule has no static_node: a start of udevd sets GID 108, an event 929292.
#[test]
fn after_one_apply_no_event_of_a_node_with_two_gids_locks_qemu_out() {
    with_udevd(|oracle| {
        install(oracle, "Genestack", GENESTACKS);
        assert_eq!(
            oracle.ask(),
            [(0, 108, 0o660), (0, 929_292, 0o660), (0, 929_292, 0o660)]
        );
        for node in [
            (0, 108, 0o660),
            (0, 929_292, 0o660),
            (0, 424, 0o660),
            (0, 0, 0o600),
        ] {
            for groups in [P424, P108, P929292, "kvm:x:929292:\n", ""] {
                set_device(node);
                let pod = pod(groups);
                let applied = run("apply", &pod);
                assert_eq!(applied.exit_code, 0, "{applied:#?}");
                assert!(
                    warns(&applied, WarningCode::UdevEventsDiffer),
                    "{applied:#?}"
                );
                let who = who(&pod);
                assert_eq!(who.groups, [108, 42424, 929_292]);
                let file = pod.read("etc/group");
                assert!(file.contains("kvm:x:929292:nova\n"), "{file}");
                assert!(file.contains("kvm-108:x:108:nova\n"), "{file}");
                let checked = run("check", &pod);
                assert_eq!(checked.exit_code, 0, "{checked:#?}");
                assert!(
                    warns(&checked, WarningCode::UdevEventsDiffer),
                    "{checked:#?}"
                );
                let before = (state(), ctime(&pod));
                let again = run("apply", &pod);
                assert_eq!((again.exit_code, again.changes.len()), (0, 0), "{again:#?}");
                assert_eq!(
                    (state(), ctime(&pod)),
                    before,
                    "the second apply changed something"
                );
                if groups == P424 {
                    assert_eq!(live_through(oracle, &pod), []);
                }
            }
        }
    });
}

/// To survive an event, `apply` does not make QEMU a member of a group that grants more than KVM.
#[test]
fn guarded_group_is_not_granted_because_of_an_event() {
    with_udevd(|oracle| {
        install(oracle, "Genestack", GENESTACKS);
        for (other, gets) in [("libvirt", false), ("disk", false), ("render", true)] {
            set_device((0, 108, 0o660));
            let pod = pod(&format!("{other}:x:108:\nkvm:x:424:nova\n"));
            let applied = run("apply", &pod);
            assert_eq!(applied.exit_code, 0, "{applied:#?}");
            let code = if gets {
                WarningCode::Collision
            } else {
                WarningCode::GuardedGroup
            };
            assert!(warns(&applied, code), "{applied:#?}");
            assert_eq!(who(&pod).groups.contains(&108), gets, "{applied:#?}");
            let checked = run("check", &pod);
            assert_eq!(checked.exit_code, u8::from(!gets), "{checked:#?}");
            let locked_out = live_through(oracle, &pod);
            let want = [(Start, (0, 108, 0o660))];
            assert_eq!(locked_out, want[..usize::from(!gets)]);
        }
    });
}

/// The change times of the device and of the group file.
fn ctime(pod: &Tree) -> [(i64, i64); 2] {
    use std::os::unix::fs::MetadataExt;
    [Path::new(NODE), &pod.at("etc/group")].map(|path| {
        let meta = fs::metadata(path).unwrap();
        (meta.ctime(), meta.ctime_nsec())
    })
}

/// The kernel sends a change event for each virtual machine that starts or ends, so udevd applies its rules at each
/// start of a guest.
#[test]
fn starting_a_guest_triggers_a_change_event() {
    with_udevd(|oracle| {
        install(oracle, "Genestack", GENESTACKS);
        set_device((0, 0, 0o600));
        let daemon = oracle.start();
        assert_eq!(state(), (0, 108, 0o660));
        let pod = pod(P108);
        assert!(qemu(&who(&pod)).works);
        ok(oracle.udevadm("settle").arg("--timeout=10"));
        assert_eq!(state(), (0, 929_292, 0o660));
        assert!(
            !qemu(&who(&pod)).works,
            "QEMU must fail at the second guest"
        );
        drop(daemon);
    });
}

/// udevd resolves group names when it reads its rules. It does not notice a later change of the GID until it is
/// restarted, and `check` warns of that.
#[test]
fn check_warns_of_udevd_with_outdated_gid() {
    with_udevd(|oracle| {
        install(oracle, "Debian", DEBIAN);
        let pod = pod(P108);
        set_device((0, 108, 0o660));
        let daemon = oracle.start();
        let report = run("check", &pod);
        assert_eq!(report.exit_code, 0, "{report:#?}");
        assert!(!warns(&report, WarningCode::UdevdStale), "{report:#?}");
        // The program compares times in whole seconds.
        std::thread::sleep(Duration::from_millis(2100));
        fs::write("/etc/group", "root:x:0:\nkvm:x:777:\n").unwrap();
        let report = run("check", &pod);
        assert!(warns(&report, WarningCode::UdevdStale), "{report:#?}");
        assert_eq!(report.exit_code, 1, "{report:#?}");
        assert!(report.summary.contains("0:777"), "{report:#?}");
        set_device((0, 0, 0o600));
        oracle.trigger("add");
        assert_eq!(state(), (0, 108, 0o660), "udevd must still use the old GID");
        drop(daemon);
        let daemon = oracle.start();
        assert_eq!(state(), (0, 777, 0o660), "udevd must use the new GID");
        assert_eq!(run("apply", &pod).exit_code, 0);
        let report = run("check", &pod);
        assert!(!warns(&report, WarningCode::UdevdStale), "{report:#?}");
        assert_eq!(report.exit_code, 0, "{report:#?}");
        drop(daemon);
        assert_eq!(live_through(oracle, &pod), []);
    });
}
