//! Plans with `--persist`, computed from observations built here.

use libvirt_kvm_init::codes::{Source, Warning, WarningCode};
use libvirt_kvm_init::config::options::Flags;
use libvirt_kvm_init::formats::udev::own_rule::{self, OwnRule};
use libvirt_kvm_init::formats::udev::{RuleFile, Udevd};
use libvirt_kvm_init::observe::Observation;
use libvirt_kvm_init::observe::udev_files::{Existing, RuleDirectory, RuleFileSlot};
use libvirt_kvm_init::pipeline::Request;
use libvirt_kvm_init::plan::{Outcome, Plan, Step, plan};
use nix::unistd::Gid;

use crate::observation::{host, observation};

const STOCK: (&str, &str) = (
    "/usr/lib/udev/rules.d/50-udev-default.rules",
    "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n",
);
const FEDORA: (&str, &str) = (
    "/usr/lib/udev/rules.d/50-udev-default.rules",
    "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0666\", OPTIONS+=\"static_node=kvm\"\n",
);
const PIN: (&str, &str) = (
    "/etc/udev/rules.d/99-genestack-kvm.rules",
    "KERNEL==\"kvm\", GROUP=\"929292\", MODE=\"0660\"\n",
);
const LATER: (&str, &str) = (
    "/etc/udev/rules.d/99-local.rules",
    "KERNEL==\"kvm\", MODE=\"0600\"\n",
);

fn config(gid: Option<&str>, mode: Option<&str>, persist: bool) -> Request {
    let gid = gid.map(|gid| ("gid", gid));
    let mode = mode.map(|mode| ("mode", mode));
    let persist = persist.then_some(("persist", "true"));
    let flags = Flags::new([gid, mode, persist].into_iter().flatten());
    let resolved = Request::resolve(&flags, |_| None, |_| Ok(Vec::new()));
    resolved.unwrap().0
}

fn decide(seen: &Observation, request: &Request) -> Plan {
    plan(seen, &request.policy, None).unwrap()
}

/// A node whose group kvm has GID `kvm`, with these udev rules and, if `own` is set, the rule of an earlier run.
fn seen(kvm: u32, rules: &[(&str, &str)], own: Option<OwnRule>) -> Observation {
    let mut files: Vec<_> = rules
        .iter()
        .map(|(path, text)| RuleFile {
            path: (*path).to_owned(),
            content: text.as_bytes().to_vec(),
        })
        .collect();
    let own = own.map(|own_rule| own_rule.file());
    files.extend(own.clone());
    files.sort_by_key(|file| file.path.rsplit('/').next().unwrap().to_owned());
    let mut host = host(&format!("kvm:x:{kvm}:\n"), files, Some(kvm));
    host.slot = Some(RuleFileSlot {
        directory: RuleDirectory::Writable,
        existing: own.map_or(Existing::Nothing, |own| Existing::Own(own.content)),
    });
    observation(host, "/", "kvm:x:424:nova\n")
}

fn own_rule(gid: u32, mode: u16) -> OwnRule {
    let gid = Gid::from_raw(gid);
    OwnRule { gid, mode }
}

/// The planned udev rule as GID, mode and previous content, or the text of the refusal.
fn planned(decision: &Plan) -> Result<Option<(u32, u16, Option<String>)>, String> {
    match &decision.outcome {
        Outcome::Act(steps) => Ok(steps.iter().find_map(|step| match step {
            Step::UdevRule(step) => {
                let own_rule = OwnRule::of(&step.content).unwrap();
                Some((own_rule.gid.as_raw(), own_rule.mode, step.from.clone()))
            }
            _ => None,
        })),
        Outcome::Refuse(refusal) => Err(refusal.text.clone()),
        Outcome::NoKvm(no_kvm) => panic!("absent: {}", no_kvm.text),
    }
}

fn codes(warnings: &[Warning]) -> Vec<WarningCode> {
    warnings.iter().map(|warning| warning.code).collect()
}

#[test]
fn persist_plans_a_rule_if_an_event_would_undo_the_state() {
    type Row<'a> = (
        &'a [(&'a str, &'a str)],
        Option<OwnRule>,
        Option<&'a str>,
        Option<&'a str>,
        Option<(u32, u16, Option<&'a str>)>,
    );
    let old = Some("0:500 0660");
    let table: [Row<'_>; 13] = [
        (&[STOCK], None, None, None, None),
        (&[STOCK], None, Some("500"), None, Some((500, 0o660, None))),
        (&[STOCK], None, None, Some("0666"), Some((108, 0o666, None))),
        (&[FEDORA], None, None, None, None),
        (
            &[FEDORA],
            None,
            None,
            Some("0660"),
            Some((108, 0o660, None)),
        ),
        (&[FEDORA], None, Some("500"), None, Some((500, 0o666, None))),
        (
            &[STOCK, PIN],
            None,
            None,
            None,
            Some((929_292, 0o660, None)),
        ),
        (
            &[STOCK, PIN],
            None,
            Some("108"),
            None,
            Some((108, 0o660, None)),
        ),
        (&[], None, None, None, Some((108, 0o660, None))),
        // The rule exists and is still effective, or no longer.
        (&[], Some(own_rule(108, 0o660)), None, None, None),
        (&[STOCK], Some(own_rule(108, 0o660)), None, None, None),
        (
            &[STOCK],
            Some(own_rule(500, 0o660)),
            None,
            None,
            Some((108, 0o660, old)),
        ),
        (
            &[],
            Some(own_rule(500, 0o660)),
            None,
            None,
            Some((108, 0o660, old)),
        ),
    ];
    for (rules, own, gid, mode, want) in table {
        let seen = seen(108, rules, own);
        let decision = decide(&seen, &config(gid, mode, true));
        let want = want.map(|(gid, mode, from)| (gid, mode, from.map(str::to_owned)));
        assert_eq!(
            planned(&decision),
            Ok(want),
            "{rules:?} {own:?} {gid:?} {mode:?}"
        );
        // Without --persist no rule is planned.
        let decision = decide(&seen, &config(gid, mode, false));
        assert_eq!(planned(&decision), Ok(None));
    }
}

#[test]
fn rule_is_the_last_step_and_replaces_extra_groups() {
    let seen = seen(108, &[STOCK, PIN], None);
    let kinds = |persist| {
        let decision = decide(&seen, &config(None, None, persist));
        let Outcome::Act(steps) = &decision.outcome else {
            panic!("{decision:?}")
        };
        let groups = |step: &Step| match step {
            Step::GroupFile(step) => {
                let text = std::str::from_utf8(&step.content).unwrap();
                Some(text.lines().filter(|line| line.starts_with("kvm")).count())
            }
            _ => None,
        };
        let kinds: Vec<_> = steps
            .iter()
            .map(|step| match step {
                Step::GroupFile(_) => "file",
                Step::UdevRule(_) => "rule",
                Step::Owner { .. } => "owner",
                _ => "other",
            })
            .collect();
        let differ = codes(&decision.warnings).contains(&WarningCode::UdevEventsDiffer);
        (kinds, steps.iter().find_map(groups), differ)
    };
    assert_eq!(kinds(false), (vec!["file", "owner"], Some(2), true));
    assert_eq!(kinds(true), (vec!["file", "owner", "rule"], Some(1), false));
}

#[test]
fn own_rule_sets_the_target_only_without_persist() {
    // The node's GID is 777 and that of our rule 108; with --persist, then without.
    for (rules, source) in [(&[STOCK][..], Source::Udev), (&[], Source::HostGroup)] {
        let seen = seen(777, rules, Some(own_rule(108, 0o660)));
        let renewed = decide(&seen, &config(None, None, true));
        let target = renewed.resolution.target().unwrap();
        assert_eq!((target.gid.as_raw(), target.source), (777, source));
        assert_eq!(renewed.warnings, []);

        let followed = decide(&seen, &config(None, None, false));
        let target = followed.resolution.target().unwrap();
        assert_eq!((target.gid.as_raw(), target.source), (108, Source::Udev));
        assert!(target.at.contains(own_rule::PATH), "{}", target.at);
        let warned = codes(&followed.warnings);
        assert!(
            warned.contains(&WarningCode::UdevRuleOutdated),
            "{warned:?}"
        );

        let named = decide(&seen, &config(Some("108"), None, false));
        let warned = codes(&named.warnings);
        assert!(
            !warned.contains(&WarningCode::UdevRuleOutdated),
            "{warned:?}"
        );
    }
}

#[test]
fn persist_refuses_unwritable_or_overridden_rule() {
    type Spoil = fn(&mut Observation);
    let table: [(Spoil, &str); 9] = [
        (
            |seen| seen.host = None,
            "does not see the node's file system",
        ),
        (
            |seen| slot(seen).directory = RuleDirectory::ReadOnly,
            "read-only here",
        ),
        (
            |seen| slot(seen).directory = RuleDirectory::Missing,
            "mkdir -p",
        ),
        (
            |seen| slot(seen).existing = Existing::Other("a fifo"),
            "a fifo",
        ),
        (|seen| udevd(seen).version = Some(258), "systemd 258 drops"),
        (|seen| udevd(seen).version = Some(259), "1 to 999"),
        (|seen| udevd(seen).version = None, "which systemd"),
        (|seen| add(seen, LATER.0, LATER.1), "99-local.rules:1"),
        (
            |seen| {
                add(
                    seen,
                    "/etc/udev/rules.d/10-x.rules",
                    "KERNEL==\"kvm\", GROUP:=\"5\"\n",
                )
            },
            "10-x.rules:1",
        ),
    ];
    for (spoil, why) in table {
        let mut seen = seen(108, &[STOCK], None);
        spoil(&mut seen);
        if let Some(host) = &mut seen.host {
            host.foresee();
        }
        let config = config(Some("5000"), None, true);
        let refusal = planned(&decide(&seen, &config)).unwrap_err();
        assert!(refusal.starts_with("--persist: "), "{refusal}");
        assert!(refusal.contains(why), "`{why}` in {refusal}");
    }
}

fn slot(seen: &mut Observation) -> &mut RuleFileSlot {
    seen.host.as_mut().unwrap().slot.as_mut().unwrap()
}

fn udevd(seen: &mut Observation) -> &mut Udevd {
    &mut seen.host.as_mut().unwrap().udevd
}

fn add(seen: &mut Observation, path: &str, text: &str) {
    let files = &mut seen.host.as_mut().unwrap().rules.files;
    let file = RuleFile {
        path: path.to_owned(),
        content: text.as_bytes().to_vec(),
    };
    match path.contains("10-x") {
        true => files.insert(0, file),
        false => files.push(file),
    }
}

#[test]
fn persist_docs_show_the_rule_and_its_removal() {
    let readme = include_str!("../../docs/persist.md");
    let content = own_rule(108, 0o660).file().content;
    for line in String::from_utf8(content).unwrap().lines() {
        match line.strip_prefix("#   ") {
            Some(command) => assert!(readme.contains(&format!("$ {command}\n")), "{command}"),
            None if line.starts_with('#') => {}
            None => assert!(readme.contains(&format!("```\n{line}\n```")), "{line}"),
        }
    }
}
