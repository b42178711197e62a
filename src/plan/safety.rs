//! The safety rules: when nothing may be done, and why.

use nix::sys::stat::SFlag;
use nix::unistd::Gid;

use super::events::other_numbers;
use super::work::writes_group_file;
use super::{Decision, Refusal};
use crate::accounts::group;
use crate::config::Config;
use crate::observe::{Driver, Observed};
use crate::report::{Cause, Code, Warning, some_of_many};
use crate::sys::device::Facts;
use crate::sys::root::kind_name;
use crate::udev::Prediction;

/// Groups whose powers no QEMU gets, and whose members get no KVM, by accident of a number.
const GUARDED: [&str; 9] = [
    "root", "disk", "kmem", "shadow", "sudo", "adm", "tty", "docker", "libvirt",
];

/// No node, or no driver behind it.
pub fn absent(seen: &Observed, config: &Config) -> Option<(Cause, String, String)> {
    let path = config.device.display();
    let on_host = seen.host.as_ref().and_then(|host| host.node);
    match &seen.device {
        None if on_host.is_some_and(|node| node.is_kvm()) && !config.device_given => None,
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
            Some((Cause::Missing, text, advice.to_owned()))
        }
        Some(node) if node.facts.is_kvm() && seen.driver == Driver::Absent => {
            let text = format!("{path} is there, but no KVM driver answers behind it");
            let advice = "on the node run `modprobe kvm_intel` or `modprobe kvm_amd`, and see \
                          `dmesg | grep -i kvm` for why it may refuse";
            Some((Cause::NoDriver, text, advice.to_owned()))
        }
        Some(_) => None,
    }
}

/// The target, once every safety rule has agreed to it. `udev` is what will happen to the device.
pub fn target(
    seen: &Observed,
    config: &Config,
    udev: Option<&Prediction>,
    decision: &mut Decision,
) -> Result<Gid, Refusal> {
    let path = config.device.display();
    let no = |text: String| Refusal { text, cause: None };
    check_device(seen, config, &mut decision.warnings)?;
    if seen.host.is_none() {
        let text = "this container does not see the node's file system, so the node's own number \
                    is not known; mount it read-only at /mnt/host-rootfs, or give --host-root or \
                    --gid";
        if config.strict {
            return Err(no(format!("--strict: {text}")));
        }
        decision
            .warnings
            .push(Warning::new(Code::HostRootUnknown, text));
    }
    if config.strict
        && let Some(warning) = decision.resolution.disagreement()
    {
        return Err(no(format!("--strict: {}", warning.text)));
    }
    let Some(target) = decision.resolution.target() else {
        return Err(no(format!(
            "no number for the group {} was found: not on the node, not on {path}, not in the \
             pod; give --gid",
            config.group
        )));
    };
    let (gid, at) = (target.gid, target.at.clone());
    if let Some(host) = &seen.host
        && config.gid.is_none()
        && let Some((owner, place)) = host.db.other_owner(gid, &config.group)
    {
        return Err(no(format!(
            "{at} gives the number {gid}, and on the node that is the group {owner} ({place}): \
             its members would gain KVM; give --gid {gid} if that is meant"
        )));
    }
    if writes_group_file(seen, config) {
        let file = seen.pod.group.as_deref().unwrap_or_default();
        let others = || collisions(file, config, gid);
        collision(others, gid, config, &mut decision.warnings)?;
        let (_, told) = further_numbers(seen, config, udev, gid);
        if let Some(warning) = told.first().filter(|_| config.strict) {
            return Err(no(format!("--strict: {}", warning.text)));
        }
    }
    Ok(gid)
}

/// The numbers that other events of the node give, as far as the QEMU user may have them; and what is
/// odd about them. What a guarded group of the pod may is given to nobody for an event's sake.
pub fn further_numbers(
    seen: &Observed,
    config: &Config,
    udev: Option<&Prediction>,
    target: Gid,
) -> (Vec<Gid>, Vec<Warning>) {
    let file = seen.pod.group.as_deref().unwrap_or_default();
    let (mut free, mut told) = (Vec::new(), Vec::new());
    for gid in other_numbers(udev, target) {
        let others = || collisions(file, config, gid);
        let guarded = others().find(|name| GUARDED.contains(&name.as_str()));
        let text = match (&guarded, others().next()) {
            (Some(name), _) => format!(
                "an event of the node gives the device the number {gid}, which is also the pod's \
                 group {name}: QEMU is not made its member, and that event locks it out"
            ),
            (None, Some(name)) => format!(
                "an event of the node gives the device the number {gid}, which is also the pod's \
                 group {name}: its members gain KVM, and QEMU gains what {name} may"
            ),
            (None, None) => String::new(),
        };
        if guarded.is_none() {
            free.push(gid);
        }
        if !text.is_empty() {
            told.push(Warning::new(Code::Collision, text));
        }
    }
    (free, told)
}

/// Whether the pod's other groups with the number may have it.
fn collision<Others: Iterator<Item = String>>(
    others: impl Fn() -> Others,
    gid: Gid,
    config: &Config,
    warnings: &mut Vec<Warning>,
) -> Result<(), Refusal> {
    /// How many are named.
    const NAMED: usize = 5;
    if others().next().is_none() {
        return Ok(());
    }
    let guarded = others().find(|name| GUARDED.contains(&name.as_str()));
    let guarded = guarded.filter(|_| config.gid.is_none());
    let names = match &guarded {
        Some(name) => name.clone(),
        None => some_of_many(others(), NAMED, ", "),
    };
    let text = format!(
        "the number {gid} is also the pod's group {names}: its members gain KVM, and QEMU gains \
         what {names} may"
    );
    if guarded.is_some() || config.strict {
        let way_out = if guarded.is_some() {
            format!("give --gid {gid} if that is meant")
        } else {
            "leave out --strict if that is meant".to_owned()
        };
        let text = format!("{text}; {way_out}");
        return Err(Refusal { text, cause: None });
    }
    warnings.push(Warning::new(Code::Collision, text));
    Ok(())
}

/// Other groups of the pod with this number, but for the one that this program makes for it.
pub fn collisions(file: &[u8], config: &Config, gid: Gid) -> impl Iterator<Item = String> {
    let own = format!("{}-{gid}", config.group);
    group::all_by_gid(file, gid)
        .filter(move |other| other.name != config.group.as_bytes() && other.name != own.as_bytes())
        .map(|other| String::from_utf8_lossy(other.name).into_owned())
}

/// Whether the device is another one than the node's.
pub fn is_private(seen: &Observed) -> bool {
    let on_host = seen.host.as_ref().and_then(|host| host.node);
    let on_host = on_host.filter(|node| node.is_kvm());
    on_host.is_some_and(|host| {
        let here = seen.device.as_ref().map(|node| node.facts.inode);
        here.is_some_and(|inode| inode != host.inode)
    })
}

/// What kind of file it is; of a device, with its numbers.
fn described(facts: &Facts) -> String {
    let name = kind_name(facts.kind);
    match facts.kind {
        SFlag::S_IFCHR | SFlag::S_IFBLK => format!("{name} {}:{}", facts.major, facts.minor),
        _ => name.to_owned(),
    }
}

/// Only a character device 10:232 that is the node's own is ever touched.
fn check_device(
    seen: &Observed,
    config: &Config,
    warnings: &mut Vec<Warning>,
) -> Result<(), Refusal> {
    let path = config.device.display();
    let on_host = seen.host.as_ref().and_then(|host| host.node);
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
        let why = match facts.kind {
            // What somebody named may be of use, and is not to be removed.
            kind if config.device_given && kind != SFlag::S_IFLNK => format!(
                "{}, and KVM is the character device 10:232: give --device its path",
                described(facts)
            ),
            kind if kind != SFlag::S_IFLNK && on_host.is_some() => format!(
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
        };
        return refusal(Cause::NotKvm, format!("{path} is {why}"));
    }
    match on_host {
        Some(host) if host.inode != facts.inode => {
            let shown = format!(
                "here {}:{} {:04o}, on the node {}:{} {:04o}",
                facts.uid, facts.gid, facts.mode, host.uid, host.gid, host.mode
            );
            let text = format!("{private} ({shown}); mount the node's /dev at /dev");
            if config.private_ok {
                warnings.push(Warning::new(Code::PrivateDevice, text));
                return Ok(());
            }
            Err(Refusal { text, cause: None })
        }
        _ => Ok(()),
    }
}
