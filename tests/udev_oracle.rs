//! The forecast against the distribution's real systemd-udevd: every rule set is given to both, and
//! what udevd makes of the node when it starts, at an add event and at a change event must be what
//! was predicted.
//!
//! How that is run: tests/common/udevd.rs.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::disallowed_methods
)]

mod common;
#[path = "common/rule_sets.rs"]
mod rule_sets;
#[path = "common/udevd.rs"]
mod udevd;

use std::path::Path;
use std::time::Instant;

use common::{in_namespace, ok};
use libvirt_kvm_init::accounts::{group, passwd};
use libvirt_kvm_init::sys::root::Root;
use libvirt_kvm_init::udev::{Database, Event, Forecast, Prediction, Udevd, predict};
use libvirt_kvm_init::udev_read;
use rule_sets::RuleSet;
use udevd::{NODE, Oracle, State, machines_own, shown, turn};

/// What the forecast says of a fresh node; nothing where it says that it cannot tell.
fn forecast(prediction: &Prediction, event: Event) -> Option<State> {
    match prediction.of(event) {
        Forecast::Unclear => None,
        Forecast::Untouched => Some((0, 0, 0o600)),
        Forecast::Becomes(outcome) => Some((
            outcome.uid.map_or(0, nix::unistd::Uid::as_raw),
            outcome.gid.map_or(0, nix::unistd::Gid::as_raw),
            outcome.mode.map_or(0o600, u32::from),
        )),
    }
}

fn read_and_predict(version: u32) -> Prediction {
    let root = Root::open(Path::new("/")).unwrap();
    let files = udev_read::rules(&root).unwrap();
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
    };
    predict(&files.files, &node, &db)
}

/// Asks both about every set, and gives what differs and how many answers were "unclear".
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
                "the distribution's own rules are clear"
            );
        }
        let real = oracle.ask();
        for (event, real) in [Event::Start, Event::Add, Event::Change]
            .into_iter()
            .zip(real)
        {
            match forecast(&prediction, event) {
                None => {
                    unclear += 1;
                    if !set.may_be_unclear {
                        wrong.push(format!(
                            "{set}\n{event:?}: unclear: {:?}",
                            prediction.unclear
                        ));
                    }
                }
                Some(said) if said == real => {}
                Some(said) => wrong.push(format!(
                    "{set}\n{event:?}: said {}, is {}\n{prediction:?}",
                    shown(said),
                    shown(real)
                )),
            }
        }
    }
    (wrong, unclear)
}

fn check(sets: &[RuleSet]) {
    common::require_root();
    let _turn = turn();
    let before = machines_own();
    let began = Instant::now();
    let (wrong, unclear) = in_namespace(|| compare(sets));
    assert_eq!(
        machines_own(),
        before,
        "the machine's own {NODE} was touched"
    );
    eprintln!(
        "{} rule sets, {} answers, {unclear} of them unclear, in {:.1} s",
        sets.len(),
        sets.len() * 3,
        began.elapsed().as_secs_f64()
    );
    assert!(
        wrong.is_empty(),
        "{} of {} answers differ from udevd:\n\n{}",
        wrong.len(),
        sets.len() * 3,
        wrong.join("\n\n")
    );
}

#[test]
#[ignore = "tier: root"]
fn forecasts_come_true_for_rules_that_people_write() {
    check(&rule_sets::written());
}

#[test]
#[ignore = "tier: root"]
fn forecasts_come_true_for_rules_put_together_at_random() {
    check(&rule_sets::random(300));
}
