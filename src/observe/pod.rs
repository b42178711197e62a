//! What is seen of the pod root.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use nix::unistd::Gid;

#[cfg(feature = "watch")]
use super::Observation;
use super::host::Host;
use crate::config::{PodRoot, Sources};
use crate::error::{Error, Result};
use crate::formats::accounts::group;
use crate::sys::output_dir::OutputDirError;
use crate::sys::root::{Root, Stamp, read_here};
use crate::sys::{Inode, SyscallError, output_file};

/// Where the group file of the pod root is.
pub const GROUP_FILE: &str = "etc/group";

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

/// A root that is not there was named by mistake; whatever else the kernel answers is a failure.
pub(super) fn pod_root_error(root: &PodRoot, error: SyscallError) -> Error {
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

pub(super) fn pod(
    root: &Root,
    is_host: bool,
    host: Option<&Host>,
    sources: &Sources,
) -> Result<Pod> {
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
