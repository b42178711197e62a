//! Executes the steps of a plan: writes the pod's group file and the node's udev rule, and changes the device.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::error::{Error, Object, Result};
use crate::formats::udev::own_rule;
use crate::observe::GROUP_FILE;
use crate::plan::{GroupFile, GroupStep, RuleStep, Step};
use crate::sys::device::Device;
use crate::sys::file::{CHANGED, LockFile, LockedDir, OwnerAndMode};
use crate::sys::output_dir::{OutputDirError, Purpose, open_below, open_output};
use crate::sys::root::{MAX_FILE, Root};
use crate::sys::{Inode, SyscallError};

/// A locked directory, and the name of the file to write in it.
type Place = (LockedDir, String);

/// Adds the object of a failed system call, which selects the advice.
fn on(object: Object) -> impl Fn(SyscallError) -> Error {
    move |error| Error::Syscall { error, on: object }
}

/// The directories that the steps write into, and the locks on them.
#[derive(Debug, Default)]
pub struct Locks {
    group: Option<Place>,
    rule: Option<Place>,
}

impl Locks {
    /// Opens and locks the directories of these steps that are not locked yet, waiting up to `patience` for each. A
    /// read-only directory stays unlocked. Returns true if there was a directory to lock: then the observation may be
    /// out of date.
    ///
    /// # Errors
    /// [`Error::Refused`] for a directory in which another user can write.
    pub fn take(&mut self, steps: &[Step], patience: Duration) -> Result<bool> {
        let mut took = false;
        for step in steps {
            match step {
                Step::GroupFile(step) if self.group.is_none() => {
                    self.group = Some(group_place(&step.file, patience)?);
                    took = true;
                }
                Step::UdevRule(step) if self.rule.is_none() => {
                    let (mut directory, name) = rule_place(step)?;
                    // Distributions have no lock for this directory; this one serialises runs of this program.
                    let locked = directory.lock(LockFile::Own, patience);
                    locked.map_err(on(Object::UdevRule))?;
                    self.rule = Some((directory, name));
                    took = true;
                }
                _ => {}
            }
        }
        Ok(took)
    }

    pub fn release_group(&mut self) {
        self.group = None;
    }
}

/// The steps of this round. The rule is written alone, in a later round than the rest: if that fails, guests can start
/// until the node's next event.
pub fn due(steps: &[Step]) -> &[Step] {
    match steps.split_last() {
        Some((Step::UdevRule(_), before)) if !before.is_empty() => before,
        _ => steps,
    }
}

/// Checks before anything is changed that no other user can write in the directory of the rule.
///
/// # Errors
/// [`Error::Refused`] if another user can write there. Other errors are reported when the rule is written.
pub fn refuse_rule(steps: &[Step]) -> Result<()> {
    let Some(Step::UdevRule(step)) = steps.last() else {
        return Ok(());
    };
    match open_below(&Root::open(&step.root)?, own_rule::DIRECTORY) {
        Err(error @ OutputDirError::Untrusted { .. }) => {
            Err(refused_or("--persist", error, Object::UdevRule))
        }
        _ => Ok(()),
    }
}

/// Writes the file of a step. False if its directory is not locked or the file has changed since it was observed: then
/// observe and plan again. A failed write never leaves a partly written file.
pub fn write(step: &Step, locks: &Locks) -> Result<bool> {
    match (step, &locks.group, &locks.rule) {
        (Step::GroupFile(step), Some(place), _) => write_group_file(step, place),
        (Step::UdevRule(step), _, Some(place)) => write_rule(step, place),
        _ => Ok(false),
    }
}

/// Executes a step on the device; ignores a step on a file.
pub fn perform(step: &Step, device: &Device) -> Result<()> {
    let result = match step {
        Step::GroupFile(_) | Step::UdevRule(_) => Ok(()),
        Step::Owner { to: (uid, gid), .. } => device.set_owner(*uid, *gid),
        Step::Mode { to, .. } => device.set_mode(*to),
        Step::Acl { to, .. } => device.set_acl(to),
    };
    result.map_err(on(Object::Device))
}

/// Opens and locks the directory of a group file.
fn group_place(file: &GroupFile, patience: Duration) -> Result<Place> {
    match file {
        GroupFile::InPlace { root, .. } => {
            let root = root.open()?;
            let (fd, name) = root.directory_of(GROUP_FILE)?;
            let mut directory = LockedDir::new(fd, root.join("etc"));
            let file = directory.find(&name).map_err(on(Object::GroupFile))?;
            if file.is_some_and(|file| file.kind() == SFlag::S_IFLNK) {
                return Err(is_a_link(&directory, &name));
            }
            let locked = directory.lock(LockFile::Passwords, patience);
            locked.map_err(on(Object::GroupFile))?;
            Ok((directory, name))
        }
        GroupFile::Out { path, .. } => {
            let opened = open_output(path, Purpose::Write);
            let (mut directory, name) = opened
                .map_err(|error| refused_or("--group-file-out", error, Object::GroupFileOut))?;
            directory
                .lock(LockFile::Own, patience)
                .map_err(on(Object::GroupFileOut))?;
            Ok((directory, name))
        }
    }
}

fn rule_place(step: &RuleStep) -> Result<Place> {
    let root = Root::open(&step.root)?;
    let opened = match open_below(&root, own_rule::DIRECTORY) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => {
            root.make_directory(own_rule::DIRECTORY)
                .map_err(on(Object::UdevRule))?;
            open_below(&root, own_rule::DIRECTORY)
        }
        opened => opened,
    };
    let directory = opened.map_err(|error| refused_or("--persist", error, Object::UdevRule))?;
    let name = own_rule::PATH.rsplit('/').next().unwrap_or_default();
    Ok((directory, name.to_owned()))
}

fn refused_or(option: &str, error: OutputDirError, object: Object) -> Error {
    match error {
        OutputDirError::Call(error) => on(object)(error),
        untrusted @ OutputDirError::Untrusted { .. } => {
            Error::Refused(format!("{option}: {untrusted}"))
        }
    }
}

/// Writes the group file, if it is still as it was observed.
fn write_group_file(step: &GroupStep, place: &Place) -> Result<bool> {
    check_size(step, place)?;
    match &step.file {
        GroupFile::InPlace { inode, base, .. } => {
            write_in_place(*inode, base, &step.content, place)
        }
        GroupFile::Out {
            base, keep_inode, ..
        } => write_out(base.as_deref(), *keep_inode, &step.content, place),
    }
}

fn write_out(
    base: Option<&[u8]>,
    keep_inode: bool,
    content: &[u8],
    (directory, name): &Place,
) -> Result<bool> {
    let file = directory.find(name).map_err(on(Object::GroupFileOut))?;
    let (file, rights) = (file.as_ref(), OwnerAndMode::Root(0o644));
    let written = match keep_inode {
        true => directory.overwrite(name, file, base, content, rights),
        false => directory.replace(name, file, base, content, rights),
    };
    unless_changed(written, Object::GroupFileOut)
}

fn write_in_place(
    inode: Option<Inode>,
    base: &[u8],
    content: &[u8],
    (directory, name): &Place,
) -> Result<bool> {
    let Some(file) = directory.find(name).map_err(on(Object::GroupFile))? else {
        let path = directory.path().join(name);
        return Err(Error::Contended(format!(
            "{} disappeared during the run; check whether another process is changing it",
            path.display()
        )));
    };
    let now = match directory.read(name, &file) {
        Err(error) if error.errno == Errno::ELOOP => return Err(is_a_link(directory, name)),
        read => read?,
    };
    if inode != Some(file.inode()) || now != base {
        return Ok(false);
    }
    if content == base {
        return Ok(true);
    }
    let written = directory.replace(name, Some(&file), Some(base), content, OwnerAndMode::Kept);
    unless_changed(written, Object::GroupFile)
}

fn is_a_link(directory: &LockedDir, name: &str) -> Error {
    let text = format!(
        "{} is a symbolic link, which is not followed; use --group-file-out and mount that file over it",
        directory.path().join(name).display()
    );
    Error::Refused(text)
}

/// False for a file that another process changed during the run.
fn unless_changed(written: crate::sys::Result<()>, object: Object) -> Result<bool> {
    match written {
        Err(error) if error.errno == CHANGED => {
            log::debug!("{error}; trying again");
            Ok(false)
        }
        done => done.map(|()| true).map_err(on(object)),
    }
}

/// Refuses content above the limit up to which the next run would read it.
fn check_size(step: &GroupStep, (directory, name): &Place) -> Result<()> {
    if step.content.len() as u64 <= MAX_FILE {
        return Ok(());
    }
    let path = match &step.file {
        GroupFile::Out { path, .. } => path.clone(),
        GroupFile::InPlace { .. } => directory.path().join(name),
    };
    let (call, errno) = (format!("write({})", path.display()), Errno::EFBIG);
    Err(SyscallError::new(call, errno).into())
}

/// Writes the node's rule, unless another process put its own file there during the run.
fn write_rule(step: &RuleStep, (directory, name): &Place) -> Result<bool> {
    let file = directory.find(name).map_err(on(Object::UdevRule))?;
    let now = match &file {
        Some(file) => Some(directory.read(name, file).map_err(on(Object::UdevRule))?),
        None => None,
    };
    if let Some(other) = now.as_ref().filter(|content| !own_rule::is_own(content)) {
        let path = directory.path().join(name);
        let text = format!(
            "--persist: another process created {} ({} bytes) during the run, and it is not overwritten: \
             remove it and run the command again",
            path.display(),
            other.len()
        );
        return Err(Error::Refused(text));
    }
    if now.as_ref() == Some(&step.content) {
        return Ok(true);
    }
    let (file, base, rights) = (file.as_ref(), now.as_deref(), OwnerAndMode::Root(0o644));
    let written = directory.replace(name, file, base, &step.content, rights);
    unless_changed(written, Object::UdevRule)
}
