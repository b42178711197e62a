//! Compares `check` and `apply` with QEMU in several hundred random states: predictions, verdicts and the resulting
//! state.
//!
//! `KVM_TEST_STATE=N` replays one state; `KVM_TEST_SEED` and `KVM_TEST_STATES` generate other ones.

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
fn verdicts_match_qemu() {
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
            // Each state has its own seed, so it can be replayed alone.
            let mut random = Random((seed + index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let state = State::draw(&mut random);
            match catch_unwind(AssertUnwindSafe(|| test_state(&state, &accounts))) {
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
            "the predicted drift happens",
        ] {
            assert!(seen(word) >= 5, "the states are not diverse enough: {word}");
        }
    }
}

/// The attributes of a file that must not change in a run without changes.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    inode: u64,
    /// The change time, which the kernel also updates when the ACL changes.
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
        // Skip mounts below /dev: the times of terminals change.
        let below = path.parent() == Some(Path::new("/dev"));
        if path.is_dir() && !path.is_symlink() && !below {
            for entry in fs::read_dir(path).unwrap() {
                walk(&entry.unwrap().path(), into);
            }
        }
    }
    let mut all = Snapshot::new();
    for directory in stage.directories() {
        all.insert(directory.to_owned(), stamp(directory));
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("dev") {
                // This directory is empty or the same as /dev, which is walked once.
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
            "{} was changed",
            path.display()
        );
    }
    let new: Vec<_> = after
        .keys()
        .filter(|path| !before.contains_key(*path))
        .collect();
    assert!(new.is_empty(), "new files: {new:?}");
}

struct Run {
    code: i32,
    report: Report,
}

fn apply(stage: &Stage, state: &State) -> Run {
    run(stage, state, &["apply"])
}

fn run(stage: &Stage, state: &State, command: &[&str]) -> Run {
    let mut cmd = Command::new(program());
    let (code, stdout, stderr) = run_with(cmd.args(command).args(stage.arguments(state)), b"");
    let report: Report = serde_json::from_str(&stdout)
        .unwrap_or_else(|e| panic!("{cmd:?}: code {code}, not a report: {e}\n{stdout}{stderr}"));
    assert_eq!(
        code,
        i32::from(report.exit_code),
        "exit code differs from the report"
    );
    let skipped = report.verdict == Verdict::Absent && code == 0 && state.has("--missing=skip");
    assert!(
        report.exit_code == report.verdict.code() || skipped,
        "{:?} with exit code {code}",
        report.verdict
    );
    if report.verdict != Verdict::Ok {
        let last = stderr.lines().last().unwrap_or_default();
        assert_eq!(
            last,
            report.closing_line(),
            "the last line on stderr is not the closing line"
        );
    }
    if report.verdict == Verdict::Drift {
        // The summary names the command: a second one would contradict it.
        let advice = report.proof.advice.as_deref().unwrap_or_default();
        assert!(!advice.contains("run `"), "{report:#?}");
    }
    Run { code, report }
}

/// The identity with which libvirt would start QEMU, from the current files.
fn identity_now(stage: &Stage, state: &State, accounts: &Accounts) -> Option<Identity> {
    let passwd = fs::read(stage.pod.at("etc/passwd")).unwrap();
    let group = fs::read(stage.group_file()?).unwrap();
    let (user, name) = state.configured()?;
    accounts.with(&passwd, &group, |glibc| glibc.identity(&user, &name))
}

fn assert_identity(report: &Report, who: Option<&Identity>) {
    let who = who.expect("an identity in the report although libvirtd would not start");
    let qemu = report.qemu.as_ref().expect("the identity");
    let mut groups = qemu.groups.clone();
    groups.sort_unstable();
    let reported = Identity {
        uid: qemu.uid,
        gid: qemu.gid,
        groups,
        name: qemu.user.clone(),
    };
    assert_eq!(&reported, who, "the QEMU identity differs from glibc's");
    assert!(!qemu.stand_in);
}

fn test_state(state: &State, accounts: &Accounts) -> Vec<String> {
    let stage = Stage::build(state);
    let mut words = Vec::new();
    let who = identity_now(&stage, state, accounts);
    let works = who.as_ref().map(qemu).is_some_and(|qemu| qemu.works);
    let checked = inspect(&stage, state, &["check"], who.as_ref(), works);
    words.push(format!("check {}", checked.report.verdict.word()));
    words.extend(live_through(
        &stage,
        state,
        accounts,
        &checked,
        who.as_ref(),
    ));
    let predicted = state.dry_run_first.then(|| {
        let run = inspect(&stage, state, &["apply", "--dry-run"], who.as_ref(), works);
        words.push(format!("dry-run {}", run.report.verdict.word()));
        run
    });
    let before = snapshot(&stage);
    let acl_before = acl();
    let run = apply(&stage, state);
    let after = snapshot(&stage);
    words.push(format!("apply {}", run.report.verdict.word()));
    // `check` inspects a device that is not the node's, and `apply` does not change it.
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
    let details = || format!("{report:#?}\nQEMU as {who:?}: {meets:?}");
    match run.code {
        0 if report.verdict == Verdict::Absent => {
            assert!(!works, "absent although QEMU works: {}", details());
            assert_eq!(state.kind, Kind::Missing);
            assert_out_is_there(&stage);
            if state.out == Out::NotSet {
                assert_untouched(&before, &after);
            }
        }
        0 => {
            if state.has("--proof=off") {
                assert_eq!(report.proof.result, ProofWord::Off);
                assert!(report.warnings.iter().any(|w| w.code.word() == "unproven"));
            } else {
                assert!(works, "ok although QEMU does not work: {}", details());
                assert_eq!(report.proof.result, ProofWord::Ok, "{}", details());
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
            let checked = inspect(&stage, state, &["check"], who.as_ref(), works);
            assert!(matches!(checked.code, 0 | 1), "{:#?}", checked.report);
            let lasts = live_through(&stage, state, accounts, &checked, who.as_ref());
            words.extend(lasts.map(|word| format!("apply, then {word}")));
            // With a rule that sets no group, or group 0, there is no GID that a pod could follow.
            let fault_of_the_node = checked
                .report
                .summary
                .contains("change the rule on the node");
            let member = who.as_ref().is_some_and(|who| who.name.is_some());
            assert!(
                checked.code == 0 || fault_of_the_node || !member,
                "after apply: {:#?}",
                checked.report
            );
        }
        2 => {
            assert_untouched(&before, &after);
            let reason =
                state.pod_group.is_none() || who.is_none() || libvirtd_fails(state, report);
            assert!(reason, "usage error without a reason: {}", details());
        }
        3 => {
            assert_untouched(&before, &after);
            assert!(report.changes.is_empty());
            assert_refusal_has_a_reason(state, report);
        }
        4 => {
            assert_eq!(state.mount, Mount::ReadOnly, "{}", details());
            assert!(report.summary.contains("EROFS"), "{}", details());
        }
        5 => {
            assert!(!works, "unproven although QEMU works: {}", details());
            assert_identity(report, who.as_ref());
            let meets = meets.as_ref().unwrap();
            assert_same_errno(report, &meets.text);
            words.push(cause_word(report));
            words.push(follow_advice(&stage, state, report, accounts));
        }
        6 => {
            assert!(!works, "absent although QEMU works: {}", details());
            assert_eq!(state.kind, Kind::Missing, "{}", details());
            assert_untouched(&before, &after);
        }
        _ => panic!("unexpected exit code {}: {}", run.code, details()),
    }
    stage.remove();
    words
}

/// Runs `check` or a dry run, which must change nothing. Exit codes 0, 5 and 6 must agree with QEMU in the current
/// state.
fn inspect(
    stage: &Stage,
    state: &State,
    command: &[&str],
    who: Option<&Identity>,
    works: bool,
) -> Run {
    let before = snapshot(stage);
    let run = run(stage, state, command);
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
                    "no identity in the report although libvirtd would start: {report:#?}"
                );
            }
            if report.proof.result != ProofWord::Off {
                assert_eq!(proven, works, "the proof disagrees with QEMU: {report:#?}");
            }
            match run.code {
                0 => assert!(works || state.has("--proof=off"), "{report:#?}"),
                // A future event needs no change now, and an outdated --group-file-out is drift without a
                // change in the report.
                1 => assert!(
                    works || !report.changes.is_empty() || stage.out().is_some(),
                    "{report:#?}"
                ),
                _ => assert!(!works, "{report:#?}"),
            }
        }
        6 => assert!(!works, "{report:#?}"),
        2 | 3 => {}
        code => panic!("unexpected exit code {code}: {report:#?}"),
    }
    run
}

/// A future event that changes the device.
#[derive(Debug)]
enum Coming {
    /// An event of the node's udev, for a new device as the kernel creates it or for the existing one.
    Event { fresh: bool, event: UdevEvent },
    /// The chart's libvirt.sh: `chmod 660 /dev/kvm; chown root:kvm /dev/kvm`, with the pod's GID for kvm if the group
    /// exists.
    LibvirtSh(Option<u32>),
}

impl Coming {
    /// Applies the event to the device.
    fn perform(&self, stage: &Stage, state: &State) {
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

/// All future events: those of the node's udev in the report, and the chart's libvirt.sh.
fn coming(stage: &Stage, report: &Report, accounts: &Accounts) -> Vec<Coming> {
    let file = fs::read(stage.group_file().unwrap()).unwrap();
    let kvm = accounts.with(b"", &file, |glibc| glibc.gid_of("kvm"));
    let mut all = vec![Coming::LibvirtSh(kvm)];
    let host = report.host.as_ref().expect("a host root");
    let udev = host.udev.clone().expect("udev predictions");
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

/// If QEMU works, `check` must predict whether an event takes access away. Applies each event and starts QEMU.
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
    // An outdated --group-file-out is drift whatever the events do.
    let stale_out = checked.code == 1 && report.summary.contains("is missing or out of date");
    if stale_out {
        return Some("only the group file is outdated".to_owned());
    }
    let mut known = BTreeMap::from([(guard(), true)]);
    let mut losses = Vec::new();
    let restore = stage.keep_device(state);
    for coming in coming(stage, report, accounts) {
        // The read-only mount of the pod does not apply to udev and the chart's container.
        if state.mount == Mount::ReadOnly {
            remount_dev(MsFlags::empty());
        }
        coming.perform(stage, state);
        let works = *known
            .entry(guard())
            .or_insert_with(|| qemu(who.unwrap()).works);
        if !works {
            losses.push(coming);
        }
        restore();
    }
    match checked.code {
        0 => assert!(
            losses.is_empty(),
            "ok, but these events lock QEMU out: {losses:?} {report:#?}"
        ),
        1 => assert!(
            !losses.is_empty(),
            "drift, but no event locks QEMU out: {report:#?}"
        ),
        code => panic!("exit code {code} with proof ok: {report:#?}"),
    }
    Some(match losses.len() {
        0 => "no event locks QEMU out".to_owned(),
        _ => "the predicted drift happens".to_owned(),
    })
}

/// The attributes of the device that decide whether QEMU can open it.
fn guard() -> (u32, u32, u32, Option<BTreeMap<String, String>>) {
    let meta = fs::symlink_metadata(DEVICE).unwrap();
    (meta.uid(), meta.gid(), meta.mode(), acl())
}

/// `apply` must do what the dry run reported. Only a read-only /dev is not detected before the attempt.
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
    assert_eq!(
        plan(&dry.report),
        plan(&run.report),
        "apply changes differ from the dry run"
    );
    let then: &[i32] = match dry.code {
        // QEMU works now, but not with the GID that the node's next event sets: the program cannot make a user
        // without a passwd name a member.
        1 if dry.report.proof.result == ProofWord::Ok => &[0, 5],
        1 => &[0],
        0 => &[0],
        2 => &[2],
        3 => &[3],
        5 => &[5],
        6 => &[6],
        code => panic!("dry run: unexpected exit code {code}"),
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

/// True if the compiled-in defaults are unknown or their user or group does not exist. libvirtd then does not start,
/// even if qemu.conf sets others.
fn libvirtd_fails(state: &State, report: &Report) -> bool {
    state.build.is_none() && report.summary.contains("ambiguous")
}

fn assert_refusal_has_a_reason(state: &State, report: &Report) {
    let why = &report.summary;
    let reason = if report.proof.cause == Some(Cause::NotKvm) {
        !matches!(state.kind, Kind::Kvm | Kind::Missing)
    } else if why.contains("/dev is not the node's") || why.contains("mount the node's /dev") {
        state.on_host == OnHost::Other
    } else if why.contains("which belongs to the group") {
        !state.has("--gid")
            && state
                .host_group
                .is_some_and(|text| text.contains("render:x:"))
    } else if why.contains("--strict") {
        state.has("--strict")
    } else if why.contains("which is the pod's group libvirt") {
        !state.has("--gid") && state.pod_group.as_ref().unwrap().contains("libvirt:x:108:")
    } else if why.contains("the member name '42424' cannot be written") {
        // A numeric member name, which would have to be written.
        state.passwd.contains("42424:x:")
    } else if why.contains("cannot determine a GID for the group") {
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

/// Checks the device and the group file after exit code 0.
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
        "the device's owner and GID"
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
                assert_eq!(mode, state.mode | 0o660, "bits for others must be kept");
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
            "the QEMU user must be a member"
        );
    }
    let old = state.pod_group.as_ref().unwrap().as_bytes();
    assert_eq!(
        other_lines(&file),
        other_lines(old),
        "the other lines must be unchanged"
    );
}

/// True for the line of kvm and for those of additional groups for GIDs that events of the node set.
fn is_kvms(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    line.starts_with(b"kvm:") || line.starts_with(b"kvm-")
}

/// The lines of a group file other than those of kvm.
fn other_lines(file: &[u8]) -> Vec<&[u8]> {
    let lines = file.split(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.is_empty() && !is_kvms(line))
        .collect()
}

fn assert_out_is_there(stage: &Stage) {
    let Some(out) = stage.out() else { return };
    let meta = fs::symlink_metadata(out).expect("--group-file-out exists after exit code 0");
    assert!(meta.is_file());
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
    assert_eq!(meta.permissions().mode() & 0o7777, 0o644);
    let (own, out) = (
        fs::read(stage.pod.at("etc/group")).unwrap(),
        fs::read(out).unwrap(),
    );
    assert_eq!(
        other_lines(&out),
        other_lines(&own),
        "the output must have all lines"
    );
}

fn assert_again_is_nothing(stage: &Stage, state: &State, after: &Snapshot) {
    let again = apply(stage, state);
    assert_eq!(again.code, 0, "the second run failed: {:#?}", again.report);
    assert_eq!(again.report.changes, [], "the second run changed something");
    assert_untouched(after, &snapshot(stage));
}

/// The device's ACL as (tag and name, permissions); `None` if there is no device.
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

/// Asserts that raising the mask extended the effective permissions of owner and owning group only.
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

/// Asserts that the errno in the report is the one in QEMU's message.
fn assert_same_errno(report: &Report, text: &str) {
    let errnos = [
        (Errno::EACCES, "Permission denied"),
        (Errno::EPERM, "Operation not permitted"),
        (Errno::ENOENT, "No such file or directory"),
        (Errno::ENODEV, "No such device"),
        (Errno::ENXIO, "No such device or address"),
    ];
    let message = errnos.iter().find(|(_, message)| {
        text.contains(&format!("Could not access KVM kernel module: {message}\n"))
    });
    let (errno, _) = message.unwrap_or_else(|| panic!("no known error in QEMU's message: {text}"));
    assert_eq!(report.proof.result.as_str(), format!("{errno:?}"), "{text}");
    let cause = report.proof.cause.expect("a cause");
    assert!(
        matches!(cause, Cause::Ownership | Cause::Acl | Cause::Nodev),
        "no state here can have the cause {cause:?}: {report:#?}"
    );
}

fn cause_word(report: &Report) -> String {
    format!("cause {:?}", report.proof.cause.unwrap())
}

/// Follows the advice until QEMU works: a reported cause is correct if its remedy helps.
fn follow_advice(stage: &Stage, state: &State, first: &Report, accounts: &Accounts) -> String {
    let mut report = first.clone();
    let mut done = Vec::new();
    loop {
        let cause = report.proof.cause.unwrap();
        let advice = report.proof.advice.clone().unwrap();
        assert!(
            !done.contains(&advice),
            "following the advice did not help: {advice}"
        );
        match cause {
            Cause::Acl => {
                let done = run_with(Command::new("setfacl").args(["-b", DEVICE]), b"");
                assert_eq!(done.0, 0, "{done:?}");
            }
            Cause::Nodev => remount_dev(MsFlags::empty()),
            Cause::Ownership if advice.contains("search permission for the directory /dev ") => {
                if state.mount == Mount::ReadOnly {
                    return "advice followed, then read-only".to_owned();
                }
                let mode = fs::metadata("/dev").unwrap().mode();
                fs::set_permissions("/dev", fs::Permissions::from_mode(mode | 0o001)).unwrap();
            }
            Cause::Ownership => {
                // The program cannot repair this: the configured identity is not in the group.
                let meta = fs::symlink_metadata(DEVICE).unwrap();
                let who = identity_now(stage, state, accounts).unwrap();
                assert!(!who.groups.contains(&meta.gid()), "{report:#?}");
                assert_ne!(meta.mode() & 0o006, 0o006, "{report:#?}");
                assert!(who.uid != 0 && who.uid != meta.uid());
                assert!(
                    who.name.is_none(),
                    "a user with a name must be made a member: {report:#?}"
                );
                return "advice: cannot be repaired for this identity".to_owned();
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
                    "ok after the advice although QEMU does not work"
                );
                return format!("advice helps after {}", done.len());
            }
            4 if state.mount == Mount::ReadOnly => {
                return "advice followed, then read-only".to_owned();
            }
            5 => report = run.report,
            code => panic!("exit code {code} after the advice: {:#?}", run.report),
        }
    }
}
