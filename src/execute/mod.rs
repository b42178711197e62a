//! The steps that change something: the pod's group file, the node's udev rule, and the device.

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

/// A directory in which a file is replaced, and the file's name.
type Place = (LockedDir, String);

/// A system call that failed on this.
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
    /// Opens and locks the directories of these steps that are not held yet, as far as they can be locked,
    /// within `patience`. Whether there was one: then what was seen before may be out of date.
    ///
    /// # Errors
    /// [`Error::Refused`] for a directory that another user can write into; otherwise the call that failed, and what
    /// to do next.
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
                    // No tool of a distribution locks the directory of rules; this keeps two runs apart.
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
/// [`Error::Refused`] for such a directory. Whatever else is wrong with it shows when the rule is written.
pub fn refuse_rule(steps: &[Step]) -> Result<()> {
    let Some(Step::UdevRule(step)) = steps.last() else {
        return Ok(());
    };
    match open_below(&Root::open(&step.root)?, own_rule::DIRECTORY) {
        Err(unfit @ OutputDirError::Untrusted { .. }) => {
            Err(refused_or("--persist", unfit, Object::UdevRule))
        }
        _ => Ok(()),
    }
}

/// Writes the file of a step, into a directory that is held: false where what was seen of it is out of date,
/// and all is to be looked at again.
///
/// # Errors
/// The call that failed, and what to do next. Every file is then still whole.
pub fn write(step: &Step, held: &Locks) -> Result<bool> {
    match (step, &held.group, &held.rule) {
        (Step::GroupFile(step), Some(place), _) => write_group_file(step, place),
        (Step::UdevRule(step), _, Some(place)) => write_rule(step, place),
        _ => Ok(false),
    }
}

/// Does one step of the device's.
///
/// # Errors
/// The call that failed, and what to do next.
pub fn perform(step: &Step, device: &Device) -> Result<()> {
    let done = match step {
        Step::GroupFile(_) | Step::UdevRule(_) => Ok(()),
        Step::Owner { to: (uid, gid), .. } => device.set_owner(*uid, *gid),
        Step::Mode { to, .. } => device.set_mode(*to),
        Step::Acl { to, .. } => device.set_acl(to),
    };
    done.map_err(on(Object::Device))
}

/// The directory and the name of a group file, locked.
fn group_place(file: &GroupFile, patience: Duration) -> Result<Place> {
    match file {
        GroupFile::InPlace { root, .. } => {
            let root = root.open()?;
            let (fd, name) = root.directory_of(GROUP_FILE)?;
            let mut directory = LockedDir::new(fd, root.join("etc"));
            let found = directory.find(&name).map_err(on(Object::GroupFile))?;
            if found.is_some_and(|found| found.kind() == SFlag::S_IFLNK) {
                return Err(is_a_link(&directory, &name));
            }
            let locked = directory.lock(LockFile::Passwords, patience);
            locked.map_err(on(Object::GroupFile))?;
            Ok((directory, name))
        }
        GroupFile::Out { path, .. } => {
            let opened = open_output(path, Purpose::Write);
            let (mut directory, name) = opened
                .map_err(|unfit| refused_or("--group-file-out", unfit, Object::GroupFileOut))?;
            directory
                .lock(LockFile::Own, patience)
                .map_err(on(Object::GroupFileOut))?;
            Ok((directory, name))
        }
    }
}

fn rule_place(step: &RuleStep) -> Result<Place> {
    let root = Root::open(&step.root)?;
    let found = match open_below(&root, own_rule::DIRECTORY) {
        Err(unfit) if unfit.errno() == Some(Errno::ENOENT) => {
            root.make_directory(own_rule::DIRECTORY)
                .map_err(on(Object::UdevRule))?;
            open_below(&root, own_rule::DIRECTORY)
        }
        found => found,
    };
    let directory = found.map_err(|unfit| refused_or("--persist", unfit, Object::UdevRule))?;
    let name = own_rule::PATH.rsplit('/').next().unwrap_or_default();
    Ok((directory, name.to_owned()))
}

fn refused_or(option: &str, unfit: OutputDirError, object: Object) -> Error {
    match unfit {
        OutputDirError::Call(error) => on(object)(error),
        untrusted @ OutputDirError::Untrusted { .. } => {
            Error::Refused(format!("{option}: {untrusted}"))
        }
    }
}

/// Brings the group file in line, from what it held when it was looked at.
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
    let found = directory.find(name).map_err(on(Object::GroupFileOut))?;
    let (found, rights) = (found.as_ref(), OwnerAndMode::Root(0o644));
    let written = match keep_inode {
        true => directory.overwrite(name, found, base, content, rights),
        false => directory.replace(name, found, base, content, rights),
    };
    unless_changed(written, Object::GroupFileOut)
}

fn write_in_place(
    inode: Option<Inode>,
    base: &[u8],
    content: &[u8],
    (directory, name): &Place,
) -> Result<bool> {
    let Some(found) = directory.find(name).map_err(on(Object::GroupFile))? else {
        let path = directory.path().join(name);
        return Err(Error::Contended(format!("{} went away", path.display())));
    };
    let now = match directory.read(name, &found) {
        Err(error) if error.errno == Errno::ELOOP => return Err(is_a_link(directory, name)),
        read => read?,
    };
    if inode != Some(found.inode()) || now != base {
        return Ok(false);
    }
    if content == base {
        return Ok(true);
    }
    let written = directory.replace(name, Some(&found), Some(base), content, OwnerAndMode::Kept);
    unless_changed(written, Object::GroupFile)
}

fn is_a_link(directory: &LockedDir, name: &str) -> Error {
    let text = format!(
        "{} is a symbolic link, and none is written through; give --group-file-out and mount that file \
         over it",
        directory.path().join(name).display()
    );
    Error::Refused(text)
}

/// False for a file that another process wrote into at the same time.
fn unless_changed(written: crate::sys::Result<()>, object: Object) -> Result<bool> {
    match written {
        Err(error) if error.errno == CHANGED => {
            log::debug!("{error}; looks again");
            Ok(false)
        }
        done => done.map(|()| true).map_err(on(object)),
    }
}

/// Nothing is written that the next run would not read.
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

/// Writes the node's rule.
fn write_rule(step: &RuleStep, (directory, name): &Place) -> Result<bool> {
    let found = directory.find(name).map_err(on(Object::UdevRule))?;
    let stands = match &found {
        Some(found) => Some(directory.read(name, found).map_err(on(Object::UdevRule))?),
        None => None,
    };
    if let Some(other) = stands.as_ref().filter(|content| !own_rule::is_own(content)) {
        let path = directory.path().join(name);
        let text = format!(
            "somebody else put a file of {} bytes at {} meanwhile, which is left alone",
            other.len(),
            path.display()
        );
        return Err(Error::Refused(text));
    }
    if stands.as_ref() == Some(&step.content) {
        return Ok(true);
    }
    let (found, base, rights) = (found.as_ref(), stands.as_deref(), OwnerAndMode::Root(0o644));
    let written = directory.replace(name, found, base, &step.content, rights);
    unless_changed(written, Object::UdevRule)
}
