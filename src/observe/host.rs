//! What is seen of the node, and what its udev would do.

use std::path::PathBuf;

use super::group_db::{GroupDb, Unseen, groups};
use super::udev_files::{self, RuleFileSlot};
use super::view::View;
use crate::error::Result;
use crate::formats::accounts::passwd;
use crate::formats::udev::own_rule::Rules;
use crate::formats::udev::{self, Diagnostic, Predictions, RuleFile, Udevd};
use crate::sys::Inode;
use crate::sys::device::DeviceStat;
use crate::sys::root::Root;

/// What is seen of the node.
#[derive(Debug)]
pub struct Host {
    /// Where its root is seen.
    pub root: PathBuf,
    /// Its groups.
    pub db: GroupDb,
    /// Device and inode number of each of its group files.
    pub group_files: Vec<Inode>,
    /// What stands at dev/kvm below it.
    pub device: Option<DeviceStat>,
    /// What its udev will do to the device.
    pub udev: Predictions,
    /// What its udev would do without the rule that an earlier run wrote; nothing where there is no
    /// such rule.
    pub others: Option<Predictions>,
    /// Where such a rule goes; looked at only where one may be written.
    pub slot: Option<RuleFileSlot>,
    /// What is known of its systemd.
    pub udevd: Udevd,
    /// Its udev's rules.
    pub rules: Rules,
    /// Its etc/passwd, empty if there is none.
    pub passwd: Vec<u8>,
    /// How much of the node is seen.
    pub view: View,
    /// Rules that it has, or may well have, and that are not seen: no forecast holds.
    pub unseen: Vec<Diagnostic>,
    /// Places that few nodes use and that are not seen: they are taken for empty, and `check` names them.
    pub not_shown: Vec<&'static str>,
}

impl Host {
    /// Looks at the node. `spot` asks for [`Host::slot`].
    ///
    /// # Errors
    /// The call that failed.
    pub fn observe(root: &Root, slot: bool) -> Result<Self> {
        let view = View::of(root)?;
        let mut rules = udev_files::rules(root, view)?;
        let (db, group_files) = groups(root, view, &mut rules.not_shown)?;
        let mut host = Self {
            root: root.path().to_owned(),
            db,
            group_files,
            device: root.stat("dev/kvm")?.map(DeviceStat::from),
            udev: Predictions::default(),
            others: None,
            slot: slot.then(|| udev_files::slot(root)).transpose()?,
            udevd: udev_files::udevd(root, view)?,
            rules: rules.rules,
            passwd: root.read("etc/passwd")?.unwrap_or_default(),
            view,
            unseen: rules.unseen,
            not_shown: rules.not_shown,
        };
        host.foresee();
        Ok(host)
    }

    /// Works out [`Host::udev`] and [`Host::others`] from what was read.
    pub fn foresee(&mut self) {
        self.udev = self.predict(&self.rules.all());
        let others = self.rules.without_own();
        self.others = others.map(|files| self.predict(&files));
    }

    /// What its udev would do with `own` as the rule of this program.
    pub fn with_own(&self, own: &RuleFile) -> Predictions {
        self.predict(&self.rules.with(own))
    }

    fn predict(&self, files: &[&RuleFile]) -> Predictions {
        let names = udev::Database {
            group: &|name| self.db.by_name(name).map(|found| found.gid),
            user: &|name| passwd::by_name(&self.passwd, name.as_bytes()).map(|user| user.uid),
            complete: self.view == View::Whole,
        };
        let mut prediction = udev::predict(files, &self.udevd, &names);
        prediction.doubt(&self.unseen);
        if let Unseen::Before { name, why, .. } = &self.db.unseen {
            let (rule, why) = (format!("/{name}"), why.clone());
            prediction.unclear.push(Diagnostic { rule, why });
        }
        prediction
    }
}
