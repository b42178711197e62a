//! The safety rules: when nothing may be done, and why.

use nix::sys::stat::SFlag;
use nix::unistd::Gid;

use super::context::Context;
use super::udev_events::{gives_to_root, other_gids};
use super::{NoKvm, Plan, Refusal};
use crate::codes::{Cause, Warning, WarningCode};
use crate::config::Origin;
use crate::formats::accounts::group;
use crate::formats::udev::Predictions;
use crate::observe::{Driver, GROUP_FILE, Observation};
use crate::sys::device::DeviceStat;
use crate::sys::root::kind_name;
use crate::text::join_first;

/// Groups whose powers no QEMU gets, and whose members get no KVM, by accident of a GID.
const GUARDED: [&str; 9] = [
    "root", "disk", "kmem", "shadow", "sudo", "adm", "tty", "docker", "libvirt",
];

/// The guarded group that has this GID: by the node's database or by the pod's group file, whichever of its
/// names that is.
pub fn guarded(seen: &Observation, gid: Gid) -> Option<String> {
    guarded_by(seen, gid, pods_file(seen))
}

fn pods_file(seen: &Observation) -> &[u8] {
    seen.pod.image_group().unwrap_or_default()
}

fn guarded_by(seen: &Observation, gid: Gid, pods_file: &[u8]) -> Option<String> {
    if gid.as_raw() == 0 {
        return Some("the group root".to_owned());
    }
    let host = seen.host.as_ref();
    let on_node = host.and_then(|host| host.db.named(&GUARDED, gid));
    if let Some((name, at)) = on_node {
        return Some(format!("the node's group {name} ({at})"));
    }
    let found = group::all_by_names(pods_file, &GUARDED).find(|group| group.gid == gid)?;
    let (name, path) = (
        String::from_utf8_lossy(found.name),
        seen.pod.root.join(GROUP_FILE),
    );
    Some(format!(
        "the pod's group {name} ({}:{})",
        path.display(),
        found.line
    ))
}

/// The same for the target: that GID becomes `--group`'s in the pod.
pub fn guarded_target(context: &Context<'_>, gid: Gid) -> Option<String> {
    guarded(context.seen, gid).or_else(|| guarded_option(context))
}

fn guarded_option(context: &Context<'_>) -> Option<String> {
    let group = &context.policy.group;
    let named = context.writes_group_file() && GUARDED.contains(&group.as_str());
    named.then(|| format!("to be the pod's group {group} (--group)"))
}

/// The node's group with this GID, where it is another one than `--group` and no GID was given.
pub fn other_owner(context: &Context<'_>, gid: Gid) -> Option<(String, String)> {
    let host = context.seen.host.as_ref();
    let host = host.filter(|_| context.explicit_gid().is_none())?;
    host.db.other_owner(gid, &context.policy.group)
}

/// Whether this very GID was given where a guarded group can be permitted: on the command line or in the
/// configuration file. Who may set a variable (a ConfigMap with `envFrom`) decides less than who may change
/// the command.
fn is_permitted(context: &Context<'_>, gid: Gid) -> bool {
    match context.explicit_gid() {
        Some((given, Origin::Flag(_) | Origin::File { .. })) => given == gid,
        Some((_, Origin::Env(_) | Origin::Kept)) | None => false,
    }
}

/// Why the target may not be this GID, where it means more than KVM.
fn check_guarded(
    context: &Context<'_>,
    gid: Gid,
    at: &str,
    pods_file: &[u8],
) -> Result<(), Refusal> {
    let by_name = guarded_by(context.seen, gid, pods_file);
    let Some(group) = by_name.or_else(|| guarded_option(context)) else {
        return Ok(());
    };
    if is_permitted(context, gid) {
        return Ok(());
    }
    let way_out = match context.explicit_gid() {
        Some((_, Origin::Env(_))) => format!(
            "a variable does not permit that: give --gid {gid} on the command line, or `gid: {gid}` in \
             the file of --config, if that is meant"
        ),
        _ => format!("give --gid {gid} if that is meant"),
    };
    let text = format!(
        "{at} gives the GID {gid}, which is {group}: its members would gain KVM, and QEMU what that \
         group may; {way_out}"
    );
    Err(Refusal { text, cause: None })
}

/// No node, or no driver behind it.
pub fn no_kvm(seen: &Observation) -> Option<NoKvm> {
    let path = seen.device_path.display();
    let on_host = seen.host.as_ref().and_then(|host| host.device);
    match &seen.device {
        None if on_host.is_some_and(|node| node.is_kvm()) && !seen.device_explicit => None,
        None => {
            let text = format!("{path} does not exist");
            let advice = if on_host.is_some_and(|node| node.is_kvm()) {
                "the node has its /dev/kvm: mount the node's /dev here, or give --device its path"
            } else if seen.driver == Driver::Present {
                "the KVM driver is loaded, so the node was lost: on the node run `mknod -m 600 \
                 /dev/kvm c 10 232 && udevadm trigger --action=add --name-match=kvm`, or mount the \
                 node's /dev here"
            } else {
                "the KVM driver is not loaded: on the node run `modprobe kvm_intel` or `modprobe \
                 kvm_amd`, and see `dmesg | grep -i kvm` for why it may refuse"
            };
            Some(NoKvm {
                cause: Cause::Missing,
                text,
                advice: advice.to_owned(),
                steps: Vec::new(),
            })
        }
        Some(node) if node.facts.is_kvm() && seen.driver == Driver::Absent => {
            let text = format!("{path} is there, but no KVM driver answers behind it");
            let advice = "on the node run `modprobe kvm_intel` or `modprobe kvm_amd`, and see \
                          `dmesg | grep -i kvm` for why it may refuse";
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

/// The target, once every safety rule has agreed to it. `udev` is what will happen to the device.
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
            "no number for the group {} was found: not on the node, not on {path}, not in the \
             pod; give --gid",
            context.policy.group
        )));
    };
    let (gid, at) = (target.gid, target.at.clone());
    // On the node itself that file is among the node's, and is not written.
    let is_nodes = seen.pod.is_host && seen.host.is_some();
    let file = match is_nodes && !context.writes_group_file() {
        true => &[][..],
        false => pods_file(seen),
    };
    check_guarded(context, gid, &at, file)?;
    if let Some((owner, place)) = other_owner(context, gid) {
        return Err(no(format!(
            "{at} gives the number {gid}, and on the node that is the group {owner} ({place}): \
             its members would gain KVM; give --gid {gid} if that is meant"
        )));
    }
    if context.writes_group_file() {
        if seen.pod.root.is_of_process()
            && let Err(why) = check_etc(seen.pod.etc, seen.pod.image_group())
        {
            let root = seen.pod.root.path().display();
            return Err(no(format!(
                "the root of another container ({root}) is not edited: {why}; run this in that container, or \
                 give --group-file-out"
            )));
        }
        let others = collisions(file, &context.policy.group, gid);
        collision(others, gid, context, &mut plan.warnings)?;
        let (_, told) = further_gids(context, udev, gid);
        if let Some(warning) = told.first().filter(|_| context.is_strict()) {
            return Err(no(format!("--strict: {}", warning.text)));
        }
    }
    Ok(gid)
}

/// What is a warning, and with `--strict` a refusal: a node that is not seen, and sources that disagree.
fn check_doubts(context: &Context<'_>, plan: &mut Plan) -> Result<(), Refusal> {
    let strictly = |text: &str| Refusal {
        text: format!("--strict: {text}"),
        cause: None,
    };
    if context.seen.host.is_none() {
        let text = "this container does not see the node's file system, so the node's own number \
                    is not known; mount it read-only at /mnt/host-rootfs, or give --host-root or \
                    --gid";
        if context.is_strict() {
            return Err(strictly(text));
        }
        let warning = Warning::new(WarningCode::HostRootUnknown, text);
        plan.warnings.push(warning);
    }
    match plan.resolution.disagreement() {
        Some(warning) if context.is_strict() => Err(strictly(&warning.text)),
        _ => Ok(()),
    }
}

/// The GIDs that other events of the node give, as far as the QEMU user may have them; and what is odd
/// about them. A GID that means more than KVM is given to no QEMU for an event's sake.
pub fn further_gids(
    context: &Context<'_>,
    udev: Option<&Predictions>,
    target: Gid,
) -> (Vec<Gid>, Vec<Warning>) {
    let seen = context.seen;
    let file = seen.pod.image_group().unwrap_or_default();
    let (mut free, mut told) = (Vec::new(), Vec::new());
    let roots = gives_to_root(udev).then_some(Gid::from_raw(0));
    for gid in other_gids(udev, target).into_iter().chain(roots) {
        if let Some(group) = guarded(seen, gid) {
            let text = format!(
                "an event of the node gives the device the GID {gid}, which is {group}: QEMU is not made \
                 a member for that, and where it is none already that event takes KVM from it; change \
                 the node's rule, or let `apply --persist` write one"
            );
            told.push(Warning::new(WarningCode::GuardedGroup, text));
            continue;
        }
        if let Some(name) = collisions(file, &context.policy.group, gid).next() {
            let text = format!(
                "an event of the node gives the device the number {gid}, which is also the pod's \
                 group {name}: its members gain KVM, and QEMU gains what {name} may"
            );
            told.push(Warning::new(WarningCode::Collision, text));
        }
        free.push(gid);
    }
    (free, told)
}

/// Whether the pod's other groups with the number may have it. A guarded one was permitted before.
fn collision(
    others: impl Iterator<Item = String>,
    gid: Gid,
    context: &Context<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<(), Refusal> {
    /// How many are named.
    const NAMED: usize = 5;
    let names = join_first(others, NAMED, ", ");
    if names.is_empty() {
        return Ok(());
    }
    let text = format!(
        "the number {gid} is also the pod's group {names}: its members gain KVM, and QEMU gains \
         what {names} may"
    );
    if context.is_strict() {
        let text = format!("{text}; leave out --strict if that is meant");
        return Err(Refusal { text, cause: None });
    }
    warnings.push(Warning::new(WarningCode::Collision, text));
    Ok(())
}

/// Other groups of the pod with this number, but for the one that this program makes for it.
pub fn collisions(file: &[u8], group: &str, gid: Gid) -> impl Iterator<Item = String> {
    group::all_by_gid(file, gid)
        .map(|other| String::from_utf8_lossy(other.name).into_owned())
        .filter(move |name| is_other(name, group, gid))
}

fn is_other(name: &str, group: &str, gid: Gid) -> bool {
    let own = name.strip_prefix(group);
    let own = own.is_some_and(|rest| rest.is_empty() || rest == format!("-{gid}"));
    !own
}

/// Whether the device is another one than the node's.
pub fn is_private(seen: &Observation) -> bool {
    let on_host = seen.host.as_ref().and_then(|host| host.device);
    let on_host = on_host.filter(|node| node.is_kvm());
    on_host.is_some_and(|host| {
        let here = seen.device.as_ref().map(|node| node.facts.inode);
        here.is_some_and(|inode| inode != host.inode)
    })
}

/// What kind of file it is; of a device, with its numbers.
fn described(facts: &DeviceStat) -> String {
    let name = kind_name(facts.kind);
    match facts.kind {
        SFlag::S_IFCHR | SFlag::S_IFBLK => format!("{name} {}:{}", facts.major, facts.minor),
        _ => name.to_owned(),
    }
}

/// Only a character device 10:232 that is the node's own is ever touched.
fn check_device(context: &Context<'_>, warnings: &mut Vec<Warning>) -> Result<(), Refusal> {
    let seen = context.seen;
    let path = seen.device_path.display();
    let on_host = seen.host.as_ref().and_then(|host| host.device);
    let on_host = on_host.filter(|node| node.is_kvm());
    let refusal = |cause, text| {
        Err(Refusal {
            text,
            cause: Some(cause),
        })
    };
    let private = format!(
        "this container's /dev is not the node's: {path} is not the device that QEMU's guests \
         share with the node"
    );
    let Some(node) = &seen.device else {
        let text = format!(
            "{path} does not exist here, and on the node it does: mount the node's /dev at /dev"
        );
        return refusal(Cause::Missing, text);
    };
    let facts = &node.facts;
    if !facts.is_kvm() {
        let why = why_not_kvm(seen, facts, on_host.is_some());
        return refusal(Cause::NotKvm, format!("{path} is {why}"));
    }
    match on_host {
        Some(host) if host.inode != facts.inode => {
            let shown = format!(
                "here {}:{} {:04o}, on the node {}:{} {:04o}",
                facts.uid, facts.gid, facts.mode, host.uid, host.gid, host.mode
            );
            let text = format!("{private} ({shown}); mount the node's /dev at /dev");
            if context.policy.allow_private_device {
                warnings.push(Warning::new(WarningCode::PrivateDevice, text));
                return Ok(());
            }
            Err(Refusal { text, cause: None })
        }
        _ => Ok(()),
    }
}

/// What stands in the device's place, and what to do. `is_on_node` says whether the node has the device.
fn why_not_kvm(seen: &Observation, facts: &DeviceStat, is_on_node: bool) -> String {
    let path = seen.device_path.display();
    match facts.kind {
        // What an option names may be of use, and is not to be removed.
        kind if seen.device_explicit && kind != SFlag::S_IFLNK => format!(
            "{}, and KVM is the character device 10:232: give --device its path",
            described(facts)
        ),
        kind if kind != SFlag::S_IFLNK && is_on_node => format!(
            "{}, and the node's is the device: mount the node's /dev at /dev",
            described(facts)
        ),
        SFlag::S_IFDIR => format!(
            "a directory, which container runtimes make where the source of a mount was \
             missing: remove it (`rmdir {path}`) and load the KVM module on the node"
        ),
        SFlag::S_IFLNK => "a symbolic link, and none is followed: give --device what it \
                           leads to, or remove it"
            .to_owned(),
        _ => format!(
            "{}, and KVM is the character device 10:232: on the node run `rm /dev/kvm && \
             mknod -m 600 /dev/kvm c 10 232 && udevadm trigger --action=add --name-match=kvm`",
            described(facts)
        ),
    }
}

/// The group file of a pod root, where that is another process': whether it and its directory can be trusted to
/// be what they are taken for.
///
/// # Errors
/// Why not.
fn check_etc(etc: Option<(u32, u32)>, group: Option<&[u8]>) -> Result<(), String> {
    if let Some((uid, mode)) = etc
        && (uid != 0 || mode & 0o022 != 0)
    {
        return Err(format!(
            "its etc belongs to UID {uid} with mode {mode:04o}, so others than root may change what is in it"
        ));
    }
    match group {
        Some(file) if !group::is_group_file(file) => Err(format!(
            "its {GROUP_FILE} is not a group file: every line must have four fields with a numeric GID, and \
             one must be root with GID 0"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etc_and_its_group_file_are_roots() {
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
