//! Observes the node and predicts what its udev will do.

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

/// The observed state of the node.
#[derive(Debug)]
pub struct Host {
    pub root: PathBuf,
    pub db: GroupDb,
    pub group_files: Vec<Inode>,
    /// The file at dev/kvm below the host root.
    pub device: Option<DeviceStat>,
    /// The predicted effect of the node's udev on the device.
    pub udev: Predictions,
    /// The same prediction without the rule of an earlier `--persist`; `None` if there is no such rule.
    pub others: Option<Predictions>,
    /// The place of that rule; inspected only if the run may write one.
    pub slot: Option<RuleFileSlot>,
    pub udevd: Udevd,
    pub rules: Rules,
    /// Content of etc/passwd; empty if the file does not exist.
    pub passwd: Vec<u8>,
    pub view: View,
    /// Rules that the node probably has and that are not visible: they make every prediction unclear.
    pub unseen: Vec<Diagnostic>,
    /// Directories and files that few nodes have and that are not visible: treated as empty, and reported by
    /// `check`.
    pub not_shown: Vec<&'static str>,
}

impl Host {
    /// Observes the node; [`Host::slot`] only if `slot` is true.
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

    /// Updates [`Host::udev`] and [`Host::others`] from the other fields.
    pub fn foresee(&mut self) {
        self.udev = self.predict(&self.rules.all());
        let others = self.rules.without_own();
        self.others = others.map(|files| self.predict(&files));
    }

    /// The predicted effect of the node's udev on the device, with `own` as the rule of `--persist`.
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
