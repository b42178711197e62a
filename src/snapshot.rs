//! What was seen and decided, in the report's words.
#![forbid(unsafe_code)]

use nix::sys::stat::SFlag;
use nix::unistd::Gid;

use crate::accounts::group;
use crate::exit::Verdict;
use crate::observe::{GROUP_FILE, Node, Observation};
use crate::pipeline::Request;
use crate::plan::{Plan, wanted_mode};
use crate::report::{
    Candidate, Device, Host, HostDevice, Pod, Qemu, Report, Target, Udev, UdevEvent,
};
use crate::sys::root::kind_name;
use crate::udev::{Event, Prediction};

/// The report so far: everything but verdict, changes and proof.
pub fn report(seen: &Observation, plan: &Plan, request: &Request) -> Report {
    let mut report = Report::new(Verdict::Ok, String::new());
    report.target = plan.resolution.target().map(|target| Target {
        gid: target.gid.as_raw(),
        mode: seen
            .device
            .as_ref()
            .filter(|node| node.facts.is_kvm())
            .map(|node| octal(wanted_mode(node.facts.mode, request.policy.mode))),
        source: target.source,
        at: target.at.clone(),
    });
    let candidate = |candidate: &crate::resolve::Candidate| Candidate {
        gid: candidate.gid.as_raw(),
        source: candidate.source,
        at: candidate.at.clone(),
    };
    report.candidates = plan.resolution.candidates.iter().map(candidate).collect();
    report.device = Some(device(seen, request));
    report.host = seen.host.as_ref().map(|host| Host {
        root: host.root.display().to_string(),
        device: host.node.map(|node| HostDevice {
            uid: node.uid.as_raw(),
            gid: node.gid.as_raw(),
            mode: octal(node.mode),
        }),
        kvm_gid: host
            .db
            .by_name(&request.policy.group)
            .map(|found| found.gid.as_raw()),
        udev: Some(udev(&host.udev)),
    });
    report.pod = Some(pod(seen, request));
    report.qemu = plan.identity.as_ref().map(|identity| Qemu {
        user: identity.user.as_deref().map(lossy),
        uid: identity.uid.as_raw(),
        gid: identity.gid.as_raw(),
        groups: identity.groups.iter().map(|gid| gid.as_raw()).collect(),
        stand_in: identity.stand_in,
    });
    report.warnings.clone_from(&plan.warnings);
    report
}

fn udev(prediction: &Prediction) -> Udev {
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
        ignored: ignored.map(|remark| remark.rule.clone()).collect(),
    }
}

fn device(seen: &Observation, request: &Request) -> Device {
    let path = request.sources.device.display().to_string();
    let Some(Node { facts, acl, .. }) = &seen.device else {
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
    let on_host = seen.host.as_ref().and_then(|host| host.node);
    let kind = kind_name(facts.kind);
    let kind = kind.trim_start_matches("a ").replace(' ', "-");
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

fn pod(seen: &Observation, request: &Request) -> Pod {
    let own = seen.pod.root.join(GROUP_FILE);
    let found = seen
        .pod
        .effective_group()
        .and_then(|file| group::by_name(file, request.policy.group.as_bytes()))
        .map(|found| found.gid.as_raw());
    Pod {
        root: seen.pod.root.path().display().to_string(),
        group: request.policy.group.clone(),
        kvm_gid: found,
        group_file: request
            .sources
            .group_file_out
            .as_ref()
            .unwrap_or(&own)
            .display()
            .to_string(),
    }
}

fn name_of(file: &[u8], gid: Gid) -> Option<String> {
    group::all_by_gid(file, gid)
        .next()
        .map(|found| lossy(found.name))
}

fn octal(mode: u16) -> String {
    format!("{mode:04o}")
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
