//! The steps that change something: the pod's group file, the node's udev rule, and the device.

use std::borrow::Cow;
use std::path::Path;

use nix::errno::Errno;

use crate::accounts::edit;
use crate::accounts::group::is_group_file;
use crate::config::Config;
use crate::exit::Refused;
use crate::observe::GROUP_FILE;
use crate::plan::{GroupStep, RuleStep, Step, align_all, unwritable};
use crate::report::{Action, Change};
use crate::sys::CallError;
use crate::sys::device::Device;
use crate::sys::file::{Folder, LOCK_WAIT, Rights, open_folder};
use crate::sys::root::{MAX_FILE, Root};
use crate::udev::own;

/// Does one step.
///
/// # Errors
/// The call that failed, and what to do next. Every file is then still whole.
pub fn perform(step: &Step, config: &Config, device: Option<&Device>) -> anyhow::Result<()> {
    match step {
        Step::GroupFile(step) => return write_group_file(step, config),
        Step::UdevRule(step) => return write_rule(step),
        _ => {}
    }
    let device = device.ok_or_else(|| {
        let call = format!("open({})", config.device.display());
        let errno = Errno::ENOENT;
        device_advice(CallError { call, errno })
    })?;
    let done = match step {
        Step::GroupFile(_) | Step::UdevRule(_) => Ok(()),
        Step::Owner { to: (uid, gid), .. } => device.set_owner(*uid, *gid),
        Step::Mode { to, .. } => device.set_mode(*to),
        Step::Acl { to, .. } => device.set_acl(to),
    };
    done.map_err(device_advice)
}

/// What to do about a device that cannot be changed.
fn device_advice(error: CallError) -> anyhow::Error {
    let advice = match error.errno {
        Errno::EROFS => "mount the node's /dev writable in this container",
        Errno::EPERM | Errno::EACCES => "run this step as root with CAP_CHOWN (privileged: true)",
        Errno::EINVAL => {
            "this user namespace does not map that number: run without hostUsers: false"
        }
        _ => "see `dmesg` on the node",
    };
    anyhow::anyhow!("{error}; {advice}")
}

/// Brings the group file in line under the folder's lock, from what it holds then.
fn write_group_file(step: &GroupStep, config: &Config) -> anyhow::Result<()> {
    let root = config.open_root()?;
    let source = root.join(GROUP_FILE);
    // `watch` tries again, and has a device to look after meanwhile.
    let longest = if config.watching {
        LOCK_WAIT / 10
    } else {
        LOCK_WAIT
    };
    match &step.out {
        None => {
            let (fd, name) = root.folder_of(GROUP_FILE)?;
            let folder = Folder::lock(fd, root.join("etc"), longest).map_err(file_advice)?;
            let read = folder.read(&name).map_err(|error| -> anyhow::Error {
                match error.errno {
                    Errno::ELOOP => Refused(format!(
                        "{} is a symbolic link, and none is written through; give --group-file-out \
                     and mount that file over it",
                        source.display()
                    ))
                    .into(),
                    _ => error.into(),
                }
            })?;
            let file = read.ok_or_else(|| anyhow::anyhow!("{} went away", source.display()))?;
            // It was one when it was looked at.
            if step.is_others && !is_group_file(&file) {
                let source = source.display();
                let text = format!("{source} is not a group file any more, and is left alone");
                return Err(Refused(text).into());
            }
            let new = aligned(step, &file, config, &source)?;
            if new == file {
                return Ok(());
            }
            let written = folder.replace(&name, &new, Rights::Kept);
            written.map_err(file_advice)
        }
        Some(out) => {
            let file = root
                .read(GROUP_FILE)?
                .ok_or_else(|| anyhow::anyhow!("{} went away", source.display()))?;
            let new = aligned(step, &file, config, out)?;
            let (fd, path, name) = open_folder(out).map_err(out_advice)?;
            let folder = Folder::lock(fd, path, longest).map_err(out_advice)?;
            let rights = Rights::Root(0o644);
            let written = if config.watching {
                folder.overwrite(&name, &new, rights)
            } else {
                folder.replace(&name, &new, rights)
            };
            written.map_err(out_advice)
        }
    }
}

/// The content for the group file `to`, which is never larger than what the next run would read.
fn aligned<'a>(
    step: &GroupStep,
    file: &'a [u8],
    config: &Config,
    to: &Path,
) -> anyhow::Result<Cow<'a, [u8]>> {
    let (content, _) =
        align_all(file, &step.wants).map_err(|error| Refused(unwritable(&error, &config.root)))?;
    if content.len() as u64 <= MAX_FILE {
        return Ok(content);
    }
    let (call, errno) = (format!("write({})", to.display()), Errno::EFBIG);
    Err(CallError { call, errno }.into())
}

/// Writes the node's rule. No tool of a distribution locks that folder; its own lock keeps two runs
/// apart.
fn write_rule(step: &RuleStep) -> anyhow::Result<()> {
    let root = Root::open(&step.root)?;
    let name = own::PATH.trim_start_matches('/');
    let found = match root.folder_of(name) {
        Err(error) if error.errno == Errno::ENOENT => {
            root.make_folder(own::FOLDER).map_err(rule_advice)?;
            root.folder_of(name)
        }
        found => found,
    };
    let (fd, name) = found.map_err(rule_advice)?;
    let folder = Folder::lock(fd, root.join(own::FOLDER), LOCK_WAIT).map_err(rule_advice)?;
    let stands = folder.read(&name).map_err(rule_advice)?;
    if let Some(other) = stands.as_ref().filter(|content| !own::is_own(content)) {
        let path = root.join(own::FOLDER).join(&name);
        let text = format!(
            "somebody else put a file of {} bytes at {} meanwhile, which is left alone",
            other.len(),
            path.display()
        );
        return Err(Refused(text).into());
    }
    if stands.as_ref() == Some(&step.content) {
        return Ok(());
    }
    let written = folder.replace(&name, &step.content, Rights::Root(0o644));
    written.map_err(rule_advice)
}

fn rule_advice(error: CallError) -> anyhow::Error {
    let advice = match error.errno {
        Errno::EROFS => "mount the node's /etc/udev/rules.d writable in this container",
        Errno::EPERM | Errno::EACCES => "run this step as root",
        Errno::ELOOP | Errno::EINVAL => "what stands there is no file: remove it",
        Errno::ENOSPC | Errno::EDQUOT => "make space in that file system",
        Errno::EWOULDBLOCK => LOCKED,
        _ => "see whether another process changes it",
    };
    anyhow::anyhow!("--persist: {error}; {advice}")
}

const LOCKED: &str =
    "another process holds a lock on that folder: find it with `lslocks`, then run again";

fn file_advice(error: CallError) -> anyhow::Error {
    let advice = match error.errno {
        Errno::EROFS => {
            "the root file system, or what is mounted over that file, is read-only: in a step \
             before, give --group-file-out with a file in a volume, and mount that file read-only \
             over etc/group in the libvirt container, as helm-patch/kustomize does; where that is \
             so already, delete the pod: its step runs again"
        }
        Errno::EPERM | Errno::EACCES => "run this step as root",
        Errno::ENOSPC | Errno::EDQUOT => "make space in that file system",
        Errno::EWOULDBLOCK => LOCKED,
        _ => "see whether another process changes it",
    };
    anyhow::anyhow!("{error}; {advice}")
}

fn out_advice(error: CallError) -> anyhow::Error {
    let advice = match error.errno {
        Errno::EINVAL | Errno::ENAMETOOLONG => "give the path of a file, with a shorter name",
        Errno::EISDIR => {
            "a directory stands where the file belongs, as the kubelet makes one for a subPath \
             that did not exist: remove it from the volume, or delete the pod"
        }
        Errno::ENOENT | Errno::ENOTDIR => "mount the volume there first",
        Errno::EMLINK => "the mounted file has other names (hard links): mount one that has none",
        Errno::EROFS => "mount the volume writable in this step",
        Errno::EPERM | Errno::EACCES => "run this step as root",
        Errno::ENOSPC | Errno::EDQUOT => "make space in that volume",
        Errno::EWOULDBLOCK => LOCKED,
        _ => "see whether another process changes it",
    };
    anyhow::anyhow!("{error}; {advice}")
}

/// The report's form of a step.
pub fn changes(step: &Step) -> Vec<Change> {
    let change = |action, from: Option<String>, to: String| Change {
        action,
        from,
        to,
        applied: false,
    };
    match step {
        Step::GroupFile(step) => {
            let one = |found: &edit::Change| match found {
                edit::Change::SetGid { from, to } => {
                    change(Action::SetGroupGid, Some(from.to_string()), to.to_string())
                }
                edit::Change::AddGroup { gid } => change(Action::AddGroup, None, gid.to_string()),
                edit::Change::AddMember { user } => {
                    let user = String::from_utf8_lossy(user).into_owned();
                    change(Action::AddMember, None, user)
                }
            };
            let lines: Vec<_> = step.changes.iter().map(one).collect();
            match &step.out {
                Some(out) if lines.is_empty() => {
                    let out = out.display().to_string();
                    vec![change(Action::WriteGroupFile, None, out)]
                }
                _ => lines,
            }
        }
        Step::UdevRule(step) => {
            let (from, to) = (step.from.clone(), own::PATH.to_owned());
            vec![change(Action::WriteUdevRule, from, to)]
        }
        Step::Owner { from, to } => {
            let (from, to) = (
                format!("{}:{}", from.0, from.1),
                format!("{}:{}", to.0, to.1),
            );
            vec![change(Action::SetDeviceOwner, Some(from), to)]
        }
        Step::Mode { from, to } => {
            let (from, to) = (format!("{from:04o}"), format!("{to:04o}"));
            vec![change(Action::SetDeviceMode, Some(from), to)]
        }
        Step::Acl { from, to } => {
            let (from, to) = (from.to_string(), to.to_string());
            vec![change(Action::SetDeviceAcl, Some(from), to)]
        }
    }
}

/// One line for the log.
pub fn line(step: &Step) -> String {
    let lines = changes(step).into_iter().map(|change| change.to_string());
    lines.collect::<Vec<_>>().join(", ")
}

/// What is to be known once the step is done.
pub fn note(step: &Step) -> Option<&'static str> {
    // Before it handles an event udevd looks whether a rules folder changed, not twice within 3 s (seen
    // with 252).
    matches!(step, Step::UdevRule(_)).then_some(
        "udevd reads the rule by itself when an event comes, 3 s from now at the latest: `udevadm \
         control --reload` is not needed",
    )
}
