//! Reads the files of the pod root.

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

/// The group file, below the pod root.
pub const GROUP_FILE: &str = "etc/group";

/// The observed state of the pod root.
#[derive(Debug)]
pub struct Pod {
    pub root: PodRoot,
    /// Whether the pod root is the host root, or its group file is the node's. Then the group file is
    /// not edited.
    pub is_host: bool,
    /// Owner and mode of etc, if it exists and the pod root is the root of another process.
    pub etc: Option<(u32, u32)>,
    /// Content of etc/group; `None` if the file does not exist.
    pub group: Option<Arc<Vec<u8>>>,
    /// Inode of that file, after following links, and its last change.
    pub group_stamp: Option<Stamp>,
    /// `--group-file-out`.
    pub out_path: Option<PathBuf>,
    /// The existing regular file of root at that path, from an earlier run or another program.
    pub group_out: Option<output_file::OutputFile>,
    /// Content of etc/passwd; empty if the file does not exist.
    pub passwd: Vec<u8>,
    pub qemu_conf: Option<Vec<u8>>,
    /// The path of qemu.conf for messages.
    pub qemu_conf_name: String,
    pub os_release: Option<Vec<u8>>,
    /// The nscd socket, if it exists: libvirtd's glibc queries nscd before it reads any file.
    pub nscd: Option<PathBuf>,
}

impl Pod {
    /// The group file that libvirtd would read now: the output of an earlier run, or the image's own
    /// file.
    pub fn effective_group(&self) -> Option<&[u8]> {
        // libvirtd runs as root, so the mode of the file does not matter.
        let out = self.group_out.as_ref().map(|out| &out.content[..]);
        out.or(self.image_group())
    }

    pub fn image_group(&self) -> Option<&[u8]> {
        self.group.as_ref().map(|file| &file[..])
    }

    /// The GID that libvirtd finds for the group.
    pub fn gid(&self, group: &str) -> Option<Gid> {
        let entry = group::by_name(self.effective_group()?, group.as_bytes());
        entry.map(|entry| entry.gid)
    }

    /// The GID of the group in the image's own file.
    #[cfg(feature = "watch")]
    pub fn image_gid(&self, group: &str) -> Option<Gid> {
        let entry = group::by_name(self.image_group()?, group.as_bytes());
        entry.map(|entry| entry.gid)
    }

    /// Content of `--group-file-out`, if the file has the owner and mode that this program sets.
    pub fn own_group_out(&self) -> Option<&[u8]> {
        let out = self.group_out.as_ref().filter(|out| out.as_left);
        out.map(|out| &out.content[..])
    }
}

/// A pod root that cannot be reached is a usage error; every other error is a failure.
pub(super) fn pod_root_error(root: &PodRoot, error: SyscallError) -> Error {
    let usage_errors = [
        Errno::ENOENT,
        Errno::ENOTDIR,
        Errno::EACCES,
        Errno::ELOOP,
        Errno::ENAMETOOLONG,
    ];
    if !usage_errors.contains(&error.errno) {
        return error.into();
    }
    let shown = root.path().display();
    Error::Usage(format!(
        "--root {shown}: {error}; set it to the root directory of libvirtd's container, or omit the option"
    ))
}

/// Whether the pod's group file is unchanged since the observation, judging by its inode and timestamps.
#[cfg(feature = "watch")]
pub fn group_file_stands(seen: &Observation) -> Result<bool> {
    match &seen.pod.out_path {
        Some(path) => {
            let existing = output_file::read_public(path).map_err(SyscallError::from)?;
            Ok(existing.and_then(|existing| existing.file) == seen.pod.group_out)
        }
        None => Ok(seen.pod.root.open()?.stamp(GROUP_FILE)? == seen.pod.group_stamp),
    }
}

/// Whether an inode is one of the node's group files.
fn is_group_file_of_node(inode: Inode, host: Option<&Host>) -> bool {
    host.is_some_and(|host| host.group_files.contains(&inode))
}

/// Reads the existing file at `--group-file-out`; fails if it must not be replaced.
fn out_file(
    path: &Path,
    made_from: Option<Inode>,
    host: Option<&Host>,
) -> Result<Option<output_file::OutputFile>> {
    let shown = path.display();
    let no = |what: &str| {
        Error::Usage(format!(
            "--group-file-out {shown} is {what}; use a file in a volume"
        ))
    };
    let existing = output_file::read_public(path).map_err(|error| match error {
        OutputDirError::Call(error) => Error::from(error),
        untrusted @ OutputDirError::Untrusted { .. } => {
            Error::Refused(format!("--group-file-out: {untrusted}"))
        }
    })?;
    let Some(existing) = existing else {
        return Ok(None);
    };
    if matches!(existing.kind, SFlag::S_IFCHR | SFlag::S_IFBLK) {
        return Err(no("a device"));
    }
    if made_from == Some(existing.inode) {
        return Err(no("the group file from which the output is made"));
    }
    if is_group_file_of_node(existing.inode, host) {
        return Err(no("the node's own group file"));
    }
    let file = existing.file;
    let content = file.as_ref().map_or(&[][..], |file| &file.content);
    if !content.trim_ascii().is_empty() && group::groups(content).next().is_none() {
        return Err(no("not a group file"));
    }
    Ok(file)
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
                    "--qemu-conf: {error}; mount libvirt's qemu.conf there, or omit the option"
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
        content => content,
    };
    let (group, group_stamp) = root.read_stamped(GROUP_FILE)?.unzip();
    let inode = group_stamp.map(|stamp| stamp.inode);
    let group_out = match &sources.group_file_out {
        Some(path) => out_file(path, inode, host)?,
        None => None,
    };
    Ok(Pod {
        root: sources.pod_root.clone(),
        is_host: is_host || inode.is_some_and(|inode| is_group_file_of_node(inode, host)),
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

/// The nscd socket. With the node's /run mounted in the pod, it belongs to the node's nscd, which returns the
/// node's groups.
fn nscd(root: &Root) -> Result<Option<PathBuf>> {
    for name in ["run/nscd/socket", "var/run/nscd/socket"] {
        match root.stat(name) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(Some(root.join(name))),
            // connect(2) fails as well on a path with a link cycle.
            Err(error) if error.errno == Errno::ELOOP => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
