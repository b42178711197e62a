//! Compares the predictions with the distribution's systemd-udevd: for every rule set the device must have the
//! predicted owner and mode after the start of udevd, an add event and a change event.
//!
//! tests/support/src/udevd.rs runs udevd.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use libvirt_kvm_init::config::PodRoot;
use libvirt_kvm_init::config::options::Flags;
use libvirt_kvm_init::formats::accounts::{group, passwd};
use libvirt_kvm_init::formats::udev::own_rule::OwnRule;
use libvirt_kvm_init::formats::udev::{
    self, Database, Event, Prediction, Predictions, Udevd, predict,
};
use libvirt_kvm_init::observe::udev_files;
use libvirt_kvm_init::observe::view::View;
use libvirt_kvm_init::observe::{DeviceState, Driver, Host, Observation, Pod};
use libvirt_kvm_init::pipeline::Request;
use libvirt_kvm_init::plan::{Outcome, Step, plan};
use libvirt_kvm_init::sys::device::Device;
use libvirt_kvm_init::sys::root::Root;
use support::rule_sets::{self, RuleSet};
use support::udevd::{NODE, Oracle, State, machines_own, shown, state, turn};
use support::{in_namespace, ok};

/// The predicted state of a fresh device; `None` if the prediction is unclear.
fn predicted(prediction: &Predictions, event: Event) -> Option<State> {
    match prediction.of(event) {
        Prediction::Unclear => None,
        Prediction::Untouched => Some((0, 0, 0o600)),
        Prediction::Becomes(outcome) => Some((
            outcome.uid.map_or(0, nix::unistd::Uid::as_raw),
            outcome.gid.map_or(0, nix::unistd::Gid::as_raw),
            outcome.mode.map_or(0o600, u32::from),
        )),
    }
}

fn read_and_predict(version: u32) -> Predictions {
    let root = Root::open(Path::new("/")).unwrap();
    let seen = udev_files::rules(&root, View::of(&root).unwrap()).unwrap();
    assert_eq!((seen.unseen, seen.not_shown), (Vec::new(), Vec::new()));
    let files = seen.rules;
    let node = Udevd {
        version: Some(version),
        ..Udevd::default()
    };
    let group =
        |name: &str| Some(group::by_name(rule_sets::GROUP.as_bytes(), name.as_bytes())?.gid);
    let user =
        |name: &str| Some(passwd::by_name(rule_sets::PASSWD.as_bytes(), name.as_bytes())?.uid);
    let db = Database {
        group: &group,
        user: &user,
        complete: true,
    };
    predict(&files.all(), &node, &db)
}

/// Compares the results for every rule set. Returns the differences and the number of unclear predictions.
fn compare(sets: &[RuleSet]) -> (Vec<String>, usize) {
    let oracle = Oracle::new(rule_sets::GROUP, rule_sets::PASSWD);
    let version = ok(&mut oracle.udevadm("--version"));
    let version = version.trim().parse().unwrap();
    let (mut wrong, mut unclear) = (Vec::new(), 0);
    for set in sets {
        oracle.install(set);
        let prediction = read_and_predict(version);
        if set.name == "stock" {
            assert_eq!(
                prediction.unclear,
                [],
                "the prediction for the distribution's own rules is unclear"
            );
        }
        let real = oracle.ask();
        for (event, real) in [Event::Start, Event::Add, Event::Change]
            .into_iter()
            .zip(real)
        {
            match predicted(&prediction, event) {
                None => {
                    unclear += 1;
                    if !set.may_be_unclear {
                        wrong.push(format!(
                            "{set}\n{event:?}: unclear: {:?}",
                            prediction.unclear
                        ));
                    }
                }
                Some(state) if state == real => {}
                Some(state) => wrong.push(format!(
                    "{set}\n{event:?}: predicted {}, is {}\n{prediction:?}",
                    shown(state),
                    shown(real)
                )),
            }
        }
    }
    (wrong, unclear)
}

fn check(sets: &[RuleSet]) {
    support::require_root();
    let _turn = turn();
    let before = machines_own();
    let began = Instant::now();
    let (wrong, unclear) = in_namespace(|| compare(sets));
    assert_eq!(
        machines_own(),
        before,
        "the machine's own {NODE} was changed"
    );
    eprintln!(
        "{} rule sets, {} predictions, {unclear} of them unclear, in {:.1} s",
        sets.len(),
        sets.len() * 3,
        began.elapsed().as_secs_f64()
    );
    assert!(
        wrong.is_empty(),
        "{} of {} predictions differ from udevd:\n\n{}",
        wrong.len(),
        sets.len() * 3,
        wrong.join("\n\n")
    );
}

/// Observation of a node with the installed rules, and of a pod.
fn seen(version: u32) -> Observation {
    let mut host = Host::observe(&Root::open(Path::new("/")).unwrap(), true).unwrap();
    host.device = None;
    host.udevd = Udevd {
        version: Some(version),
        ..Udevd::default()
    };
    host.foresee();
    let device = Device::find(Path::new(NODE)).unwrap().unwrap();
    Observation {
        device_path: "/dev/kvm".into(),
        device_explicit: false,
        host: Some(host),
        pod: Pod {
            root: PodRoot::at("/".into()),
            is_host: false,
            etc: None,
            group: Some(Arc::new(b"kvm:x:424:\n".to_vec())),
            group_stamp: None,
            out_path: None,
            group_out: None,
            passwd: b"nova:x:42424:42424:::\n".to_vec(),
            qemu_conf: Some(b"user = \"nova\"\ngroup = \"kvm\"\n".to_vec()),
            qemu_conf_name: String::new(),
            os_release: None,
            nscd: None,
        },
        device: Some(DeviceState {
            facts: device.facts(),
            acl: None,
            nodev: false,
            unmapped: false,
        }),
        driver: Driver::Present,
        doubt: None,
    }
}

/// The events after which a device in the state `right` differs from it, each with the resulting state; `fresh` is an
/// add event on a fresh device.
fn undone(oracle: &Oracle, right: State) -> Vec<(&'static str, State)> {
    let place = || support::set_owner(Path::new(NODE), right.0, right.1, right.2);
    place();
    let daemon = oracle.start();
    let mut found = vec![("start", state())];
    for action in ["add", "change"] {
        place();
        oracle.trigger(action);
        found.push((action, state()));
    }
    support::set_owner(Path::new(NODE), 0, 0, 0o600);
    oracle.trigger("add");
    found.push(("fresh", state()));
    drop(daemon);
    found.retain(|(_, (uid, gid, mode))| {
        (*uid, *gid) != (right.0, right.1) || mode & 0o660 != 0o660
    });
    found
}

/// The number of rules written, not needed, and refused because another rule would override them; and the errors.
fn persist(sets: &[RuleSet]) -> ([usize; 3], Vec<String>) {
    let oracle = Oracle::new(rule_sets::GROUP, rule_sets::PASSWD);
    let version = ok(&mut oracle.udevadm("--version"));
    let version = version.trim().parse().unwrap();
    let own = Path::new(udev::own_rule::PATH);
    let (mut counts, mut wrong) = ([0; 3], Vec::new());
    for (number, set) in sets.iter().enumerate() {
        // The GID of the node, or one that no group has.
        let gid = (number % 3 == 2).then_some(("gid", "4711"));
        let flags = Flags::new([("persist", "true")].into_iter().chain(gid));
        let (request, _) = Request::resolve(&flags, |_| None, |_| Ok(Vec::new())).unwrap();
        oracle.install(set);
        support::set_owner(Path::new(NODE), 0, 0, 0o600);
        let decision = plan(&seen(version), &request.policy, None).unwrap();
        let target = decision
            .resolution
            .target()
            .map(|target| target.gid.as_raw());
        let rule = match &decision.outcome {
            Outcome::Act(steps) => steps.iter().find_map(|step| match step {
                Step::UdevRule(step) => Some(step.content.clone()),
                _ => None,
            }),
            Outcome::Refuse(refusal) => {
                if refusal.text.contains("would be overridden") {
                    counts[2] += 1;
                    let (gid, mode) = (target.unwrap(), 0o660);
                    let own_rule = OwnRule {
                        gid: nix::unistd::Gid::from_raw(gid),
                        mode,
                    };
                    std::fs::write(own, own_rule.file().content).unwrap();
                    if undone(&oracle, (0, gid, 0o660)).is_empty() {
                        wrong.push(format!(
                            "{set}\nrefused although the rule works: {}",
                            refusal.text
                        ));
                    }
                    let _ = std::fs::remove_file(own);
                }
                continue;
            }
            Outcome::NoKvm(no_kvm) => panic!("{set}\nabsent: {}", no_kvm.text),
        };
        let mut right = (0, target.unwrap(), 0o660);
        match &rule {
            Some(content) => {
                counts[0] += 1;
                right.2 = u32::from(OwnRule::of(content).unwrap().mode);
                std::fs::write(own, content).unwrap();
            }
            None => counts[1] += 1,
        }
        let undone = undone(&oracle, right);
        if !undone.is_empty() {
            wrong.push(format!(
                "{set}\n{right:?}, rule: {}: {undone:?}",
                rule.is_some()
            ));
        }
        let _ = std::fs::remove_file(own);
    }
    (counts, wrong)
}

/// A rule is only written if it then determines the result of every event, and if none is written no event changes
/// the target state.
#[test]
fn persist_rule_is_written_where_needed_and_determines_every_event() {
    support::require_root();
    let _turn = turn();
    let before = machines_own();
    let mut sets = rule_sets::written();
    sets.extend(rule_sets::random(300));
    let (counts, wrong) = in_namespace(|| persist(&sets));
    assert_eq!(
        machines_own(),
        before,
        "the machine's own {NODE} was changed"
    );
    let [written, needless, refused] = counts;
    eprintln!("rules: {written} written, {needless} not needed, {refused} refused");
    assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
    assert!(
        wrong.is_empty(),
        "{} of {} sets:\n\n{}",
        wrong.len(),
        sets.len(),
        wrong.join("\n\n")
    );
}

#[test]
fn predictions_match_udevd_for_handwritten_rules() {
    check(&rule_sets::written());
}

#[test]
fn predictions_match_udevd_for_random_rules() {
    check(&rule_sets::random(300));
}
