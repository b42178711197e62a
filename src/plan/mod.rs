//! Derives the plan from an observation: steps, a refusal, or no KVM on this node. Pure: the same observation always
//! results in the same plan.
#![forbid(unsafe_code)]

mod context;
mod device;
mod group_file;
pub mod qemu_identity;
mod safety;
mod step;
pub mod target_gid;
mod udev_events;
mod udev_rule;

use crate::codes::{Warning, WarningCode};
use crate::config::{Missing, Policy};
use crate::error::Error;
use crate::formats::qemu_conf::{self, QemuConf};
use crate::formats::udev::Predictions;
use crate::observe::Observation;
use target_gid::{Resolution, candidates, outdated_rule, resolve, rules_of_the_node};
use udev_rule::Planned;

use context::Context;
pub use context::Memory;
pub use device::wanted_mode;
pub use group_file::primary_users;
pub use safety::is_private;
pub use step::{GroupFile, GroupStep, NoKvm, Outcome, Plan, Refusal, RuleStep, Step};

/// Why there are no steps.
#[derive(Debug)]
enum Stop {
    /// An invalid option or configuration file.
    Usage(Error),
    Refusal(Refusal),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Usage(error)
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

/// Makes the plan. `memory` is the state that `watch` keeps between runs; `None` for the other commands.
///
/// # Errors
/// [`Error::Usage`] for a qemu.conf that libvirt cannot parse, a missing QEMU user or group, and a pod root without a
/// group file.
pub fn plan(seen: &Observation, policy: &Policy, memory: Option<&Memory>) -> Result<Plan, Error> {
    let conf = parse_qemu_conf(seen)?;
    let context = &Context {
        seen,
        policy,
        memory,
        conf: conf.as_ref(),
    };
    let resolution = resolve(candidates(context, rules_of_the_node(context)));
    if let Some(mut no_kvm) = safety::no_kvm(seen) {
        let mut plan = unfinished(context, resolution, None);
        if policy.missing == Missing::Skip {
            no_kvm.steps =
                group_file::file_for_the_pod(context, &plan.resolution, &mut plan.warnings)?;
        }
        plan.outcome = Outcome::NoKvm(no_kvm);
        return Ok(plan);
    }
    let rule = match resolution.target() {
        Some(target) => udev_rule::planned(context, target.gid),
        None => Ok(None),
    };
    let planned = rule.as_ref().ok().and_then(Option::as_ref);
    let mut plan = unfinished(context, resolution, planned);
    plan.outcome = match steps(context, rule, &mut plan) {
        Ok(steps) => Outcome::Act(steps),
        Err(Stop::Refusal(refusal)) => Outcome::Refuse(refusal),
        Err(Stop::Usage(error)) => return Err(error),
    };
    Ok(plan)
}

fn parse_qemu_conf(seen: &Observation) -> Result<Option<QemuConf>, Error> {
    let Some(content) = &seen.pod.qemu_conf else {
        return Ok(None);
    };
    let conf = qemu_conf::parse(content).map_err(|error| {
        let key = error.key.map(|key| format!("{key}: ")).unwrap_or_default();
        Error::Usage(format!(
            "{}:{}: {key}expected {}; libvirtd would not start with this file",
            seen.pod.qemu_conf_name, error.line, error.expected
        ))
    })?;
    Ok(Some(conf))
}

/// A plan with all but the outcome and the QEMU identities.
fn unfinished(context: &Context<'_>, resolution: Resolution, rule: Option<&Planned>) -> Plan {
    let Context { seen, memory, .. } = context;
    let target = resolution.target().map(|target| target.gid);
    let mut warnings = udev_events::warnings(events_then(context, rule), target);
    warnings.extend(resolution.warnings.clone());
    if let Some(socket) = &seen.pod.nscd {
        let text = format!(
            "{} exists: if it is the socket of the node's nscd, libvirtd uses the node's groups instead of \
             the pod's group file, which the proof does not cover; stop nscd on the node to rule this out",
            socket.display()
        );
        warnings.push(Warning::new(WarningCode::NscdSocket, text));
    }
    warnings.extend(outdated_rule(context, &resolution));
    let excluded = context.conf.and_then(|conf| conf.keeps_kvm_out);
    Plan {
        outcome: Outcome::Act(Vec::new()),
        identity: None,
        identity_now: Err(None),
        warnings,
        renumbered: None,
        group: context.policy.group.clone(),
        kept_because: memory.and_then(|memory| memory.kept_because.clone()),
        excluded_by_device_acl: excluded.map(|line| format!("{}:{line}", seen.pod.qemu_conf_name)),
        resolution,
    }
}

/// The predicted effect of the node's events on the device after the steps and the planned rule.
fn events_then<'a>(context: &Context<'a>, rule: Option<&'a Planned>) -> Option<&'a Predictions> {
    match rule {
        Some(planned) => Some(&planned.after),
        None => context.seen.host.as_ref().map(|host| &host.udev),
    }
}

/// The steps, if every safety check passes.
fn steps(
    context: &Context<'_>,
    rule: Result<Option<Planned>, Refusal>,
    plan: &mut Plan,
) -> Result<Vec<Step>, Stop> {
    let udev = events_then(context, rule.as_ref().ok().and_then(Option::as_ref));
    let target = safety::target(context, udev, plan)?;
    let rule = match rule {
        Ok(rule) => rule,
        // `watch` repairs the device even if the rule cannot be written: guests need KVM.
        Err(refusal) if context.memory.is_some() => {
            let warning = Warning::new(WarningCode::UdevRuleRefused, refusal.text);
            plan.warnings.push(warning);
            None
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let mut steps = group_file::steps(context, events_then(context, rule.as_ref()), target, plan)?;
    // The rule comes last: if writing it fails, guests can start until the node's next event.
    steps.extend(rule.map(|planned| Step::UdevRule(planned.step)));
    Ok(steps)
}
