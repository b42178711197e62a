//! The steps that change something: the pod's group file, and the device.

use std::borrow::Cow;

use nix::errno::Errno;

use crate::accounts::edit;
use crate::config::Config;
use crate::exit::Refused;
use crate::observe::GROUP_FILE;
use crate::plan::{GroupStep, Step, align_all};
use crate::report::{Action, Change};
use crate::sys::CallError;
use crate::sys::device::Device;
use crate::sys::file::{Folder, LOCK_WAIT, Rights, open_folder};
use crate::sys::root::Root;

/// Does one step.
///
/// # Errors
/// The call that failed, and what to do next. Every file is then still whole.
pub fn perform(step: &Step, config: &Config, device: Option<&Device>) -> anyhow::Result<()> {
    if let Step::GroupFile(step) = step {
        return write_group_file(step, config);
    }
    let device = device.ok_or_else(|| {
        let call = format!("open({})", config.device.display());
        let errno = Errno::ENOENT;
        device_advice(CallError { call, errno })
    })?;
    let done = match step {
        Step::GroupFile(_) => Ok(()),
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
    let root = Root::open(&config.root)?;
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
            let new = aligned(step, &file)?;
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
            let new = aligned(step, &file)?;
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

fn aligned<'a>(step: &GroupStep, file: &'a [u8]) -> anyhow::Result<Cow<'a, [u8]>> {
    Ok(align_all(file, &step.wants)?.0)
}

const LOCKED: &str =
    "another process holds a lock on that folder: find it with `lslocks`, then run again";

fn file_advice(error: CallError) -> anyhow::Error {
    let advice = match error.errno {
        Errno::EROFS => {
            "the root file system is read-only: give --group-file-out with a file in a volume, and \
             mount that file read-only over etc/group in the libvirt container"
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
