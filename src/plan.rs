//! From what was seen to what is to be done: steps, a refusal, or nothing because there is no KVM.
//! Pure: the same observation always gives the same decision.
#![forbid(unsafe_code)]

mod events;
mod persist;
mod safety;
mod work;

use std::path::PathBuf;

use nix::unistd::{Gid, Uid};

use crate::accounts::edit::{self, Want};
use crate::accounts::group;
use crate::acl::Acl;
use crate::config::{Config, Missing};
use crate::exit::Usage;
use crate::observe::{GROUP_FILE, Observed};
use crate::qemu::{self, Identity};
use crate::qemu_conf;
use crate::report::{Cause, Code, Warning};
use crate::resolve::{Candidate, Resolution, Source, resolve};
use crate::udev::Prediction;

pub use safety::is_private;
use work::Stop;
pub use work::{align_all, primary_users, unwritable, wanted_mode};

/// What is to be done.
#[derive(Debug)]
pub struct Decision {
    /// Every number that was considered; the first is the target.
    pub resolution: Resolution,
    /// How it goes on.
    pub course: Course,
    /// Whom libvirt will start QEMU as once the steps are done; unknown where nothing is to be
    /// done.
    pub identity: Option<Identity>,
    /// Whom libvirt would start QEMU as now; unknown where it would not even start itself.
    pub identity_now: Option<Identity>,
    /// Why that is unknown.
    pub no_identity_now: Option<qemu::Unknown>,
    /// What is odd.
    pub warnings: Vec<Warning>,
    /// The number that the pod's group has now and shall lose.
    pub renumbered: Option<Gid>,
    /// Where qemu.conf keeps /dev/kvm from every guest, whatever its owner and mode: file and line.
    pub kept_out: Option<String>,
}

/// How it goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Course {
    /// These steps, in this order; none where all is right already.
    Act(Vec<Step>),
    /// A safety rule says no.
    Refuse(Refusal),
    /// No KVM on this node.
    Absent {
        /// Why.
        cause: Cause,
        /// What was seen.
        text: String,
        /// What to do.
        advice: String,
        /// What must be left for the pod all the same where a missing KVM is accepted.
        steps: Vec<Step>,
    },
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

/// How the pod's group file is brought in line. What is wanted is kept, not the new bytes: the
/// file is read again under the lock, so that concurrent runs lose nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStep {
    /// The groups, one after the other; none copies the file as it is.
    pub wants: Vec<GroupWant>,
    /// Where the result goes, if not over the file itself.
    pub out: Option<PathBuf>,
    /// What differs.
    pub changes: Vec<edit::Change>,
}

/// The owned form of [`Want`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupWant {
    /// The group's name.
    pub group: String,
    /// Its number.
    pub gid: Gid,
    /// Who shall be a member.
    pub member: Option<Vec<u8>>,
}

impl GroupWant {
    /// As [`edit::align`] takes it.
    pub fn as_want(&self) -> Want<'_> {
        Want {
            group: self.group.as_bytes(),
            gid: self.gid,
            member: self.member.as_deref(),
        }
    }
}

/// Decides.
///
/// # Errors
/// [`Usage`] for a qemu.conf that libvirt could not read either, an unknown QEMU user, and a pod
/// root without group file.
pub fn decide(seen: &Observed, config: &Config) -> Result<Decision, Usage> {
    let conf = match &seen.pod.qemu_conf {
        Some(content) => Some(qemu_conf::parse(content).map_err(|error| {
            let key = error.key.map(|key| format!("{key}: ")).unwrap_or_default();
            Usage(format!(
                "{}:{}: {key}expected {}; libvirtd would not start with it",
                seen.pod.qemu_conf_name, error.line, error.expected
            ))
        })?),
        None => None,
    };
    let resolution = resolve(candidates(seen, config, rules_of_the_node(seen, config)));
    let target = resolution.target().map(|target| target.gid);
    let absent = safety::absent(seen, config);
    let rule = match target.filter(|_| absent.is_none()) {
        Some(gid) => persist::planned(seen, config, gid),
        None => Ok(None),
    };
    // What will happen to the device once all is done.
    let planned = rule.as_ref().ok().and_then(Option::as_ref);
    let udev = match planned {
        Some(planned) => Some(&planned.after),
        None => seen.host.as_ref().map(|host| &host.udev),
    };
    let mut decision = Decision {
        course: Course::Act(Vec::new()),
        identity: None,
        identity_now: None,
        no_identity_now: None,
        warnings: events::warnings(udev, target),
        renumbered: None,
        kept_out: conf
            .as_ref()
            .and_then(|conf| conf.keeps_kvm_out)
            .map(|line| format!("{}:{line}", seen.pod.qemu_conf_name)),
        resolution,
    };
    decision
        .warnings
        .extend(decision.resolution.warnings.clone());
    if let Some(socket) = &seen.pod.nscd {
        let text = format!(
            "{} exists: if the node's nscd answers there, libvirtd asks it and not the pod's group \
             file, and the proof says nothing of that",
            socket.display()
        );
        decision.warnings.push(Warning::new(Code::NscdSocket, text));
    }
    decision
        .warnings
        .extend(outdated_rule(seen, config, &decision.resolution));
    if let Some((cause, text, advice)) = absent {
        let steps = match config.missing {
            Missing::Fail => Vec::new(),
            Missing::Skip => work::file_for_the_pod(
                seen,
                config,
                conf.as_ref(),
                &decision.resolution,
                &mut decision.warnings,
            ),
        };
        decision.course = Course::Absent {
            cause,
            text,
            advice,
            steps,
        };
        return Ok(decision);
    }
    let allowed = safety::target(seen, config, udev, &mut decision);
    let target = match (allowed, &rule) {
        (Ok(target), Ok(_)) => target,
        (Err(refusal), _) => {
            decision.course = Course::Refuse(refusal);
            return Ok(decision);
        }
        // A rule that cannot be written is no reason to leave guests without KVM.
        (Ok(target), Err(refusal)) if config.watching => {
            let warning = Warning::new(Code::UdevRuleRefused, refusal.text.clone());
            decision.warnings.push(warning);
            target
        }
        (_, Err(refusal)) => {
            let refusal = refusal.clone();
            decision.course = Course::Refuse(refusal);
            return Ok(decision);
        }
    };
    let steps = work::steps(seen, config, conf.as_ref(), udev, target, &mut decision);
    let mut steps = match steps {
        Ok(steps) => steps,
        Err(Stop::Usage(usage)) => return Err(usage),
        Err(Stop::Refusal(refusal)) => {
            decision.course = Course::Refuse(refusal);
            return Ok(decision);
        }
    };
    // Last: where the rule cannot be written after all, guests start until the node's next event.
    steps.extend(planned.map(|planned| Step::UdevRule(planned.step.clone())));
    decision.course = Course::Act(steps);
    Ok(decision)
}

/// The rules that speak for the node. Where the own one may be written anew it does not count:
/// otherwise it would be the reason for its own number for ever. Where it is not, it is a rule of the
/// node as any other, which decides what udev gives.
fn rules_of_the_node<'a>(seen: &'a Observed, config: &Config) -> Option<&'a Prediction> {
    let host = seen.host.as_ref()?;
    let others = host.others.as_ref().filter(|_| config.persist);
    Some(others.unwrap_or(&host.udev))
}

/// A rule of an earlier run that gives another number than the node would have without it.
fn outdated_rule(seen: &Observed, config: &Config, found: &Resolution) -> Option<Warning> {
    let others = seen.host.as_ref()?.others.as_ref()?;
    let now = found.target().filter(|_| !config.persist)?;
    let without = resolve(candidates(seen, config, Some(others)));
    let without = without.target().filter(|other| other.gid != now.gid)?;
    let text = format!(
        "{}, which an earlier run wrote (--persist), gives the number {}, and without it the number \
         would be {} ({}): `apply --persist` writes it anew",
        now.at, now.gid, without.gid, without.at
    );
    Some(Warning::new(Code::UdevRuleOutdated, text))
}

fn candidates(seen: &Observed, config: &Config, udev: Option<&Prediction>) -> Vec<Candidate> {
    let mut found = Vec::new();
    if let Some((gid, origin)) = &config.gid {
        let (gid, at) = (*gid, origin.to_string());
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
    if let Some(group) = host.and_then(|host| host.db.by_name(&config.group)) {
        let (gid, at) = (group.gid, format!("the node's {}", group.at));
        let source = Source::HostGroup;
        found.push(Candidate { gid, source, at });
    }
    if let Some(gid) = config.kept {
        let (source, at) = (Source::Kept, "what worked last".to_owned());
        found.push(Candidate { gid, source, at });
    }
    if let Some(node) = seen.device.as_ref().filter(|node| node.facts.is_kvm())
        && !node.unmapped
    {
        let (gid, at) = (node.facts.gid, config.device.display().to_string());
        let source = Source::Device;
        found.push(Candidate { gid, source, at });
    }
    let in_pod = seen.pod.group.as_deref().filter(|_| !seen.pod.is_host);
    if let Some(group) = in_pod.and_then(|file| group::by_name(file, config.group.as_bytes())) {
        let file = seen.pod.root.join(GROUP_FILE);
        let (gid, at) = (group.gid, format!("{}:{}", file.display(), group.line));
        let source = Source::PodGroup;
        found.push(Candidate { gid, source, at });
    }
    found
}
