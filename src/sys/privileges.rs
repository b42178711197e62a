//! Giving up what a command does not need, before anything is opened.
//!
//! What was never there is not missed, and where the kernel, a filter or a sandbox does not let go of
//! something there is a warning and the work is done: this guards against mistakes of this program, not
//! against whoever runs it.

use caps::Capability;
use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::stat::{Mode, umask};

use super::syscalls::{self, Capabilities};

/// What is done, as far as rights are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// `apply`, and the child of `exec` that does the same.
    Apply,
    /// `check`
    Check,
    /// `install`
    Install,
    /// `logs`, until all is opened; nothing is kept after that.
    Logs,
    /// `ready`, which reads a file that everybody may read: nothing is kept.
    Ready,
    /// `watch`
    Watch,
}

impl Job {
    /// The job of a command that does it in this process or a child alike, by the command's name.
    pub fn of_command(name: &str) -> Option<Self> {
        Some(match name {
            "apply" => Self::Apply,
            "check" => Self::Check,
            "install" => Self::Install,
            "logs" => Self::Logs,
            "ready" => Self::Ready,
            "watch" => Self::Watch,
            _ => return None,
        })
    }
}

/// A capability that some jobs keep.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Which one.
    pub capability: Capability,
    /// Who keeps it.
    pub jobs: &'static [Job],
    /// What it is for.
    pub why: &'static str,
}

const ALL: &[Job] = &[Job::Apply, Job::Watch, Job::Check, Job::Install, Job::Logs];
const WRITERS: &[Job] = &[Job::Apply, Job::Watch, Job::Install];
const PROVERS: &[Job] = &[Job::Apply, Job::Watch, Job::Check];
const OTHERS: &[Job] = &[Job::Apply, Job::Watch, Job::Check, Job::Logs];

/// Every capability that is kept by anybody. All others are given up, and of the bounding set
/// everything: no command starts a program but `exec`, which gives up nothing in the process that does.
pub const NEEDS: &[Need] = &[
    Need {
        capability: Capability::CAP_CHOWN,
        jobs: WRITERS,
        why: "gives the device its group, and a file the owner of the one that it replaces",
    },
    Need {
        capability: Capability::CAP_DAC_OVERRIDE,
        jobs: ALL,
        why: "reads, and where the command writes writes, in directories that root does not own; QEMU that runs \
              as root has it, so its proof needs it",
    },
    Need {
        capability: Capability::CAP_DAC_READ_SEARCH,
        jobs: ALL,
        why: "reads what root does not own, in a container that has this one alone",
    },
    Need {
        capability: Capability::CAP_FOWNER,
        jobs: WRITERS,
        why: "sets mode, ACL and attributes of what root does not own, replaces it in a sticky directory",
    },
    Need {
        capability: Capability::CAP_FSETID,
        jobs: &[Job::Apply, Job::Watch],
        why: "keeps the set-group-ID bit of a file that is replaced",
    },
    Need {
        capability: Capability::CAP_KILL,
        jobs: &[Job::Logs],
        why: "ends the process that reads logs as nobody, when asked to or where that hangs",
    },
    Need {
        capability: Capability::CAP_SETGID,
        jobs: OTHERS,
        why: "takes on the QEMU user's groups for the proof, nobody's to read logs",
    },
    Need {
        capability: Capability::CAP_SETUID,
        jobs: OTHERS,
        why: "takes on the QEMU user's file-system UID for the proof, becomes nobody to read logs",
    },
    Need {
        capability: Capability::CAP_SYS_PTRACE,
        jobs: PROVERS,
        why: "looks at the root of other processes: the node's (/proc/1/root), libvirtd's",
    },
];

/// What of `held` a job keeps, a bit for each capability.
///
/// Without `CAP_SYS_PTRACE` the kernel lets a process look at the root, the executable and the namespaces
/// only of those that hold no capability beyond its own permitted ones (ptrace(2), "Ptrace access mode
/// checking"): a container's `check` sees the libvirtd of that container as long as it holds what that one
/// holds. So there `check` and `watch`, which look for a libvirtd, keep all. `apply` looks at the root of the
/// node's PID 1 alone: where that one holds `CAP_SYS_PTRACE`, as it does on a node, nothing else that this
/// process could keep would show it.
pub fn kept(job: Job, held: u64) -> u64 {
    let looks = matches!(job, Job::Check | Job::Watch);
    if looks && held & Capability::CAP_SYS_PTRACE.bitmask() == 0 {
        return held;
    }
    held & row(job)
}

/// What the table says.
fn row(job: Job) -> u64 {
    let needs = NEEDS.iter().filter(|need| need.jobs.contains(&job));
    needs.fold(0, |all, need| all | need.capability.bitmask())
}

/// What is to be said about privileges that were given up: to be logged once there is a log.
#[derive(Debug, Default)]
pub struct Reduced(Vec<(log::Level, String)>);

impl Reduced {
    /// With one more warning.
    pub fn with_warning(mut self, text: String) -> Self {
        self.0.push((log::Level::Warn, text));
        self
    }

    /// Logs it.
    pub fn log(&self) {
        for (level, text) in &self.0 {
            log::log!(*level, "{text}");
        }
    }

    fn refused(&mut self, call: &str, errno: Errno, so: &str) {
        let text = format!("{call}: {errno:?} ({}): {so}", errno.desc());
        self.0.push((log::Level::Warn, text));
    }
}

/// Gives up every capability that `job` does not need, for good: effective, permitted, inheritable,
/// ambient, bounding. No program that is started gains any (`no_new_privs`), and what is made is
/// nobody else's until it is said whose (umask 077). Children inherit all of that.
///
/// What the kernel refuses is a warning in the log, and is no reason to stop.
pub fn reduce(job: Job) -> Reduced {
    let mut reduced = Reduced::default();
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    if let Err(errno) = set_no_new_privs() {
        let so = "programs could gain rights if this process started any";
        reduced.refused("prctl(PR_SET_NO_NEW_PRIVS)", errno, so);
    }
    let held = syscalls::capabilities();
    match syscalls::empty_bounding_set(held.map_or(0, |held| held.permitted)) {
        // Without CAP_SETPCAP it stays, and nothing is ever started that could use it.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(errno) => {
            let so = "the bounding set stays as it was given";
            reduced.refused("prctl(PR_CAPBSET_DROP)", errno, so);
        }
    }
    match held.and_then(|held| reduce_sets(job, held)) {
        Ok(left) if left & !row(job) != 0 => {
            let command = if job == Job::Watch { "watch" } else { "check" };
            let text = format!(
                "{command} keeps all capabilities that it was given (`capsh --decode={left:x}` names them): \
                 without CAP_SYS_PTRACE the kernel shows it the root of no process that holds more; with \
                 CAP_SYS_PTRACE it drops what it does not need"
            );
            reduced.0.push((log::Level::Info, text));
        }
        Ok(_) => {}
        Err(errno) => {
            let so = "this run goes on with all capabilities that it was given";
            reduced.refused("capset", errno, so);
        }
    }
    reduced
}

/// Gives the permitted capabilities that are left.
fn reduce_sets(job: Job, held: Capabilities) -> nix::Result<u64> {
    let permitted = kept(job, held.permitted);
    let less = Capabilities {
        effective: held.effective & permitted,
        permitted,
        inheritable: 0,
    };
    if less != held {
        syscalls::set_capabilities(less)?;
    }
    Ok(permitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: [Job; 6] = [
        Job::Apply,
        Job::Watch,
        Job::Check,
        Job::Install,
        Job::Logs,
        Job::Ready,
    ];

    #[test]
    fn a_job_keeps_what_the_table_says_and_never_gains() {
        let check = kept(Job::Check, u64::MAX);
        assert_eq!(check.count_ones(), 5);
        assert_eq!(check & Capability::CAP_CHOWN.bitmask(), 0);
        let apply = kept(Job::Apply, u64::MAX);
        // All but CAP_KILL, which is for `logs`.
        assert_eq!(apply.count_ones() as usize, NEEDS.len() - 1);
        assert_eq!(apply & Capability::CAP_KILL.bitmask(), 0);
        assert_eq!(kept(Job::Ready, u64::MAX), 0);
        for job in EVERY {
            assert_eq!(kept(job, 0), 0);
            let admin = Capability::CAP_SYS_ADMIN.bitmask();
            assert_eq!(kept(job, u64::MAX) & admin, 0);
            let few = Capability::CAP_SYS_PTRACE.bitmask() | Capability::CAP_CHOWN.bitmask();
            assert_eq!(kept(job, few) & !few, 0);
        }
    }

    #[test]
    fn only_what_looks_at_other_processes_by_its_capabilities_keeps_them() {
        let held = !Capability::CAP_SYS_PTRACE.bitmask();
        for job in EVERY {
            let all = matches!(job, Job::Check | Job::Watch);
            let want = if all { held } else { held & row(job) };
            assert_eq!(kept(job, held), want, "{job:?}");
        }
        assert_eq!(kept(Job::Apply, held).count_ones(), 7);
        assert_eq!(kept(Job::Install, held).count_ones(), 4);
    }

    #[test]
    fn each_capability_is_named_once() {
        let mut names: Vec<_> = NEEDS.iter().map(|need| need.capability.index()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NEEDS.len());
    }
}
