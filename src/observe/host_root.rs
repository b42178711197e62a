//! Finds the host root: `/` on the node itself, or a mount of the node's file system in a container.

use std::env;
use std::path::Path;

use crate::error::Error;
use crate::sys::Inode;
use crate::sys::root::{Root, is_mount_point};

/// Usual mount points of the node's file system in a container.
const USUAL: [&str; 2] = ["/mnt/host-rootfs", "/host"];
/// The root of PID 1; in the initial PID namespace this is the node's root.
const PID_1: &str = "/proc/1/root";
/// The target of /proc/self/ns/pid in the initial PID namespace (include/linux/proc_ns.h,
/// `PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The result of the search for the host root.
#[derive(Debug)]
pub enum HostRoot {
    /// The host root; `/` on the node itself.
    At(Root),
    /// This is a container without access to the node's file system.
    Nowhere,
}

/// Finds the host root; `path` is the value of `--host-root`.
///
/// # Errors
/// [`Error::Usage`] if `path` does not exist, is empty, or is this container's own root.
pub fn find(path: Option<&Path>) -> Result<HostRoot, Error> {
    match path {
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
            "--host-root {shown}: {error}; mount the node's root file system there, or omit the \
             option"
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
    // An empty mount point: without this error, the node's files would be missing without notice.
    if ["etc", "usr"]
        .iter()
        .all(|name| matches!(root.stat(name), Ok(None)))
    {
        return Err(Error::Usage(format!(
            "--host-root {shown}: it contains neither etc nor usr, so nothing is mounted there; mount \
             the node's root file system there, or omit the option"
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
        let contains = |name| root.stat(name).is_ok_and(|stat| stat.is_some());
        if elsewhere && contains("etc") && contains("usr") {
            return HostRoot::At(root);
        }
    }
    HostRoot::Nowhere
}

/// Whether this process runs on the node itself: in the initial PID namespace and with the root of PID 1.
/// If the root of PID 1 cannot be read, there must be no container marker. If it can, markers do not
/// count: a shell from a pod that changed its root to the node's still has Kubernetes' variables.
pub fn on_the_node() -> bool {
    let unreadable = || Root::open(Path::new(PID_1)).is_err();
    in_initial_pid_namespace()
        && (pid_1_has_our_root() || container_marker().is_none() && unreadable())
}

/// Device and inode number of the root of the node's PID 1, if it can be read.
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

/// The container marker, if any: the variable of Kubernetes, the variable of systemd's container
/// interface, or the file of podman or docker.
fn container_marker() -> Option<&'static str> {
    let variables = ["KUBERNETES_SERVICE_HOST", "container"];
    let files = ["/run/.containerenv", "/.dockerenv"];
    let variable = variables
        .into_iter()
        .find(|name| env::var_os(name).is_some());
    variable.or_else(|| files.into_iter().find(|path| Path::new(path).exists()))
}
