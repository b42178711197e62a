//! The steps that change something: the pod's group file, the node's udev rule, and the device.

use std::borrow::Cow;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::accounts::edit;
use crate::config::Config;
use crate::exit::Refused;
use crate::observe::{GROUP_FILE, Observed};
use crate::plan::{GroupStep, RuleStep, Step, align_all, unwritable};
use crate::report::{Action, Change};
use crate::sys::CallError;
use crate::sys::device::Device;
use crate::sys::file::{CHANGED, Folder, LOCK_WAIT, LockFile, Rights};
use crate::sys::output::{Purpose, Unfit, open_below, open_output};
use crate::sys::root::{MAX_FILE, Root};
use crate::udev::own;

/// A directory in which a file is replaced, and the file's name.
type Place = (Folder, String);

/// The directories that the steps write into, and the locks on them.
#[derive(Debug, Default)]
pub struct Held {
    group: Option<Place>,
    rule: Option<Place>,
}

impl Held {
    /// Opens and locks the directories of these steps that are not held yet, as far as they can be locked.
    /// Whether there was one: then what was seen before may be out of date.
    ///
    /// # Errors
    /// [`Refused`] for a directory that another user can write into; otherwise the call that failed, and what
    /// to do next.
    pub fn take(&mut self, steps: &[Step], config: &Config) -> anyhow::Result<bool> {
        // `watch` tries again, and has a device to look after meanwhile.
        let longest = match config.watching {
            true => LOCK_WAIT / 10,
            false => LOCK_WAIT,
        };
        let mut took = false;
        for step in steps {
            match step {
                Step::GroupFile(step) if self.group.is_none() => {
                    let (mut folder, name) = group_place(step, config)?;
                    match step.out {
                        Some(_) => folder.lock(LockFile::Own, longest).map_err(out_advice)?,
                        None => folder
                            .lock(LockFile::Passwords, longest)
                            .map_err(file_advice)?,
                    }
                    self.group = Some((folder, name));
                    took = true;
                }
                Step::UdevRule(step) if self.rule.is_none() => {
                    let (mut folder, name) = rule_place(step)?;
                    // No tool of a distribution locks the directory of rules; this keeps two runs apart.
                    let locked = folder.lock(LockFile::Own, longest);
                    locked.map_err(rule_advice)?;
                    self.rule = Some((folder, name));
                    took = true;
                }
                _ => {}
            }
        }
        Ok(took)
    }

    /// Lets the group file's lock go.
    pub fn release_group(&mut self) {
        self.group = None;
    }
}

/// The steps of this round. The rule comes alone, once all else is done: where it cannot be written, guests
/// start until the node's next event.
pub fn due(steps: &[Step]) -> &[Step] {
    match steps.split_last() {
        Some((Step::UdevRule(_), before)) if !before.is_empty() => before,
        _ => steps,
    }
}

/// Says no before anything is changed where another user can write into the directory of the rule.
///
/// # Errors
/// [`Refused`] for such a directory. Whatever else is wrong with it shows when the rule is written.
pub fn refuse_rule(steps: &[Step]) -> anyhow::Result<()> {
    let Some(Step::UdevRule(step)) = steps.last() else {
        return Ok(());
    };
    match open_below(&Root::open(&step.root)?, own::FOLDER) {
        Err(unfit @ Unfit::Untrusted { .. }) => Err(refused_or("--persist", unfit, rule_advice)),
        _ => Ok(()),
    }
}

/// Writes the file of a step, into a directory that is held, from what `seen` says: false where that is out
/// of date, and all is to be looked at again.
///
/// # Errors
/// The call that failed, and what to do next. Every file is then still whole.
pub fn write(step: &Step, config: &Config, seen: &Observed, held: &Held) -> anyhow::Result<bool> {
    match (step, &held.group, &held.rule) {
        (Step::GroupFile(step), Some(place), _) => write_group_file(step, config, seen, place),
        (Step::UdevRule(step), _, Some(place)) => write_rule(step, place),
        _ => Ok(false),
    }
}

/// Does one step of the device's.
///
/// # Errors
/// The call that failed, and what to do next.
pub fn perform(step: &Step, config: &Config, device: Option<&Device>) -> anyhow::Result<()> {
    let device = device.ok_or_else(|| {
        let call = format!("open({})", config.device.display());
        let errno = Errno::ENOENT;
        device_advice(CallError::new(call, errno))
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

fn group_place(step: &GroupStep, config: &Config) -> anyhow::Result<Place> {
    let Some(out) = &step.out else {
        let root = config.open_root()?;
        let (fd, name) = root.folder_of(GROUP_FILE)?;
        let folder = Folder::new(fd, root.join("etc"));
        let found = folder.find(&name).map_err(file_advice)?;
        if found.is_some_and(|found| found.kind() == SFlag::S_IFLNK) {
            return Err(is_a_link(&folder, &name));
        }
        return Ok((folder, name));
    };
    let opened = open_output(out, Purpose::Write);
    opened.map_err(|unfit| refused_or("--group-file-out", unfit, out_advice))
}

fn rule_place(step: &RuleStep) -> anyhow::Result<Place> {
    let root = Root::open(&step.root)?;
    let found = match open_below(&root, own::FOLDER) {
        Err(unfit) if unfit.errno() == Some(Errno::ENOENT) => {
            root.make_folder(own::FOLDER).map_err(rule_advice)?;
            open_below(&root, own::FOLDER)
        }
        found => found,
    };
    let folder = found.map_err(|unfit| refused_or("--persist", unfit, rule_advice))?;
    let name = own::PATH.rsplit('/').next().unwrap_or_default();
    Ok((folder, name.to_owned()))
}

fn refused_or(
    option: &str,
    unfit: Unfit,
    advice: impl FnOnce(CallError) -> anyhow::Error,
) -> anyhow::Error {
    match unfit {
        Unfit::Call(error) => advice(error),
        untrusted @ Unfit::Untrusted { .. } => Refused(format!("{option}: {untrusted}")).into(),
    }
}

/// Brings the group file in line, from what it held when it was looked at.
fn write_group_file(
    step: &GroupStep,
    config: &Config,
    seen: &Observed,
    (folder, name): &Place,
) -> anyhow::Result<bool> {
    let Some(file) = &seen.pod.group else {
        return Ok(false);
    };
    let to = match &step.out {
        Some(out) => out.clone(),
        None => folder.path().join(name),
    };
    let new = aligned(step, file, config, &to)?;
    if step.out.is_some() {
        let found = folder.find(name).map_err(out_advice)?;
        let (found, rights) = (found.as_ref(), Rights::Root(0o644));
        let base = seen.pod.group_out.as_ref().map(|out| &out.content[..]);
        let written = match config.watching {
            true => folder.overwrite(name, found, base, &new, rights),
            false => folder.replace(name, found, base, &new, rights),
        };
        return unless_changed(written, out_advice);
    }
    let Some(found) = folder.find(name).map_err(file_advice)? else {
        let path = folder.path().join(name);
        return Err(anyhow::anyhow!("{} went away", path.display()));
    };
    let now = match folder.read(name, &found) {
        Err(error) if error.errno == Errno::ELOOP => return Err(is_a_link(folder, name)),
        read => read?,
    };
    let inode = seen.pod.group_stamp.map(|stamp| stamp.inode);
    if inode != Some(found.inode()) || now != *file {
        return Ok(false);
    }
    if new == *file {
        return Ok(true);
    }
    let written = folder.replace(name, Some(&found), Some(file), &new, Rights::Kept);
    unless_changed(written, file_advice)
}

fn is_a_link(folder: &Folder, name: &str) -> anyhow::Error {
    let text = format!(
        "{} is a symbolic link, and none is written through; give --group-file-out and mount that file \
         over it",
        folder.path().join(name).display()
    );
    Refused(text).into()
}

/// False for a file that another process wrote into at the same time.
fn unless_changed(
    written: crate::sys::Result<()>,
    advice: impl FnOnce(CallError) -> anyhow::Error,
) -> anyhow::Result<bool> {
    match written {
        Err(error) if error.errno == CHANGED => {
            log::debug!("{error}; looks again");
            Ok(false)
        }
        done => done.map(|()| true).map_err(advice),
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
    Err(CallError::new(call, errno).into())
}

/// Writes the node's rule.
fn write_rule(step: &RuleStep, (folder, name): &Place) -> anyhow::Result<bool> {
    let found = folder.find(name).map_err(rule_advice)?;
    let stands = match &found {
        Some(found) => Some(folder.read(name, found).map_err(rule_advice)?),
        None => None,
    };
    if let Some(other) = stands.as_ref().filter(|content| !own::is_own(content)) {
        let path = folder.path().join(name);
        let text = format!(
            "somebody else put a file of {} bytes at {} meanwhile, which is left alone",
            other.len(),
            path.display()
        );
        return Err(Refused(text).into());
    }
    if stands.as_ref() == Some(&step.content) {
        return Ok(true);
    }
    let (found, base, rights) = (found.as_ref(), stands.as_deref(), Rights::Root(0o644));
    let written = folder.replace(name, found, base, &step.content, rights);
    unless_changed(written, rule_advice)
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
    "another process holds the lock on that file: find it with `lslocks`, then run again";

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
