//! Plans the steps for the group file, and computes the QEMU identity before and after them.

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

/// The steps to the target, the group file first and the device last. Stores the QEMU identities in the plan. `udev`
/// predicts what the node's events set on the device.
///
/// # Errors
/// [`Stop::Usage`] for a missing QEMU user or group, and a pod root without a group file; [`Stop::Refusal`] for a name
/// that cannot be written to a group file.
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
            Err(error) if pod.is_host && error.is_absence() => None,
            Err(error) => return Err(Error::Usage(error.to_string()).into()),
        };
        let (wants, warnings) = wants(context, udev, target, member);
        plan.warnings.extend(warnings);
        let (aligned, step) = group_step(context, &wants)?;
        note_old_group(context, step.as_ref(), plan);
        steps.extend(step.map(Step::GroupFile));
        aligned
    } else {
        Cow::Borrowed(pod.effective_group().unwrap_or_default())
    };
    let has_step = !steps.is_empty();
    store_identities(context, user, &group_file, has_step, target, plan)?;
    // If the pod's group file cannot be written, the device is set only to a GID that this file contains. The node's
    // own group file is not restricted in this way.
    let is_known = || group::groups(&group_file).any(|group| group.gid == target);
    if let Some(state) = &seen.device
        && (!context.group_file_readonly() || pod.is_host || is_known())
    {
        steps.extend(device::steps(state, context, target, &mut plan.warnings));
    }
    Ok(steps)
}

/// Stores in the plan the QEMU identity now, and the one with this group file.
///
/// # Errors
/// [`Error::Usage`] for a missing QEMU user or group, except on a node without libvirt.
fn store_identities(
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
        Err(error) if pod.is_host && error.is_absence() => {
            let text = format!(
                "this node has no QEMU user, so the proof uses UID and GID 65534 with GID {target} as only \
                 supplementary group; run the command in the libvirt pod to prove access for its QEMU user"
            );
            let warning = Warning::new(WarningCode::LimitedProof, text);
            plan.warnings.push(warning);
            plan.identity_now = Ok(Identity::nobody(target));
            Identity::nobody(target)
        }
        other => other.map_err(|error| Error::Usage(error.to_string()))?,
    });
    Ok(())
}

/// A group that the group file must contain, with this member.
struct GroupWant {
    name: String,
    gid: Gid,
    member: Option<Vec<u8>>,
}

/// The group with the target GID, and one more group for each other GID that an event of the node sets on the device:
/// while the node's events disagree, no single GID lasts. Also returns warnings about these GIDs.
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
    // Root needs no membership, and a UID without a name can have none.
    if member.is_some() && !context.seen.pod.is_host {
        let (mut gids, further) = further_gids(context, udev, target);
        warnings = further;
        match old_gid(context, target) {
            Ok(old) => gids.extend(old),
            Err(warning) => warnings.push(warning),
        }
        gids.dedup();
        wants.extend(gids.into_iter().map(|gid| GroupWant {
            name: format!("{name}-{gid}"),
            gid,
            member: member.clone(),
        }));
    }
    (wants, warnings)
}

/// The device's old GID, which guests need until the device has the new one, or if that cannot be set. The GID of a
/// guarded group returns a warning instead.
fn old_gid(context: &Context<'_>, target: Gid) -> Result<Option<Gid>, Warning> {
    let file = context.seen.pod.image_group().unwrap_or_default();
    let Some(old) = context.last_good_gid().filter(|old| *old != target) else {
        return Ok(None);
    };
    if let Some(group) = guarded(context.seen, old) {
        let text = format!(
            "the device's old GID {old} is {group}: the QEMU user is not added to that group, so a guest \
             that starts while the GID changes may fail to open KVM; start such a guest again"
        );
        return Err(Warning::new(WarningCode::GuardedGroup, text));
    }
    let is_free = collisions(file, &context.policy.group, old)
        .next()
        .is_none();
    Ok(is_free.then_some(old))
}

/// Aligns a group file with each of these groups in turn.
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

/// Why the group file is not written, and what to do. The member's name comes from the image, the group's from an
/// option.
fn unwritable(error: &EditError, root: &PodRoot) -> String {
    let file = root.join(GROUP_FILE);
    let next_step = match error {
        EditError::Name {
            field: "member", ..
        } => format!(
            "rename that user in {}, or set another one in qemu.conf",
            root.join("etc/passwd").display()
        ),
        EditError::Name { .. } => "set --group to another name".to_owned(),
        EditError::Gid(_) => "set --gid".to_owned(),
    };
    format!("{}: {error}; {next_step}", file.display())
}

/// The wanted content of the group file, and the step that writes it if it differs.
fn group_step<'a>(
    context: &Context<'a>,
    wants: &[GroupWant],
) -> Result<(Cow<'a, [u8]>, Option<GroupStep>), Stop> {
    let pod = &context.seen.pod;
    let Some(file) = pod.image_group() else {
        let text = format!(
            "{} does not exist: run the command in the libvirt image, or set --root",
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
    let current = match &pod.out_path {
        Some(_) => pod.own_group_out(),
        None => Some(file),
    };
    if current == Some(&aligned[..]) {
        return Ok((aligned, None));
    }
    // The report lists changes relative to the file that libvirtd reads now.
    let changes = match pod.effective_group().map(|file| align_all(file, wants)) {
        Some(Ok((_, changes))) => changes,
        _ => changes,
    };
    let step = write_step(context, &aligned, changes);
    Ok((aligned, step))
}

fn write_step(
    context: &Context<'_>,
    content: &[u8],
    changes: Vec<edit::Change>,
) -> Option<GroupStep> {
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

/// Warns about further lines of the group, and stores in the plan the GID that the group had before.
fn note_old_group(context: &Context<'_>, step: Option<&GroupStep>, plan: &mut Plan) {
    /// Maximum number of lines in the warning.
    const NAMED: usize = 20;
    let file = context.seen.pod.image_group().unwrap_or_default();
    let group = &context.policy.group;
    let lines = || group::all_by_name(file, group.as_bytes());
    if lines().nth(1).is_some() {
        let text = format!(
            "the pod's group file has the group {group} on lines {}: only the first one is effective and \
             changed; remove the others",
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

/// The names of the users with this primary group.
pub fn primary_users(passwd: &[u8], gid: Gid) -> impl Iterator<Item = String> {
    passwd::users(passwd)
        .filter(move |user| user.gid == gid)
        .map(|user| String::from_utf8_lossy(user.name).into_owned())
}

/// The step for `--group-file-out` with `--missing skip`: the pod mounts that file also on a node without KVM. It is
/// aligned as far as the target is known, otherwise a copy of the image's. Without a device there is no benefit in a
/// GID of another group, so not even an explicit one permits it.
///
/// # Errors
/// [`Error::Usage`] for a pod root without a group file.
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
            "{} does not exist: run the command in the libvirt image",
            seen.pod.root.join(GROUP_FILE).display()
        )));
    };
    let target = resolution.target().filter(|target| {
        let group = guarded_target(context, target.gid);
        if let Some(group) = &group {
            let text = format!(
                "{}, which is {group}: on a node without KVM that GID is written to no group file, so {} \
                 is a copy of the image's",
                target.sets_gid(),
                out.display()
            );
            warnings.push(Warning::new(WarningCode::GuardedGroup, text));
        }
        group.is_none()
    });
    let is_free = |gid: &Gid| {
        let mut others = collisions(file, &context.policy.group, *gid);
        others.next().is_none() && other_owner(context, *gid).is_none()
    };
    let gid = target.map(|target| target.gid).filter(is_free);
    let member = user(context).ok().and_then(|user| member(&user));
    let udev = seen.host.as_ref().map(|host| &host.udev);
    let (wants, further) = gid
        .map(|gid| wants(context, udev, gid, member))
        .unwrap_or_default();
    warnings.extend(further);
    // If a name cannot be written, the file is a copy of the image's, too.
    let (content, changes) = align_all(file, &wants).unwrap_or((Cow::Borrowed(file), Vec::new()));
    if seen.pod.own_group_out() == Some(&content[..]) {
        return Ok(Vec::new());
    }
    let step = write_step(context, &content, changes);
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

/// The name to add to the group. libvirt looks up memberships by name, and root needs none.
fn member(user: &User) -> Option<Vec<u8>> {
    user.name.clone().filter(|_| !user.uid.is_root())
}
