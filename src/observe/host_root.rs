//! Where this process runs: on the node itself, or in a container that may or may not see it.

use std::env;
use std::path::Path;

use crate::error::Error;
use crate::sys::Inode;
use crate::sys::root::{Root, is_mount_point};

/// Where the node's file system is usually mounted in a container.
const USUAL: [&str; 2] = ["/mnt/host-rootfs", "/host"];
/// The root of PID 1, which is the node's in the initial PID namespace.
const PID_1: &str = "/proc/1/root";
/// What readlink(2) says of the initial PID namespace (include/linux/proc_ns.h,
/// `PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The node's root as this process sees it.
#[derive(Debug)]
pub enum HostRoot {
    /// A directory that shows it; `/` on the node itself.
    At(Root),
    /// This is a container in which nothing shows it.
    Nowhere,
}

/// Finds the node's root, or takes the one that was given.
///
/// # Errors
/// [`Error::Usage`] for a given root that is not there, that is empty, or that is this container's own.
pub fn find(given: Option<&Path>) -> Result<HostRoot, Error> {
    match given {
        Some(path) => take(path).map(HostRoot::At),
        None if on_the_node() => {
            let root = Root::open(Path::new("/"));
            root.map(HostRoot::At)
                .map_err(|error| Error::Usage(error.to_string()))
        }
        None => Ok(search()),
    }
}

fn take(path: &Path) -> Result<Root, Error> {
    let shown = path.display();
    let root = Root::open(path).map_err(|error| {
        Error::Usage(format!(
            "--host-root {shown}: {error}; mount the node's root file system there, or leave the \
             option out"
        ))
    })?;
    let own = Root::open(Path::new("/")).and_then(|own| own.id());
    let is_own = matches!((root.id(), own), (Ok(a), Ok(b)) if a == b);
    if is_own && container_marker().is_some() && !pid_1_has_our_root() {
        return Err(Error::Usage(format!(
            "--host-root {shown}: this is the container's own root, not the node's; mount the \
             node's root file system, for example at /mnt/host-rootfs"
        )));
    }
    // A mount point without its mount: what the node says would be unknown, without a word.
    if ["etc", "usr"]
        .iter()
        .all(|name| matches!(root.stat(name), Ok(None)))
    {
        return Err(Error::Usage(format!(
            "--host-root {shown}: neither etc nor usr is in it, so nothing is mounted there; mount \
             the node's root file system there, or leave the option out"
        )));
    }
    Ok(root)
}

fn search() -> HostRoot {
    let own = Root::open(Path::new("/")).and_then(|root| root.id()).ok();
    let usual = USUAL.iter().filter(|path| is_mount_point(Path::new(path)));
    let pid_1 = [PID_1];
    let pid_1 = pid_1.iter().filter(|_| in_initial_pid_namespace());
    for path in usual.chain(pid_1) {
        let Ok(root) = Root::open(Path::new(path)) else {
            continue;
        };
        let elsewhere = root.id().ok() != own;
        let holds = |name| root.stat(name).is_ok_and(|found| found.is_some());
        if elsewhere && holds("etc") && holds("usr") {
            return HostRoot::At(root);
        }
    }
    HostRoot::Nowhere
}

/// On the node: the initial PID namespace, and PID 1's root is ours. Where that cannot be read,
/// there must be no sign of a container. Where it can, it outranks every sign: a shell that was
/// opened in a pod and changed its root to the node's still has Kubernetes' variables.
pub fn on_the_node() -> bool {
    let unreadable = || Root::open(Path::new(PID_1)).is_err();
    in_initial_pid_namespace()
        && (pid_1_has_our_root() || container_marker().is_none() && unreadable())
}

/// Device and inode number of the root of the node's first process, where that can be seen.
pub fn nodes_own_root() -> Option<Inode> {
    let root = in_initial_pid_namespace().then(|| Root::open(Path::new(PID_1)));
    root?.and_then(|root| root.id()).ok()
}

fn in_initial_pid_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/pid")
        .is_ok_and(|link| link.as_os_str() == INITIAL_PID_NAMESPACE)
}

fn pid_1_has_our_root() -> bool {
    let id = |path: &str| Root::open(Path::new(path)).and_then(|root| root.id());
    in_initial_pid_namespace() && matches!((id(PID_1), id("/")), (Ok(a), Ok(b)) if a == b)
}

/// The sign that a container runtime left, if any: Kubernetes' variable, the variable of
/// systemd's container interface, podman's and docker's files.
fn container_marker() -> Option<&'static str> {
    let variables = ["KUBERNETES_SERVICE_HOST", "container"];
    let files = ["/run/.containerenv", "/.dockerenv"];
    let variable = variables
        .into_iter()
        .find(|name| env::var_os(name).is_some());
    variable.or_else(|| files.into_iter().find(|path| Path::new(path).exists()))
}
