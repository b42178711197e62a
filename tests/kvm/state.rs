//! Generates random states of node and pod, and sets them up.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;

use support::random::Random;
use support::{Tree, bind, detach, fresh_dev, mknod_char, mknod_kvm, ok, scratch, set_owner};

pub const DEVICE: &str = "/dev/kvm";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Kvm,
    Missing,
    Directory,
    File,
    Fifo,
    LinkToKvm,
    DanglingLink,
    OtherMinor,
    OtherMajor,
    Block,
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mount {
    Normal,
    Nodev,
    ReadOnly,
}

impl Mount {
    fn options(self) -> MsFlags {
        match self {
            Self::Normal => MsFlags::empty(),
            Self::Nodev => MsFlags::MS_NODEV,
            Self::ReadOnly => MsFlags::MS_RDONLY,
        }
    }
}

/// The file at dev/kvm in the host root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnHost {
    Nothing,
    Same,
    Other,
}

/// Whether `--group-file-out` is set, and the file that exists there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    NotSet,
    Fresh,
    Stale,
    WrongMode,
}

#[derive(Debug, Clone)]
pub struct State {
    pub kind: Kind,
    pub owner: (u32, u32),
    pub mode: u32,
    /// In the syntax of `setfacl --set`.
    pub acl: Option<String>,
    pub mount: Mount,
    pub dev_mode: u32,
    pub on_host: OnHost,
    pub pod_group: Option<String>,
    pub host_group: Option<&'static str>,
    pub rules: &'static str,
    pub passwd: &'static str,
    pub user: Option<&'static str>,
    pub group: Option<&'static str>,
    pub quote: char,
    /// `ID` of os-release.
    pub build: Option<&'static str>,
    pub out: Out,
    pub options: Vec<&'static str>,
    /// If set, `apply --dry-run` runs before `apply`.
    pub dry_run_first: bool,
}

const GROUPS: [&str; 22] = [
    "root:x:0:\nkvm:x:424:\nnova:x:42424:\n",
    "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n",
    "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n",
    "root:x:0:\nkvm:x:108:nova\nnova:x:42424:\n",
    "root:x:0:\nkvm:x:108:\nnova:x:42424:\n",
    "root:x:0:\nkvm:x:108:alice,nova\nnova:x:42424:\n",
    "root:x:0:\nnova:x:42424:\n",
    "root:x:0:\r\nkvm:x:424:nova\r\nnova:x:42424:\r\n",
    "root:x:0:\r\nkvm:x:108:nova\r\nnova:x:42424:\r\n",
    "root:x:0:\nkvm:x:424:nova\nkvm:x:700:nova\nnova:x:42424:\n",
    "root:x:0:\nkvm:x:700:\nkvm:x:108:nova\nnova:x:42424:\n",
    "root:x:0:\nrender:x:108:bob\nkvm:x:424:\nnova:x:42424:\n",
    "root:x:0:\nrender:x:108:nova\nnova:x:42424:\n",
    "root:x:0:\nlibvirt:x:108:\nkvm:x:424:nova\nnova:x:42424:\n",
    "root:x:0:\n108:x:555:\nkvm:x:424:\nnova:x:42424:\n",
    "root:x:0:\nkvm:x:0:nova\nnova:x:42424:\n",
    "root:x:0:\nnova:x:42424:\nkvm:x:424:nova",
    "root:x:0:\nnova:x:42424:\n  kvm:x:108:",
    "",
    "root:x:0:\n#kvm:x:108:nova\nkvm:x:424:\nnova:x:42424:\n",
    "root:x:0:\nkvm:x:424\nnova:x:42424:\n",
    "root:x:0:\n\nbad line\nbad:x:4294967295:bob\nkvm:x:424:\nnova:x:42424:\n",
];

const HOST_GROUPS: [Option<&str>; 12] = [
    Some("root:x:0:\nkvm:x:108:\n"),
    Some("root:x:0:\nkvm:x:108:\n"),
    Some("root:x:0:\nkvm:x:108:\n"),
    Some("root:x:0:\nkvm:x:108:\n"),
    Some("root:x:0:\nkvm:x:108:\n"),
    Some("root:x:0:\nkvm:x:424:\n"),
    Some("root:x:0:\nkvm:x:929292:\n"),
    Some("root:x:0:\n"),
    Some("root:x:0:\nkvm:x:0:\n"),
    Some("root:x:0:\nrender:x:108:\n"),
    Some("root:x:0:\nrender:x:108:\nkvm:x:108:\n"),
    None,
];

/// No rules, Debian's, Fedora's, a mode alone, a pinned GID after Debian's rule, and a group that does not exist.
const RULES: [&str; 9] = [
    "",
    "",
    DEBIAN,
    DEBIAN,
    DEBIAN,
    "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0666\", OPTIONS+=\"static_node=kvm\"\n",
    "KERNEL==\"kvm\", MODE=\"0666\"\n",
    "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n\
     KERNEL==\"kvm\", GROUP=\"929292\", MODE=\"0660\"\n",
    "KERNEL==\"kvm\", GROUP=\"nothing-here\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n",
];
const DEBIAN: &str =
    "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";

const ROOT: &str = "root:x:0:0:root:/root:/bin/sh\n";
const PASSWDS: [&str; 10] = [
    "nova:x:42424:42424::/:\n",
    "nova:x:42424:42424::/:\n",
    "nova:x:42424:42424::/:\n",
    "compute:x:42424:7777::/:\nnova:x:42424:42424::/:\n",
    "nova:x:42424:108::/:\n",
    "nova:x:42424:424::/:\n",
    "nova:x:42424:42424::/:\nlibvirt-qemu:x:64055:104::/:\n",
    "nova:x:42424:42424::/:\nqemu:x:107:107::/:\n",
    "libvirt-qemu:x:64055:104::/:\n",
    "nova:x:0108:42424::/:\n42424:x:5151:42424::/:\n",
];

impl State {
    pub fn draw(random: &mut Random) -> Self {
        use Kind::{
            Block, DanglingLink, Directory, Fifo, File, Kvm, LinkToKvm, Missing, Null, OtherMajor,
            OtherMinor,
        };
        let others = [
            Missing,
            Missing,
            Directory,
            File,
            Fifo,
            LinkToKvm,
            DanglingLink,
            OtherMinor,
            OtherMajor,
            Block,
            Null,
        ];
        let kind = if random.chance(82) {
            Kvm
        } else {
            random.pick(&others)
        };
        let ids = [0, 0, 0, 42424, 108, 424, 65534, 1234];
        let gids = [0, 108, 108, 424, 424, 42424, 65534, 929292, 7777];
        let owner = (random.pick(&ids), random.pick(&gids));
        let mode = random.pick(&[
            0o600, 0o600, 0o660, 0o660, 0o660, 0o640, 0o606, 0o666, 0o000, 0o620, 0o006, 0o066,
            0o604,
        ]);
        let acl = (kind == Kvm && random.chance(35)).then(|| draw_acl(random));
        let mount = match random.below(100) {
            0..8 => Mount::Nodev,
            8..16 => Mount::ReadOnly,
            _ => Mount::Normal,
        };
        let dev_mode = match random.below(100) {
            0..5 => 0o700,
            5..10 => 0o711,
            10..12 => 0o754,
            _ => 0o755,
        };
        let on_host = match random.below(100) {
            0..20 => OnHost::Same,
            20..24 => OnHost::Other,
            _ => OnHost::Nothing,
        };
        let mut pod_group = (!random.chance(2)).then(|| random.pick(&GROUPS).to_owned());
        let passwd = random.pick(&PASSWDS);
        if let Some(text) = &mut pod_group
            && !text.is_empty()
            && random.chance(70)
        {
            *text = format!("libvirt-qemu:x:104:\nqemu:x:107:\n{text}");
        }
        let user = random.pick(&[
            Some("nova"),
            Some("nova"),
            Some("nova"),
            Some("nova"),
            Some("nova"),
            Some("nova"),
            Some("+42424"),
            Some("42424"),
            Some("4242"),
            Some("+4242"),
            Some("root"),
            Some("+0"),
            None,
        ]);
        let group = random.pick(&[
            Some("kvm"),
            Some("kvm"),
            Some("kvm"),
            Some("kvm"),
            Some("kvm"),
            Some("nova"),
            Some("+108"),
            Some("108"),
            Some("424"),
            Some("+4242"),
            None,
        ]);
        let (user, group) = match random.below(100) {
            0..2 => (Some("nobody-here"), group),
            2..4 => (user, Some("nothing-here")),
            _ => (user, group),
        };
        let build = random.pick(&[Some("debian"), Some("ubuntu"), Some("rocky"), None]);
        let out = if random.chance(25) {
            random.pick(&[Out::Fresh, Out::Fresh, Out::Stale, Out::WrongMode])
        } else {
            Out::NotSet
        };
        let state = Self {
            kind,
            owner,
            mode,
            acl,
            mount,
            dev_mode,
            on_host,
            pod_group,
            host_group: random.pick(&HOST_GROUPS),
            rules: random.pick(&RULES),
            passwd,
            user,
            group,
            quote: random.pick(&['"', '\'']),
            build,
            out,
            options: draw_options(random),
            dry_run_first: random.chance(50),
        };
        // Otherwise hardly any state would need no change.
        if random.chance(12) {
            state.made_right(random)
        } else {
            state
        }
    }

    /// This state with a pod and a device that agree with the node, except for at most one attribute.
    fn made_right(self, random: &mut Random) -> Self {
        let mut right = Self {
            kind: Kind::Kvm,
            owner: (0, 108),
            mode: random.pick(&[0o660, 0o666]),
            acl: None,
            pod_group: Some("root:x:0:\nkvm:x:108:nova\nnova:x:42424:\n".to_owned()),
            host_group: Some("root:x:0:\nkvm:x:108:\n"),
            user: Some("nova"),
            group: Some("kvm"),
            passwd: "nova:x:42424:42424::/:\n",
            ..self.clone()
        };
        match random.below(8) {
            0 => right.owner = self.owner,
            1 => right.mode = self.mode,
            2 => right.acl = self.acl,
            3 => right.pod_group = self.pod_group,
            4 => right.group = self.group,
            5 => right.passwd = self.passwd,
            _ => {}
        }
        right
    }

    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|given| given.starts_with(option))
    }

    /// The user and group of libvirtd's build, of qemu.conf or of the flags.
    pub fn configured(&self) -> Option<(String, String)> {
        let known = |name: &str| {
            let mut lines = self.passwd.lines();
            lines.any(|line| line.starts_with(&format!("{name}:")))
        };
        let flag = |name: &str| {
            let found = self
                .options
                .iter()
                .find_map(|given| given.strip_prefix(name));
            found.map(str::to_owned)
        };
        let given_group = flag("--qemu-group=").or_else(|| self.group.map(str::to_owned));
        let (user, group) = match self.build {
            Some("debian") => ("libvirt-qemu", "libvirt-qemu"),
            Some("ubuntu") => ("libvirt-qemu", "kvm"),
            Some("rocky") => ("qemu", "qemu"),
            _ if known("qemu") => ("qemu", "qemu"),
            // Debian's and Ubuntu's builds have different groups.
            _ if given_group.is_some() => ("libvirt-qemu", "?"),
            _ => return None,
        };
        // An image that was assembled from packages of another distribution has only one of the two users.
        let user = match user {
            "libvirt-qemu" if !known("libvirt-qemu") && known("qemu") => "qemu",
            "qemu" if !known("qemu") && known("libvirt-qemu") => "libvirt-qemu",
            user => user,
        };
        let user = flag("--qemu-user=").unwrap_or_else(|| self.user.unwrap_or(user).to_owned());
        let group = given_group.unwrap_or_else(|| group.to_owned());
        Some((user, group))
    }
}

fn draw_acl(random: &mut Random) -> String {
    let perms = ["rw-", "rw-", "r--", "---", "-w-", "rwx"];
    let mut entries = vec![
        format!("u::{}", random.pick(&["rw-", "r--", "---", "rwx"])),
        format!("g::{}", random.pick(&perms)),
        format!("o::{}", random.pick(&["---", "---", "r--", "rw-"])),
    ];
    let mut named = false;
    for uid in [1234, 42424, 0] {
        if random.chance(30) {
            entries.push(format!("u:{uid}:{}", random.pick(&perms)));
            named = true;
        }
    }
    for gid in [108, 424, 42424, 4321] {
        if random.chance(20) {
            entries.push(format!("g:{gid}:{}", random.pick(&perms)));
            named = true;
        }
    }
    if named || random.chance(50) {
        entries.push(format!("m::{}", random.pick(&perms)));
    }
    entries.join(",")
}

fn draw_options(random: &mut Random) -> Vec<&'static str> {
    let mut options = Vec::new();
    let mut add = |random: &mut Random, percent, from: &[&'static str]| {
        if random.chance(percent) {
            options.push(random.pick(from));
        }
    };
    add(random, 20, &["--mode=0660", "--mode=0666", "--mode=0664"]);
    add(
        random,
        15,
        &["--gid=108", "--gid=424", "--gid=700", "--gid=4294967294"],
    );
    add(random, 6, &["--strict"]);
    add(
        random,
        15,
        &["--proof=create-vm", "--proof=create-vm", "--proof=off"],
    );
    add(random, 15, &["--missing=skip"]);
    add(random, 15, &["--device=/dev/kvm"]);
    add(
        random,
        5,
        &[
            "--qemu-user=nova",
            "--qemu-user=+4242",
            "--qemu-user=4294967294",
        ],
    );
    add(
        random,
        5,
        &["--qemu-group=nova", "--qemu-group=kvm", "--qemu-group=+5"],
    );
    options
}

/// A state that is set up in the current namespace.
pub struct Stage {
    pub pod: Tree,
    pub host: Tree,
    out: PathBuf,
    has_out: bool,
}

impl Stage {
    pub fn build(state: &State) -> Self {
        fresh_dev();
        place_device(state);
        let pod = Tree::new();
        pod.file("etc/passwd", &format!("{ROOT}{}", state.passwd));
        if let Some(group) = &state.pod_group {
            pod.file("etc/group", group);
        }
        let setting = |name: &str, value: Option<&str>| match value {
            Some(value) => format!("{name} = {0}{value}{0}\n", state.quote),
            None => format!("#{name} = \"nobody\"\n"),
        };
        if state.user.is_some() || state.group.is_some() {
            let conf = setting("user", state.user) + &setting("group", state.group);
            pod.file("etc/libvirt/qemu.conf", &conf);
        }
        if let Some(build) = state.build {
            pod.file("etc/os-release", &format!("NAME=x\nID={build}\n"));
        }
        let host = Tree::new();
        if let Some(group) = state.host_group {
            host.file("etc/group", group);
        }
        if !state.rules.is_empty() {
            host.file("usr/lib/udev/rules.d/50-udev-default.rules", state.rules);
        }
        match state.on_host {
            OnHost::Nothing => {}
            OnHost::Same => bind(Path::new("/dev"), &host.at("dev")),
            OnHost::Other => mknod_kvm(&host.at("dev/kvm"), 0, 108, 0o660),
        }
        let volume = Tree::new();
        let out = volume.at("group");
        let has_out = state.out != Out::NotSet;
        if matches!(state.out, Out::Stale | Out::WrongMode) {
            let mode = if state.out == Out::Stale {
                0o644
            } else {
                0o600
            };
            volume.file("group", "root:x:0:\nkvm:x:999:nova\n");
            set_owner(&out, 0, 0, mode);
        }
        Self {
            pod,
            host,
            out,
            has_out,
        }
    }

    /// The program's arguments for this state.
    pub fn arguments(&self, state: &State) -> Vec<String> {
        let mut words: Vec<String> = [
            "--format=json",
            &format!("--root={}", self.pod.path().display()),
            &format!("--host-root={}", self.host.path().display()),
        ]
        .map(str::to_owned)
        .to_vec();
        if self.has_out {
            words.push(format!("--group-file-out={}", self.out.display()));
        }
        words.extend(state.options.iter().map(|&word| word.to_owned()));
        words
    }

    /// The group file that libvirtd would read now.
    pub fn group_file(&self) -> Option<PathBuf> {
        let own = self.pod.at("etc/group");
        let out = Some(self.out.clone()).filter(|out| self.has_out && out.exists());
        out.or(Some(own).filter(|own| own.exists()))
    }

    /// The path of `--group-file-out`, if set.
    pub fn out(&self) -> Option<&Path> {
        self.has_out.then_some(&*self.out)
    }

    /// The directories with all files that the program could change, except /dev.
    pub fn directories(&self) -> [&Path; 3] {
        [
            self.pod.path(),
            self.host.path(),
            self.out.parent().unwrap(),
        ]
    }

    /// The path of the device that the node's udev manages.
    pub fn nodes_device(&self, state: &State) -> PathBuf {
        match state.on_host {
            OnHost::Other => self.host.at("dev/kvm"),
            OnHost::Nothing | OnHost::Same => PathBuf::from(DEVICE),
        }
    }

    /// Returns a function that recreates the device as it was at this call.
    pub fn keep_device<'a>(&'a self, state: &'a State) -> impl Fn() + 'a {
        let meta = fs::metadata(DEVICE).unwrap();
        let acl = scratch().join("acl");
        fs::write(&acl, ok(Command::new("getfacl").args(["-ncpE", DEVICE]))).unwrap();
        move || {
            remount_dev(MsFlags::empty());
            fs::remove_file(DEVICE).unwrap();
            let (uid, gid) = (meta.uid(), meta.gid());
            mknod_kvm(Path::new(DEVICE), uid, gid, meta.mode() & 0o7777);
            let from = format!("--set-file={}", acl.display());
            ok(Command::new("setfacl").args([&from, DEVICE]));
            if state.on_host == OnHost::Other {
                fs::remove_file(self.host.at("dev/kvm")).unwrap();
                mknod_kvm(&self.host.at("dev/kvm"), 0, 108, 0o660);
            }
            remount_dev(state.mount.options());
        }
    }

    /// Removes the state.
    pub fn remove(self) {
        detach(&self.host.at("dev"));
        for directory in self.directories() {
            assert!(directory.starts_with(scratch()));
            fs::remove_dir_all(directory).unwrap();
        }
    }
}

fn place_device(state: &State) {
    let device = Path::new(DEVICE);
    let (uid, gid) = state.owner;
    match state.kind {
        Kind::Kvm => mknod_kvm(device, uid, gid, state.mode),
        Kind::Missing => {}
        Kind::Directory => fs::create_dir(device).unwrap(),
        Kind::File => fs::write(device, "").unwrap(),
        Kind::Fifo => mkfifo(device, Mode::S_IRUSR).unwrap(),
        Kind::LinkToKvm => {
            mknod_kvm(Path::new("/dev/kvm-behind-a-link"), uid, gid, state.mode);
            symlink("kvm-behind-a-link", device).unwrap();
        }
        Kind::DanglingLink => symlink("nowhere", device).unwrap(),
        Kind::OtherMinor => mknod_char(device, (10, 231), uid, gid, state.mode),
        Kind::OtherMajor => mknod_char(device, (241, 232), uid, gid, state.mode),
        Kind::Block => {
            mknod(device, SFlag::S_IFBLK, Mode::empty(), makedev(10, 232)).unwrap();
            set_owner(device, uid, gid, state.mode);
        }
        Kind::Null => mknod_char(device, (1, 3), uid, gid, state.mode),
    }
    if let Some(acl) = &state.acl {
        ok(Command::new("setfacl").args(["--set", acl, DEVICE]));
    }
    set_owner(Path::new("/dev"), 0, 0, state.dev_mode);
    remount_dev(state.mount.options());
}

/// Remounts /dev of this namespace with exactly these options.
pub fn remount_dev(options: MsFlags) {
    let none = None::<&str>;
    mount(
        none,
        "/dev",
        none,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | options,
        none,
    )
    .unwrap_or_else(|e| panic!("remount /dev with {options:?}: {e}"));
}
