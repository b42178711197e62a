//! `check`, and `apply --dry-run`: the same observation and plan without a write or a lock. It
//! proves what is, says what should be, and what will happen next.

use std::cell::LazyCell;
use std::fmt::Write;
use std::path::Path;

use crate::config::{Missing, PodRoot};
use crate::diagnose::allows;
use crate::exit::Verdict;
use crate::forecast::{CHARTS_GROUP, coming, losses};
use crate::judge::{
    absent_code, conclude, failure, group_file_for_the_pod, mended_by, moved, proof, would_open,
};
use crate::libvirtd::{self, Found};
use crate::observe::{Observation, observe};
use crate::oddities;
use crate::pipeline::Request;
use crate::place;
use crate::plan::{Course, Plan, Step, is_private, plan};
use crate::qemu::Identity;
use crate::report::{Cause, Change, Code, Permission, Proof, Report, Warning};
use crate::snapshot;
use crate::steps;
use crate::sys::device::{Device, Facts};
use crate::sys::processes::Process;

/// How often the device is looked at again when it changed while it was being proven.
const ROUNDS: usize = 3;

/// Which daemons run, found when that is first asked: the most expensive thing here, for all processes
/// are looked at.
type Daemons = LazyCell<Vec<Process>>;

/// Looks, proves and judges. On a node where libvirtd runs in a container the pod root is that
/// container's, unless another one was named: the node's view and the pod's in one report.
pub fn check(request: &Request) -> Report {
    let daemons = Daemons::new(oddities::daemons);
    let mut request = match libvirtd::hold(&request.sources.pod_root) {
        Ok(root) => request.with_root(root),
        Err(error) => return failure(&error, None),
    };
    request.policy.allow_private_device = true;
    let found = match request.sources.pod_root.path() == Path::new("/") && place::on_the_node() {
        true => libvirtd::find(&request.sources, &daemons),
        false => Found::Own,
    };
    match found {
        Found::Of(libvirtd) => {
            // `apply` without it would do the node's device alone and leave that container's files as they are.
            let _ = write!(
                request.policy.replay_flags,
                " --root={}",
                libvirtd.root.path().display()
            );
            views(
                &request.with_root(PodRoot::of_process(libvirtd.root)),
                &daemons,
            )
        }
        Found::OtherDevice(libvirtd) => views(
            &request.with_root(PodRoot::of_process(libvirtd.root)),
            &daemons,
        ),
        Found::Unclear(text) => {
            let mut report = judged(&request, &daemons);
            unclear(&mut report, &text);
            report
        }
        Found::Own | Found::Nodes | Found::Nobodys => judged(&request, &daemons),
    }
}

/// The node's view and that of the container with this root.
fn views(request: &Request, daemons: &Daemons) -> Report {
    let mut report = judged(request, daemons);
    find_private_device(&mut report, request);
    report
}

/// What was proven is the node's device for whoever the node knows: it says nothing of a libvirtd that cannot be
/// told from others.
pub fn unclear(report: &mut Report, text: &str) {
    let warning = Warning::new(Code::LibvirtdUnseen, text);
    report.warnings.push(warning);
    if matches!(report.verdict, Verdict::Ok | Verdict::Drift) {
        unproven(
            report,
            &format!("which libvirtd starts QEMU is unclear: {text}"),
        );
    }
}

/// Whatever was opened, it was not for the QEMU that is asked about.
pub fn unproven(report: &mut Report, why: &str) {
    report.verdict = Verdict::Unproven;
    report.exit_code = Verdict::Unproven.code();
    why.clone_into(&mut report.summary);
    report.proof = Proof::none(Some(Cause::Unknown), None);
}

/// What was proven is the node's device. A container that was not given the node's /dev has another
/// one, or none, and its QEMU opens that.
pub fn find_private_device(report: &mut Report, request: &Request) {
    let Ok(Some(device)) = Device::find(&request.sources.device) else {
        return;
    };
    let ours = device.facts();
    let name = request.sources.device.to_string_lossy();
    // What cannot be looked at is not reported as odd.
    let Ok(root) = request.sources.pod_root.open() else {
        return;
    };
    let Ok(found) = root.stat(&name) else {
        return;
    };
    let theirs = found.map(Facts::from);
    let nodev = root.is_nodev(&name).unwrap_or(false) && !device.on_nodev_mount().unwrap_or(false);
    let same = theirs.is_some_and(|theirs| theirs.inode == ours.inode);
    if same && !nodev || !ours.is_kvm() {
        return;
    }
    let path = request.sources.device.display();
    let shown = |facts: &Facts| format!("{}:{} {:04o}", facts.uid, facts.gid, facts.mode);
    let there = theirs.filter(Facts::is_kvm);
    let there = match &there {
        Some(_) if nodev => "on a mount with the option nodev".to_owned(),
        Some(facts) => shown(facts),
        None => "no KVM device".to_owned(),
    };
    let text = format!(
        "libvirtd's /dev ({}) is not the node's: {path} is {there} there, and {} here; mount the \
         node's /dev at /dev in that container",
        request.sources.pod_root.join("dev").display(),
        shown(&ours)
    );
    report
        .warnings
        .push(Warning::new(Code::PrivateDevice, text));
    let opens = report.proof.result == "ok";
    if matches!(report.verdict, Verdict::Ok | Verdict::Drift) {
        report.verdict = Verdict::Unproven;
        report.exit_code = Verdict::Unproven.code();
        report.summary = if opens {
            format!(
                "{}, but that is the node's: libvirtd's own {path} is another one ({there}), and \
                 it was not opened; run this in the pod",
                report.summary
            )
        } else {
            // `apply` in that pod refuses a device that is not the node's.
            let way_out = "mount the node's /dev at /dev in that container, and run this again";
            report.proof.advice = Some(way_out.to_owned());
            format!("libvirtd's own {path} is not the node's ({there}), and it was not opened")
        };
    }
}

/// What `apply --dry-run` shows: the same for this root, with `apply`'s own safety rules.
pub fn judge(request: &Request) -> Report {
    judged(request, &Daemons::new(oddities::daemons))
}

fn judged(request: &Request, daemons: &Daemons) -> Report {
    let mut warnings = Vec::new();
    let mut report =
        run(request, daemons, &mut warnings).unwrap_or_else(|error| failure(&error, None));
    for warning in warnings {
        if !report.warnings.contains(&warning) {
            report.warnings.push(warning);
        }
    }
    report
}

fn run(
    request: &Request,
    daemons: &Daemons,
    warnings: &mut Vec<Warning>,
) -> anyhow::Result<Report> {
    let mut round = 0;
    loop {
        round += 1;
        let (seen, _device) = observe(&request.sources)?;
        let mut plan = plan(&seen, &request.policy, None)?;
        // What is proven is whom libvirt would start now, not whom it will once all is aligned.
        let then = plan.identity.take();
        plan.identity = plan.identity_now.take();
        let mut report = snapshot::report(&seen, &plan, request);
        if let Course::Act(_) = plan.course {
            // The daemons are looked for while the proof's child is at work.
            let meanwhile = || _ = LazyCell::force(daemons);
            report.proof = proof(request, &seen, &plan, warnings, meanwhile)?;
        }
        let identity = plan.identity.as_ref();
        let odd = oddities::warnings(&seen, request, identity, daemons);
        report.warnings.extend(odd);
        let steps = match &plan.course {
            Course::Refuse(refusal) => {
                report.verdict = Verdict::Refused;
                report.exit_code = Verdict::Refused.code();
                report.summary.clone_from(&refusal.text);
                report.proof = Proof::none(refusal.cause, None);
                return Ok(report);
            }
            Course::Absent {
                cause,
                text,
                advice,
                steps,
            } => {
                if request.policy.missing == Missing::Skip {
                    group_file_for_the_pod(request, &seen)?;
                    report.changes = listed(steps);
                }
                report.verdict = Verdict::Absent;
                report.exit_code = absent_code(request);
                report.summary.clone_from(text);
                report.proof = Proof::none(Some(*cause), Some(advice.clone()));
                return Ok(report);
            }
            Course::Act(steps) => steps,
        };
        report.changes = listed(steps);
        let told = matches!(report.proof.result.as_str(), "ok" | "off");
        if !told && round < ROUNDS && moved(&seen, request) {
            continue;
        }
        conclude(&mut report, &plan);
        if report.proof.cause == Some(Cause::NoDriver) {
            report.verdict = Verdict::Absent;
            report.exit_code = absent_code(request);
        }
        find_drift(&mut report, &seen, &plan, request, then.as_ref());
        return Ok(report);
    }
}

fn listed(steps: &[Step]) -> Vec<Change> {
    steps.iter().flat_map(steps::changes).collect()
}

const NOT_THE_NODES: &str =
    "this container's /dev is not the node's, and `apply` leaves it alone: mount the node's";

/// QEMU cannot open KVM and `apply` would mend it; or it can, and something that is known to come
/// takes it away.
fn find_drift(
    report: &mut Report,
    seen: &Observation,
    plan: &Plan,
    request: &Request,
    then: Option<&Identity>,
) {
    let mends = match &plan.course {
        Course::Act(steps) => then.is_some_and(|then| would_open(request, seen, steps, then)),
        Course::Refuse(_) | Course::Absent { .. } => false,
    };
    // `apply` changes no device but the node's, unless that one was named.
    let shut = is_private(seen) && !request.sources.device_explicit;
    // Where the permissions allow it already something else denies it.
    let by_rights = matches!(report.proof.result.as_str(), "EACCES" | "none")
        && report.proof.computed != Some(Permission::Allowed)
        && plan.kept_out.is_none();
    let out = request.sources.group_file_out.as_ref().filter(|_| {
        let writes = |step: &Step| matches!(step, Step::GroupFile(_));
        matches!(&plan.course, Course::Act(steps) if steps.iter().any(writes))
    });
    let partly = matches!(&plan.course, Course::Act(steps) if !steps.is_empty()) && !mends;
    if report.verdict == Verdict::Unproven
        && partly
        && let Some(advice) = &mut report.proof.advice
        && let Some(rest) = advice.strip_suffix(&mended_by(request, ""))
    {
        let apply = request.policy.command(request.policy.persist);
        *advice = format!("{rest}{apply} mends a part, and names what is left");
    }
    let has_rule = |steps: &[Step]| steps.iter().any(|step| matches!(step, Step::UdevRule(_)));
    let rule = matches!(&plan.course, Course::Act(steps) if has_rule(steps));
    let from_here = seen.pod.is_host || request.sources.pod_root.path() != Path::new("/");
    let place = if from_here { "" } else { " in the pod" };
    let summary = match (report.verdict, &plan.identity) {
        (Verdict::Ok, _) if let Some(out) = out.filter(|_| !shut) => Some(format!(
            "{}, but {} is not as it shall be; {}",
            report.summary,
            out.display(),
            mended_by(request, "")
        )),
        (Verdict::Unproven, _) if by_rights && shut => {
            report.summary.push_str("; ");
            report.summary.push_str(NOT_THE_NODES);
            None
        }
        (Verdict::Unproven, _) if by_rights && mends => {
            Some(format!("{}; {}", report.summary, mended_by(request, place)))
        }
        (Verdict::Ok, Some(identity)) if report.proof.result == "ok" => {
            let losses = losses(coming(seen, request.policy.persist), identity);
            losses.first().map(|loss| {
                let harmless = || then.is_some_and(|then| allows(&loss.node, then));
                let both = format!(
                    "{}{place} makes both agree",
                    request.policy.command(request.policy.persist)
                );
                let writes = format!(
                    "{} writes a rule that prevents it",
                    request.policy.command(true)
                );
                let way_out = if shut {
                    NOT_THE_NODES
                } else if loss.by_udev && rule {
                    &writes
                } else if loss.by_udev && !harmless() {
                    "`apply` cannot prevent that: change the rule on the node, which is what \
                     `apply --persist` is for"
                } else if request.policy.group != CHARTS_GROUP && !harmless() {
                    "`apply` cannot prevent that, as libvirt.sh names the group kvm: leave out \
                     --group"
                } else {
                    &both
                };
                format!(
                    "{}, but {} makes it {}, and then it cannot; {way_out}",
                    report.summary,
                    loss.what,
                    loss.numbers()
                )
            })
        }
        _ => None,
    };
    if let Some(summary) = summary {
        report.summary = summary;
        report.verdict = Verdict::Drift;
        report.exit_code = Verdict::Drift.code();
    }
}
