//! One snapshot of every fact that a decision rests on. Nothing here decides or changes anything.

pub mod daemons;
pub mod group_db;
mod host;
pub mod host_root;
pub mod libvirtd;
pub mod udev_files;
pub mod view;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use nix::unistd::Gid;

use crate::config::{Libvirtd, PodRoot, Sources};
use crate::error::{Error, Result};
use crate::formats::accounts::group;
use crate::formats::posix_acl::Acl;
use crate::sys::device::{Device, DeviceStat};
use crate::sys::output_dir::OutputDirError;
use crate::sys::root::{Root, Stamp, read_here};
use crate::sys::{Inode, SyscallError, output_file, proc};
use host_root::HostRoot;

pub use host::Host;

/// Where the group file of the pod root is.
pub const GROUP_FILE: &str = "etc/group";

/// Everything that was seen.
#[derive(Debug)]
pub struct Observation {
    /// The device's path.
    pub device_path: PathBuf,
    /// Whether that was named, not assumed.
    pub device_explicit: bool,
    /// The node, if it can be seen from here.
    pub host: Option<Host>,
    /// The pod root.
    pub pod: Pod,
    /// What stands at the device's path.
    pub device: Option<Node>,
    /// Whether a KVM driver is registered.
    pub driver: Driver,
    /// Why a proof may say nothing of the libvirtd that runs.
    pub doubt: Option<Doubt>,
}

/// Why a proof may say nothing of the libvirtd that runs.
#[derive(Debug)]
pub enum Doubt {
    /// Its container shows another device, or a mount that ignores devices.
    OtherDevice(OtherDevice),
    /// None runs with the node's device; perhaps one (its process ID) with a /dev of its own.
    NoLibvirtd(Option<u32>),
    /// It cannot be told from others, or may not be looked at: why.
    Unclear(String),
}

/// A device that is not the one that was looked at.
#[derive(Debug)]
pub struct OtherDevice {
    /// The one that was looked at.
    pub here: DeviceStat,
    /// What stands at its path below the pod root, if that is a KVM device.
    pub there: Option<DeviceStat>,
    /// Whether that is on a `nodev` mount, and the one that was looked at is not.
    pub is_nodev: bool,
}

/// With the node's /run in the pod, the node's name service cache would answer for the node.
fn nscd(root: &Root) -> Result<Option<PathBuf>> {
    for name in ["run/nscd/socket", "var/run/nscd/socket"] {
        match root.stat(name) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(Some(root.join(name))),
            // Nobody connects to a socket behind links that lead in a circle.
            Err(error) if error.errno == Errno::ELOOP => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// What is seen of the pod root.
#[derive(Debug)]
pub struct Pod {
    /// Where it is.
    pub root: PodRoot,
    /// Whether it is the host root, or its group file is the node's: then this is the node itself
    /// as far as the group file goes.
    pub is_host: bool,
    /// Owner and mode of etc, if there is one and the root is another process'.
    pub etc: Option<(u32, u32)>,
    /// etc/group, if there is one.
    pub group: Option<Arc<Vec<u8>>>,
    /// Which file that is, links followed, and when it was changed last.
    pub group_stamp: Option<Stamp>,
    /// `--group-file-out`.
    pub out_path: Option<PathBuf>,
    /// The regular file of root's that stands there, from an earlier run or another program.
    pub group_out: Option<output_file::OutputFile>,
    /// etc/passwd, empty if there is none.
    pub passwd: Vec<u8>,
    /// qemu.conf and what it is called.
    pub qemu_conf: Option<Vec<u8>>,
    /// The name of qemu.conf for messages.
    pub qemu_conf_name: String,
    /// etc/os-release.
    pub os_release: Option<Vec<u8>>,
    /// A name service cache's socket, which libvirtd would ask before it reads any file.
    pub nscd: Option<PathBuf>,
}

impl Pod {
    /// The group file that libvirtd would read now: what an earlier run left for it, or the
    /// image's own.
    pub fn effective_group(&self) -> Option<&[u8]> {
        // libvirtd is root and reads it whatever its mode.
        let out = self.group_out.as_ref().map(|out| &out.content[..]);
        out.or(self.image_group())
    }

    /// The image's own group file.
    pub fn image_group(&self) -> Option<&[u8]> {
        self.group.as_ref().map(|file| &file[..])
    }

    /// The number that libvirtd finds for the group.
    pub fn gid(&self, group: &str) -> Option<Gid> {
        let found = group::by_name(self.effective_group()?, group.as_bytes());
        found.map(|found| found.gid)
    }

    /// The number that the image has for the group.
    #[cfg(feature = "watch")]
    pub fn image_gid(&self, group: &str) -> Option<Gid> {
        let found = group::by_name(self.image_group()?, group.as_bytes());
        found.map(|found| found.gid)
    }

    /// What stands at `--group-file-out`, if it is as this program leaves it but for its content.
    pub fn own_group_out(&self) -> Option<&[u8]> {
        let out = self.group_out.as_ref().filter(|out| out.as_left);
        out.map(|out| &out.content[..])
    }
}

/// A device node and what guards it.
#[derive(Debug, Clone)]
pub struct Node {
    /// Kind, numbers, owner, mode.
    pub facts: DeviceStat,
    /// Its ACL.
    pub acl: Option<Acl>,
    /// Whether it is on a `nodev` mount.
    pub nodev: bool,
    /// Whether its owner or group may be one that this user namespace does not map, and shows as
    /// 65534.
    pub unmapped: bool,
}

/// Whether anything answers behind 10:232.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `/proc/misc` lists it.
    Present,
    /// `/proc/misc` does not list it, and nothing contradicts.
    Absent,
    /// Nothing could be learned.
    Unknown,
}

/// Looks at everything. The second value is the device, found and still unopened, for the steps
/// that change it.
///
/// # Errors
/// [`Error::Usage`] for what was given and is not there; otherwise the call that failed.
pub fn observe(sources: &Sources) -> Result<(Observation, Option<Device>)> {
    let host_root = match host_root::find(sources.host_root.as_deref()) {
        Err(_) if sources.host_root_optional => HostRoot::Nowhere,
        found => found?,
    };
    match &host_root {
        HostRoot::At(root) => log::debug!("host root: {}", root.path().display()),
        HostRoot::Nowhere => log::debug!("host root: none is seen from here"),
    }
    let pod_root = sources.pod_root.open();
    let pod_root = pod_root.map_err(|error| pod_root_error(&sources.pod_root, error))?;
    let host = match &host_root {
        HostRoot::At(root) => Some(Host::observe(root, sources.rule_slot)?),
        HostRoot::Nowhere => None,
    };
    let is_host = match &host_root {
        HostRoot::At(root) => root.id()? == pod_root.id()?,
        HostRoot::Nowhere => false,
    };
    let device = Device::find(&sources.device)?;
    let node = device.as_ref().map(node).transpose()?;
    let driver = driver(device.as_ref());
    let pod = pod(&pod_root, is_host, host.as_ref(), sources)?;
    let seen = Observation {
        device_path: sources.device.clone(),
        device_explicit: sources.device_explicit,
        host,
        pod,
        device: node,
        driver,
        doubt: doubt(sources, device.as_ref()),
    };
    Ok((seen, device))
}

fn doubt(sources: &Sources, device: Option<&Device>) -> Option<Doubt> {
    match &sources.libvirtd {
        Libvirtd::Own => None,
        Libvirtd::Container => other_device(device?, sources).map(Doubt::OtherDevice),
        Libvirtd::Missing(other) => Some(Doubt::NoLibvirtd(*other)),
        Libvirtd::Unclear(text) => Some(Doubt::Unclear(text.clone())),
    }
}

/// What the pod root shows instead of the device that was looked at. What cannot be looked at is not reported
/// as odd.
fn other_device(device: &Device, sources: &Sources) -> Option<OtherDevice> {
    let here = device.facts();
    let root = sources.pod_root.open().ok()?;
    let name = sources.device.to_string_lossy();
    let there = root.stat(&name).ok()?.map(DeviceStat::from);
    let is_nodev =
        root.is_nodev(&name).unwrap_or(false) && !device.on_nodev_mount().unwrap_or(false);
    let is_same = there.is_some_and(|there| there.inode == here.inode);
    if !here.is_kvm() || is_same && !is_nodev {
        return None;
    }
    Some(OtherDevice {
        here,
        there: there.filter(DeviceStat::is_kvm),
        is_nodev,
    })
}

/// A root that is not there was named by mistake; whatever else the kernel answers is a failure.
fn pod_root_error(root: &PodRoot, error: SyscallError) -> Error {
    let by_mistake = [
        Errno::ENOENT,
        Errno::ENOTDIR,
        Errno::EACCES,
        Errno::ELOOP,
        Errno::ENAMETOOLONG,
    ];
    if !by_mistake.contains(&error.errno) {
        return error.into();
    }
    let shown = root.path().display();
    Error::Usage(format!(
        "--root {shown}: {error}; give the root directory of libvirtd's container, or leave the option out"
    ))
}

/// Looks at the device again, which changes more often than what decides about it.
///
/// # Errors
/// The call that failed.
#[cfg(feature = "watch")]
pub fn look_again(seen: &mut Observation, sources: &Sources) -> Result<Option<Device>> {
    let device = Device::find(&sources.device)?;
    seen.device = device.as_ref().map(node).transpose()?;
    seen.driver = driver(device.as_ref());
    if let Some(host) = &mut seen.host {
        host.node = Root::open(&host.root)?
            .stat("dev/kvm")?
            .map(DeviceStat::from);
    }
    seen.doubt = doubt(sources, device.as_ref());
    Ok(device)
}

/// Whether the pod's group file is still the one that was seen, as far as its inode and its times tell.
///
/// # Errors
/// The call that failed.
#[cfg(feature = "watch")]
pub fn group_file_stands(seen: &Observation) -> Result<bool> {
    match &seen.pod.out_path {
        Some(path) => {
            let stands = output_file::read_public(path).map_err(SyscallError::from)?;
            Ok(stands.and_then(|stands| stands.file) == seen.pod.group_out)
        }
        None => Ok(seen.pod.root.open()?.stamp(GROUP_FILE)? == seen.pod.group_stamp),
    }
}

/// Whether an inode is one of the node's group files, by whatever path it was found.
fn is_the_nodes(inode: Inode, host: Option<&Host>) -> bool {
    host.is_some_and(|host| host.group_files.contains(&inode))
}

/// What stands at `--group-file-out`, once it is certain that it may be replaced.
fn out_file(
    path: &Path,
    made_from: Option<Inode>,
    host: Option<&Host>,
) -> Result<Option<output_file::OutputFile>> {
    let shown = path.display();
    let no = |why: &str| {
        Error::Usage(format!(
            "--group-file-out {shown}: {why}; name a file in a volume"
        ))
    };
    let stands = output_file::read_public(path).map_err(|unfit| match unfit {
        OutputDirError::Call(error) => Error::from(error),
        untrusted @ OutputDirError::Untrusted { .. } => {
            Error::Refused(format!("--group-file-out: {untrusted}"))
        }
    })?;
    let Some(stands) = stands else {
        return Ok(None);
    };
    if matches!(stands.kind, SFlag::S_IFCHR | SFlag::S_IFBLK) {
        return Err(no("that is a device"));
    }
    if made_from == Some(stands.inode) {
        return Err(no("that is the group file that it is made from"));
    }
    if is_the_nodes(stands.inode, host) {
        return Err(no("that is the node's own group file"));
    }
    let found = stands.file;
    let content = found.as_ref().map_or(&[][..], |found| &found.content);
    if !content.trim_ascii().is_empty() && group::groups(content).next().is_none() {
        return Err(no("that is a file of something else than groups"));
    }
    Ok(found)
}

fn pod(root: &Root, is_host: bool, host: Option<&Host>, sources: &Sources) -> Result<Pod> {
    let (qemu_conf, qemu_conf_name) = match &sources.qemu_conf {
        Some(path) => {
            let content = read_here(path).map_err(|error| {
                Error::Usage(format!(
                    "--qemu-conf: {error}; mount libvirt's qemu.conf there, or leave the option out"
                ))
            })?;
            (Some(content), path.display().to_string())
        }
        None => {
            let name = "etc/libvirt/qemu.conf";
            (root.read(name)?, root.join(name).display().to_string())
        }
    };
    let os_release = match root.read("etc/os-release")? {
        None => root.read("usr/lib/os-release")?,
        found => found,
    };
    let (group, group_stamp) = root.read_stamped(GROUP_FILE)?.unzip();
    let inode = group_stamp.map(|stamp| stamp.inode);
    let group_out = match &sources.group_file_out {
        Some(path) => out_file(path, inode, host)?,
        None => None,
    };
    Ok(Pod {
        root: sources.pod_root.clone(),
        is_host: is_host || inode.is_some_and(|inode| is_the_nodes(inode, host)),
        etc: match sources.pod_root.is_of_process() {
            true => root
                .stat("etc")?
                .map(|etc| (etc.st_uid, etc.st_mode & 0o7777)),
            false => None,
        },
        group: group.map(Arc::new),
        group_stamp,
        out_path: sources.group_file_out.clone(),
        group_out,
        passwd: root.read("etc/passwd")?.unwrap_or_default(),
        qemu_conf,
        qemu_conf_name,
        os_release,
        nscd: nscd(root)?,
    })
}

fn node(device: &Device) -> Result<Node> {
    let facts = device.facts();
    if !facts.is_kvm() {
        // Of what is not the device, only its kind is of interest.
        return Ok(Node {
            facts,
            acl: None,
            nodev: false,
            unmapped: false,
        });
    }
    /// What the kernel shows for an ID without a mapping (/proc/sys/kernel/overflowuid).
    const OVERFLOW: u32 = 65534;
    let shows_overflow = facts.uid.as_raw() == OVERFLOW || facts.gid.as_raw() == OVERFLOW;
    Ok(Node {
        facts,
        acl: device.acl()?,
        nodev: device.on_nodev_mount()?,
        unmapped: shows_overflow && in_user_namespace(),
    })
}

/// Whether some IDs are not mapped here (user_namespaces(7)).
fn in_user_namespace() -> bool {
    let map = proc::text("/proc/self/uid_map").unwrap_or_default();
    let mut words = map.split_whitespace();
    words.next() != Some("0") || words.next() != Some("0") || words.next() != Some("4294967295")
}

/// `/proc/misc` lists 232 if and only if a KVM driver is registered (drivers/char/misc.c). Where it
/// does not, an open decides: on some architectures that is what loads the module.
fn driver(device: Option<&Device>) -> Driver {
    let listed = proc::text("/proc/misc").map(|list| {
        list.lines()
            .any(|line| line.split_whitespace().eq(["232", "kvm"]))
    });
    if listed == Some(true) {
        return Driver::Present;
    }
    let Some(device) = device.filter(|device| device.facts().is_kvm()) else {
        return listed.map_or(Driver::Unknown, |_| Driver::Absent);
    };
    match device.try_open() {
        Ok(()) => Driver::Present,
        Err(error) if is_no_driver(error.errno) => Driver::Absent,
        Err(_) => listed.map_or(Driver::Unknown, |_| Driver::Absent),
    }
}

/// What open(2) answers when nothing is registered for a device's numbers.
pub fn is_no_driver(errno: Errno) -> bool {
    matches!(errno, Errno::ENODEV | Errno::ENXIO)
}

/// The directories above `device`, outermost first, for a reason why it cannot be reached: those that
/// its path names, and those that the links in it lead through.
pub fn directories_above(device: &Path) -> Vec<(PathBuf, Node)> {
    let named = std::path::absolute(device).unwrap_or_default();
    let Some(named) = named.parent() else {
        return Vec::new();
    };
    let real = named.canonicalize().unwrap_or_default();
    let mut paths: Vec<&Path> = named.ancestors().collect();
    paths.reverse();
    let mut more: Vec<&Path> = real.ancestors().collect();
    more.reverse();
    more.retain(|path| !paths.contains(path));
    let node = |path: &Path| {
        let device = Device::find(path).ok()??;
        // A link has no rights of its own.
        if device.facts().kind != SFlag::S_IFDIR {
            return None;
        }
        let node = Node {
            facts: device.facts(),
            acl: device.acl().ok()?,
            nodev: false,
            unmapped: false,
        };
        Some((path.to_owned(), node))
    };
    paths.into_iter().chain(more).filter_map(node).collect()
}
