//! Computes the QEMU identity: UID, GID and supplementary groups.
//!
//! libvirt resolves qemu.conf's `user` and `group` when its daemon starts (`virGetUserID`,
//! `virGetGroupID`) and the supplementary groups at each guest start: the groups of the *first*
//! passwd name with that UID, its primary group, and the configured group (`virGetGroupList`). All
//! of it is computed here from the files of the pod root. NSS is not used: it would look up this
//! container's root, or the node's where /run is shared and nscd runs.
#![forbid(unsafe_code)]

use std::fmt;

use nix::unistd::{Gid, Uid};

use crate::config::Given;
use crate::formats::accounts::{group, passwd};
use crate::formats::posix_acl::Subject;
use crate::formats::qemu_conf::{IdSpec, QemuConf, id_spec};

/// The user and groups with which libvirt starts QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The first passwd name with the UID.
    pub user: Option<Vec<u8>>,
    /// Real, effective and saved UID.
    pub uid: Uid,
    /// Real, effective and saved GID.
    pub gid: Gid,
    /// Supplementary groups, without duplicates.
    pub groups: Vec<Gid>,
    /// Whether this is [`Identity::nobody`].
    pub placeholder: bool,
}

impl Identity {
    /// Replaces the QEMU identity on a node without libvirt: nobody, with the target as only supplementary group.
    pub fn nobody(target: Gid) -> Self {
        /// UID of `nobody`, GID of `nogroup`, and the kernel's overflow IDs.
        const NOBODY: u32 = 65534;
        Self {
            user: None,
            uid: Uid::from_raw(NOBODY),
            gid: Gid::from_raw(NOBODY),
            groups: vec![target],
            placeholder: true,
        }
    }

    /// The credentials that the kernel's permission check compares.
    pub fn who(&self) -> Subject<'_> {
        Subject {
            uid: self.uid,
            gid: self.gid,
            groups: &self.groups,
        }
    }

    /// Name, UID and GID: `nova (42424:108)`.
    pub fn label(&self) -> String {
        let name = self.user.as_deref().map(String::from_utf8_lossy);
        match name {
            Some(name) => format!("{name} ({}:{})", self.uid, self.gid),
            None => format!("{}:{}", self.uid, self.gid),
        }
    }
}

/// The part of the QEMU identity that does not depend on the group file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The first passwd name with the UID.
    pub name: Option<Vec<u8>>,
    pub uid: Uid,
    /// The primary group in the passwd line of `name`.
    pub primary: Option<Gid>,
}

/// Why the QEMU identity cannot be determined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityError {
    /// No user is configured, and no distribution's default user exists.
    NoUser,
    /// More than one default user or group is possible; the text is the reason.
    Ambiguous(&'static str),
    /// A name that is not in the pod root's files, or a number that is not a valid ID.
    NotFound {
        /// `user` or `group`.
        what: &'static str,
        value: String,
        /// The option, or file and line, that sets it.
        at: String,
        /// Whether a flag, variable or configuration file of this program sets it.
        explicit: bool,
    },
}

impl IdentityError {
    /// True if the reason can be a node without libvirt; false for an ambiguity and for an option that names a missing
    /// user or group.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::NoUser => true,
            Self::Ambiguous(_) => false,
            Self::NotFound { explicit, .. } => !explicit,
        }
    }
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUser => write!(
                f,
                "cannot determine the QEMU user: qemu.conf sets no user, and neither libvirt-qemu \
                 (Debian, Ubuntu) nor qemu (Red Hat) is in etc/passwd; set --qemu-user and \
                 --qemu-group, or run the command in the libvirt image"
            ),
            Self::Ambiguous(what) => write!(
                f,
                "the QEMU user or group is ambiguous: {what}; set --qemu-user and --qemu-group"
            ),
            Self::NotFound {
                what, value, at, ..
            } => {
                let (file, id) = match *what {
                    "user" => ("passwd", "UID"),
                    _ => ("group", "GID"),
                };
                write!(
                    f,
                    "{at}: no such {what} `{value}`: expected a name in etc/{file}, a {id} or +{id}; \
                     libvirtd would not start with this value"
                )
            }
        }
    }
}

/// The sources that can set the QEMU user, or the QEMU group.
#[derive(Debug, Clone, Copy)]
pub struct Configured<'a> {
    /// This program's flag, variable or configuration file, which takes precedence.
    pub given: Option<&'a Given>,
    pub conf: Option<&'a QemuConf>,
    /// The path of qemu.conf for messages.
    pub conf_name: &'a str,
}

/// Resolves a name, an ID or `+ID`. With a plus the value is never a name; without one a name takes precedence
/// (`virGetUserID`, `virGetGroupID`).
fn resolve_id(
    what: &'static str,
    value: &[u8],
    at: String,
    explicit: bool,
    named: impl Fn(&[u8]) -> Option<u32>,
) -> Result<u32, IdentityError> {
    let id = match id_spec(value) {
        Some(IdSpec::Number(number)) => Some(number),
        Some(IdSpec::NameOrNumber { name, number }) => named(name).or(number),
        None => None,
    };
    id.ok_or_else(|| IdentityError::NotFound {
        what,
        value: String::from_utf8_lossy(value).into_owned(),
        at,
        explicit,
    })
}

/// Resolves the QEMU user, without reading the group file.
pub fn user(
    configured: &Configured<'_>,
    passwd: &[u8],
    os_release: Option<&[u8]>,
) -> Result<User, IdentityError> {
    let conf = configured.conf.and_then(|conf| conf.user.as_ref());
    let by_value = |value: &[u8], at: String, explicit: bool| {
        let named = |name: &[u8]| passwd::by_name(passwd, name).map(|user| user.uid.as_raw());
        resolve_id("user", value, at, explicit, named).map(Uid::from_raw)
    };
    let uid = if let Some(given) = configured.given {
        by_value(given.text.as_bytes(), given.origin.to_string(), true)?
    } else if let Some(setting) = conf {
        let at = format!("{}:{}: user", configured.conf_name, setting.line);
        by_value(&setting.value, at, false)?
    } else {
        default_user(passwd, os_release)?
    };
    let entry = passwd::by_uid(passwd, uid);
    Ok(User {
        name: entry.as_ref().map(|user| user.name.to_vec()),
        uid,
        primary: entry.map(|user| user.gid),
    })
}

/// Adds the groups to the QEMU user. `group_file` may be content that is not written yet.
pub fn identity(
    user: &User,
    configured: &Configured<'_>,
    group_file: &[u8],
    passwd: &[u8],
    os_release: Option<&[u8]>,
) -> Result<Identity, IdentityError> {
    let conf = configured.conf.and_then(|conf| conf.group.as_ref());
    let by_value = |value: &[u8], at: String, explicit: bool| {
        let named = |name: &[u8]| group::by_name(group_file, name).map(|group| group.gid.as_raw());
        resolve_id("group", value, at, explicit, named).map(Gid::from_raw)
    };
    let gid = if let Some(given) = configured.given {
        by_value(given.text.as_bytes(), given.origin.to_string(), true)?
    } else if let Some(setting) = conf {
        let at = format!("{}:{}: group", configured.conf_name, setting.line);
        by_value(&setting.value, at, false)?
    } else {
        let name = default_group(passwd, os_release)?;
        by_value(name.as_bytes(), "libvirt's default".to_owned(), false)?
    };
    let mut groups = match (&user.name, user.primary) {
        (Some(name), Some(primary)) => group::gids_of(group_file, name, primary),
        // `virGetGroupList` looks up no groups for a UID without a name.
        _ => Vec::new(),
    };
    if !groups.contains(&gid) {
        groups.push(gid);
    }
    Ok(Identity {
        user: user.name.clone(),
        uid: user.uid,
        gid,
        groups,
        placeholder: false,
    })
}

/// libvirt builds with known compiled-in defaults (`qemu_user` and `qemu_group` in libvirt's meson.build, and the
/// packages that set them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    /// libvirt-qemu:libvirt-qemu
    Debian,
    /// libvirt-qemu:kvm
    Ubuntu,
    /// qemu:qemu
    RedHat,
}

fn default_user(passwd: &[u8], os_release: Option<&[u8]>) -> Result<Uid, IdentityError> {
    let debian = passwd::by_name(passwd, b"libvirt-qemu").map(|user| user.uid);
    let red_hat = passwd::by_name(passwd, b"qemu").map(|user| user.uid);
    match (debian, red_hat, build(os_release)) {
        (None, None, _) => Err(IdentityError::NoUser),
        (Some(uid), None, _) | (None, Some(uid), _) => Ok(uid),
        (Some(uid), Some(_), Some(Build::Debian | Build::Ubuntu)) => Ok(uid),
        (Some(_), Some(uid), Some(Build::RedHat)) => Ok(uid),
        (Some(_), Some(_), None) => Err(IdentityError::Ambiguous(
            "qemu.conf sets no user, and both libvirt-qemu and qemu are in etc/passwd",
        )),
    }
}

fn default_group(passwd: &[u8], os_release: Option<&[u8]>) -> Result<&'static str, IdentityError> {
    let debian = passwd::by_name(passwd, b"libvirt-qemu").is_some();
    let red_hat = passwd::by_name(passwd, b"qemu").is_some();
    match (build(os_release), debian, red_hat) {
        (Some(Build::Ubuntu), _, _) => Ok("kvm"),
        (Some(Build::Debian), _, _) => Ok("libvirt-qemu"),
        (Some(Build::RedHat), _, _) | (None, false, true) => Ok("qemu"),
        (None, _, _) => Err(IdentityError::Ambiguous(
            "qemu.conf sets no group, and etc/os-release does not show whether this is Debian's, \
             Ubuntu's or Red Hat's libvirt",
        )),
    }
}

/// Determines the build from `ID` and, for derivatives, `ID_LIKE` of os-release(5).
fn build(os_release: Option<&[u8]>) -> Option<Build> {
    let text = String::from_utf8_lossy(os_release?).into_owned();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
        line.map(|value| value.trim_matches(['"', '\'']).to_ascii_lowercase())
    };
    let words = [value("ID="), value("ID_LIKE=")];
    let mut words = words
        .iter()
        .flatten()
        .flat_map(|line| line.split_whitespace());
    words.find_map(|word| match word {
        "ubuntu" => Some(Build::Ubuntu),
        "debian" => Some(Build::Debian),
        "rhel" | "fedora" | "centos" | "rocky" | "almalinux" => Some(Build::RedHat),
        _ => None,
    })
}
