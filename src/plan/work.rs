//! What there is to do, and whom QEMU will run as once it is done.

use std::borrow::Cow;

use nix::unistd::{Gid, Uid};

use super::safety::{collisions, further_numbers};
use super::{Decision, GroupStep, GroupWant, Step};
use crate::accounts::edit::{self, EditError, align};
use crate::accounts::{group, passwd};
use crate::config::Config;
use crate::exit::Usage;
use crate::observe::{GROUP_FILE, Node, Observed};
use crate::qemu::{self, Configured, Identity};
use crate::qemu_conf::QemuConf;
use crate::report::{Code, Warning, some_of};
use crate::resolve::Resolution;
use crate::udev::Prediction;

/// Every step to the target, the group file first and the device last; whom QEMU is now and will be
/// goes into `decision`. `udev` is what will happen to the device.
///
/// # Errors
/// [`Usage`] for a QEMU user or group that is not there, and a pod root without group file.
pub fn steps(
    seen: &Observed,
    config: &Config,
    conf: Option<&QemuConf>,
    udev: Option<&Prediction>,
    target: Gid,
    decision: &mut Decision,
) -> Result<Vec<Step>, Usage> {
    let pod = &seen.pod;
    let user = user(seen, config, conf);
    let mut steps = Vec::new();
    let group_file = if writes_group_file(seen, config) {
        let member = match &user {
            Ok(user) => member(user),
            Err(unknown) if pod.is_host && unknown.is_absence() => None,
            Err(unknown) => return Err(Usage(unknown.to_string())),
        };
        if member.is_some() && !pod.is_host {
            let (_, told) = further_numbers(seen, config, udev, target);
            decision.warnings.extend(told);
        }
        let wants = wants(seen, config, udev, target, member);
        let (aligned, step) = group_step(seen, config, wants)?;
        note_leftovers(seen, config, step.as_ref(), decision);
        steps.extend(step.map(Step::GroupFile));
        aligned
    } else {
        Cow::Borrowed(pod.effective_group().unwrap_or_default())
    };
    let configured = Configured {
        given: config.qemu_group.as_ref(),
        conf,
        conf_name: &pod.qemu_conf_name,
    };
    let os_release = pod.os_release.as_deref();
    let identity_with = |file: &[u8]| {
        let user = user.as_ref().map_err(Clone::clone)?;
        qemu::identity(user, &configured, file, &pod.passwd, os_release)
    };
    let identity = identity_with(&group_file);
    let now = match pod.effective_group() {
        Some(file) if !steps.is_empty() => identity_with(file),
        _ => identity.clone(),
    };
    match now {
        Ok(now) => decision.identity_now = Some(now),
        Err(unknown) => decision.no_identity_now = Some(unknown),
    }
    let identity = match identity {
        Err(unknown) if pod.is_host && unknown.is_absence() => {
            let text = format!(
                "this node has no QEMU user, so the proof is for uid and gid 65534 with the group \
                 {target} alone; it says nothing of a pod's QEMU"
            );
            decision
                .warnings
                .push(Warning::new(Code::LimitedProof, text));
            decision.identity_now = Some(Identity::nobody(target));
            Identity::nobody(target)
        }
        other => other.map_err(|unknown| Usage(unknown.to_string()))?,
    };
    decision.identity = Some(identity);
    // Where the pod's file cannot follow, no number goes onto the device that it does not have.
    let is_known = || group::groups(&group_file).any(|group| group.gid == target);
    if let Some(node) = &seen.device
        && (!config.sealed || is_known())
    {
        steps.extend(device_steps(node, config, target, &mut decision.warnings));
    }
    Ok(steps)
}

/// The group with its number, and one more for each other number that an event of the node gives the
/// device: as long as the node's events disagree, no single number lasts.
fn wants(
    seen: &Observed,
    config: &Config,
    udev: Option<&Prediction>,
    target: Gid,
    member: Option<Vec<u8>>,
) -> Vec<GroupWant> {
    let name = &config.group;
    let mut wants = vec![GroupWant {
        group: name.clone(),
        gid: target,
        member: member.clone(),
    }];
    // Without a member there is nobody whom another number could lock out.
    if member.is_some() && !seen.pod.is_host {
        let mut numbers = further_numbers(seen, config, udev, target).0;
        numbers.extend(number_to_leave(seen, config, target));
        numbers.dedup();
        wants.extend(numbers.into_iter().map(|gid| GroupWant {
            group: format!("{name}-{gid}"),
            gid,
            member: member.clone(),
        }));
    }
    wants
}

/// The number that the device is about to leave: until it has, and wherever the new one cannot be
/// given to it, guests start with that one.
fn number_to_leave(seen: &Observed, config: &Config, target: Gid) -> Option<Gid> {
    let file = seen.pod.group.as_deref().unwrap_or_default();
    let kept = config.kept.filter(|kept| *kept != target)?;
    collisions(file, config, kept)
        .next()
        .is_none()
        .then_some(kept)
}

/// Brings a group file in line with one group after the other.
///
/// # Errors
/// A name that cannot be written.
pub fn align_all<'a>(
    file: &'a [u8],
    wants: &[GroupWant],
) -> Result<(Cow<'a, [u8]>, Vec<edit::Change>), EditError> {
    let (mut content, mut changes) = (Cow::Borrowed(file), Vec::new());
    for want in wants {
        let aligned = match align(&content, &want.as_want())? {
            (Cow::Owned(aligned), more) => {
                changes.extend(more);
                aligned
            }
            (Cow::Borrowed(_), _) => continue,
        };
        content = Cow::Owned(aligned);
    }
    Ok((content, changes))
}

/// On the node itself the group file is never edited; a file of its own can be made from it.
pub fn writes_group_file(seen: &Observed, config: &Config) -> bool {
    !config.sealed && (!seen.pod.is_host || config.group_file_out.is_some())
}

/// The group file as it shall be, and the step to it if it is not so yet.
fn group_step<'a>(
    seen: &'a Observed,
    config: &Config,
    wants: Vec<GroupWant>,
) -> Result<(Cow<'a, [u8]>, Option<GroupStep>), Usage> {
    let path = seen.pod.root.join(GROUP_FILE);
    let Some(file) = &seen.pod.group else {
        return Err(Usage(format!(
            "{} does not exist: run this in the libvirt image, or give --root",
            path.display()
        )));
    };
    let (aligned, changes) =
        align_all(file, &wants).map_err(|error| Usage(format!("{}: {error}", path.display())))?;
    let stands = match &config.group_file_out {
        Some(_) => seen.pod.own_group_out(),
        None => Some(&file[..]),
    };
    if stands == Some(&aligned[..]) {
        return Ok((aligned, None));
    }
    // What changes for libvirtd is told from the file that it would read now.
    let now = seen.pod.effective_group();
    let changes = match now.map(|file| align_all(file, &wants)) {
        Some(Ok((_, changes))) => changes,
        _ => changes,
    };
    let step = GroupStep {
        wants,
        out: config.group_file_out.clone(),
        changes,
    };
    Ok((aligned, Some(step)))
}

/// What the renumbering leaves behind.
fn note_leftovers(
    seen: &Observed,
    config: &Config,
    step: Option<&GroupStep>,
    decision: &mut Decision,
) {
    /// How many lines are named.
    const NAMED: usize = 20;
    let file = seen.pod.group.as_deref().unwrap_or_default();
    let lines: Vec<_> = group::all_by_name(file, config.group.as_bytes())
        .map(|group| group.line.to_string())
        .collect();
    if lines.len() > 1 {
        let text = format!(
            "the pod has the group {} on lines {}: the first counts and is the one that is changed",
            config.group,
            some_of(&lines, NAMED, ", ")
        );
        decision
            .warnings
            .push(Warning::new(Code::DuplicateGroup, text));
    }
    let changes = step.map(|step| &step.changes[..]).unwrap_or_default();
    decision.renumbered = changes.iter().find_map(|change| match change {
        edit::Change::SetGid { from, .. } => Some(*from),
        _ => None,
    });
}

/// The users whose primary group has this number.
pub fn primary_users(passwd: &[u8], gid: Gid) -> Vec<String> {
    passwd::users(passwd)
        .filter(|user| user.gid == gid)
        .map(|user| String::from_utf8_lossy(user.name).into_owned())
        .collect()
}

fn device_steps(
    node: &Node,
    config: &Config,
    target: Gid,
    warnings: &mut Vec<Warning>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let facts = &node.facts;
    let owner = (Uid::from_raw(0), target);
    if node.unmapped {
        let text = format!(
            "{} belongs to {}:{}, which may be IDs that this user namespace does not map: owner \
             and group are left alone",
            config.device.display(),
            facts.uid,
            facts.gid
        );
        warnings.push(Warning::new(Code::UnmappedOwner, text));
    } else if (facts.uid, facts.gid) != owner {
        steps.push(Step::Owner {
            from: (facts.uid, facts.gid),
            to: owner,
        });
    }
    // The owner first: what a wider mode gives then goes to the group that shall have it.
    if let Some(acl) = &node.acl {
        let repaired = acl.repaired(config.mode);
        if repaired != *acl {
            steps.push(Step::Acl {
                from: acl.clone(),
                to: repaired,
            });
        }
    } else {
        let to = wanted_mode(facts.mode, config.mode);
        if to != facts.mode {
            steps.push(Step::Mode {
                from: facts.mode,
                to,
            });
        }
    }
    steps
}

/// The exact mode if one was asked for, else what is there and `rw` for owner and group.
pub fn wanted_mode(now: u16, exact: Option<u16>) -> u16 {
    exact.unwrap_or(now | 0o660)
}

/// Where a missing KVM is accepted the pod still mounts the file that it was promised: aligned as
/// far as that can be told, or the image's own.
pub fn file_for_the_pod(
    seen: &Observed,
    config: &Config,
    conf: Option<&QemuConf>,
    resolution: &Resolution,
) -> Vec<Step> {
    let (Some(out), Some(file)) = (&config.group_file_out, &seen.pod.group) else {
        return Vec::new();
    };
    let target = resolution.target().map(|target| target.gid);
    let target = target.filter(|gid| collisions(file, config, *gid).next().is_none());
    let member = user(seen, config, conf).ok().and_then(|user| member(&user));
    let udev = seen.host.as_ref().map(|host| &host.udev);
    let wants = target.map_or_else(Vec::new, |gid| wants(seen, config, udev, gid, member));
    let (content, changes) = align_all(file, &wants).unwrap_or((Cow::Borrowed(file), Vec::new()));
    if seen.pod.own_group_out() == Some(&content[..]) {
        return Vec::new();
    }
    vec![Step::GroupFile(GroupStep {
        wants,
        out: Some(out.clone()),
        changes,
    })]
}

fn user(
    seen: &Observed,
    config: &Config,
    conf: Option<&QemuConf>,
) -> Result<qemu::User, qemu::Unknown> {
    let configured = Configured {
        given: config.qemu_user.as_ref(),
        conf,
        conf_name: &seen.pod.qemu_conf_name,
    };
    qemu::user(
        &configured,
        &seen.pod.passwd,
        seen.pod.os_release.as_deref(),
    )
}

/// Whom to list in the group: libvirt looks memberships up by name, and root needs none.
fn member(user: &qemu::User) -> Option<Vec<u8>> {
    user.name.clone().filter(|_| !user.uid.is_root())
}
