//! Converts the observation, the plan and the judgement to the report.
#![forbid(unsafe_code)]

use nix::sys::stat::SFlag;
use nix::unistd::Gid;

use crate::codes::Warning;
use crate::config::Policy;
use crate::formats::accounts::group;
use crate::formats::udev::{Event, Predictions};
use crate::judge::Judgement;
use crate::observe::{self, DeviceState, GROUP_FILE, Observation};
use crate::plan::qemu_identity::Identity;
use crate::plan::{Plan, wanted_mode};
use crate::prove::Proof;
use crate::report::{
    self, Candidate, Change, Device, Host, HostDevice, Pod, Qemu, Report, Target, Udev, UdevEvent,
};
use crate::sys::root::kind_name;

/// The sections of the report that describe the observation and the plan.
#[derive(Debug)]
pub struct View {
    target: Option<Target>,
    candidates: Vec<Candidate>,
    device: Device,
    host: Option<Host>,
    pod: Pod,
    qemu: Option<Qemu>,
    pub warnings: Vec<Warning>,
}

impl View {
    /// `identity` is the QEMU identity to report: the present one, or the one after the steps.
    pub fn new(
        seen: &Observation,
        plan: &Plan,
        policy: &Policy,
        identity: Option<&Identity>,
    ) -> Self {
        let kvm = seen.device.as_ref().filter(|device| device.facts.is_kvm());
        let candidates = plan.resolution.candidates.iter();
        Self {
            target: plan.resolution.target().map(|target| Target {
                gid: target.gid.as_raw(),
                mode: kvm.map(|device| octal(wanted_mode(device.facts.mode, policy.mode))),
                source: target.source,
                at: target.at.clone(),
            }),
            candidates: candidates
                .map(|candidate| Candidate {
                    gid: candidate.gid.as_raw(),
                    source: candidate.source,
                    at: candidate.at.clone(),
                })
                .collect(),
            device: device(seen),
            host: seen.host.as_ref().map(|host| self::host(host, policy)),
            pod: pod(seen, policy),
            qemu: identity.map(qemu),
            warnings: plan.warnings.clone(),
        }
    }
}

/// Builds the report. `view` is `None` if the run ended before a plan existed. `warnings` are listed first.
pub fn build(
    view: Option<View>,
    judgement: Judgement,
    proof: &Proof,
    changes: Vec<Change>,
    warnings: Vec<Warning>,
) -> Report {
    let mut report = Report::new(judgement.verdict, judgement.summary);
    report.exit_code = judgement.exit_code;
    report.changes = changes;
    report.proof = match judgement.proof_counts {
        true => report::Proof {
            result: proof.result.word(),
            cause: judgement.cause,
            computed: proof.permission,
            api_version: proof.result.api_version(),
            advice: judgement.advice,
        },
        false => report::Proof::none(judgement.cause, judgement.advice),
    };
    let mut all = warnings;
    if let Some(view) = view {
        report.target = view.target;
        report.candidates = view.candidates;
        report.device = Some(view.device);
        report.host = view.host;
        report.pod = Some(view.pod);
        report.qemu = view.qemu;
        all.extend(view.warnings);
    }
    for warning in all.into_iter().chain(judgement.warnings) {
        if !report.warnings.contains(&warning) {
            report.warnings.push(warning);
        }
    }
    report
}

fn host(host: &observe::Host, policy: &Policy) -> Host {
    Host {
        root: host.root.display().to_string(),
        device: host.device.map(|device| HostDevice {
            uid: device.uid.as_raw(),
            gid: device.gid.as_raw(),
            mode: octal(device.mode),
        }),
        kvm_gid: host
            .db
            .by_name(&policy.group)
            .map(|entry| entry.gid.as_raw()),
        udev: Some(udev(&host.udev)),
    }
}

fn qemu(identity: &Identity) -> Qemu {
    Qemu {
        user: identity.user.as_deref().map(lossy),
        uid: identity.uid.as_raw(),
        gid: identity.gid.as_raw(),
        groups: identity.groups.iter().map(|gid| gid.as_raw()).collect(),
        stand_in: identity.placeholder,
    }
}

fn udev(prediction: &Predictions) -> Udev {
    let event = |event| {
        let outcome = prediction.of(event).outcome()?;
        Some(UdevEvent {
            gid: outcome.gid.map(|gid| gid.as_raw()),
            mode: outcome.mode.map(octal),
            rule: outcome.rule.clone(),
        })
    };
    let ignored = prediction.ignored.iter();
    Udev {
        start: event(Event::Start),
        add: event(Event::Add),
        change: event(Event::Change),
        ignored: ignored.map(|diagnostic| diagnostic.rule.clone()).collect(),
    }
}

fn device(seen: &Observation) -> Device {
    let path = seen.device_path.display().to_string();
    let Some(DeviceState { facts, acl, .. }) = &seen.device else {
        return Device {
            path,
            kind: "missing".to_owned(),
            major: None,
            minor: None,
            uid: None,
            gid: None,
            mode: None,
            acl: None,
            same_inode_as_host: None,
            group_on_host: None,
            group_in_pod: None,
        };
    };
    let is_device = matches!(facts.kind, SFlag::S_IFCHR | SFlag::S_IFBLK);
    let on_host = seen.host.as_ref().and_then(|host| host.device);
    let kind = kind_name(facts.kind)
        .trim_start_matches("a ")
        .replace(' ', "-");
    Device {
        path,
        kind,
        major: is_device.then_some(facts.major),
        minor: is_device.then_some(facts.minor),
        uid: is_device.then_some(facts.uid.as_raw()),
        gid: is_device.then_some(facts.gid.as_raw()),
        mode: is_device.then(|| octal(facts.mode)),
        acl: acl.as_ref().map(ToString::to_string),
        same_inode_as_host: on_host.map(|host| host.inode == facts.inode),
        group_on_host: seen
            .host
            .as_ref()
            .and_then(|host| host.db.name_of(facts.gid)),
        group_in_pod: seen
            .pod
            .effective_group()
            .and_then(|file| name_of(file, facts.gid)),
    }
}

fn pod(seen: &Observation, policy: &Policy) -> Pod {
    let group_file = seen.pod.root.join(GROUP_FILE);
    let kvm_gid = seen
        .pod
        .effective_group()
        .and_then(|file| group::by_name(file, policy.group.as_bytes()))
        .map(|entry| entry.gid.as_raw());
    Pod {
        root: seen.pod.root.path().display().to_string(),
        group: policy.group.clone(),
        kvm_gid,
        group_file: seen
            .pod
            .out_path
            .as_ref()
            .unwrap_or(&group_file)
            .display()
            .to_string(),
    }
}

fn name_of(file: &[u8], gid: Gid) -> Option<String> {
    group::all_by_gid(file, gid)
        .next()
        .map(|entry| lossy(entry.name))
}

fn octal(mode: u16) -> String {
    format!("{mode:04o}")
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
