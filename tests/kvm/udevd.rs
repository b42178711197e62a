//! What `check` foresees, with the real systemd-udevd as the one who does it and QEMU as the one whom
//! it hits; and that after `apply` no event of the node locks QEMU out.

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

/// What can happen to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happens {
    /// udevd starts.
    Start,
    /// The module is reloaded: a node as the kernel makes it, and an add event.
    Reload,
    /// An add event.
    Add,
    /// A change event.
    Change,
    /// `chmod 660 /dev/kvm; chown root:kvm /dev/kvm` in the pod.
    LibvirtSh,
}

use Happens::{Add, Change, LibvirtSh, Reload, Start};

impl Happens {
    /// What `check` calls it.
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

/// What `check` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// QEMU can, and will.
    Fine,
    /// QEMU can, and this is the first that takes it away.
    Until(Happens),
    /// QEMU cannot, and `apply` mends it for good.
    Mends,
}

use Says::{Fine, Mends, Until};

/// Node, pod, what `check` says, and all that really locks QEMU out.
struct Case {
    name: &'static str,
    rules: Rules,
    node: State,
    /// Groups of the pod with their members.
    pod: &'static str,
    says: Says,
    locks_out: &'static [Happens],
}

pub(super) const P108: &str = "kvm:x:108:nova\n";
pub(super) const P424: &str = "kvm:x:424:nova\n";
const P929292: &str = "kvm:x:929292:nova\n";

const fn case(
    name: &'static str,
    rules: Rules,
    node: State,
    pod: &'static str,
    says: Says,
    locks_out: &'static [Happens],
) -> Case {
    Case {
        name,
        rules,
        node,
        pod,
        says,
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
        Mends,
        &[],
    ),
    case(
        "Debian, nobody was there yet",
        DEBIAN,
        (0, 0, 0o600),
        P424,
        Mends,
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
        "Fedora, two numbers",
        FEDORAS,
        (0, 108, 0o666),
        P424,
        Fine,
        &[],
    ),
    case(
        "Fedora, one number",
        FEDORAS,
        (0, 108, 0o660),
        P108,
        Fine,
        &[],
    ),
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
        "Genestack, one of two numbers",
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
        "Genestack, both numbers",
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
    // What the kernel makes at a module's reload no rule speaks of, and nothing is foreseen.
    case("no rules", NONE, (0, 424, 0o660), P424, Fine, &[Reload]),
    case(
        "no rules, the incident",
        NONE,
        (0, 108, 0o660),
        P424,
        Mends,
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

/// Whom libvirt starts QEMU as in such a pod.
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

pub(super) fn place((uid, gid, mode): State) {
    set_owner(Path::new(NODE), uid, gid, mode);
}

/// A container with the node's root file system at /host, its /dev, and of the image only what
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

/// Runs the program for this pod, in a container of the node that this namespace is.
pub(super) fn run(verb: &str, pod: &Tree) -> Report {
    run_more(verb, &[], pod)
}

/// The same with more options.
pub(super) fn run_more(verb: &str, more: &[&str], pod: &Tree) -> Report {
    let at_host = |path: &Path| Path::new("/host").join(path.strip_prefix("/").unwrap());
    let mut cmd = Command::new("chroot");
    cmd.arg(scratch().join("container"));
    cmd.arg(at_host(&program().canonicalize().unwrap()));
    cmd.args([verb, "--format=json", "--host-root=/host", "--root"]);
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

/// Lets everything happen to the node as it is now, and leaves it so. What locks QEMU out?
pub(super) fn live_through(oracle: &Oracle, pod: &Tree) -> Vec<(Happens, State)> {
    let (before, who) = (state(), who(pod));
    let mut known = BTreeMap::new();
    let mut locked_out = Vec::new();
    let mut look = |happens| {
        let now = state();
        if !*known.entry(now).or_insert_with(|| qemu(&who).works) {
            locked_out.push((happens, now));
        }
        place(before);
    };
    let daemon = oracle.start();
    look(Start);
    place((0, 0, 0o600));
    oracle.trigger("add");
    look(Reload);
    oracle.trigger("add");
    look(Add);
    oracle.trigger("change");
    look(Change);
    drop(daemon);
    ok(Command::new("chmod").args(["660", NODE]));
    let groups = pod.read("etc/group");
    let kvm = groups.lines().find_map(|line| line.strip_prefix("kvm:x:"));
    if let Some((gid, _)) = kvm.and_then(|fields| fields.split_once(':')) {
        ok(Command::new("chown").args([&format!("0:{gid}"), NODE]));
    }
    look(LibvirtSh);
    locked_out
}

/// A namespace in which udevd looks after the node, and what the machine must keep.
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
        "the machine's own {NODE} was touched"
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
            place(case.node);
            let pod = pod(case.pod);
            let mut report = run("check", &pod);
            let told = |report: &Report| format!("{}: {report:#?}", case.name);
            let works = qemu(&who(&pod)).works;
            assert_eq!(
                works,
                report.proof.result == ProofWord::Ok,
                "{}",
                told(&report)
            );
            assert_eq!(works, case.says != Mends, "{}", told(&report));
            if case.says == Mends {
                assert_eq!(report.exit_code, 1, "{}", told(&report));
                assert_eq!(run("apply", &pod).exit_code, 0, "{}", told(&report));
                report = run("check", &pod);
            }
            match case.says {
                Fine | Mends => assert_eq!(report.exit_code, 0, "{}", told(&report)),
                Until(first) => {
                    assert_eq!(report.exit_code, 1, "{}", told(&report));
                    let named = report.summary.contains(first.called());
                    assert!(named, "{}", told(&report));
                }
            }
            let locked_out = live_through(oracle, &pod);
            let shown: Vec<_> = locked_out
                .iter()
                .map(|(happens, node)| format!("{happens:?}: {}", shown(*node)))
                .collect();
            let locks_out: Vec<_> = locked_out.iter().map(|(happens, _)| *happens).collect();
            assert_eq!(locks_out, case.locks_out, "{shown:?} {}", told(&report));
            if let Until(first) = case.says {
                let named = |(happens, node): &(Happens, State)| {
                    let (uid, gid, mode) = node;
                    *happens == first && report.summary.contains(&format!("{uid}:{gid} {mode:04o}"))
                };
                assert!(locked_out.iter().any(named), "{shown:?} {}", told(&report));
            }
        }
    });
}

/// The pinned rule has no static_node: a start of udevd gives 108, an event 929292.
#[test]
fn one_apply_survives_all_events_of_a_node_with_two_gids() {
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
                place(node);
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
                assert_eq!((state(), ctime(&pod)), before, "the second apply");
                if groups == P424 {
                    assert_eq!(live_through(oracle, &pod), []);
                }
            }
        }
    });
}

/// For the sake of an event QEMU gets nothing that is more than KVM.
#[test]
fn guarded_group_is_not_granted_because_of_an_event() {
    with_udevd(|oracle| {
        install(oracle, "Genestack", GENESTACKS);
        for (other, gets) in [("libvirt", false), ("disk", false), ("render", true)] {
            place((0, 108, 0o660));
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

/// When the node or the group file was last changed.
fn ctime(pod: &Tree) -> [(i64, i64); 2] {
    use std::os::unix::fs::MetadataExt;
    [Path::new(NODE), &pod.at("etc/group")].map(|path| {
        let meta = fs::metadata(path).unwrap();
        (meta.ctime(), meta.ctime_nsec())
    })
}

/// The kernel sends one for each virtual machine that begins or ends, so the node's rules are applied
/// at each start of a guest.
#[test]
fn starting_a_guest_triggers_a_change_event() {
    with_udevd(|oracle| {
        install(oracle, "Genestack", GENESTACKS);
        place((0, 0, 0o600));
        let daemon = oracle.start();
        assert_eq!(state(), (0, 108, 0o660));
        let pod = pod(P108);
        assert!(qemu(&who(&pod)).works);
        ok(oracle.udevadm("settle").arg("--timeout=10"));
        assert_eq!(state(), (0, 929_292, 0o660));
        assert!(!qemu(&who(&pod)).works, "the second guest");
        drop(daemon);
    });
}

/// udevd looks groups up when it reads its rules: a group that is renumbered later is news to it only
/// after a restart, and `check` says so.
#[test]
fn check_warns_of_udevd_with_outdated_gid() {
    with_udevd(|oracle| {
        install(oracle, "Debian", DEBIAN);
        let pod = pod(P108);
        place((0, 108, 0o660));
        let daemon = oracle.start();
        let report = run("check", &pod);
        assert_eq!(report.exit_code, 0, "{report:#?}");
        assert!(!warns(&report, WarningCode::UdevdStale), "{report:#?}");
        // Times are compared in seconds.
        std::thread::sleep(Duration::from_millis(2100));
        fs::write("/etc/group", "root:x:0:\nkvm:x:777:\n").unwrap();
        let report = run("check", &pod);
        assert!(warns(&report, WarningCode::UdevdStale), "{report:#?}");
        assert_eq!(report.exit_code, 1, "{report:#?}");
        assert!(report.summary.contains("0:777"), "{report:#?}");
        place((0, 0, 0o600));
        oracle.trigger("add");
        assert_eq!(state(), (0, 108, 0o660), "the old number");
        drop(daemon);
        let daemon = oracle.start();
        assert_eq!(state(), (0, 777, 0o660), "the new number");
        assert_eq!(run("apply", &pod).exit_code, 0);
        let report = run("check", &pod);
        assert!(!warns(&report, WarningCode::UdevdStale), "{report:#?}");
        assert_eq!(report.exit_code, 0, "{report:#?}");
        drop(daemon);
        assert_eq!(live_through(oracle, &pod), []);
    });
}
