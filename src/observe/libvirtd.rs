//! Which libvirtd's files are meant, where no root was named: perhaps that of one in another container.
//!
//! Its group file will be edited by root, so a process is taken for libvirtd for what the kernel says of it:
//! all four UIDs are 0, it is in this process' user namespace, root owns its executable, it has
//! `CAP_SYS_ADMIN`, and its root shows the node's own device. A name, and what a root shows else, is the choice
//! of whoever started it.

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

/// The names of the daemons that start QEMU, as processes have them (at most 15 bytes): the monolithic one, the
/// modular one for QEMU, and what NixOS wraps.
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
    /// Its process ID.
    pub pid: u32,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
    /// Its root.
    pub root: Root,
}

/// What was found.
#[derive(Debug)]
pub enum Target {
    /// A root or a group file was named, or libvirtd runs in this very container.
    Own,
    /// Only the node's own libvirtd runs.
    Node,
    /// The one of just one container.
    Container(Libvirtd),
    /// The one of just one container that has a /dev of its own: it is looked at, and nothing of it is edited.
    OtherDevice(Libvirtd),
    /// None runs, as far as can be seen.
    None,
    /// Several run, or one that this process may not look at: nothing of theirs is edited.
    Ambiguous(String),
}

/// Finds it among the processes that have its name.
pub fn find(asked: &Sources, daemons: &[Process]) -> Target {
    let here = Path::new("/");
    if asked.pod_root.path() != here || asked.group_file_out.is_some() {
        return Target::Own;
    }
    // An ordinary container may have any number of processes of any name: they cost no descriptor.
    let named = daemons
        .iter()
        .filter(|process| is_named(process) && process.is_admin);
    let mut named = named.peekable();
    if named.peek().is_none() {
        return Target::None;
    }
    let host = match host_root::find(asked.host_root.as_deref()) {
        Ok(HostRoot::At(host)) => Some(host),
        _ => None,
    };
    let surroundings = Surroundings {
        own: Root::open(here).and_then(|root| root.id()).ok(),
        // A root that holds only parts of the node's is another directory than its own.
        nodes: [
            host.as_ref().and_then(|host| host.id().ok()),
            host_root::nodes_own_root(),
        ],
        device: nodes_device(host.as_ref(), &asked.device),
    };
    let mut found: Vec<Candidate<Inspected>> = Vec::new();
    let mut hidden = None;
    for Process { name, pid, .. } in named {
        match inspect(*pid) {
            Look::Seen(seen) => {
                let one = Candidate::new(name.clone(), *seen, &asked.device);
                // Several processes that show the same count once.
                let is_new = |one: &Candidate<_>| {
                    let same = |known: &Candidate<_>| {
                        (known.root, known.devices) == (one.root, one.devices)
                    };
                    !found.iter().any(same)
                };
                found.extend(one.filter(is_new));
            }
            Look::Hidden(error) => {
                let way_out = way_out(&error);
                hidden.get_or_insert(format!(
                    "{name} (pid {pid}) runs as root, and this process may not look at it: {error}{way_out}"
                ));
            }
            Look::NotRoots => {}
        }
    }
    choose(&surroundings, found, hidden)
}

/// What helps where a process may not be looked at.
fn way_out(error: &SyscallError) -> &'static str {
    match error.errno {
        Errno::EACCES | Errno::EPERM => "; run this with CAP_SYS_PTRACE",
        _ => "",
    }
}

/// The node's own device: what the host root shows, else what this process sees.
fn nodes_device(host: Option<&Root>, device: &Path) -> Option<Inode> {
    let on_host = host.and_then(|host| kvm_at(host, "dev/kvm"));
    on_host.or_else(|| {
        let here = Device::find(device).ok()??.facts();
        here.is_kvm().then_some(here.inode)
    })
}

fn kvm_at(root: &Root, name: &str) -> Option<Inode> {
    let found = root.stat(name).ok()?.map(DeviceStat::from)?;
    found.is_kvm().then_some(found.inode)
}

/// What the processes are compared with.
struct Surroundings {
    /// This process' own root.
    own: Option<Inode>,
    /// The host root, and the root of the node's first process.
    nodes: [Option<Inode>; 2],
    /// The node's own device, if it has one.
    device: Option<Inode>,
}

/// A libvirtd, whatever its root is.
#[derive(Debug)]
struct Candidate<R> {
    name: String,
    pid: u32,
    root: Inode,
    /// The devices that its root shows at the usual place, and at the one that was named.
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
            log::debug!("{name} (pid {}) is no libvirtd: {seen:?}", seen.pid);
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

/// Whether the kernel says that a process of root's is a libvirtd.
fn is_libvirtd(executable: &OsStr, is_roots: bool, shares_namespace: bool, is_admin: bool) -> bool {
    let name = EXECUTABLES.iter().any(|name| executable == *name);
    name && is_roots && shares_namespace && is_admin
}

/// What one of them is.
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
    found: Vec<Candidate<Inspected>>,
    hidden: Option<String>,
) -> Target {
    let libvirtd = |pid, seen: Inspected| Libvirtd {
        pid,
        pidfd: seen.pidfd,
        root: seen.root,
    };
    match chosen(surroundings, found, hidden) {
        Choice::Own => Target::Own,
        Choice::Node => Target::Node,
        Choice::Container(pid, seen) => Target::Container(libvirtd(pid, seen)),
        Choice::OtherDevice(pid, seen) => Target::OtherDevice(libvirtd(pid, seen)),
        Choice::None => Target::None,
        Choice::Ambiguous(text) => Target::Ambiguous(text),
    }
}

/// Decides. `hidden` says why a process of root's could not be looked at.
fn chosen<R>(
    surroundings: &Surroundings,
    found: Vec<Candidate<R>>,
    hidden: Option<String>,
) -> Choice<R> {
    const WAY_OUT: &str = "nothing of it is edited; give --root, or --group-file-out";
    let is_nodes = |root: Inode| surroundings.nodes.contains(&Some(root));
    let is_own = |root: Inode| surroundings.own == Some(root);
    // This very container's. On the node that is the node's own.
    if found
        .iter()
        .any(|one| is_own(one.root) && !is_nodes(one.root))
    {
        return Choice::Own;
    }
    if let Some(hidden) = hidden {
        return Choice::Ambiguous(format!("{hidden}; {WAY_OUT}"));
    }
    let runs_on_node = found.iter().any(|one| is_nodes(one.root));
    let elsewhere = found.into_iter().filter(|one| !is_nodes(one.root));
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
        // Several processes of one root count once.
        if list
            .iter()
            .all(|known: &Candidate<R>| known.root != one.root)
        {
            list.push(one);
        }
    }
    // Where the node's root is not seen it cannot be told whether one of them has it.
    if let Some(first) = with.first().filter(|_| surroundings.nodes[0].is_none()) {
        return Choice::Ambiguous(format!(
            "{} (pid {}) runs, and the node's root, which may be its own, is not seen; {WAY_OUT}; or mount \
             the node's root file system at /host",
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

/// Where the pod root is the root of a process, or below it, holds it: the process has to be root's, in this process' user
/// namespace. What another user's process shows as its root is for that user to choose.
///
/// # Errors
/// [`Error::Refused`] for a process that is not, or that may not be looked at.
pub fn hold(root: &PodRoot) -> Result<PodRoot> {
    let found = pid_of_root(root.path()).filter(|_| !root.is_of_process());
    let Some((pid, rest)) = found else {
        return Ok(root.clone());
    };
    let root = root.path().display();
    let no = |why: &str| {
        Error::Refused(format!(
            "--root {root}: {why}; `libvirt-kvm-init check` on the node names the root of the libvirtd that runs there"
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
            "process {pid} is in another user namespace, so its root is not root's to trust"
        ))),
        Look::Hidden(error) => {
            let way_out = way_out(&error);
            Err(no(&format!(
                "process {pid} may not be looked at: {error}{way_out}"
            )))
        }
        Look::NotRoots => Err(no(&format!(
            "process {pid} has ended or does not run as root, so its root is not root's to trust"
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

    fn pick(found: Vec<Candidate<()>>) -> Choice<()> {
        chosen(&surroundings(), found, None)
    }

    fn is_ambiguous(choice: &Choice<()>) -> bool {
        matches!(choice, Choice::Ambiguous(_))
    }

    #[test]
    fn only_what_the_kernel_says_makes_a_libvirtd() {
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
    fn only_a_container_that_is_certain_is_chosen() {
        let (a, b) = ((1, 3), (1, 4));
        assert_eq!(pick(vec![]), Choice::None);
        assert_eq!(pick(vec![one(7, a)]), Choice::Container(7, ()));
        // The node's own is none of a container.
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
        // This very container's, whoever else runs.
        assert_eq!(pick(vec![one(7, a), one(8, OWN)]), Choice::Own);
        let hidden = || Some("hidden".to_owned());
        assert_eq!(
            chosen(&surroundings(), vec![one(8, OWN)], hidden()),
            Choice::Own
        );
        // Two daemons of one root, and two roots.
        assert_eq!(pick(vec![one(7, a), one(8, a)]), Choice::Container(7, ()));
        assert!(is_ambiguous(&pick(vec![one(7, a), one(8, b)])));
        // What cannot be looked at may be the one.
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
    fn an_ordinary_containers_libvirtd_blocks_nothing() {
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
        // A node without a device has nothing to show.
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
