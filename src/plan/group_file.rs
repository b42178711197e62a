//! The steps of the group file, and the QEMU identity before and after them.

use std::borrow::Cow;
use std::sync::Arc;

use nix::unistd::Gid;

use super::context::Context;
use super::qemu_identity::{self, Configured, Identity, IdentityError, User};
use super::safety::{collisions, further_gids, guarded, guarded_target, other_owner};
use super::target_gid::Resolution;
use super::{GroupFile, GroupStep, Plan, Refusal, Step, Stop, device};
use crate::codes::{Warning, WarningCode};
use crate::config::PodRoot;
use crate::error::Error;
use crate::formats::accounts::edit::{self, EditError, Want, align};
use crate::formats::accounts::{group, passwd};
use crate::formats::udev::Predictions;
use crate::observe::GROUP_FILE;
use crate::text::join_first;

/// Every step to the target, the group file first and the device last. The QEMU identities go into the plan.
/// `udev` is what will happen to the device.
///
/// # Errors
/// [`Stop::Usage`] for a QEMU user or group that is not there, and a pod root without group file;
/// [`Stop::Refusal`] for a name that is not written into a group file.
pub fn steps(
    context: &Context<'_>,
    udev: Option<&Predictions>,
    target: Gid,
    plan: &mut Plan,
) -> Result<Vec<Step>, Stop> {
    let seen = context.seen;
    let pod = &seen.pod;
    let user = user(context);
    let mut steps = Vec::new();
    let group_file = if context.writes_group_file() {
        let member = match &user {
            Ok(user) => member(user),
            Err(unknown) if pod.is_host && unknown.is_absence() => None,
            Err(unknown) => return Err(Error::Usage(unknown.to_string()).into()),
        };
        let (wants, told) = wants(context, udev, target, member);
        plan.warnings.extend(told);
        let (aligned, step) = group_step(context, &wants)?;
        note_leftovers(context, step.as_ref(), plan);
        steps.extend(step.map(Step::GroupFile));
        aligned
    } else {
        Cow::Borrowed(pod.effective_group().unwrap_or_default())
    };
    let has_step = !steps.is_empty();
    find_identities(context, user, &group_file, has_step, target, plan)?;
    // Where the pod's file cannot follow, no number goes onto the device that it does not have. The node's own
    // file is none to follow.
    let is_known = || group::groups(&group_file).any(|group| group.gid == target);
    if let Some(node) = &seen.device
        && (!context.group_file_readonly() || pod.is_host || is_known())
    {
        steps.extend(device::steps(node, context, target, &mut plan.warnings));
    }
    Ok(steps)
}

/// The QEMU identity now, and with this group file.
///
/// # Errors
/// [`Error::Usage`] for a QEMU user or group that is not there, but on a node without libvirt.
fn find_identities(
    context: &Context<'_>,
    user: Result<User, IdentityError>,
    group_file: &[u8],
    has_step: bool,
    target: Gid,
    plan: &mut Plan,
) -> Result<(), Error> {
    let pod = &context.seen.pod;
    let configured = Configured {
        given: context.policy.qemu_group.as_ref(),
        conf: context.conf,
        conf_name: &pod.qemu_conf_name,
    };
    let os_release = pod.os_release.as_deref();
    let identity_with = |file: &[u8]| {
        let user = user.as_ref().map_err(Clone::clone)?;
        qemu_identity::identity(user, &configured, file, &pod.passwd, os_release)
    };
    let identity = identity_with(group_file);
    let now = match pod.effective_group() {
        Some(file) if has_step => identity_with(file),
        _ => identity.clone(),
    };
    plan.identity_now = now.map_err(Some);
    plan.identity = Some(match identity {
        Err(unknown) if pod.is_host && unknown.is_absence() => {
            let text = format!(
                "this node has no QEMU user, so the proof is for uid and gid 65534 with the group \
                 {target} alone; it says nothing of a pod's QEMU"
            );
            let warning = Warning::new(WarningCode::LimitedProof, text);
            plan.warnings.push(warning);
            plan.identity_now = Ok(Identity::nobody(target));
            Identity::nobody(target)
        }
        other => other.map_err(|unknown| Error::Usage(unknown.to_string()))?,
    });
    Ok(())
}

/// A group that is wanted.
struct GroupWant {
    name: String,
    gid: Gid,
    member: Option<Vec<u8>>,
}

/// The group with its number, and one more for each other number that an event of the node gives the
/// device: as long as the node's events disagree, no single number lasts. Also what is odd about those.
fn wants(
    context: &Context<'_>,
    udev: Option<&Predictions>,
    target: Gid,
    member: Option<Vec<u8>>,
) -> (Vec<GroupWant>, Vec<Warning>) {
    let name = &context.policy.group;
    let mut warnings = Vec::new();
    let mut wants = vec![GroupWant {
        name: name.clone(),
        gid: target,
        member: member.clone(),
    }];
    // Without a member another GID locks nobody out.
    if member.is_some() && !context.seen.pod.is_host {
        let (mut numbers, told) = further_gids(context, udev, target);
        warnings = told;
        match gid_to_leave(context, target) {
            Ok(kept) => numbers.extend(kept),
            Err(warning) => warnings.push(warning),
        }
        numbers.dedup();
        wants.extend(numbers.into_iter().map(|gid| GroupWant {
            name: format!("{name}-{gid}"),
            gid,
            member: member.clone(),
        }));
    }
    (wants, warnings)
}

/// The number that the device is about to leave: until it has, and wherever the new one cannot be
/// given to it, guests start with that one. One that means more than KVM is a warning instead.
fn gid_to_leave(context: &Context<'_>, target: Gid) -> Result<Option<Gid>, Warning> {
    let file = context.seen.pod.image_group().unwrap_or_default();
    let Some(kept) = context.last_good_gid().filter(|kept| *kept != target) else {
        return Ok(None);
    };
    if let Some(group) = guarded(context.seen, kept) {
        let text = format!(
            "the device leaves the GID {kept}, which is {group}: QEMU is not made a member for the time \
             until then, and a guest that starts meanwhile may not get KVM"
        );
        return Err(Warning::new(WarningCode::GuardedGroup, text));
    }
    let is_free = collisions(file, &context.policy.group, kept)
        .next()
        .is_none();
    Ok(is_free.then_some(kept))
}

/// Brings a group file in line with one group after the other.
///
/// # Errors
/// A name that cannot be written.
fn align_all<'a>(
    file: &'a [u8],
    wants: &[GroupWant],
) -> Result<(Cow<'a, [u8]>, Vec<edit::Change>), EditError> {
    let (mut content, mut changes) = (Cow::Borrowed(file), Vec::new());
    for want in wants {
        let want = Want {
            group: want.name.as_bytes(),
            gid: want.gid,
            member: want.member.as_deref(),
        };
        let aligned = match align(&content, &want)? {
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

/// Why nothing is written, and what to do: the member's name is the image's, the group's is an option's.
fn unwritable(error: &EditError, root: &PodRoot) -> String {
    let file = root.join(GROUP_FILE);
    let way_out = match error {
        EditError::Name {
            field: "member", ..
        } => format!(
            "rename that user in {}, or name another one in qemu.conf",
            root.join("etc/passwd").display()
        ),
        EditError::Name { .. } => "give --group another name".to_owned(),
        EditError::Gid(_) => "give --gid".to_owned(),
    };
    format!("{}: {error}; {way_out}", file.display())
}

/// The group file as it is to be, and the step to it if it is not so yet.
fn group_step<'a>(
    context: &Context<'a>,
    wants: &[GroupWant],
) -> Result<(Cow<'a, [u8]>, Option<GroupStep>), Stop> {
    let pod = &context.seen.pod;
    let Some(file) = pod.image_group() else {
        let text = format!(
            "{} does not exist: run this in the libvirt image, or give --root",
            pod.root.join(GROUP_FILE).display()
        );
        return Err(Error::Usage(text).into());
    };
    let (aligned, changes) = align_all(file, wants).map_err(|error| {
        Stop::Refusal(Refusal {
            text: unwritable(&error, &pod.root),
            cause: None,
        })
    })?;
    let stands = match &pod.out_path {
        Some(_) => pod.own_group_out(),
        None => Some(file),
    };
    if stands == Some(&aligned[..]) {
        return Ok((aligned, None));
    }
    // What changes for libvirtd is told from the file that it would read now.
    let changes = match pod.effective_group().map(|file| align_all(file, wants)) {
        Some(Ok((_, changes))) => changes,
        _ => changes,
    };
    let step = write(context, &aligned, changes);
    Ok((aligned, step))
}

/// The step that writes this content.
fn write(context: &Context<'_>, content: &[u8], changes: Vec<edit::Change>) -> Option<GroupStep> {
    let pod = &context.seen.pod;
    let file = match &pod.out_path {
        Some(path) => GroupFile::Out {
            path: path.clone(),
            base: pod.group_out.as_ref().map(|out| out.content.clone()),
            keep_inode: context.memory.is_some(),
        },
        None => GroupFile::InPlace {
            root: pod.root.clone(),
            inode: pod.group_stamp.map(|stamp| stamp.inode),
            base: Arc::clone(pod.group.as_ref()?),
        },
    };
    Some(GroupStep {
        file,
        content: content.to_vec(),
        changes,
    })
}

/// What the renumbering leaves behind.
fn note_leftovers(context: &Context<'_>, step: Option<&GroupStep>, plan: &mut Plan) {
    /// How many lines are named.
    const NAMED: usize = 20;
    let file = context.seen.pod.image_group().unwrap_or_default();
    let group = &context.policy.group;
    let lines = || group::all_by_name(file, group.as_bytes());
    if lines().nth(1).is_some() {
        let text = format!(
            "the pod has the group {group} on lines {}: the first counts and is the one that is changed",
            join_first(lines().map(|group| group.line.to_string()), NAMED, ", ")
        );
        let warning = Warning::new(WarningCode::DuplicateGroup, text);
        plan.warnings.push(warning);
    }
    let changes = step.map(|step| &step.changes[..]).unwrap_or_default();
    plan.renumbered = changes.iter().find_map(|change| match change {
        edit::Change::SetGid { from, .. } => Some(*from),
        _ => None,
    });
}

/// The users whose primary group has this number.
pub fn primary_users(passwd: &[u8], gid: Gid) -> impl Iterator<Item = String> {
    passwd::users(passwd)
        .filter(move |user| user.gid == gid)
        .map(|user| String::from_utf8_lossy(user.name).into_owned())
}

/// Where a missing KVM is accepted the pod still mounts the file that it was promised: aligned as
/// far as that can be told, or the image's own. Without a device nothing makes up for a GID that is another
/// group's, so that not even an explicit one permits it.
///
/// # Errors
/// [`Error::Usage`] without anything to make it from.
pub fn file_for_the_pod(
    context: &Context<'_>,
    resolution: &Resolution,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Step>, Error> {
    let seen = context.seen;
    let Some(out) = &seen.pod.out_path else {
        return Ok(Vec::new());
    };
    let Some(file) = seen.pod.image_group() else {
        return Err(Error::Usage(format!(
            "{} does not exist: run this in the libvirt image",
            seen.pod.root.join(GROUP_FILE).display()
        )));
    };
    let target = resolution.target().filter(|target| {
        let group = guarded_target(context, target.gid);
        if let Some(group) = &group {
            let text = format!(
                "{} gives the GID {}, which is {group}: without a device that GID goes into no group \
                 file, so {} holds what the image's own does",
                target.at,
                target.gid,
                out.display()
            );
            warnings.push(Warning::new(WarningCode::GuardedGroup, text));
        }
        group.is_none()
    });
    let target = target.map(|target| target.gid);
    let target = target.filter(|gid| {
        collisions(file, &context.policy.group, *gid)
            .next()
            .is_none()
    });
    let target = target.filter(|gid| other_owner(context, *gid).is_none());
    let member = user(context).ok().and_then(|user| member(&user));
    let udev = seen.host.as_ref().map(|host| &host.udev);
    let (wants, told) = target
        .map(|gid| wants(context, udev, gid, member))
        .unwrap_or_default();
    warnings.extend(told);
    // A name that is not written leaves the image's own file, too.
    let (content, changes) = align_all(file, &wants).unwrap_or((Cow::Borrowed(file), Vec::new()));
    if seen.pod.own_group_out() == Some(&content[..]) {
        return Ok(Vec::new());
    }
    let step = write(context, &content, changes);
    Ok(step.map(Step::GroupFile).into_iter().collect())
}

fn user(context: &Context<'_>) -> Result<User, IdentityError> {
    let pod = &context.seen.pod;
    let configured = Configured {
        given: context.policy.qemu_user.as_ref(),
        conf: context.conf,
        conf_name: &pod.qemu_conf_name,
    };
    qemu_identity::user(&configured, &pod.passwd, pod.os_release.as_deref())
}

/// The name to list in the group: libvirt looks memberships up by name, and root needs none.
fn member(user: &User) -> Option<Vec<u8>> {
    user.name.clone().filter(|_| !user.uid.is_root())
}
