//! Finds the libvirtd whose root is used if `--root` is not set; it can run in another container.
//!
//! This program edits the group file of that libvirtd as root, so only facts from the kernel count: all four UIDs
//! of the process are 0, it is in this process' user namespace, root owns its executable, it has `CAP_SYS_ADMIN`,
//! and its root directory contains the node's own device. Its name and the other files in that directory prove
//! nothing, because any user can choose them.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;

use crate::config::{PodRoot, Sources};
use crate::error::{Error, Result};
use crate::observe::host_root::{self, HostRoot};
use crate::sys::device::{Device, DeviceStat};
use crate::sys::processes::{Inspected, Look, Process, inspect, pid_of_root};
use crate::sys::root::Root;
use crate::sys::{Inode, SyscallError};

/// The process names of the daemons that start QEMU (at most 15 bytes, proc_pid_comm(5)): the monolithic one,
/// the modular one for QEMU, and the wrapped programs of NixOS.
pub const NAMES: [&str; 4] = [
    "libvirtd",
    "virtqemud",
    ".libvirtd-wrapp",
    ".virtqemud-wrap",
];
/// The base names of their executables.
const EXECUTABLES: [&str; 4] = [
    "libvirtd",
    "virtqemud",
    ".libvirtd-wrapped",
    ".virtqemud-wrapped",
];

/// Whether a process has the name of a daemon that starts QEMU.
pub fn is_named(process: &Process) -> bool {
    NAMES.contains(&process.name.as_str())
}

/// A libvirtd, with its root held open.
#[derive(Debug)]
pub struct Libvirtd {
    pub pid: u32,
    /// Readable once the process has ended (pidfd_open(2)).
    pub pidfd: OwnedFd,
    pub root: Root,
}

/// The result of the search.
#[derive(Debug)]
pub enum Target {
    /// `--root` or `--group-file-out` is set, or libvirtd runs in this container.
    Own,
    /// Only the node's own libvirtd runs.
    Node,
    /// libvirtd runs in exactly one other container.
    Container(Libvirtd),
    /// libvirtd runs in exactly one other container, with a private /dev: it is inspected, but its files are not
    /// edited.
    OtherDevice(Libvirtd),
    None,
    /// Several were found, or one cannot be inspected: no files are edited. Contains the reason.
    Ambiguous(String),
}

/// Finds the libvirtd among the processes of that name.
pub fn find(sources: &Sources, daemons: &[Process]) -> Target {
    let here = Path::new("/");
    if sources.pod_root.path() != here || sources.group_file_out.is_some() {
        return Target::Own;
    }
    // Skip processes without CAP_SYS_ADMIN: any container can start any number of them under this name, and each
    // inspection takes file descriptors.
    let named = daemons
        .iter()
        .filter(|process| is_named(process) && process.is_admin);
    let mut named = named.peekable();
    if named.peek().is_none() {
        return Target::None;
    }
    let host = match host_root::find(sources.host_root.as_deref()) {
        Ok(HostRoot::At(host)) => Some(host),
        _ => None,
    };
    let surroundings = Surroundings {
        own: Root::open(here).and_then(|root| root.id()).ok(),
        // If only parts of the node are mounted at the host root, it is another directory than the root of PID 1.
        nodes: [
            host.as_ref().and_then(|host| host.id().ok()),
            host_root::nodes_own_root(),
        ],
        device: nodes_device(host.as_ref(), &sources.device),
    };
    let mut candidates: Vec<Candidate<Inspected>> = Vec::new();
    let mut hidden = None;
    for Process { name, pid, .. } in named {
        match inspect(*pid) {
            Look::Seen(seen) => {
                let one = Candidate::new(name.clone(), *seen, &sources.device);
                // Processes with the same root and devices count once.
                let is_new = |one: &Candidate<_>| {
                    let same = |known: &Candidate<_>| {
                        (known.root, known.devices) == (one.root, one.devices)
                    };
                    !candidates.iter().any(same)
                };
                candidates.extend(one.filter(is_new));
            }
            Look::Hidden(error) => {
                let way_out = way_out(&error);
                hidden.get_or_insert(format!(
                    "cannot inspect {name} (pid {pid}), which runs as root: {error}{way_out}"
                ));
            }
            Look::NotRoots => {}
        }
    }
    choose(&surroundings, candidates, hidden)
}

/// The advice if a process cannot be inspected.
fn way_out(error: &SyscallError) -> &'static str {
    match error.errno {
        Errno::EACCES | Errno::EPERM => "; run this with CAP_SYS_PTRACE",
        _ => "",
    }
}

/// The node's own device: the one in the host root, else the one of this process.
fn nodes_device(host: Option<&Root>, device: &Path) -> Option<Inode> {
    let on_host = host.and_then(|host| kvm_at(host, "dev/kvm"));
    on_host.or_else(|| {
        let here = Device::find(device).ok()??.facts();
        here.is_kvm().then_some(here.inode)
    })
}

fn kvm_at(root: &Root, name: &str) -> Option<Inode> {
    let file = root.stat(name).ok()?.map(DeviceStat::from)?;
    file.is_kvm().then_some(file.inode)
}

/// Inodes with which the processes are compared.
struct Surroundings {
    /// The root of this process.
    own: Option<Inode>,
    /// The host root, and the root of the node's PID 1.
    nodes: [Option<Inode>; 2],
    device: Option<Inode>,
}

/// A libvirtd whose root was not compared yet.
#[derive(Debug)]
struct Candidate<R> {
    name: String,
    pid: u32,
    root: Inode,
    /// The KVM devices in its root at dev/kvm and at the path of `--device`.
    devices: [Option<Inode>; 2],
    held: R,
}

impl Candidate<Inspected> {
    fn new(name: String, seen: Inspected, device: &Path) -> Option<Self> {
        if !is_libvirtd(
            &seen.executable,
            seen.executable_is_roots,
            seen.shares_user_namespace,
            seen.is_admin,
        ) {
            log::debug!(
                "{name} (pid {}) does not count as libvirtd: {seen:?}",
                seen.pid
            );
            return None;
        }
        let device = device.to_string_lossy();
        Some(Self {
            name,
            pid: seen.pid,
            root: seen.root.id().ok()?,
            devices: ["dev/kvm", &device].map(|name| kvm_at(&seen.root, name)),
            held: seen,
        })
    }
}

/// Whether a process of root is a libvirtd, by the facts from the kernel.
fn is_libvirtd(executable: &OsStr, is_roots: bool, shares_namespace: bool, is_admin: bool) -> bool {
    let name = EXECUTABLES.iter().any(|name| executable == *name);
    name && is_roots && shares_namespace && is_admin
}

/// [`Target`], with `R` in place of the held root so that tests need no processes.
#[derive(Debug, PartialEq, Eq)]
enum Choice<R> {
    Own,
    Node,
    Container(u32, R),
    OtherDevice(u32, R),
    None,
    Ambiguous(String),
}

fn choose(
    surroundings: &Surroundings,
    candidates: Vec<Candidate<Inspected>>,
    hidden: Option<String>,
) -> Target {
    let libvirtd = |pid, seen: Inspected| Libvirtd {
        pid,
        pidfd: seen.pidfd,
        root: seen.root,
    };
    match chosen(surroundings, candidates, hidden) {
        Choice::Own => Target::Own,
        Choice::Node => Target::Node,
        Choice::Container(pid, seen) => Target::Container(libvirtd(pid, seen)),
        Choice::OtherDevice(pid, seen) => Target::OtherDevice(libvirtd(pid, seen)),
        Choice::None => Target::None,
        Choice::Ambiguous(text) => Target::Ambiguous(text),
    }
}

/// Decides between the candidates. `hidden` is the reason why a process of root could not be inspected.
fn chosen<R>(
    surroundings: &Surroundings,
    candidates: Vec<Candidate<R>>,
    hidden: Option<String>,
) -> Choice<R> {
    const WAY_OUT: &str = "no group file is edited; set --root or --group-file-out";
    let is_nodes = |root: Inode| surroundings.nodes.contains(&Some(root));
    let is_own = |root: Inode| surroundings.own == Some(root);
    // A libvirtd in this container. If this program runs on the node, that is the node's own libvirtd, which is
    // handled below.
    if candidates
        .iter()
        .any(|one| is_own(one.root) && !is_nodes(one.root))
    {
        return Choice::Own;
    }
    if let Some(hidden) = hidden {
        return Choice::Ambiguous(format!("{hidden}; {WAY_OUT}"));
    }
    let runs_on_node = candidates.iter().any(|one| is_nodes(one.root));
    let elsewhere = candidates.into_iter().filter(|one| !is_nodes(one.root));
    let shows_device = |one: &Candidate<R>| {
        surroundings.device.is_none() || one.devices.contains(&surroundings.device)
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for one in elsewhere {
        let list = if shows_device(&one) {
            &mut with
        } else {
            &mut without
        };
        // Processes with the same root count once.
        if list
            .iter()
            .all(|known: &Candidate<R>| known.root != one.root)
        {
            list.push(one);
        }
    }
    // Without the node's root it is unknown whether one of them runs on the node itself.
    if let Some(first) = with.first().filter(|_| surroundings.nodes[0].is_none()) {
        return Choice::Ambiguous(format!(
            "cannot determine whether {} (pid {}) runs on the node itself, because the node's root is not \
             visible; {WAY_OUT}, or mount the node's root file system at /host",
            first.name, first.pid
        ));
    }
    if with.len() > 1 {
        let pids: Vec<_> = with.iter().map(|one| one.pid.to_string()).collect();
        let pids = pids.join(", ");
        return Choice::Ambiguous(format!(
            "libvirtd runs in several containers (pid {pids}); {WAY_OUT}"
        ));
    }
    if let Some(one) = with.pop() {
        return Choice::Container(one.pid, one.held);
    }
    if runs_on_node {
        return Choice::Node;
    }
    match (without.pop(), without.is_empty()) {
        (Some(one), true) => Choice::OtherDevice(one.pid, one.held),
        _ => Choice::None,
    }
}

/// If the pod root is the root of a process (/proc/PID/root) or below it, opens and holds that root. The process
/// must run as root in this process' user namespace: another user could choose the root of its own process.
///
/// # Errors
/// [`Error::Refused`] if it does not, or if the process cannot be inspected.
pub fn hold(root: &PodRoot) -> Result<PodRoot> {
    let process = pid_of_root(root.path()).filter(|_| !root.is_of_process());
    let Some((pid, rest)) = process else {
        return Ok(root.clone());
    };
    let root = root.path().display();
    let no = |why: &str| {
        Error::Refused(format!(
            "--root {root}: {why}; run `libvirt-kvm-init check` on the node to find the root of its libvirtd"
        ))
    };
    match inspect(pid) {
        Look::Seen(seen) if seen.shares_user_namespace => {
            let root = seen
                .root
                .below(&rest)
                .map_err(|error| no(&error.to_string()))?;
            Ok(PodRoot::of_process(root))
        }
        Look::Seen(_) => Err(no(&format!(
            "process {pid} is in another user namespace, so its root cannot be trusted"
        ))),
        Look::Hidden(error) => {
            let way_out = way_out(&error);
            Err(no(&format!(
                "cannot inspect process {pid}: {error}{way_out}"
            )))
        }
        Look::NotRoots => Err(no(&format!(
            "process {pid} has ended or does not run as root, so its root cannot be trusted"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Inode = (1, 1);
    const OWN: Inode = (1, 2);
    const KVM: Inode = (5, 9);

    fn one(pid: u32, root: Inode) -> Candidate<()> {
        with_device(pid, root, Some(KVM))
    }

    fn with_device(pid: u32, root: Inode, device: Option<Inode>) -> Candidate<()> {
        Candidate {
            name: "libvirtd".to_owned(),
            pid,
            root,
            devices: [device, None],
            held: (),
        }
    }

    fn surroundings() -> Surroundings {
        Surroundings {
            own: Some(OWN),
            nodes: [Some(NODE), None],
            device: Some(KVM),
        }
    }

    fn pick(candidates: Vec<Candidate<()>>) -> Choice<()> {
        chosen(&surroundings(), candidates, None)
    }

    fn is_ambiguous(choice: &Choice<()>) -> bool {
        matches!(choice, Choice::Ambiguous(_))
    }

    #[test]
    fn a_libvirtd_needs_the_executable_its_owner_the_namespace_and_the_capability() {
        for name in EXECUTABLES {
            assert!(is_libvirtd(OsStr::new(name), true, true, true), "{name}");
        }
        let name = OsStr::new("libvirtd");
        assert!(!is_libvirtd(OsStr::new("bash"), true, true, true));
        assert!(!is_libvirtd(name, false, true, true));
        assert!(!is_libvirtd(name, true, false, true));
        assert!(!is_libvirtd(name, true, true, false));
    }

    #[test]
    fn chooses_a_container_only_if_it_is_unambiguous() {
        let (a, b) = ((1, 3), (1, 4));
        assert_eq!(pick(vec![]), Choice::None);
        assert_eq!(pick(vec![one(7, a)]), Choice::Container(7, ()));
        // The node's own libvirtd does not run in a container.
        assert_eq!(pick(vec![one(7, NODE)]), Choice::Node);
        assert_eq!(
            pick(vec![one(7, NODE), one(8, a)]),
            Choice::Container(8, ())
        );
        let on_node = Surroundings {
            own: Some(NODE),
            ..surroundings()
        };
        assert_eq!(chosen(&on_node, vec![one(7, NODE)], None), Choice::Node);
        assert_eq!(
            chosen(&on_node, vec![one(7, NODE), one(8, a)], None),
            Choice::Container(8, ())
        );
        // A libvirtd in this container takes precedence over all others.
        assert_eq!(pick(vec![one(7, a), one(8, OWN)]), Choice::Own);
        let hidden = || Some("hidden".to_owned());
        assert_eq!(
            chosen(&surroundings(), vec![one(8, OWN)], hidden()),
            Choice::Own
        );
        // Two daemons with the same root, and with different roots.
        assert_eq!(pick(vec![one(7, a), one(8, a)]), Choice::Container(7, ()));
        assert!(is_ambiguous(&pick(vec![one(7, a), one(8, b)])));
        // A process that cannot be inspected may be the right one.
        assert!(is_ambiguous(&chosen(
            &surroundings(),
            vec![one(7, a)],
            hidden()
        )));
        assert!(is_ambiguous(&chosen::<()>(
            &surroundings(),
            vec![],
            hidden()
        )));
        let blind = Surroundings {
            nodes: [None, None],
            ..surroundings()
        };
        assert!(is_ambiguous(&chosen(&blind, vec![one(7, a)], None)));
        assert_eq!(chosen::<()>(&blind, vec![], None), Choice::None);
    }

    #[test]
    fn a_libvirtd_without_the_nodes_device_makes_no_choice_ambiguous() {
        let (a, b, c) = ((1, 3), (1, 4), (1, 6));
        let other = |pid, root| with_device(pid, root, Some((7, 7)));
        assert_eq!(pick(vec![other(7, a)]), Choice::OtherDevice(7, ()));
        assert_eq!(
            pick(vec![with_device(7, a, None)]),
            Choice::OtherDevice(7, ())
        );
        assert_eq!(pick(vec![other(7, a), one(8, b)]), Choice::Container(8, ()));
        assert_eq!(
            pick(vec![other(7, a), one(8, b), other(9, c)]),
            Choice::Container(8, ())
        );
        assert_eq!(pick(vec![other(7, a), other(8, b)]), Choice::None);
        assert_eq!(pick(vec![other(7, a), one(8, NODE)]), Choice::Node);
        // Without a device on the node, the device is not compared.
        let without = Surroundings {
            device: None,
            ..surroundings()
        };
        assert_eq!(
            chosen(&without, vec![with_device(7, a, None)], None),
            Choice::Container(7, ())
        );
    }
}
