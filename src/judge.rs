//! The verdict on what was seen: proven, or what would mend it, or what will take it away.

use nix::errno::Errno;

use crate::config::{Missing, ProofKind};
use crate::diagnose::{Scene, allows, closed_folder, computed, diagnose, needs_override};
use crate::exit::{Usage, Verdict, verdict_of};
use crate::observe::{GROUP_FILE, Observation, folders_above};
use crate::pipeline::Request;
use crate::plan::{Plan, Step, is_private};
use crate::prove::{Sight, prove};
use crate::qemu::Identity;
use crate::report::{Cause, Code, Proof, Report, Warning};
use crate::sys::CallError;
use crate::sys::device::Device;
use crate::sys::identity::{Credentials, normalised, overrides_rights};

/// Where guests may run without KVM its absence is accepted.
pub fn absent_code(request: &Request) -> u8 {
    match request.policy.missing {
        Missing::Fail => Verdict::Absent.code(),
        Missing::Skip => Verdict::Ok.code(),
    }
}

/// Where a missing KVM is accepted the pod still mounts the file that it was promised.
///
/// # Errors
/// [`Usage`] without anything to make it from.
pub fn group_file_for_the_pod(request: &Request, seen: &Observation) -> Result<(), Usage> {
    if request.sources.group_file_out.is_none() || seen.pod.group.is_some() {
        return Ok(());
    }
    let path = seen.pod.root.join(GROUP_FILE);
    Err(Usage(format!(
        "{} does not exist: run this in the libvirt image",
        path.display()
    )))
}

/// Proves for the identity that libvirt will use, or says why nobody asked. `meanwhile` is done while the
/// proof's child is at work, if there is one.
pub fn proof(
    request: &Request,
    seen: &Observation,
    plan: &Plan,
    warnings: &mut Vec<Warning>,
    meanwhile: impl FnOnce(),
) -> anyhow::Result<Proof> {
    if request.proof == ProofKind::Off {
        let text = "the proof was turned off (--proof off): whether QEMU can open KVM is unknown";
        warnings.push(Warning::new(Code::Unproven, text));
        let mut proof = Proof::none(None, None);
        proof.result = "off".to_owned();
        if let (Some(identity), Some(node)) = (&plan.identity, &seen.device) {
            proof.computed = computed(&Scene {
                device: &request.sources.device,
                node,
                folders: &folders_above(&request.sources.device),
                identity,
                remedy: "",
            });
        }
        return Ok(proof);
    }
    if let Some(place) = &plan.kept_out {
        let advice = format!(
            "add \"/dev/kvm\" to cgroup_device_acl ({place}) and restart libvirtd: no guest gets a \
             device that is not in that list"
        );
        return Ok(Proof::none(Some(Cause::DeviceCgroup), Some(advice)));
    }
    let (Some(identity), Some(node)) = (&plan.identity, &seen.device) else {
        let why = plan.no_identity_now.as_ref().map(ToString::to_string);
        return Ok(Proof::none(Some(Cause::Unknown), why));
    };
    let who = Credentials {
        uid: identity.uid,
        gid: identity.gid,
        groups: normalised(identity.groups.clone()),
    };
    let sight = prove(
        &request.sources.device,
        &node.facts,
        &who,
        request.proof,
        meanwhile,
    )?;
    let folders = match sight {
        Sight::Ok(_) => Vec::new(),
        _ => folders_above(&request.sources.device),
    };
    let scene = Scene {
        device: &request.sources.device,
        node,
        folders: &folders,
        identity,
        remedy: &remedy(request, seen, plan, identity),
    };
    let denied = matches!(
        sight,
        Sight::Open(Errno::EACCES) | Sight::Stat(Errno::EACCES)
    );
    if denied && needs_override(&scene) && !overrides_rights() {
        let advice = format!(
            "{} opens by CAP_DAC_OVERRIDE alone, which QEMU as root has and this process has not: \
             run it with that capability (privileged: true)",
            request.sources.device.display()
        );
        let mut proof = Proof::none(Some(Cause::Unknown), Some(advice));
        proof.computed = computed(&scene);
        return Ok(proof);
    }
    Ok(diagnose(sight, &scene))
}

/// That `apply`, run in a `place`, is what helps.
pub fn mended_by(request: &Request, place: &str) -> String {
    format!(
        "{}{place} mends it",
        request.policy.command(request.policy.persist)
    )
}

/// What gives the QEMU user the device where owner, group and mode deny it.
fn remedy(request: &Request, seen: &Observation, plan: &Plan, identity: &Identity) -> String {
    let Some(target) = plan.resolution.target().map(|target| target.gid) else {
        return "give --gid".to_owned();
    };
    if is_private(seen) && !request.sources.device_explicit {
        return "mount the node's /dev at /dev".to_owned();
    }
    if seen.device.as_ref().is_some_and(|node| node.unmapped) {
        return "this user namespace does not show whose it is: run it without hostUsers: false"
            .to_owned();
    }
    let in_it = identity.gid == target || identity.groups.contains(&target);
    match identity.user.as_deref().map(String::from_utf8_lossy) {
        None if !in_it && !identity.stand_in => format!(
            "libvirt gives no other group to a uid without a name: name {} in {}, or set group = \
             \"+{target}\" in {}",
            identity.uid,
            seen.pod.root.join("etc/passwd").display(),
            seen.pod.qemu_conf_name
        ),
        Some(user) if !in_it && seen.pod.is_host && request.sources.group_file_out.is_none() => {
            format!(
                "run `usermod -a -G {} {user}` on the node",
                request.policy.group
            )
        }
        _ => mended_by(request, ""),
    }
}

/// Whether there is something to do, and QEMU could open the device once it is done, as far as
/// rights and the mount tell.
pub fn would_open(request: &Request, seen: &Observation, steps: &[Step], then: &Identity) -> bool {
    let Some(mut node) = seen.device.clone().filter(|_| !steps.is_empty()) else {
        return false;
    };
    for step in steps {
        match step {
            Step::GroupFile(_) | Step::UdevRule(_) => {}
            Step::Owner { to, .. } => (node.facts.uid, node.facts.gid) = *to,
            Step::Mode { to, .. } => node.facts.mode = *to,
            Step::Acl { to, .. } => node.acl = Some(to.clone()),
        }
    }
    let folders = folders_above(&request.sources.device);
    let scene = Scene {
        device: &request.sources.device,
        node: &node,
        folders: &folders,
        identity: then,
        remedy: "",
    };
    // `apply` leaves alone whose numbers it cannot see.
    !node.nodev && !node.unmapped && closed_folder(&scene).is_none() && allows(&node, then)
}

/// The verdict on a state in which nothing is left to change.
pub fn conclude(report: &mut Report, plan: &Plan) {
    let who = match &plan.identity {
        Some(identity) => format!("QEMU as {}", identity.label()),
        None => "QEMU".to_owned(),
    };
    let path = report.device.as_ref().map(|device| device.path.clone());
    let path = path.unwrap_or_default();
    let stand_in = plan
        .identity
        .as_ref()
        .is_some_and(|identity| identity.stand_in);
    (report.verdict, report.summary) = match report.proof.result.as_str() {
        "ok" if stand_in => (
            Verdict::Ok,
            format!("the group can open {path}; this node has no QEMU user to prove it for"),
        ),
        "ok" => (Verdict::Ok, format!("{who} can open {path}")),
        "off" => (Verdict::Ok, format!("{path} is as it shall be; not proven")),
        "none" if let Some(place) = &plan.kept_out => (
            Verdict::Unproven,
            format!("no guest gets {path}: cgroup_device_acl in {place} leaves it out"),
        ),
        "none" => {
            // Where this container may not ask, the state can still be right.
            let verdict = match report.proof.undone {
                true => Verdict::Failed,
                false => Verdict::Unproven,
            };
            let summary = format!("whether {who} can open {path} could not be asked");
            (verdict, summary)
        }
        result => (
            Verdict::Unproven,
            format!("{who} cannot open {path}: {result}"),
        ),
    };
    report.exit_code = report.verdict.code();
}

/// Whether the device is not as it was seen: then a failed proof says nothing yet.
pub fn moved(seen: &Observation, request: &Request) -> bool {
    let before = seen.device.as_ref().map(|node| node.facts);
    let now = Device::find(&request.sources.device).ok().flatten();
    now.map(|device| device.facts()) != before
}

/// The report on a run that an error ended; `view` is what had been seen until then.
pub fn failure(error: &anyhow::Error, view: Option<Report>) -> Report {
    let advice = error.downcast_ref().and_then(CallError::advice);
    let mut report = view.unwrap_or_else(|| Report::new(Verdict::Failed, ""));
    report.summary = match advice {
        Some(advice) => format!("{error:#}; {advice}"),
        None => format!("{error:#}"),
    };
    report.verdict = verdict_of(error);
    report.exit_code = report.verdict.code();
    report.proof = Proof::none(None, None);
    report
}
