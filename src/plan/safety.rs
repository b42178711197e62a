//! The safety checks: each failure is a refusal before anything is changed, or a warning.

use nix::sys::stat::SFlag;
use nix::unistd::Gid;

use super::context::Context;
use super::target_gid::Candidate;
use super::udev_events::{other_gids, sets_root_group};
use super::{NoKvm, Plan, Refusal};
use crate::codes::{Cause, Warning, WarningCode};
use crate::config::Origin;
use crate::formats::accounts::group;
use crate::formats::udev::Predictions;
use crate::observe::{Driver, GROUP_FILE, Observation};
use crate::sys::device::DeviceStat;
use crate::sys::root::kind_name;
use crate::text::join_first;

/// Groups with privileges beyond KVM. A GID shared with one of them by accident would give QEMU these privileges, and
/// its members KVM.
const GUARDED: [&str; 9] = [
    "root", "disk", "kmem", "shadow", "sudo", "adm", "tty", "docker", "libvirt",
];

/// The guarded group with this GID, under any of its names, in the node's database or the pod's group file. The text
/// contains file and line.
pub fn guarded(seen: &Observation, gid: Gid) -> Option<String> {
    guarded_by(seen, gid, pod_group_file(seen))
}

fn pod_group_file(seen: &Observation) -> &[u8] {
    seen.pod.image_group().unwrap_or_default()
}

fn guarded_by(seen: &Observation, gid: Gid, group_file: &[u8]) -> Option<String> {
    if gid.as_raw() == 0 {
        return Some("the group root".to_owned());
    }
    let host = seen.host.as_ref();
    let on_node = host.and_then(|host| host.db.named(&GUARDED, gid));
    if let Some((name, at)) = on_node {
        return Some(format!("the node's group {name} ({at})"));
    }
    let group = group::all_by_names(group_file, &GUARDED).find(|group| group.gid == gid)?;
    Some(format!(
        "the pod's group {} ({}:{})",
        String::from_utf8_lossy(group.name),
        seen.pod.root.join(GROUP_FILE).display(),
        group.line
    ))
}

/// The guarded group that a target GID belongs to, as for [`guarded`], or would belong to because `--group` names a
/// guarded group.
pub fn guarded_target(context: &Context<'_>, gid: Gid) -> Option<String> {
    guarded(context.seen, gid).or_else(|| guarded_option(context))
}

fn guarded_option(context: &Context<'_>) -> Option<String> {
    let group = &context.policy.group;
    let named = context.writes_group_file() && GUARDED.contains(&group.as_str());
    named.then(|| format!("to become the GID of the pod's group {group} (--group)"))
}

/// Name and place (file and line) of another group than `--group` with this GID on the node, unless the GID was set
/// explicitly.
pub fn other_owner(context: &Context<'_>, gid: Gid) -> Option<(String, String)> {
    let host = context.seen.host.as_ref();
    let host = host.filter(|_| context.explicit_gid().is_none())?;
    host.db.other_owner(gid, &context.policy.group)
}

/// Whether `--gid` or the configuration file sets exactly this GID, which permits that of a guarded group. The
/// environment variable does not: a ConfigMap (`envFrom`) can set it without access to the container's command.
fn is_permitted(context: &Context<'_>, gid: Gid) -> bool {
    match context.explicit_gid() {
        Some((explicit, Origin::Flag(_) | Origin::File { .. })) => explicit == gid,
        Some((_, Origin::Env(_) | Origin::Kept)) | None => false,
    }
}

/// Refuses a target whose GID belongs to a guarded group, unless [`is_permitted`].
fn check_guarded(
    context: &Context<'_>,
    target: &Candidate,
    group_file: &[u8],
) -> Result<(), Refusal> {
    let gid = target.gid;
    let by_name = guarded_by(context.seen, gid, group_file);
    let Some(group) = by_name.or_else(|| guarded_option(context)) else {
        return Ok(());
    };
    if is_permitted(context, gid) {
        return Ok(());
    }
    let next_step = match context.explicit_gid() {
        Some((_, Origin::Env(_))) => format!(
            "a variable cannot confirm this: use --gid {gid} on the command line, or `gid: {gid}` in the \
             --config file, to confirm"
        ),
        _ => format!("use --gid {gid} to confirm"),
    };
    let text = format!(
        "{}, which is {group}: its members would get access to KVM, and QEMU the privileges of that \
         group; {next_step}",
        target.sets_gid()
    );
    Err(Refusal { text, cause: None })
}

/// The reason and the advice if the device, or the KVM driver behind it, is missing.
pub fn no_kvm(seen: &Observation) -> Option<NoKvm> {
    let path = seen.device_path.display();
    let on_host = seen.host.as_ref().and_then(|host| host.device);
    match &seen.device {
        None if on_host.is_some_and(|device| device.is_kvm()) && !seen.device_explicit => None,
        None => {
            let text = format!("{path} does not exist");
            let advice = if on_host.is_some_and(|device| device.is_kvm()) {
                "the node has /dev/kvm: mount the node's /dev in this container, or set --device to the \
                 path of that device"
            } else if seen.driver == Driver::Present {
                "the KVM driver is loaded, but its device is missing: on the node run `mknod -m 600 \
                 /dev/kvm c 10 232 && udevadm trigger --action=add --name-match=kvm`, or mount the \
                 node's /dev in this container"
            } else {
                "the KVM driver is not loaded: on the node run `modprobe kvm_intel` or `modprobe \
                 kvm_amd`; if that fails, see `dmesg | grep -i kvm` for the reason"
            };
            Some(NoKvm {
                cause: Cause::Missing,
                text,
                advice: advice.to_owned(),
                steps: Vec::new(),
            })
        }
        Some(device) if device.facts.is_kvm() && seen.driver == Driver::Absent => {
            let text = format!("{path} exists, but no KVM driver is loaded");
            let advice = "on the node run `modprobe kvm_intel` or `modprobe kvm_amd`; if that fails, see \
                          `dmesg | grep -i kvm` for the reason";
            Some(NoKvm {
                cause: Cause::NoDriver,
                text,
                advice: advice.to_owned(),
                steps: Vec::new(),
            })
        }
        Some(_) => None,
    }
}

/// The target GID, if every safety check passes. `udev` predicts what the node's events set on the device.
pub fn target(
    context: &Context<'_>,
    udev: Option<&Predictions>,
    plan: &mut Plan,
) -> Result<Gid, Refusal> {
    let seen = context.seen;
    let path = seen.device_path.display();
    let no = |text: String| Refusal { text, cause: None };
    check_device(context, &mut plan.warnings)?;
    check_doubts(context, plan)?;
    let Some(target) = plan.resolution.target() else {
        return Err(no(format!(
            "cannot determine a GID for the group {}: neither the node nor {path} nor the pod sets a \
             valid one; set --gid",
            context.policy.group
        )));
    };
    let gid = target.gid;
    // On the node itself this file is part of the node's database, and is not written.
    let is_nodes = seen.pod.is_host && seen.host.is_some();
    let file = match is_nodes && !context.writes_group_file() {
        true => &[][..],
        false => pod_group_file(seen),
    };
    check_guarded(context, target, file)?;
    if let Some((owner, place)) = other_owner(context, gid) {
        return Err(no(format!(
            "{}, which belongs to the group {owner} on the node ({place}): its members would get access \
             to KVM; use --gid {gid} to confirm",
            target.sets_gid()
        )));
    }
    if context.writes_group_file() {
        if seen.pod.root.is_of_process()
            && let Err(why) = check_etc(seen.pod.etc, seen.pod.image_group())
        {
            let root = seen.pod.root.path().display();
            return Err(no(format!(
                "cannot safely edit the group file of another container (root {root}): {why}; run this command in \
                 that container, or use --group-file-out"
            )));
        }
        let others = collisions(file, &context.policy.group, gid);
        collision(others, gid, context, &mut plan.warnings)?;
        let (_, warnings) = further_gids(context, udev, gid);
        if let Some(warning) = warnings.first().filter(|_| context.is_strict()) {
            return Err(no(format!("--strict: {}", warning.text)));
        }
    }
    Ok(gid)
}

/// Warns, and with `--strict` refuses, if the node's file system cannot be read or sources disagree about the GID.
fn check_doubts(context: &Context<'_>, plan: &mut Plan) -> Result<(), Refusal> {
    let strictly = |text: &str| Refusal {
        text: format!("--strict: {text}"),
        cause: None,
    };
    if context.seen.host.is_none() {
        let text = format!(
            "this container cannot read the node's file system, so the node's GID for {} is unknown; \
             mount that file system read-only at /mnt/host-rootfs, or set --host-root or --gid",
            context.policy.group
        );
        if context.is_strict() {
            return Err(strictly(&text));
        }
        let warning = Warning::new(WarningCode::HostRootUnknown, text);
        plan.warnings.push(warning);
    }
    match plan.resolution.disagreement() {
        Some(warning) if context.is_strict() => {
            let text = format!("{}; set both to the same GID", warning.text);
            Err(strictly(&text))
        }
        _ => Ok(()),
    }
}

/// The GIDs other than the target that events of the node set on the device and that the QEMU user may join, with
/// warnings about them. The GID of a guarded group is left out: an event does not justify its privileges.
pub fn further_gids(
    context: &Context<'_>,
    udev: Option<&Predictions>,
    target: Gid,
) -> (Vec<Gid>, Vec<Warning>) {
    let seen = context.seen;
    let file = seen.pod.image_group().unwrap_or_default();
    let (mut free, mut warnings) = (Vec::new(), Vec::new());
    let root = sets_root_group(udev).then_some(Gid::from_raw(0));
    for gid in other_gids(udev, target).into_iter().chain(root) {
        if let Some(group) = guarded(seen, gid) {
            let text = format!(
                "an event of the node sets the device's GID to {gid}, which is {group}: the QEMU user is not \
                 added to that group, and unless it is a member already, QEMU cannot open KVM after that \
                 event; change the node's udev rule, or run `libvirt-kvm-init apply --persist` to \
                 override it"
            );
            warnings.push(Warning::new(WarningCode::GuardedGroup, text));
            continue;
        }
        if let Some(name) = collisions(file, &context.policy.group, gid).next() {
            let text = format!(
                "an event of the node sets the device's GID to {gid}, which is also the pod's group {name}: \
                 its members get access to KVM, and QEMU gets the privileges of {name}"
            );
            warnings.push(Warning::new(WarningCode::Collision, text));
        }
        free.push(gid);
    }
    (free, warnings)
}

/// Checks the pod's other groups with the target GID. `check_guarded` already handled a guarded one.
fn collision(
    others: impl Iterator<Item = String>,
    gid: Gid,
    context: &Context<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<(), Refusal> {
    /// Maximum number of groups in the warning.
    const NAMED: usize = 5;
    let names = join_first(others, NAMED, ", ");
    if names.is_empty() {
        return Ok(());
    }
    let text = format!(
        "GID {gid} is also the pod's group {names}: its members get access to KVM, and QEMU gets the \
         privileges of {names}"
    );
    if context.is_strict() {
        let text = format!("{text}; omit --strict to allow this");
        return Err(Refusal { text, cause: None });
    }
    warnings.push(Warning::new(WarningCode::Collision, text));
    Ok(())
}

/// The pod's other groups with this GID, except the one that this program adds for it (`GROUP-GID`).
pub fn collisions(file: &[u8], group: &str, gid: Gid) -> impl Iterator<Item = String> {
    group::all_by_gid(file, gid)
        .map(|other| String::from_utf8_lossy(other.name).into_owned())
        .filter(move |name| is_other(name, group, gid))
}

fn is_other(name: &str, group: &str, gid: Gid) -> bool {
    let suffix = name.strip_prefix(group);
    !suffix.is_some_and(|suffix| suffix.is_empty() || suffix == format!("-{gid}"))
}

/// Whether this container's device is not the node's: their inodes differ.
pub fn is_private(seen: &Observation) -> bool {
    let on_host = seen.host.as_ref().and_then(|host| host.device);
    let on_host = on_host.filter(|device| device.is_kvm());
    on_host.is_some_and(|host| {
        let here = seen.device.as_ref().map(|device| device.facts.inode);
        here.is_some_and(|inode| inode != host.inode)
    })
}

/// The kind of file; for a device also its major and minor number.
fn described(facts: &DeviceStat) -> String {
    let name = kind_name(facts.kind);
    match facts.kind {
        SFlag::S_IFCHR | SFlag::S_IFBLK => format!("{name} {}:{}", facts.major, facts.minor),
        _ => name.to_owned(),
    }
}

/// Refuses a file that is not the character device 10:232, and a device that is not the node's. The latter can be
/// permitted (`allow_private_device`).
fn check_device(context: &Context<'_>, warnings: &mut Vec<Warning>) -> Result<(), Refusal> {
    let seen = context.seen;
    let path = seen.device_path.display();
    let on_host = seen.host.as_ref().and_then(|host| host.device);
    let on_host = on_host.filter(|device| device.is_kvm());
    let refusal = |cause, text| {
        Err(Refusal {
            text,
            cause: Some(cause),
        })
    };
    let Some(device) = &seen.device else {
        let text = format!(
            "{path} exists on the node, but not in this container: mount the node's /dev at /dev"
        );
        return refusal(Cause::Missing, text);
    };
    let facts = &device.facts;
    if !facts.is_kvm() {
        let why = why_not_kvm(seen, facts, on_host.is_some());
        return refusal(Cause::NotKvm, format!("{path} is {why}"));
    }
    match on_host {
        Some(host) if host.inode != facts.inode => {
            let text = format!(
                "this container's /dev is not the node's: {path} is another device than the node's (here \
                 {}:{} {:04o}, on the node {}:{} {:04o}); mount the node's /dev at /dev",
                facts.uid, facts.gid, facts.mode, host.uid, host.gid, host.mode
            );
            if context.policy.allow_private_device {
                warnings.push(Warning::new(WarningCode::PrivateDevice, text));
                return Ok(());
            }
            Err(Refusal { text, cause: None })
        }
        _ => Ok(()),
    }
}

/// The file found at the device's path, and what to do. `is_on_node` is set if the node has the device.
fn why_not_kvm(seen: &Observation, facts: &DeviceStat, is_on_node: bool) -> String {
    let path = seen.device_path.display();
    match facts.kind {
        // A file named by an option may be in use: do not advise to remove it.
        kind if seen.device_explicit && kind != SFlag::S_IFLNK => format!(
            "{}, not KVM (character device 10:232): set --device to the path of the KVM device",
            described(facts)
        ),
        kind if kind != SFlag::S_IFLNK && is_on_node => format!(
            "{}, but on the node it is the KVM device: mount the node's /dev at /dev",
            described(facts)
        ),
        SFlag::S_IFDIR => format!(
            "a directory, which container runtimes create if the source of a mount is missing: \
             remove it (`rmdir {path}`) and load the KVM module on the node"
        ),
        SFlag::S_IFLNK => "a symbolic link, which is not followed: set --device to its target, or \
                           remove it"
            .to_owned(),
        _ => format!(
            "{}, not KVM (character device 10:232): on the node run `rm /dev/kvm && \
             mknod -m 600 /dev/kvm c 10 232 && udevadm trigger --action=add --name-match=kvm`",
            described(facts)
        ),
    }
}

/// Checks another container's etc and group file: root alone may change them, and the file must be a group file.
/// Returns the reason if not.
fn check_etc(etc: Option<(u32, u32)>, group: Option<&[u8]>) -> Result<(), String> {
    if let Some((uid, mode)) = etc
        && (uid != 0 || mode & 0o022 != 0)
    {
        return Err(format!(
            "its etc belongs to UID {uid} with mode {mode:04o}, so users other than root can change files in it"
        ));
    }
    match group {
        Some(file) if !group::is_group_file(file) => Err(format!(
            "its {GROUP_FILE} is not a group file, in which every line has four fields with a numeric GID, \
             and one is root with GID 0"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_containers_etc_must_be_roots_and_hold_a_group_file() {
        let file: &[u8] = b"root:x:0:\nkvm:x:424:nova\n";
        assert_eq!(check_etc(Some((0, 0o755)), Some(file)), Ok(()));
        assert_eq!(check_etc(None, None), Ok(()));
        for etc in [(1000, 0o755), (0, 0o775), (0, 0o757), (0, 0o1777)] {
            assert!(check_etc(Some(etc), Some(file)).is_err(), "{etc:?}");
        }
        let passwd: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n";
        assert!(check_etc(Some((0, 0o755)), Some(passwd)).is_err());
    }
}
