//! Drops the capabilities that a command does not need, before it opens anything.
//!
//! A capability that the container lacks is no error here. If the kernel, a seccomp filter or a sandbox refuses to drop
//! one, the run logs a warning and continues: dropping limits the damage of errors in this program, and does not
//! protect against the user who runs it.

use caps::Capability;
use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::stat::{Mode, umask};

use super::syscalls::{self, Capabilities};

/// The command, as far as capabilities are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// `apply`, and the child of `exec` that does the same work.
    Apply,
    Check,
    Install,
    /// `logs`, until all files are open; then it drops everything.
    Logs,
    /// `ready`, which needs no capability: it reads a file that is readable by all.
    Ready,
    Watch,
}

impl Job {
    /// The job of the command with this name; `None` for `exec`, which drops nothing in this process.
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
    pub capability: Capability,
    pub jobs: &'static [Job],
    /// The purpose of the capability: a cell of the table in SECURITY.md.
    pub why: &'static str,
}

const ALL: &[Job] = &[Job::Apply, Job::Watch, Job::Check, Job::Install, Job::Logs];
const WRITERS: &[Job] = &[Job::Apply, Job::Watch, Job::Install];
const PROVERS: &[Job] = &[Job::Apply, Job::Watch, Job::Check];
const CHANGE_USER: &[Job] = &[Job::Apply, Job::Watch, Job::Check, Job::Logs];

/// All capabilities that a job keeps. The others are dropped, and the bounding set is emptied: only `exec` starts a
/// program, and it drops nothing in the process that does so.
pub const NEEDS: &[Need] = &[
    Need {
        capability: Capability::CAP_CHOWN,
        jobs: WRITERS,
        why: "sets the group of the device, and the owner of a file that replaces another one",
    },
    Need {
        capability: Capability::CAP_DAC_OVERRIDE,
        jobs: ALL,
        why: "reads, and in commands that write also writes, in directories that root does not own; a QEMU that \
              runs as root has this capability, so the proof for it needs it too",
    },
    Need {
        capability: Capability::CAP_DAC_READ_SEARCH,
        jobs: ALL,
        why: "reads files that root does not own, in a container without `CAP_DAC_OVERRIDE`",
    },
    Need {
        capability: Capability::CAP_FOWNER,
        jobs: WRITERS,
        why: "sets mode, ACL and attributes of files that root does not own, and replaces such files in a sticky \
              directory",
    },
    Need {
        capability: Capability::CAP_FSETID,
        jobs: &[Job::Apply, Job::Watch],
        why: "keeps the set-group-ID bit of a file that is replaced",
    },
    Need {
        capability: Capability::CAP_KILL,
        jobs: &[Job::Logs],
        why: "ends the process that reads logs as `nobody`, on a signal or when it hangs",
    },
    Need {
        capability: Capability::CAP_SETGID,
        jobs: CHANGE_USER,
        why: "sets the QEMU user's groups for the proof, or those of `nobody` to read logs",
    },
    Need {
        capability: Capability::CAP_SETUID,
        jobs: CHANGE_USER,
        why: "sets the QEMU user's file-system UID for the proof, or the UID of `nobody` to read logs",
    },
    Need {
        capability: Capability::CAP_SYS_PTRACE,
        jobs: PROVERS,
        why: "inspects the root directory of other processes: of the node's PID 1 (/proc/1/root) and of libvirtd",
    },
];

/// The capabilities of `held` that a job keeps, one bit each.
///
/// Without `CAP_SYS_PTRACE` a process can inspect the root, executable and namespaces only of processes that hold no
/// capability beyond its own permitted ones (ptrace(2), "Ptrace access mode checking"): `check` in a container can
/// inspect the libvirtd of that container only while it holds all capabilities of that process. So without it `check`
/// and `watch`, which look for a libvirtd, keep all of them. `apply` inspects only the root of the node's PID 1, which
/// normally holds `CAP_SYS_PTRACE`: keeping other capabilities would not help.
pub fn kept(job: Job, held: u64) -> u64 {
    let inspects_libvirtd = matches!(job, Job::Check | Job::Watch);
    if inspects_libvirtd && held & Capability::CAP_SYS_PTRACE.bitmask() == 0 {
        return held;
    }
    held & row(job)
}

/// The capabilities of a job in [`NEEDS`], one bit each.
fn row(job: Job) -> u64 {
    let needs = NEEDS.iter().filter(|need| need.jobs.contains(&job));
    needs.fold(0, |all, need| all | need.capability.bitmask())
}

/// Messages of [`reduce`], which runs before the log is set up.
#[derive(Debug, Default)]
pub struct Reduced(Vec<(log::Level, String)>);

impl Reduced {
    pub fn with_warning(mut self, text: String) -> Self {
        self.0.push((log::Level::Warn, text));
        self
    }

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

/// Drops every capability that `job` does not need, irrevocably, from all sets: effective, permitted, inheritable,
/// ambient, bounding. A program that is started gains none (`no_new_privs`), and new files are private until their
/// owner and mode are set (umask 077). Children inherit all of that.
///
/// A refusal of the kernel becomes a warning in the log, and does not end the run.
pub fn reduce(job: Job) -> Reduced {
    let mut reduced = Reduced::default();
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    if let Err(errno) = set_no_new_privs() {
        let so = "a program that this process starts could gain privileges";
        reduced.refused("prctl(PR_SET_NO_NEW_PRIVS)", errno, so);
    }
    let held = syscalls::capabilities();
    match syscalls::empty_bounding_set(held.map_or(0, |held| held.permitted)) {
        // Without CAP_SETPCAP it remains, which is harmless: no program is started that could use it.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(errno) => {
            let so = "the bounding set is unchanged";
            reduced.refused("prctl(PR_CAPBSET_DROP)", errno, so);
        }
    }
    match held.and_then(|held| reduce_sets(job, held)) {
        Ok(left) if left & !row(job) != 0 => {
            let command = if job == Job::Watch { "watch" } else { "check" };
            let text = format!(
                "{command} keeps all its capabilities (`capsh --decode={left:x}` lists them): without \
                 CAP_SYS_PTRACE the kernel does not let it inspect a process that holds more capabilities; with \
                 CAP_SYS_PTRACE it drops those that it does not need"
            );
            reduced.0.push((log::Level::Info, text));
        }
        Ok(_) => {}
        Err(errno) => {
            let so = "this run continues with all its capabilities";
            reduced.refused("capset", errno, so);
        }
    }
    reduced
}

/// Sets the reduced capabilities, and returns the permitted ones that are left.
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
    fn a_job_keeps_the_capabilities_of_its_row_and_gains_none() {
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
    fn without_cap_sys_ptrace_only_check_and_watch_keep_all() {
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
    fn each_capability_has_one_row() {
        let mut names: Vec<_> = NEEDS.iter().map(|need| need.capability.index()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NEEDS.len());
    }
}
