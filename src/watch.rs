//! `watch`: apply, then keep it so.
//!
//! Nothing is polled. One inotify watch on the device's folder and a few on the folders of the files
//! that decide about it wake this process; what is wrong with the device is mended at once, from what
//! was seen last of those files, and when nothing has happened for a moment all of it is looked at
//! again, as `apply` would. So a heal costs a few system calls, and the truth is never older than the
//! last quiet moment. Its own changes come back as events, too, and find nothing to do.
//!
//! What libvirt's QEMU can use comes first: the group file that libvirtd reads is brought in line
//! before the device (memberships count at the next guest start, without a restart of libvirtd); where
//! that is not possible the device keeps the number that worked, and that is reported as drift.

mod keeper;
mod tally;
mod tug;

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::exit::{Usage, Verdict};
use crate::hostdb;
use crate::judge::failure;
use crate::observe::GROUP_FILE;
use crate::place::{self, HostRoot};
use crate::report::Report;
use crate::sys::events::{Names, News, Watcher};
use crate::sys::root::Root;
use crate::sys::{self, end_well_on_request};
use crate::udev::FOLDERS;

use keeper::Keeper;
pub use tally::Tally;

/// How long nothing must happen before all is looked at again.
const QUIET: Duration = Duration::from_millis(500);
/// A flood of events puts that off no longer than this.
const NEVER_LATER: Duration = Duration::from_secs(5);

/// Runs until a signal ends the process. Returns the report on why it could not even begin.
///
/// `again` gives the configuration anew at SIGHUP; `told` gets the first report.
pub fn watch(
    config: Config,
    again: impl Fn() -> Result<Config, Usage>,
    told: impl FnOnce(&Report),
) -> Report {
    end_well_on_request();
    match begin(config, again, told) {
        Ok(report) => report,
        Err(error) => failure(&error.into(), None),
    }
}

fn begin(
    config: Config,
    again: impl Fn() -> Result<Config, Usage>,
    told: impl FnOnce(&Report),
) -> sys::Result<Report> {
    let mut watcher = Watcher::new()?;
    watcher.follow_hangup()?;
    // What happens from here on is not missed, whatever the first look takes.
    follow_device(&mut watcher, &config)?;
    let mut keeper = Keeper::new(config);
    keeper.look();
    if keeper.report().verdict == Verdict::Usage && !keeper.waits_for_libvirtd() {
        return Ok(keeper.report().clone());
    }
    told(keeper.report());
    keeper.save();
    loop {
        follow(&mut watcher, keeper.config());
        wait_and_act(&mut watcher, &mut keeper, &again)?;
    }
}

/// Until all has been looked at again.
fn wait_and_act(
    watcher: &mut Watcher,
    keeper: &mut Keeper,
    again: &impl Fn() -> Result<Config, Usage>,
) -> sys::Result<()> {
    let recheck = Instant::now() + keeper.config().recheck;
    let mut quiet: Option<Instant> = None;
    let mut latest: Option<Instant> = None;
    loop {
        let due = match keeper.paused_until() {
            None => [Some(recheck), quiet, latest].into_iter().flatten().min(),
            until => until,
        };
        let news = watcher.wait(due)?;
        let now = Instant::now();
        if news.any() {
            latest.get_or_insert(now + NEVER_LATER);
            quiet = Some(now + QUIET);
        }
        let paused = keeper.paused_until().is_some_and(|until| now < until);
        match news {
            News { hangup: true, .. } => match again() {
                Ok(config) => {
                    log::info!("the configuration was read again");
                    keeper.configure(config);
                    keeper.look();
                    keeper.save();
                    return Ok(());
                }
                Err(usage) => log::warn!("the configuration stays as it was: {usage}"),
            },
            News { files: true, .. } => keeper.look(),
            _ if paused => {}
            _ => keeper.heal(),
        }
        let over = |due: Option<Instant>| due.is_some_and(|due| Instant::now() >= due);
        if !paused && (over(quiet) || over(latest) || over(Some(recheck))) {
            keeper.look();
            keeper.save();
            return Ok(());
        }
    }
}

fn follow_device(watcher: &mut Watcher, config: &Config) -> sys::Result<bool> {
    let here = Path::new(".");
    let folder = config.device.parent().unwrap_or(here);
    let folder = Some(folder).filter(|folder| !folder.as_os_str().is_empty());
    let name = config.device.file_name().unwrap_or_default();
    watcher.follow_device(folder.unwrap_or(here), name)
}

/// Folders come and go, so that each is followed anew whenever all is looked at; that costs nothing
/// where it is followed already.
fn follow(watcher: &mut Watcher, config: &Config) {
    let mut problems = Vec::new();
    match follow_device(watcher, config) {
        Ok(true) => {}
        Ok(false) => log::debug!("there is no folder of {}", config.device.display()),
        Err(error) => problems.push(error),
    }
    let one = |path: &'static str| {
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        (folder, Names::One(OsStr::new(name).to_owned()))
    };
    if let Ok(root) = Root::open(&config.root) {
        for file in [GROUP_FILE, "etc/passwd", "etc/libvirt/qemu.conf"] {
            let (folder, names) = one(file);
            problems.extend(watcher.follow_files(&root, folder, names).err());
        }
    }
    if let Ok(HostRoot::At(root)) = place::find(config.host_root.as_deref()) {
        let files = hostdb::FILES.into_iter().map(one);
        let records = hostdb::RECORD_FOLDERS.map(|folder| (folder, Names::EndIn(".group")));
        let rules = FOLDERS.map(|folder| (folder, Names::EndIn(".rules")));
        for (folder, names) in files.chain(records).chain(rules) {
            problems.extend(watcher.follow_files(&root, folder, names).err());
        }
    }
    for problem in problems {
        log::debug!("{problem}");
    }
}
