//! From what was seen to what is to be done: steps, a refusal, or nothing because there is no KVM.
//! Pure: the same observation always gives the same decision.
#![forbid(unsafe_code)]

mod group_file;
pub mod qemu_identity;
mod safety;
pub mod target_gid;
mod udev_events;
mod udev_rule;

use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::{Gid, Uid};

use qemu_identity::{Identity, Unknown as IdentityError};
use target_gid::{Candidate, Resolution, resolve};
use crate::accounts::edit;
use crate::accounts::group;
use crate::acl::Acl;
use crate::codes::{Cause, Source, Warning, WarningCode};
use crate::config::{Missing, Origin, PodRoot, Policy};
use crate::error::Error;
use crate::observe::{GROUP_FILE, Observation};
use crate::qemu_conf::{self, QemuConf};
use crate::sys::Inode;
use crate::udev::Prediction;

use group_file::Stop;
pub use group_file::{primary_users, wanted_mode};
pub use safety::is_private;

/// What `watch` remembers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The GID with which QEMU could open the device.
    pub last_good_gid: Option<Gid>,
    /// The pod root whose group file was the node's own when the node was seen last.
    pub pod_was_host: Option<PathBuf>,
    /// Whether the group file is left as it is, for it cannot be written.
    pub group_file_readonly: bool,
    /// The GID that the device keeps, whatever else is wanted.
    pub kept_gid: Option<Gid>,
    /// Why, where that is not the node's.
    pub kept_because: Option<String>,
}

impl Memory {
    /// Adds to an observation what was seen of the node before, where the node is not seen.
    pub fn complete(&self, seen: &mut Observation) {
        let was_host = self.pod_was_host.as_deref() == Some(seen.pod.root.path());
        seen.pod.is_host |= seen.host.is_none() && was_host;
    }
}

/// What a plan is made from.
#[derive(Clone, Copy)]
struct Context<'a> {
    seen: &'a Observation,
    policy: &'a Policy,
    /// What `watch` remembers; nothing for another command.
    memory: Option<&'a Memory>,
    conf: Option<&'a QemuConf>,
}

impl Context<'_> {
    /// The target that was asked for, and where.
    fn explicit_gid(&self) -> Option<(Gid, &Origin)> {
        let kept = self.memory.and_then(|memory| memory.kept_gid);
        let kept = kept.map(|gid| (gid, &Origin::Kept));
        let given = || self.policy.gid.as_ref().map(|(gid, origin)| (*gid, origin));
        kept.or_else(given)
    }

    /// Whether doubts are refusals. A GID that is kept is in doubt already.
    fn is_strict(&self) -> bool {
        let keeps = self.memory.is_some_and(|memory| memory.kept_gid.is_some());
        self.policy.strict && !keeps
    }

    fn last_good_gid(&self) -> Option<Gid> {
        self.memory?.last_good_gid
    }

    fn group_file_readonly(&self) -> bool {
        self.memory.is_some_and(|memory| memory.group_file_readonly)
    }

    /// On the node itself the group file is never edited; a file of its own can be made from it.
    fn writes_group_file(&self) -> bool {
        let pod = &self.seen.pod;
        !self.group_file_readonly() && (!pod.is_host || pod.out_path.is_some())
    }
}

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// Every number that was considered; the first is the target.
    pub resolution: Resolution,
    /// How it goes on.
    pub outcome: Outcome,
    /// The QEMU identity once the steps are done; unknown where nothing is to be done.
    pub identity: Option<Identity>,
    /// The QEMU identity now; why there is none, where that is known.
    pub identity_now: Result<Identity, Option<IdentityError>>,
    /// What is odd.
    pub warnings: Vec<Warning>,
    /// The number that the pod's group has now and shall lose.
    pub renumbered: Option<Gid>,
    /// Where qemu.conf keeps /dev/kvm from every guest, whatever its owner and mode: file and line.
    pub excluded_by_device_acl: Option<String>,
    /// The group that is to own the device.
    pub group: String,
    /// Why the device keeps a GID that is not the node's (`watch`).
    pub kept_because: Option<String>,
}

/// How it goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// These steps, in this order; none where all is right already.
    Act(Vec<Step>),
    /// A safety rule says no.
    Refuse(Refusal),
    /// No KVM on this node.
    NoKvm(NoKvm),
}

/// No KVM on this node.
#[derive(Debug, PartialEq, Eq)]
pub struct NoKvm {
    /// Why.
    pub cause: Cause,
    /// What was seen.
    pub text: String,
    /// What to do.
    pub advice: String,
    /// What must be left for the pod nevertheless, where a missing KVM is accepted.
    pub steps: Vec<Step>,
}

/// A safety rule that said no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why, with what to do next.
    pub text: String,
    /// The proof's cause, where the device is it.
    pub cause: Option<Cause>,
}

/// One thing to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The pod's group file.
    GroupFile(GroupStep),
    /// The rule of the node's udev.
    UdevRule(RuleStep),
    /// The device's owner and group.
    Owner {
        /// What it is.
        from: (Uid, Gid),
        /// What it shall be.
        to: (Uid, Gid),
    },
    /// The device's mode.
    Mode {
        /// What it is.
        from: u16,
        /// What it shall be.
        to: u16,
    },
    /// The device's ACL.
    Acl {
        /// What it is.
        from: Acl,
        /// What it shall be.
        to: Acl,
    },
}

/// The rules file that the node gets, or gets anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleStep {
    /// Where the node's root is seen.
    pub root: PathBuf,
    /// What the file gives now: owner, group and mode; nothing where there is none.
    pub from: Option<String>,
    /// What it shall hold.
    pub content: Vec<u8>,
}

/// How the pod's group file is brought in line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStep {
    /// Where it is written.
    pub file: GroupFile,
    /// What it is to hold.
    pub content: Vec<u8>,
    /// What differs.
    pub changes: Vec<edit::Change>,
}

/// A group file, and what was seen of it: what differs by the time it is written is not written over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupFile {
    /// The pod root's own.
    InPlace {
        /// The pod root.
        root: PodRoot,
        /// Which file it was.
        inode: Option<Inode>,
        /// What it held.
        base: Arc<Vec<u8>>,
    },
    /// That of `--group-file-out`.
    Out {
        /// Its path.
        path: PathBuf,
        /// What stood there; nothing where that was no regular file of root's.
        base: Option<Vec<u8>>,
        /// Whether another container may hold its inode, which then stays.
        keep_inode: bool,
    },
}

/// Makes the plan. `memory` is what `watch` remembers; nothing for another command.
///
/// # Errors
/// [`Error::Usage`] for a qemu.conf that libvirt could not read either, an unknown QEMU user, and a pod
/// root without group file.
pub fn plan(seen: &Observation, policy: &Policy, memory: Option<&Memory>) -> Result<Plan, Error> {
    let conf = match &seen.pod.qemu_conf {
        Some(content) => Some(qemu_conf::parse(content).map_err(|error| {
            let key = error.key.map(|key| format!("{key}: ")).unwrap_or_default();
            Error::Usage(format!(
                "{}:{}: {key}expected {}; libvirtd would not start with it",
                seen.pod.qemu_conf_name, error.line, error.expected
            ))
        })?),
        None => None,
    };
    let context = &Context {
        seen,
        policy,
        memory,
        conf: conf.as_ref(),
    };
    let resolution = resolve(candidates(context, rules_of_the_node(context)));
    let target = resolution.target().map(|target| target.gid);
    let no_kvm = safety::no_kvm(seen);
    let rule = match target.filter(|_| no_kvm.is_none()) {
        Some(gid) => udev_rule::planned(context, gid),
        None => Ok(None),
    };
    // What will happen to the device once all is done.
    let planned = rule.as_ref().ok().and_then(Option::as_ref);
    let udev = match planned {
        Some(planned) => Some(&planned.after),
        None => seen.host.as_ref().map(|host| &host.udev),
    };
    let mut plan = Plan {
        outcome: Outcome::Act(Vec::new()),
        identity: None,
        identity_now: Err(None),
        warnings: udev_events::warnings(udev, target),
        renumbered: None,
        group: policy.group.clone(),
        kept_because: memory.and_then(|memory| memory.kept_because.clone()),
        excluded_by_device_acl: conf
            .as_ref()
            .and_then(|conf| conf.keeps_kvm_out)
            .map(|line| format!("{}:{line}", seen.pod.qemu_conf_name)),
        resolution,
    };
    plan.warnings.extend(plan.resolution.warnings.clone());
    if let Some(socket) = &seen.pod.nscd {
        let text = format!(
            "{} exists: if the node's nscd answers there, libvirtd asks it and not the pod's group \
             file, and the proof says nothing of that",
            socket.display()
        );
        plan.warnings
            .push(Warning::new(WarningCode::NscdSocket, text));
    }
    plan.warnings
        .extend(outdated_rule(context, &plan.resolution));
    if let Some(mut no_kvm) = no_kvm {
        if policy.missing == Missing::Skip {
            no_kvm.steps =
                group_file::file_for_the_pod(context, &plan.resolution, &mut plan.warnings)?;
        }
        plan.outcome = Outcome::NoKvm(no_kvm);
        return Ok(plan);
    }
    let allowed = safety::target(context, udev, &mut plan);
    let target = match (allowed, &rule) {
        (Ok(target), Ok(_)) => target,
        (Err(refusal), _) => {
            plan.outcome = Outcome::Refuse(refusal);
            return Ok(plan);
        }
        // A rule that cannot be written is no reason to leave guests without KVM.
        (Ok(target), Err(refusal)) if memory.is_some() => {
            let warning = Warning::new(WarningCode::UdevRuleRefused, refusal.text.clone());
            plan.warnings.push(warning);
            target
        }
        (_, Err(refusal)) => {
            let refusal = refusal.clone();
            plan.outcome = Outcome::Refuse(refusal);
            return Ok(plan);
        }
    };
    let steps = group_file::steps(context, udev, target, &mut plan);
    let mut steps = match steps {
        Ok(steps) => steps,
        Err(Stop::Usage(usage)) => return Err(usage),
        Err(Stop::Refusal(refusal)) => {
            plan.outcome = Outcome::Refuse(refusal);
            return Ok(plan);
        }
    };
    // Last: where the rule cannot be written after all, guests start until the node's next event.
    steps.extend(planned.map(|planned| Step::UdevRule(planned.step.clone())));
    plan.outcome = Outcome::Act(steps);
    Ok(plan)
}

/// The rules that speak for the node. Where the own one may be written anew it does not count:
/// otherwise it would be the reason for its own number for ever. Where it is not, it is a rule of the
/// node as any other, which decides what udev gives.
fn rules_of_the_node<'a>(context: &Context<'a>) -> Option<&'a Prediction> {
    let host = context.seen.host.as_ref()?;
    let others = host.others.as_ref().filter(|_| context.policy.persist);
    Some(others.unwrap_or(&host.udev))
}

/// A rule of an earlier run that gives another number than the node would have without it.
fn outdated_rule(context: &Context<'_>, found: &Resolution) -> Option<Warning> {
    let others = context.seen.host.as_ref()?.others.as_ref()?;
    let now = found.target().filter(|_| !context.policy.persist)?;
    let without = resolve(candidates(context, Some(others)));
    let without = without.target().filter(|other| other.gid != now.gid)?;
    let text = format!(
        "{}, which an earlier run wrote (--persist), gives the number {}, and without it the number \
         would be {} ({}): `apply --persist` writes it anew",
        now.at, now.gid, without.gid, without.at
    );
    Some(Warning::new(WarningCode::UdevRuleOutdated, text))
}

fn candidates(context: &Context<'_>, udev: Option<&Prediction>) -> Vec<Candidate> {
    let Context { seen, policy, .. } = *context;
    let mut found = Vec::new();
    if let Some((gid, origin)) = context.explicit_gid() {
        let at = origin.to_string();
        let source = Source::Flag;
        found.push(Candidate { gid, source, at });
    }
    let host = seen.host.as_ref();
    if let Some(outcome) = udev.and_then(|udev| udev.add.outcome())
        && let Some(gid) = outcome.gid
    {
        let at = format!("the node's {}", outcome.rule);
        let source = Source::Udev;
        found.push(Candidate { gid, source, at });
    }
    if let Some(group) = host.and_then(|host| host.db.by_name(&policy.group)) {
        let (gid, at) = (group.gid, format!("the node's {}", group.at));
        let source = Source::HostGroup;
        found.push(Candidate { gid, source, at });
    }
    if let Some(gid) = context.last_good_gid() {
        let (source, at) = (Source::Kept, "what worked last".to_owned());
        found.push(Candidate { gid, source, at });
    }
    if let Some(node) = seen.device.as_ref().filter(|node| node.facts.is_kvm())
        && !node.unmapped
    {
        let (gid, at) = (node.facts.gid, seen.device_path.display().to_string());
        let source = Source::Device;
        found.push(Candidate { gid, source, at });
    }
    let in_pod = seen.pod.image_group().filter(|_| !seen.pod.is_host);
    if let Some(group) = in_pod.and_then(|file| group::by_name(file, policy.group.as_bytes())) {
        let file = seen.pod.root.join(GROUP_FILE);
        let (gid, at) = (group.gid, format!("{}:{}", file.display(), group.line));
        let source = Source::PodGroup;
        found.push(Candidate { gid, source, at });
    }
    found
}
