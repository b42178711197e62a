//! From what was seen to what is to be done: steps, a refusal, or nothing because there is no KVM.
//! Pure: the same observation always gives the same decision.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::path::PathBuf;

use nix::sys::stat::SFlag;
use nix::unistd::{Gid, Uid};

use crate::accounts::edit::{self, Want, align};
use crate::accounts::{group, passwd};
use crate::acl::Acl;
use crate::config::Config;
use crate::exit::Usage;
use crate::observe::{Driver, GROUP_FILE, Node, Observed};
use crate::qemu::{self, Configured, Identity};
use crate::qemu_conf::{self, QemuConf};
use crate::report::{Cause, Code, Warning};
use crate::resolve::{Candidate, Resolution, Source, resolve};
use crate::sys::root::kind_name;

/// Groups whose powers no QEMU gets, and whose members get no KVM, by accident of a number.
const GUARDED: [&str; 9] = [
    "root", "disk", "kmem", "shadow", "sudo", "adm", "tty", "docker", "libvirt",
];

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
    /// What is odd.
    pub warnings: Vec<Warning>,
    /// The number that the pod's group has now and shall lose.
    pub renumbered: Option<Gid>,
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
#[derive(Debug, PartialEq, Eq)]
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

/// How the pod's group file is brought in line. What is wanted is kept, not the new bytes: the
/// file is read again under the lock, so that concurrent runs lose nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStep {
    /// The group; `None` copies the file as it is.
    pub want: Option<GroupWant>,
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
    /// As [`align`] takes it.
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
    let resolution = resolve(candidates(seen, config));
    let mut decision = Decision {
        course: Course::Act(Vec::new()),
        identity: None,
        warnings: resolution.warnings.clone(),
        renumbered: None,
        resolution,
    };
    if let Some((cause, text, advice)) = absent(seen, config) {
        let steps = file_for_the_pod(seen, config, conf.as_ref(), &decision.resolution);
        decision.course = Course::Absent {
            cause,
            text,
            advice,
            steps,
        };
        return Ok(decision);
    }
    let target = match target(seen, config, &mut decision) {
        Ok(target) => target,
        Err(refusal) => {
            decision.course = Course::Refuse(refusal);
            return Ok(decision);
        }
    };
    let steps = steps(seen, config, conf.as_ref(), target, &mut decision)?;
    decision.course = Course::Act(steps);
    Ok(decision)
}

fn candidates(seen: &Observed, config: &Config) -> Vec<Candidate> {
    let mut found = Vec::new();
    if let Some((gid, origin)) = &config.gid {
        let (gid, at) = (*gid, origin.to_string());
        let source = Source::Flag;
        found.push(Candidate { gid, source, at });
    }
    let host = seen.host.as_ref();
    if let Some(group) = host.and_then(|host| host.db.by_name(&config.group)) {
        let (gid, at) = (group.gid, format!("the node's {}", group.at));
        let source = Source::HostGroup;
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

/// No node, or no driver behind it.
fn absent(seen: &Observed, config: &Config) -> Option<(Cause, String, String)> {
    let path = config.device.display();
    let on_host = seen.host.as_ref().and_then(|host| host.node);
    match &seen.device {
        None if on_host.is_some_and(|node| node.is_kvm()) && !config.device_given => None,
        None => {
            let text = format!("{path} does not exist");
            let advice = if seen.driver == Driver::Present {
                "the KVM driver is loaded, so the node was lost: on the node run `udevadm trigger \
                 --action=add --name-match=kvm`, or mount the node's /dev here"
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

/// Where a missing KVM is accepted the pod still mounts the file that it was promised: aligned as
/// far as that can be told, or the image's own.
fn file_for_the_pod(
    seen: &Observed,
    config: &Config,
    conf: Option<&QemuConf>,
    resolution: &Resolution,
) -> Vec<Step> {
    let (Some(out), Some(file)) = (&config.group_file_out, &seen.pod.group) else {
        return Vec::new();
    };
    let want = resolution
        .target()
        .filter(|target| collisions(file, config, target.gid).next().is_none());
    let want = want.map(|target| GroupWant {
        group: config.group.clone(),
        gid: target.gid,
        member: user(seen, config, conf).ok().and_then(|user| member(&user)),
    });
    let aligned = want.as_ref().map(|want| align(file, &want.as_want()));
    let (content, changes) = match aligned {
        Some(Ok(aligned)) => aligned,
        _ => (Cow::Borrowed(&file[..]), Vec::new()),
    };
    if seen.pod.group_out.as_deref() == Some(&content[..]) {
        return Vec::new();
    }
    vec![Step::GroupFile(GroupStep {
        want,
        out: Some(out.clone()),
        changes,
    })]
}

/// The target, once every safety rule has agreed to it.
fn target(seen: &Observed, config: &Config, decision: &mut Decision) -> Result<Gid, Refusal> {
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
    if !seen.pod.is_host {
        let file = seen.pod.group.as_deref().unwrap_or_default();
        for other in collisions(file, config, gid) {
            let text = format!(
                "the number {gid} is also the pod's group {other}: its members gain KVM, and QEMU \
                 gains what {other} may"
            );
            let guarded = GUARDED.contains(&other.as_str()) && config.gid.is_none();
            if guarded || config.strict {
                let way_out = if guarded {
                    format!("give --gid {gid} if that is meant")
                } else {
                    "leave out --strict if that is meant".to_owned()
                };
                return Err(no(format!("{text}; {way_out}")));
            }
            decision.warnings.push(Warning::new(Code::Collision, text));
        }
    }
    Ok(gid)
}

/// Other groups of the pod with this number.
fn collisions(file: &[u8], config: &Config, gid: Gid) -> impl Iterator<Item = String> {
    group::all_by_gid(file, gid)
        .filter(|other| other.name != config.group.as_bytes())
        .map(|other| String::from_utf8_lossy(other.name).into_owned())
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
            SFlag::S_IFDIR => "a directory, which container runtimes make where the source of a \
                               mount was missing: remove it and load the KVM module on the node"
                .to_owned(),
            SFlag::S_IFLNK => "a symbolic link, and none is followed: give --device what it \
                               leads to, or remove it"
                .to_owned(),
            SFlag::S_IFCHR | SFlag::S_IFBLK => format!(
                "{} {}:{}, and KVM is the character device 10:232: remove it and run `udevadm \
                 trigger --action=add --name-match=kvm` on the node",
                kind_name(facts.kind),
                facts.major,
                facts.minor
            ),
            other => format!(
                "{}, and KVM is the character device 10:232: remove it and run `udevadm trigger \
                 --action=add --name-match=kvm` on the node",
                kind_name(other)
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
            if config.device_given {
                warnings.push(Warning::new(Code::PrivateDevice, text));
                return Ok(());
            }
            Err(Refusal { text, cause: None })
        }
        _ => Ok(()),
    }
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

fn steps(
    seen: &Observed,
    config: &Config,
    conf: Option<&QemuConf>,
    target: Gid,
    decision: &mut Decision,
) -> Result<Vec<Step>, Usage> {
    let pod = &seen.pod;
    let user = user(seen, config, conf);
    let mut steps = Vec::new();
    let group_file = if pod.is_host {
        Cow::Borrowed(pod.group.as_deref().unwrap_or_default())
    } else {
        let user = user
            .as_ref()
            .map_err(|unknown| Usage(unknown.to_string()))?;
        let want = GroupWant {
            group: config.group.clone(),
            gid: target,
            member: member(user),
        };
        let (aligned, step) = group_step(seen, config, want)?;
        note_leftovers(seen, config, step.as_ref(), decision);
        steps.extend(step.map(Step::GroupFile));
        aligned
    };
    let configured = Configured {
        given: config.qemu_group.as_ref(),
        conf,
        conf_name: &pod.qemu_conf_name,
    };
    let os_release = pod.os_release.as_deref();
    let identity = user
        .and_then(|user| qemu::identity(&user, &configured, &group_file, &pod.passwd, os_release));
    let identity = match identity {
        Err(unknown) if pod.is_host && unknown.is_absence() => {
            let text = format!(
                "this node has no QEMU user, so the proof is for uid and gid 65534 with the group \
                 {target} alone; it says nothing of a pod's QEMU"
            );
            decision
                .warnings
                .push(Warning::new(Code::LimitedProof, text));
            Identity::nobody(target)
        }
        other => other.map_err(|unknown| Usage(unknown.to_string()))?,
    };
    decision.identity = Some(identity);
    if let Some(node) = &seen.device {
        steps.extend(device_steps(node, config, target, &mut decision.warnings));
    }
    Ok(steps)
}

/// The group file as it shall be, and the step to it if it is not so yet.
fn group_step<'a>(
    seen: &'a Observed,
    config: &Config,
    want: GroupWant,
) -> Result<(Cow<'a, [u8]>, Option<GroupStep>), Usage> {
    let path = seen.pod.root.join(GROUP_FILE);
    let Some(file) = &seen.pod.group else {
        return Err(Usage(format!(
            "{} does not exist: run this in the libvirt image, or give --root",
            path.display()
        )));
    };
    let (aligned, changes) = align(file, &want.as_want())
        .map_err(|error| Usage(format!("{}: {error}", path.display())))?;
    let stands = match &config.group_file_out {
        Some(_) => seen.pod.group_out.as_deref(),
        None => Some(&file[..]),
    };
    if stands == Some(&aligned[..]) {
        return Ok((aligned, None));
    }
    let step = GroupStep {
        want: Some(want),
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
    let file = seen.pod.group.as_deref().unwrap_or_default();
    let lines: Vec<_> = group::all_by_name(file, config.group.as_bytes())
        .map(|group| group.line.to_string())
        .collect();
    if lines.len() > 1 {
        let text = format!(
            "the pod has the group {} on lines {}: the first counts and is the one that is changed",
            config.group,
            lines.join(", ")
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
