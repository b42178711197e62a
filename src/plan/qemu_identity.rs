//! The QEMU identity: uid, gid and supplementary groups.
//!
//! libvirt resolves qemu.conf's `user` and `group` when its daemon starts (`virGetUserID`,
//! `virGetGroupID`) and the supplementary groups at each guest start: the groups of the *first*
//! passwd name with that uid, its primary group, and the configured group (`virGetGroupList`). All
//! of it is worked out here from the files of the pod root. NSS is never asked: the question is
//! about another root, and a name service cache on a shared /run would answer for the host.
#![forbid(unsafe_code)]

use std::fmt;

use nix::unistd::{Gid, Uid};

use crate::config::Given;
use crate::formats::accounts::{group, passwd};
use crate::formats::posix_acl::Subject;
use crate::formats::qemu_conf::{IdSpec, QemuConf, id_spec};

/// What QEMU will run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The first passwd name with the uid, if it has one.
    pub user: Option<Vec<u8>>,
    /// Real, effective and saved uid.
    pub uid: Uid,
    /// Real, effective and saved gid.
    pub gid: Gid,
    /// The supplementary groups, each once.
    pub groups: Vec<Gid>,
    /// Whether this stands in for a QEMU user that the node does not have.
    pub placeholder: bool,
}

impl Identity {
    /// The stand-in on a node without libvirt: nobody, with the target as its only group.
    pub fn nobody(target: Gid) -> Self {
        /// `nobody` and `nogroup`, and the kernel's overflow IDs.
        const NOBODY: u32 = 65534;
        Self {
            user: None,
            uid: Uid::from_raw(NOBODY),
            gid: Gid::from_raw(NOBODY),
            groups: vec![target],
            placeholder: true,
        }
    }

    /// As the kernel's permission check sees it.
    pub fn who(&self) -> Subject<'_> {
        Subject {
            uid: self.uid,
            gid: self.gid,
            groups: &self.groups,
        }
    }

    /// Name and numbers: `nova (42424:108)`.
    pub fn label(&self) -> String {
        let name = self.user.as_deref().map(String::from_utf8_lossy);
        match name {
            Some(name) => format!("{name} ({}:{})", self.uid, self.gid),
            None => format!("{}:{}", self.uid, self.gid),
        }
    }
}

/// The user part: what does not depend on the group file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The first passwd name with the uid.
    pub name: Option<Vec<u8>>,
    /// The uid.
    pub uid: Uid,
    /// The primary group of that passwd line.
    pub primary: Option<Gid>,
}

/// Why there is no QEMU identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityError {
    /// No user is configured and none of the distributions' defaults exists.
    NoUser,
    /// Both distributions' users exist, or the group that goes with them cannot be told.
    Ambiguous(&'static str),
    /// A name that the pod root does not know, or a number that is no ID.
    NotFound {
        /// `user` or `group`.
        what: &'static str,
        /// As it was given.
        value: String,
        /// Where it was given.
        at: String,
        /// Whether a flag, variable or configuration file of ours gave it.
        explicit: bool,
    },
}

impl IdentityError {
    /// Whether the node simply has no libvirt, as opposed to an option that names what is not
    /// there.
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
                "whom QEMU runs as is unknown: qemu.conf names no user, and neither libvirt-qemu \
                 (Debian, Ubuntu) nor qemu (Red Hat) is in etc/passwd; give --qemu-user and \
                 --qemu-group, or run this in the libvirt image"
            ),
            Self::Ambiguous(what) => write!(
                f,
                "whom QEMU runs as is ambiguous: {what}; give --qemu-user and --qemu-group"
            ),
            Self::NotFound {
                what, value, at, ..
            } => {
                let file = if *what == "user" { "passwd" } else { "group" };
                write!(
                    f,
                    "{at}: no such {what} `{value}`: expected a name in etc/{file}, a number, or \
                     +number; libvirtd would not start with it"
                )
            }
        }
    }
}

/// What the configuration says of one of the two.
#[derive(Debug, Clone, Copy)]
pub struct Configured<'a> {
    /// From our own flags, environment or file.
    pub given: Option<&'a Given>,
    /// From qemu.conf.
    pub conf: Option<&'a QemuConf>,
    /// How qemu.conf is called in messages.
    pub conf_name: &'a str,
}

/// A name, number or +number to its number: with a plus it is never a name, and without one a name
/// comes first (`virGetUserID`, `virGetGroupID`).
fn number(
    what: &'static str,
    value: &[u8],
    at: String,
    explicit: bool,
    named: impl Fn(&[u8]) -> Option<u32>,
) -> Result<u32, IdentityError> {
    let found = match id_spec(value) {
        Some(IdSpec::Number(number)) => Some(number),
        Some(IdSpec::NameOrNumber { name, number }) => named(name).or(number),
        None => None,
    };
    found.ok_or_else(|| IdentityError::NotFound {
        what,
        value: String::from_utf8_lossy(value).into_owned(),
        at,
        explicit,
    })
}

/// Resolves the user.
///
/// # Errors
/// [`IdentityError`], without looking at any group.
pub fn user(
    configured: &Configured<'_>,
    passwd: &[u8],
    os_release: Option<&[u8]>,
) -> Result<User, IdentityError> {
    let conf = configured.conf.and_then(|conf| conf.user.as_ref());
    let by_value = |value: &[u8], at: String, explicit: bool| {
        let named = |name: &[u8]| passwd::by_name(passwd, name).map(|user| user.uid.as_raw());
        number("user", value, at, explicit, named).map(Uid::from_raw)
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

/// Resolves the rest against a group file, which may be one that is yet to be written.
///
/// # Errors
/// [`IdentityError`] for the group.
pub fn identity(
    user: &User,
    configured: &Configured<'_>,
    group_file: &[u8],
    passwd: &[u8],
    os_release: Option<&[u8]>,
) -> Result<Identity, IdentityError> {
    let conf = configured.conf.and_then(|conf| conf.group.as_ref());
    let by_value = |value: &[u8], at: String, explicit: bool| {
        let named = |name: &[u8]| group::by_name(group_file, name).map(|found| found.gid.as_raw());
        number("group", value, at, explicit, named).map(Gid::from_raw)
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
        // libvirt asks for no groups of a uid without a name.
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

/// The builds whose compiled-in defaults are known (libvirt's meson.build, `qemu_user` and
/// `qemu_group`, and the packages that set them).
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
            "qemu.conf names no user, and both libvirt-qemu and qemu are in etc/passwd",
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
            "qemu.conf names no group, and etc/os-release does not say whether this is Debian's, \
             Ubuntu's or Red Hat's libvirt",
        )),
    }
}

/// Reads `ID` and, for derivatives, `ID_LIKE` of os-release(5).
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
