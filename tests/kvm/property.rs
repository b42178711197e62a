//! Some hundred drawn states: what `check` foresees, what `apply` says, and what it leaves, against
//! what QEMU meets.
//!
//! `KVM_TEST_STATE=N` replays one of them, `KVM_TEST_SEED` and `KVM_TEST_STATES` draw others.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use libvirt_kvm_init::codes::{Cause, ProofWord};
use libvirt_kvm_init::report::{Report, UdevEvent};
use libvirt_kvm_init::verdict::Verdict;
use nix::errno::Errno;
use nix::mount::MsFlags;

use crate::oracle::{self, Accounts, Identity, qemu, run_with};
use crate::state::{DEVICE, Kind, Mount, OnHost, Out, Stage, State, remount_dev};
use support::random::Random;
use support::{in_namespace, mknod_kvm, program};

const SEED: u64 = 0x006b_766d_0232;
const STATES: usize = 400;

#[test]
fn verdicts_are_what_qemu_meets() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seed = number("KVM_TEST_SEED").map_or(SEED, |seed: usize| seed as u64);
    let states = number("KVM_TEST_STATES").unwrap_or(STATES);
    let which: Vec<usize> = match number("KVM_TEST_STATE") {
        Some(one) => vec![one],
        None => (0..states).collect(),
    };
    let tally = in_namespace(|| {
        oracle::require();
        let accounts = Accounts::cover();
        let mut tally = BTreeMap::new();
        let mut failed = Vec::new();
        for index in which {
            // Each state from its own seed, so that one alone can be replayed.
            let mut random = Random((seed + index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let state = State::draw(&mut random);
            match catch_unwind(AssertUnwindSafe(|| try_out(&state, &accounts))) {
                Ok(words) => words
                    .into_iter()
                    .for_each(|word| *tally.entry(word).or_insert(0) += 1),
                Err(panic) => {
                    println!("KVM_TEST_SEED={seed} KVM_TEST_STATE={index}: {state:#?}\n");
                    failed.push((index, panic));
                }
            }
        }
        if let Some((index, panic)) = failed.pop() {
            println!("{} more failed; the last is state {index}", failed.len());
            resume_unwind(panic);
        }
        tally
    });
    println!("{tally:#?}");
    if states >= STATES && tally.len() > 1 {
        let seen = |word: &str| tally.get(word).copied().unwrap_or(0);
        for word in [
            "apply ok",
            "apply refused",
            "apply unproven",
            "apply absent",
            "dry-run ok",
            "dry-run drift",
            "check ok",
            "check drift",
            "check unproven",
            "it comes true",
        ] {
            assert!(seen(word) >= 5, "the states are not various enough: {word}");
        }
    }
}

/// Everything that the program must not touch where it says that it did not.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    inode: u64,
    /// Moves with the ACL, too.
    ctime: (i64, i64),
    content: Option<Vec<u8>>,
}

type Snapshot = BTreeMap<PathBuf, Stamp>;

fn stamp(path: &Path) -> Stamp {
    let meta = fs::symlink_metadata(path).unwrap();
    Stamp {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        rdev: meta.rdev(),
        inode: meta.ino(),
        ctime: (meta.ctime(), meta.ctime_nsec()),
        content: meta.is_file().then(|| fs::read(path).unwrap()),
    }
}

fn snapshot(stage: &Stage) -> Snapshot {
    fn walk(path: &Path, into: &mut Snapshot) {
        into.insert(path.to_owned(), stamp(path));
        // What is mounted below /dev is not the program's business, and the terminals' times move.
        let below = path.parent() == Some(Path::new("/dev"));
        if path.is_dir() && !path.is_symlink() && !below {
            for entry in fs::read_dir(path).unwrap() {
                walk(&entry.unwrap().path(), into);
            }
        }
    }
    let mut all = Snapshot::new();
    for folder in stage.folders() {
        all.insert(folder.to_owned(), stamp(folder));
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("dev") {
                // Either empty, or /dev, which is walked once.
                all.insert(path.clone(), stamp(&path));
                let node = path.join("kvm");
                if node.symlink_metadata().is_ok() {
                    all.insert(node.clone(), stamp(&node));
                }
            } else {
                walk(&path, &mut all);
            }
        }
    }
    walk(Path::new("/dev"), &mut all);
    all
}

#[track_caller]
fn assert_untouched(before: &Snapshot, after: &Snapshot) {
    for (path, stamp) in before {
        assert_eq!(
            Some(stamp),
            after.get(path),
            "{} was touched",
            path.display()
        );
    }
    let new: Vec<_> = after
        .keys()
        .filter(|path| !before.contains_key(*path))
        .collect();
    assert!(new.is_empty(), "appeared: {new:?}");
}

struct Run {
    code: i32,
    report: Report,
}

fn apply(stage: &Stage, state: &State) -> Run {
    run(stage, state, &["apply"])
}

fn run(stage: &Stage, state: &State, verb: &[&str]) -> Run {
    let mut cmd = Command::new(program());
    let (code, stdout, stderr) = run_with(cmd.args(verb).args(stage.arguments(state)), b"");
    let report: Report = serde_json::from_str(&stdout)
        .unwrap_or_else(|e| panic!("{cmd:?}: code {code}, not a report: {e}\n{stdout}{stderr}"));
    assert_eq!(code, i32::from(report.exit_code), "exit code and report");
    let skipped = report.verdict == Verdict::Absent && code == 0 && state.has("--missing=skip");
    assert!(
        report.exit_code == report.verdict.code() || skipped,
        "{:?} with {code}",
        report.verdict
    );
    if report.verdict != Verdict::Ok {
        let last = stderr.lines().last().unwrap_or_default();
        assert_eq!(last, report.closing_line(), "the last line on stderr");
    }
    Run { code, report }
}

/// Whom libvirt would start QEMU as, from the files as they are now.
fn identity_now(stage: &Stage, state: &State, accounts: &Accounts) -> Option<Identity> {
    let passwd = fs::read(stage.pod.at("etc/passwd")).unwrap();
    let group = fs::read(stage.group_file()?).unwrap();
    let (user, name) = state.configured()?;
    accounts.with(&passwd, &group, |glibc| glibc.identity(&user, &name))
}

fn assert_identity(report: &Report, who: Option<&Identity>) {
    let who = who.expect("a report on an identity, where libvirtd would not start");
    let qemu = report.qemu.as_ref().expect("the identity");
    let mut groups = qemu.groups.clone();
    groups.sort_unstable();
    let told = Identity {
        uid: qemu.uid,
        gid: qemu.gid,
        groups,
        name: qemu.user.clone(),
    };
    assert_eq!(&told, who, "whom QEMU runs as, against glibc");
    assert!(!qemu.stand_in);
}

fn try_out(state: &State, accounts: &Accounts) -> Vec<String> {
    let stage = Stage::build(state);
    let mut words = Vec::new();
    let who = identity_now(&stage, state, accounts);
    let works = who.as_ref().map(qemu).is_some_and(|qemu| qemu.works);
    let checked = look(&stage, state, &["check"], who.as_ref(), works);
    words.push(format!("check {}", checked.report.verdict.word()));
    words.extend(live_through(
        &stage,
        state,
        accounts,
        &checked,
        who.as_ref(),
    ));
    let predicted = state.dry_run_first.then(|| {
        let run = look(&stage, state, &["apply", "--dry-run"], who.as_ref(), works);
        words.push(format!("dry-run {}", run.report.verdict.word()));
        run
    });
    let before = snapshot(&stage);
    let acl_before = acl();
    let run = apply(&stage, state);
    let after = snapshot(&stage);
    words.push(format!("apply {}", run.report.verdict.word()));
    // `check` looks at a device that is not the node's, and `apply` leaves it alone.
    let private = state.on_host == OnHost::Other && !state.has("--device");
    if let Some(predicted) = predicted {
        assert_predicted(state, &predicted, &run);
    }
    if private && matches!(checked.code, 0 | 1 | 2 | 5) {
        assert_eq!(run.code, 3, "a private /dev: {:#?}", run.report);
        assert!(checked.code != 1 || works, "{:#?}", checked.report);
    } else {
        assert_predicted(state, &checked, &run);
    }
    let who = identity_now(&stage, state, accounts);
    let meets = who.as_ref().map(qemu);
    let works = meets.as_ref().is_some_and(|meets| meets.works);
    let report = &run.report;
    let told = || format!("{report:#?}\nQEMU as {who:?}: {meets:?}");
    match run.code {
        0 if report.verdict == Verdict::Absent => {
            assert!(!works, "absent, and QEMU works: {}", told());
            assert_eq!(state.kind, Kind::Missing);
            assert_out_is_there(&stage);
            if state.out == Out::NotAsked {
                assert_untouched(&before, &after);
            }
        }
        0 => {
            if state.has("--proof=off") {
                assert_eq!(report.proof.result, ProofWord::Off);
                assert!(report.warnings.iter().any(|w| w.code.word() == "unproven"));
            } else {
                assert!(works, "ok, and QEMU does not work: {}", told());
                assert_eq!(report.proof.result, ProofWord::Ok, "{}", told());
                assert_eq!(
                    (report.proof.cause, report.proof.api_version),
                    (None, Some(12))
                );
            }
            assert_identity(report, who.as_ref());
            assert!(report.changes.iter().all(|change| change.applied));
            assert_left(state, report, &stage, accounts, who.as_ref());
            assert_out_is_there(&stage);
            assert_nobody_gained(state, acl_before.as_ref());
            assert_again_is_nothing(&stage, state, &after);
            let checked = look(&stage, state, &["check"], who.as_ref(), works);
            assert!(matches!(checked.code, 0 | 1), "{:#?}", checked.report);
            let lasts = live_through(&stage, state, accounts, &checked, who.as_ref());
            words.extend(lasts.map(|word| format!("apply, then {word}")));
            // A rule that gives no group, or group 0, leaves nothing that a pod could follow.
            let nodes_fault = checked
                .report
                .summary
                .contains("change the rule on the node");
            let member = who.as_ref().is_some_and(|who| who.name.is_some());
            assert!(
                checked.code == 0 || nodes_fault || !member,
                "after apply: {:#?}",
                checked.report
            );
        }
        2 => {
            assert_untouched(&before, &after);
            let reason =
                state.pod_group.is_none() || who.is_none() || libvirtd_fails(state, report);
            assert!(reason, "usage without a reason: {}", told());
        }
        3 => {
            assert_untouched(&before, &after);
            assert!(report.changes.is_empty());
            assert_refusal_has_a_reason(state, report);
        }
        4 => {
            assert_eq!(state.mount, Mount::ReadOnly, "{}", told());
            assert!(report.summary.contains("EROFS"), "{}", told());
        }
        5 => {
            assert!(!works, "unproven, and QEMU works: {}", told());
            assert_identity(report, who.as_ref());
            let meets = meets.as_ref().unwrap();
            assert_same_errno(report, &meets.text);
            words.push(cause_word(report));
            words.push(follow_advice(&stage, state, report, accounts));
        }
        6 => {
            assert!(!works, "absent, and QEMU works: {}", told());
            assert_eq!(state.kind, Kind::Missing, "{}", told());
            assert_untouched(&before, &after);
        }
        _ => panic!("code {}: {}", run.code, told()),
    }
    stage.strike();
    words
}

/// `check` and a dry run change nothing, and 0, 5 and 6 say of the state as it is what QEMU meets
/// in it.
fn look(stage: &Stage, state: &State, verb: &[&str], who: Option<&Identity>, works: bool) -> Run {
    let before = snapshot(stage);
    let run = run(stage, state, verb);
    assert_untouched(&before, &snapshot(stage));
    let report = &run.report;
    assert!(report.changes.iter().all(|change| !change.applied));
    let proven = report.proof.result == ProofWord::Ok;
    match run.code {
        0 if report.verdict == Verdict::Absent => assert!(!works, "{report:#?}"),
        0 | 1 | 5 => {
            if report.qemu.is_some() {
                assert_identity(report, who);
            } else {
                assert_eq!(
                    who, None,
                    "no identity told, and libvirtd would start: {report:#?}"
                );
            }
            if report.proof.result != ProofWord::Off {
                assert_eq!(proven, works, "the proof against QEMU: {report:#?}");
            }
            match run.code {
                0 => assert!(works || state.has("--proof=off"), "{report:#?}"),
                // What is to come needs no change now, and a group file of its own that is only out
                // of date has no line to show.
                1 => assert!(
                    works || !report.changes.is_empty() || stage.out().is_some(),
                    "{report:#?}"
                ),
                _ => assert!(!works, "{report:#?}"),
            }
        }
        6 => assert!(!works, "{report:#?}"),
        2 | 3 => {}
        code => panic!("code {code}: {report:#?}"),
    }
    run
}

/// Something that happens to the device sooner or later.
#[derive(Debug)]
enum Coming {
    /// An event of the node's udev: a device as the kernel makes it, or the one that is there.
    Event { fresh: bool, event: UdevEvent },
    /// The chart's libvirt.sh: `chmod 660 /dev/kvm; chown root:kvm /dev/kvm`, with the pod's kvm if
    /// it has one.
    LibvirtSh(Option<u32>),
}

impl Coming {
    /// Does it.
    fn befall(&self, stage: &Stage, state: &State) {
        match self {
            Self::Event { fresh, event } => {
                let node = stage.nodes_device(state);
                if *fresh {
                    fs::remove_file(&node).unwrap();
                    mknod_kvm(&node, 0, 0, 0o600);
                }
                chown(&node, None, event.gid).unwrap();
                if let Some(mode) = &event.mode {
                    let mode = u32::from_str_radix(mode, 8).unwrap();
                    fs::set_permissions(&node, fs::Permissions::from_mode(mode)).unwrap();
                }
            }
            Self::LibvirtSh(gid) => {
                fs::set_permissions(DEVICE, fs::Permissions::from_mode(0o660)).unwrap();
                if gid.is_some() {
                    chown(DEVICE, Some(0), *gid).unwrap();
                }
            }
        }
    }
}

/// Everything that is to come: what the report says of the node's udev, and what the chart does.
fn coming(stage: &Stage, report: &Report, accounts: &Accounts) -> Vec<Coming> {
    let file = fs::read(stage.group_file().unwrap()).unwrap();
    let kvm = accounts.with(b"", &file, |glibc| glibc.gid_of("kvm"));
    let mut all = vec![Coming::LibvirtSh(kvm)];
    let host = report.host.as_ref().expect("a host root");
    let udev = host.udev.clone().expect("a forecast");
    for (fresh, event) in [
        (false, udev.start),
        (true, udev.add.clone()),
        (false, udev.add),
        (false, udev.change),
    ] {
        all.extend(event.map(|event| Coming::Event { fresh, event }));
    }
    all
}

/// Where QEMU works, `check` knows whether something takes that away: it is done to the node, and
/// QEMU started.
fn live_through(
    stage: &Stage,
    state: &State,
    accounts: &Accounts,
    checked: &Run,
    who: Option<&Identity>,
) -> Option<String> {
    let report = &checked.report;
    if report.proof.result != ProofWord::Ok {
        return None;
    }
    // A group file of its own is out of date: that is drift whatever comes.
    let stale_out = checked.code == 1 && report.summary.contains("is missing or out of date");
    if stale_out {
        return Some("only the group file".to_owned());
    }
    let mut known = BTreeMap::from([(guard(), true)]);
    let mut losses = Vec::new();
    let restore = stage.keep_device(state);
    for coming in coming(stage, report, accounts) {
        // udev and the chart's container do not see the pod's read-only mount.
        if state.mount == Mount::ReadOnly {
            remount_dev(MsFlags::empty());
        }
        coming.befall(stage, state);
        let works = *known
            .entry(guard())
            .or_insert_with(|| qemu(who.unwrap()).works);
        if !works {
            losses.push(coming);
        }
        restore();
    }
    match checked.code {
        0 => assert!(losses.is_empty(), "ok, but: {losses:?} {report:#?}"),
        1 => assert!(!losses.is_empty(), "drift, and nothing comes: {report:#?}"),
        code => panic!("{code} with a proof that is ok: {report:#?}"),
    }
    Some(match losses.len() {
        0 => "it lasts".to_owned(),
        _ => "it comes true".to_owned(),
    })
}

/// What lets QEMU open the device, or not.
fn guard() -> (u32, u32, u32, Option<BTreeMap<String, String>>) {
    let meta = fs::symlink_metadata(DEVICE).unwrap();
    (meta.uid(), meta.gid(), meta.mode(), acl())
}

/// What a dry run says is what apply then does. Only a read-only /dev shows at the attempt alone.
fn assert_predicted(state: &State, dry: &Run, run: &Run) {
    if run.code == 4 && state.mount == Mount::ReadOnly {
        return;
    }
    let plan = |report: &Report| -> Vec<_> {
        let changes = report.changes.iter();
        changes
            .map(|change| (change.action, change.from.clone(), change.to.clone()))
            .collect()
    };
    assert_eq!(plan(&dry.report), plan(&run.report), "dry run, then apply");
    let then: &[i32] = match dry.code {
        // QEMU can now, but not with the number that the node's next event gives: a fixed group
        // without a name in passwd is not for this program to change.
        1 if dry.report.proof.result == ProofWord::Ok => &[0, 5],
        1 => &[0],
        0 => &[0],
        2 => &[2],
        3 => &[3],
        5 => &[5],
        6 => &[6],
        code => panic!("dry run: {code}"),
    };
    assert!(
        then.contains(&run.code),
        "dry run {}, then apply {}: {:#?}\n{:#?}",
        dry.code,
        run.code,
        dry.report,
        run.report
    );
}

/// The compiled-in defaults are unknown, or what they name is not there: then libvirtd would not
/// start even where qemu.conf names others.
fn libvirtd_fails(state: &State, report: &Report) -> bool {
    state.build.is_none() && report.summary.contains("ambiguous")
}

fn assert_refusal_has_a_reason(state: &State, report: &Report) {
    let why = &report.summary;
    let reason = if report.proof.cause == Some(Cause::NotKvm) {
        !matches!(state.kind, Kind::Kvm | Kind::Missing)
    } else if why.contains("/dev is not the node's") || why.contains("mount the node's /dev") {
        state.on_host == OnHost::Other
    } else if why.contains("on the node that is the group") {
        !state.has("--gid")
            && state
                .host_group
                .is_some_and(|text| text.contains("render:x:"))
    } else if why.contains("--strict") {
        state.has("--strict")
    } else if why.contains("which is the pod's group libvirt") {
        !state.has("--gid") && state.pod_group.as_ref().unwrap().contains("libvirt:x:108:")
    } else if why.contains("the member name '42424' is not written") {
        // A name of digits, which would have to be written.
        state.passwd.contains("42424:x:")
    } else if why.contains("no number for the group") {
        let kvm = |text: &str| text.contains("kvm:x:108") || text.contains("kvm:x:424");
        state.owner.1 == 0
            && !state
                .host_group
                .is_some_and(|text| kvm(text) || text.contains("929292"))
            && !state.pod_group.as_deref().is_some_and(kvm)
    } else {
        false
    };
    assert!(reason, "refused without a reason: {report:#?}");
}

/// The device and the group file after an exit 0.
fn assert_left(
    state: &State,
    report: &Report,
    stage: &Stage,
    accounts: &Accounts,
    who: Option<&Identity>,
) {
    let target = report.target.as_ref().unwrap();
    let meta = fs::symlink_metadata(DEVICE).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid()),
        (0, target.gid),
        "the device's owner"
    );
    let mode = meta.mode() & 0o7777;
    match state
        .options
        .iter()
        .find_map(|option| option.strip_prefix("--mode="))
    {
        Some(exact) => assert_eq!(format!("{mode:04o}"), exact),
        None => {
            assert_eq!(mode & 0o660, 0o660, "{mode:o}");
            if state.acl.is_none() {
                assert_eq!(mode, state.mode | 0o660, "bits for others are left alone");
            }
        }
    }
    let device = report.device.as_ref().unwrap();
    assert_eq!(device.mode, Some(format!("{mode:04o}")));
    assert_eq!((device.uid, device.gid), (Some(0), Some(target.gid)));
    assert_eq!(target.mode, device.mode);
    let same = match state.on_host {
        OnHost::Nothing => None,
        OnHost::Same => Some(true),
        OnHost::Other => Some(false),
    };
    assert_eq!(device.same_inode_as_host, same);
    let file = fs::read(stage.group_file().unwrap()).unwrap();
    let kvm = accounts.with(b"", &file, |glibc| glibc.gid_of("kvm"));
    assert_eq!(kvm, Some(target.gid), "getgrnam(kvm)");
    assert_eq!(report.pod.as_ref().unwrap().kvm_gid, Some(target.gid));
    let who = who.unwrap();
    if who.uid != 0 && who.name.is_some() {
        assert!(
            who.groups.contains(&target.gid),
            "the QEMU user is a member"
        );
    }
    let old = state.pod_group.as_ref().unwrap().as_bytes();
    assert_eq!(other_lines(&file), other_lines(old), "the other lines");
}

/// Whether a line is kvm's, or that of a further number that an event of the node gives.
fn is_kvms(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    line.starts_with(b"kvm:") || line.starts_with(b"kvm-")
}

/// The lines of a group file that are not kvm's.
fn other_lines(file: &[u8]) -> Vec<&[u8]> {
    let lines = file.split(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.is_empty() && !is_kvms(line))
        .collect()
}

fn assert_out_is_there(stage: &Stage) {
    let Some(out) = stage.out() else { return };
    let meta = fs::symlink_metadata(out).expect("--group-file-out after an exit 0");
    assert!(meta.is_file());
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
    assert_eq!(meta.permissions().mode() & 0o7777, 0o644);
    let (own, out) = (
        fs::read(stage.pod.at("etc/group")).unwrap(),
        fs::read(out).unwrap(),
    );
    assert_eq!(other_lines(&out), other_lines(&own), "whole");
}

fn assert_again_is_nothing(stage: &Stage, state: &State, after: &Snapshot) {
    let again = apply(stage, state);
    assert_eq!(again.code, 0, "the second run: {:#?}", again.report);
    assert_eq!(again.report.changes, [], "the second run");
    assert_untouched(after, &snapshot(stage));
}

/// The device's ACL as (tag and name, permissions); `None` without a device.
fn acl() -> Option<BTreeMap<String, String>> {
    let meta = fs::symlink_metadata(DEVICE).ok()?;
    use std::os::unix::fs::FileTypeExt;
    if !meta.file_type().is_char_device() {
        return None;
    }
    let mut cmd = Command::new("getfacl");
    let (code, text, stderr) = run_with(cmd.args(["-ncpE", DEVICE]), b"");
    assert_eq!(code, 0, "{stderr}");
    let entry = |line: &str| {
        line.rsplit_once(':')
            .map(|(who, may)| (who.to_owned(), may.to_owned()))
    };
    Some(text.lines().filter_map(entry).collect())
}

/// Raising the mask gives nobody but owner and group more than they effectively had.
fn assert_nobody_gained(state: &State, before: Option<&BTreeMap<String, String>>) {
    let (Some(before), Some(after)) = (before, acl()) else {
        return;
    };
    let effective = |acl: &BTreeMap<String, String>, who: &str| -> Vec<char> {
        let mask = acl.get("mask:").map_or("rwx", String::as_str);
        let mask = if who == "other:" { "rwx" } else { mask };
        let may = acl.get(who).map_or("", String::as_str);
        may.chars()
            .filter(|bit| *bit != '-' && mask.contains(*bit))
            .collect()
    };
    for who in after.keys() {
        let bystander = who == "other:" && !state.has("--mode")
            || who.starts_with("user:") && who != "user:"
            || who.starts_with("group:") && who != "group:";
        if bystander {
            let (had, has) = (effective(before, who), effective(&after, who));
            assert!(
                has.iter().all(|bit| had.contains(bit)),
                "{who}: {had:?} -> {has:?}"
            );
        }
    }
}

/// The errno in the report is the one in QEMU's text.
fn assert_same_errno(report: &Report, text: &str) {
    let errnos = [
        (Errno::EACCES, "Permission denied"),
        (Errno::EPERM, "Operation not permitted"),
        (Errno::ENOENT, "No such file or directory"),
        (Errno::ENODEV, "No such device"),
        (Errno::ENXIO, "No such device or address"),
    ];
    let said = errnos
        .iter()
        .find(|(_, said)| text.contains(&format!("Could not access KVM kernel module: {said}\n")));
    let (errno, _) = said.unwrap_or_else(|| panic!("an unknown text: {text}"));
    assert_eq!(report.proof.result.as_str(), format!("{errno:?}"), "{text}");
    let cause = report.proof.cause.expect("a cause");
    assert!(
        matches!(cause, Cause::Ownership | Cause::Acl | Cause::Nodev),
        "nothing here could be {cause:?}: {report:#?}"
    );
}

fn cause_word(report: &Report) -> String {
    format!("cause {:?}", report.proof.cause.unwrap())
}

/// Does what the advice says until QEMU works: a cause is right if its remedy helps.
fn follow_advice(stage: &Stage, state: &State, first: &Report, accounts: &Accounts) -> String {
    let mut report = first.clone();
    let mut done = Vec::new();
    loop {
        let cause = report.proof.cause.unwrap();
        let advice = report.proof.advice.clone().unwrap();
        assert!(
            !done.contains(&advice),
            "the advice was followed, and did not help: {advice}"
        );
        match cause {
            Cause::Acl => {
                let done = run_with(Command::new("setfacl").args(["-b", DEVICE]), b"");
                assert_eq!(done.0, 0, "{done:?}");
            }
            Cause::Nodev => remount_dev(MsFlags::empty()),
            Cause::Ownership if advice.starts_with("the directory /dev ") => {
                if state.mount == Mount::ReadOnly {
                    return "advice, then read-only".to_owned();
                }
                let mode = fs::metadata("/dev").unwrap().mode();
                fs::set_permissions("/dev", fs::Permissions::from_mode(mode | 0o001)).unwrap();
            }
            Cause::Ownership => {
                // Nothing that this program may change: the configured identity is not in the group.
                let meta = fs::symlink_metadata(DEVICE).unwrap();
                let who = identity_now(stage, state, accounts).unwrap();
                assert!(!who.groups.contains(&meta.gid()), "{report:#?}");
                assert_ne!(meta.mode() & 0o006, 0o006, "{report:#?}");
                assert!(who.uid != 0 && who.uid != meta.uid());
                assert!(
                    who.name.is_none(),
                    "a user with a name is made a member: {report:#?}"
                );
                return "advice: another identity".to_owned();
            }
            other => panic!("{other:?}: {report:#?}"),
        }
        done.push(advice);
        let run = apply(stage, state);
        match run.code {
            0 => {
                let who = identity_now(stage, state, accounts).unwrap();
                assert!(
                    qemu(&who).works,
                    "ok after the advice, and QEMU does not work"
                );
                return format!("advice helps after {}", done.len());
            }
            4 if state.mount == Mount::ReadOnly => return "advice, then read-only".to_owned(),
            5 => report = run.report,
            code => panic!("{code} after the advice: {:#?}", run.report),
        }
    }
}
