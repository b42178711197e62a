//! Sets of udev rules for the comparison with a real udevd.

use std::fmt;

/// The rules directories, relative to the root.
pub const DIRECTORIES: [&str; 4] = [
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/local/lib/udev/rules.d",
    "usr/lib/udev/rules.d",
];

/// The node's group file.
pub const GROUP: &str = "root:x:0:\ntty:x:5:\ndisk:x:6:\nkvm:x:108:\nqemu:x:107:\n\
    big:x:929292:\n0109:x:209:\n110:x:210:\n65535:x:211:\ninvalid:x:65535:\n[x]:x:212:\n\
    with space:x:213:\nnogroup:x:65534:\n";
/// The node's passwd file.
pub const PASSWD: &str = "root:x:0:0::/:/bin/sh\nqemu:x:107:107::/:/bin/sh\n\
    nobody:x:65534:65534::/:/bin/sh\n";

/// The content of a path.
pub enum Content {
    /// A file.
    Text(Vec<u8>),
    /// A symbolic link.
    Link(&'static str),
    /// A directory.
    Directory,
    /// A directory with all rules files of the distribution's package.
    Stock,
}

/// A path below the root and its content.
pub struct Entry {
    /// Without a leading slash.
    pub path: String,
    /// The content of the path.
    pub content: Content,
}

/// The rules of a node.
pub struct RuleSet {
    /// The name, printed when a comparison fails.
    pub name: String,
    /// The rules files.
    pub files: Vec<Entry>,
    /// True if the prediction may be unclear.
    pub may_be_unclear: bool,
}

impl fmt::Display for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "== {}", self.name)?;
        for Entry { path, content } in &self.files {
            match content {
                Content::Text(text) if text.len() > 4000 => write!(f, "\n{path}: long")?,
                Content::Text(text) => write!(f, "\n{path}:\n{}", String::from_utf8_lossy(text))?,
                Content::Link(to) => write!(f, "\n{path} -> {to}")?,
                Content::Directory => write!(f, "\n{path}/")?,
                Content::Stock => write!(f, "\n{path}: stock")?,
            }
        }
        Ok(())
    }
}

/// A set for which the prediction must be clear.
pub fn set(name: &str, files: Vec<(&str, Content)>) -> RuleSet {
    let entry = |(path, content): (&str, Content)| Entry {
        path: path.to_owned(),
        content,
    };
    RuleSet {
        name: name.to_owned(),
        files: files.into_iter().map(entry).collect(),
        may_be_unclear: false,
    }
}

/// A file with this text.
pub fn text(text: impl AsRef<[u8]>) -> Content {
    Content::Text(text.as_ref().to_vec())
}

const ETC: &str = "etc/udev/rules.d/99-x.rules";
const USR: &str = "usr/lib/udev/rules.d";
/// The relevant lines of Fedora's stock rules.
pub const FEDORA: &str = "ACTION!=\"add\", GOTO=\"default_end\"\n\
    SUBSYSTEM==\"misc\", KERNEL==\"tun\", MODE=\"0666\", OPTIONS+=\"static_node=net/tun\"\n\
    KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0666\", OPTIONS+=\"static_node=kvm\"\n\
    LABEL=\"default_end\"\n";
/// Genestack's rule.
pub const GENESTACK: &str = "KERNEL==\"kvm\", GROUP=\"929292\", MODE=\"0660\"\n";
/// Kolla's rule.
pub const KOLLA: &str = "KERNEL==\"kvm\", GROUP=\"42427\", MODE=\"0660\"\n";
/// Debian's rule.
pub const K: &str = "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n";

/// Rules of distributions and administrators, and all known edge cases.
pub fn written() -> Vec<RuleSet> {
    let mut sets = vec![
        set("no rules", vec![]),
        set("stock", vec![(USR, Content::Stock)]),
        set(
            "stock and Genestack",
            vec![
                (USR, Content::Stock),
                ("etc/udev/rules.d/99-genestack-kvm.rules", text(GENESTACK)),
            ],
        ),
        set(
            "stock and kolla",
            vec![
                (USR, Content::Stock),
                ("etc/udev/rules.d/99-kolla-kvm.rules", text(KOLLA)),
            ],
        ),
        set(
            "Fedora",
            vec![("usr/lib/udev/rules.d/50-udev-default.rules", text(FEDORA))],
        ),
        set(
            "Fedora and Genestack",
            vec![
                ("usr/lib/udev/rules.d/50-udev-default.rules", text(FEDORA)),
                (ETC, text(GENESTACK)),
            ],
        ),
        set(
            "stock, masked by a link",
            vec![
                (USR, Content::Stock),
                (
                    "etc/udev/rules.d/50-udev-default.rules",
                    Content::Link("/dev/null"),
                ),
            ],
        ),
        set(
            "stock, masked by an empty file in run",
            vec![
                (USR, Content::Stock),
                ("run/udev/rules.d/50-udev-default.rules", text("")),
            ],
        ),
        set(
            "stock, masked by a dangling link",
            vec![
                (USR, Content::Stock),
                (
                    "etc/udev/rules.d/50-udev-default.rules",
                    Content::Link("nowhere"),
                ),
            ],
        ),
        set(
            "stock, masked by a link to a directory",
            vec![
                (USR, Content::Stock),
                (
                    "etc/udev/rules.d/50-udev-default.rules",
                    Content::Link("/etc"),
                ),
            ],
        ),
        set(
            "stock, masked by a directory",
            vec![
                (USR, Content::Stock),
                ("etc/udev/rules.d/50-udev-default.rules", Content::Directory),
            ],
        ),
        set(
            "stock, replaced",
            vec![
                (USR, Content::Stock),
                (
                    "usr/local/lib/udev/rules.d/50-udev-default.rules",
                    text(KOLLA),
                ),
            ],
        ),
        set(
            "stock, replaced by a link to rules elsewhere",
            vec![
                (USR, Content::Stock),
                ("etc/udev/rules.d/elsewhere", text(GENESTACK)),
                (
                    "etc/udev/rules.d/50-udev-default.rules",
                    Content::Link("elsewhere"),
                ),
            ],
        ),
        set(
            "the mask is masked in a directory of higher precedence",
            vec![
                ("usr/lib/udev/rules.d/50-a.rules", text(FEDORA)),
                ("run/udev/rules.d/50-a.rules", text("")),
                ("etc/udev/rules.d/50-a.rules", text(K)),
            ],
        ),
        set(
            "order is by name, not by directory",
            vec![
                (
                    "usr/lib/udev/rules.d/99-z.rules",
                    text("KERNEL==\"kvm\", GROUP=\"5\"\n"),
                ),
                (
                    "etc/udev/rules.d/98-a.rules",
                    text("KERNEL==\"kvm\", GROUP=\"6\"\n"),
                ),
                (
                    "run/udev/rules.d/9-b.rules",
                    text("KERNEL==\"kvm\", MODE=\"0606\"\n"),
                ),
                (
                    "usr/local/lib/udev/rules.d/Z.rules",
                    text("KERNEL==\"kvm\", OWNER=\"7\"\n"),
                ),
            ],
        ),
        set(
            "files that are not rules files by name",
            vec![
                ("etc/udev/rules.d/99-x.rule", text(K)),
                ("etc/udev/rules.d/.99-x.rules", text(K)),
                ("etc/udev/rules.d/99-x.rules~", text(K)),
                ("etc/udev/rules.d/99-x.rules.bak", text(K)),
            ],
        ),
        set(
            "a file with only a newline is not a mask",
            vec![
                (USR, Content::Stock),
                ("etc/udev/rules.d/50-udev-default.rules", text("\n")),
            ],
        ),
    ];
    let long = "x".repeat(20_000);
    let half = "x".repeat(9_000);
    let exact = |length: usize| {
        let head = "KERNEL==\"kvm\", GROUP=\"5\", ENV{X}=\"";
        format!("{head}{}\"\n", "x".repeat(length - head.len() - 1))
    };
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("a byte order mark", b"\xef\xbb\xbfKERNEL==\"kvm\", GROUP=\"5\"\nKERNEL==\"kvm\", MODE=\"0606\"\n".to_vec()),
        ("a byte order mark and a comment", b"\xef\xbb\xbf# hello\nKERNEL==\"kvm\", MODE=\"0606\"\n".to_vec()),
        ("CRLF", K.replace('\n', "\r\n").into_bytes()),
        ("CRLF and continuations", b"KERNEL==\"kvm\", \\\r\n GROUP=\"5\"\r\n".to_vec()),
        ("bare CR", K.repeat(2).replace('\n', "\r").into_bytes()),
        ("NUL", b"KERNEL==\"kvm\", GROUP=\"5\"\0KERNEL==\"kvm\", OWNER=\"7\"\0\0".to_vec()),
        ("NUL inside", b"KERNEL==\"kvm\", GROUP=\"\0\"5\"\nKERNEL==\"kvm\", OWNER=\"7\"".to_vec()),
        ("not UTF-8", b"KERNEL==\"kvm\", GROUP=\"5\", ENV{X}=\"\xff\xfe\"\n".to_vec()),
        ("not UTF-8 as a group", b"KERNEL==\"kvm\", GROUP=\"\xff\", MODE=\"0606\"\n".to_vec()),
        ("a long line", format!("{K}# {long}\nKERNEL==\"kvm\", GROUP=\"5\"\n").into_bytes()),
        ("a long line and a jump", format!(
            "KERNEL==\"kvm\", GOTO=\"end\"\nKERNEL==\"kvm\", GROUP=\"5\"\nLABEL=\"end\"\n# {long}\n").into_bytes()),
        ("a long line and another file", format!("# {long}\n").into_bytes()),
        ("a long continued line", format!("KERNEL==\"kvm\", ENV{{X}}=\"{half}\", \\\nENV{{Y}}=\"{half}\", \\\nGROUP=\"5\"\nKERNEL==\"kvm\", MODE=\"0606\"\n").into_bytes()),
        ("a long continued line 2", format!("KERNEL==\"kvm\", ENV{{X}}=\"{half}\", \\\nENV{{Y}}=\"{half}\"\nKERNEL==\"kvm\", MODE=\"0606\"\n").into_bytes()),
        ("16382 bytes", exact(16382).into_bytes()),
        ("16383 bytes", exact(16383).into_bytes()),
        ("16384 bytes", exact(16384).into_bytes()),
    ];
    for (name, body) in bodies {
        let other = (
            "usr/lib/udev/rules.d/99-y.rules",
            text("KERNEL==\"kvm\", OWNER=\"8\"\n"),
        );
        sets.push(set(name, vec![(ETC, text(body)), other]));
    }
    for rules in include_str!("rule_sets.txt").split("\n\n") {
        let rules = rules.trim_start_matches('\n');
        let mut one = set(
            rules.lines().next().unwrap_or_default(),
            vec![(ETC, text(rules))],
        );
        one.may_be_unclear = rules.starts_with("# unclear");
        sets.push(one);
    }
    for name in [
        "./kvm",
        "//kvm",
        "kvm/",
        "./kvm/",
        "kvm/.",
        "../dev/kvm",
        "./..//dev/../dev/kvm",
        "../kvm",
        "dev/kvm",
    ] {
        let rule = format!("GROUP=\"kvm\", OPTIONS+=\"static_node={name}\"\n");
        let files = vec![("etc/udev/rules.d/50-a.rules", text(rule))];
        sets.push(set(&format!("static node {name}"), files));
    }
    sets
}

/// Random rule sets from relevant parts, the same in every run.
pub fn random(count: usize) -> Vec<RuleSet> {
    let mut dice = Dice(0x6b76_6d21);
    (0..count)
        .map(|number| random_set(number, &mut dice))
        .collect()
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap_or(0)
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list.get(self.below(list.len()))
            .copied()
            .unwrap_or_default()
    }
}

const MATCHES: [&str; 58] = [
    "KERNEL==\"kvm\"",
    "KERNEL==\"kvm\"",
    "KERNEL==\"kvm\"",
    "KERNEL==\"k?m\"",
    "KERNEL==\"kv[a-m]\"",
    "KERNEL==\"tun|kvm\"",
    "KERNEL!=\"kvm\"",
    "KERNEL!=\"tun\"",
    "KERNEL==\"*\"",
    "KERNEL==\"?*\"",
    "KERNEL!=\"?*\"",
    "KERNELS==\"kvm\"",
    "KERNELS==\"misc\"",
    "SUBSYSTEM==\"misc\"",
    "SUBSYSTEM==\"misc|net\"",
    "SUBSYSTEM!=\"block\"",
    "SUBSYSTEM==\"class\"",
    "SUBSYSTEMS==\"misc\"",
    "SUBSYSTEMS==\"pci\"",
    "DRIVER==\"\"",
    "DRIVER==\"?*\"",
    "DRIVERS==\"kvm\"",
    "DRIVERS!=\"kvm\"",
    "ACTION==\"add\"",
    "ACTION==\"add|change\"",
    "ACTION!=\"remove\"",
    "ACTION==\"change\"",
    "ACTION!=\"add\"",
    "DEVPATH==\"/devices/virtual/misc/kvm\"",
    "DEVPATH==\"*/misc/*\"",
    "DEVPATH==\"/devices/pci*\"",
    "ENV{DEVNAME}==\"/dev/kvm\"",
    "ENV{DEVNAME}==\"kvm\"",
    "ENV{MAJOR}==\"10\"",
    "ENV{MINOR}!=\"232\"",
    "ENV{SUBSYSTEM}==\"misc\"",
    "ENV{ACTION}==\"add\"",
    "ENV{X}==\"a\"",
    "ENV{X}!=\"a\"",
    "ENV{X}==\"?*\"",
    "ENV{X}==\"\"",
    "ENV{X}==\"a b\"",
    "ENV{ID_BUS}==\"usb\"",
    "ATTR{dev}==\"10:232\"",
    "ATTR{dev}!=\"10:232\"",
    "ATTR{none}!=\"x\"",
    "ATTR{subsystem}==\"misc\"",
    "ATTRS{dev}==\"10:*\"",
    "ATTRS{idVendor}!=\"x\"",
    "TAG==\"a\"",
    "TAG!=\"a\"",
    "TAGS==\"a\"",
    "TAG==\"?*\"",
    "NAME==\"\"",
    "NAME==\"?*\"",
    "RESULT==\"\"",
    "RESULT==\"?*\"",
    "IMPORT{parent}==\"X\"",
];

const SETS: [&str; 55] = [
    "GROUP=\"kvm\"",
    "GROUP=\"kvm\"",
    "GROUP=\"5\"",
    "GROUP=\"929292\"",
    "GROUP:=\"qemu\"",
    "GROUP+=\"6\"",
    "GROUP-=\"6\"",
    "GROUP==\"6\"",
    "GROUP=\"nosuch\"",
    "GROUP:=\"nosuch\"",
    "GROUP=\"root\"",
    "GROUP=\"0\"",
    "GROUP=\"0109\"",
    "GROUP=\"[x]\"",
    "GROUP=\"[y]\"",
    "GROUP:=\"[y]\"",
    "GROUP=\"\"",
    "GROUP=\"65535\"",
    "OWNER=\"qemu\"",
    "OWNER=\"7\"",
    "OWNER:=\"8\"",
    "OWNER=\"nosuch\"",
    "OWNER=\"root\"",
    "MODE=\"0660\"",
    "MODE=\"0666\"",
    "MODE=\"640\"",
    "MODE:=\"0606\"",
    "MODE=\"0680\"",
    "MODE:=\"rw\"",
    "MODE=\"\"",
    "MODE=\"4600\"",
    "MODE=\" 0644\"",
    "MODE=\"0\"",
    "MODE+=\"0622\"",
    "OPTIONS+=\"static_node=kvm\"",
    "OPTIONS+=\"static_node=kvm\"",
    "OPTIONS+=\"static_node=kvm\"",
    "OPTIONS=\"static_node=./kvm\"",
    "OPTIONS:=\"static_node=/kvm\"",
    "OPTIONS+=\"static_node=null\"",
    "OPTIONS-=\"static_node=kvm\"",
    "OPTIONS+=\"nonsense\"",
    "OPTIONS+=\"watch\"",
    "OPTIONS+=\"link_priority=x\"",
    "ENV{X}=\"a\"",
    "ENV{X}=\"\"",
    "ENV{X}+=\"b\"",
    "ENV{X}:=\"a\"",
    "ENV{MAJOR}=\"1\"",
    "TAG+=\"a\"",
    "TAG-=\"a\"",
    "TAG=\"b\"",
    "SYMLINK+=\"kvm2\"",
    "NAME=\"kvm2\"",
    "RUN{builtin}+=\"nosuch\"",
];

const LINES: [&str; 10] = [
    "",
    "# GROUP=\"5\"",
    "KERNEL==\"kvm\", GROUP=5",
    "KERNEL=\"kvm\", GROUP=\"5\"",
    "KERNEL==\"kvm\", GRUOP=\"5\"",
    "kernel==\"kvm\", GROUP=\"5\"",
    "KERNEL==\"kvm\" GROUP=\"5\" \\",
    "KERNEL==\"kvm\", GROUP=e\"\\x35\"",
    "KERNEL==\"kvm\", GROUP=\"5",
    "KERNEL==i\"kvm\", GROUP=\"5\"",
];

fn random_set(number: usize, dice: &mut Dice) -> RuleSet {
    let labels = ["one", "two"];
    let names = ["50-a.rules", "60-b.rules", "99-x.rules"];
    let mut files = Vec::new();
    for directory in DIRECTORIES {
        for name in names {
            if dice.below(4) > 0 {
                continue;
            }
            let mut body = String::new();
            for _ in 0..=dice.below(7) {
                body.push_str(&match dice.below(10) {
                    0 => dice.of(&LINES).to_owned(),
                    1 => format!("{}, GOTO=\"{}\"", dice.of(&MATCHES), dice.of(&labels)),
                    2 => format!("LABEL=\"{}\"", dice.of(&labels)),
                    _ => {
                        let mut parts = vec![dice.of(&MATCHES)];
                        for _ in 0..=dice.below(3) {
                            parts.push(dice.of(&SETS));
                        }
                        if dice.below(3) == 0 {
                            parts.push(dice.of(&MATCHES));
                        }
                        parts.join(dice.of(&[", ", ",", " ", " , \\\n  "]))
                    }
                });
                body.push('\n');
            }
            let content = match dice.below(12) {
                0 => text(""),
                1 => Content::Link("/dev/null"),
                _ => text(body),
            };
            let path = format!("{directory}/{name}");
            files.push(Entry { path, content });
        }
    }
    let takes_tags = |file: &Entry| match &file.content {
        Content::Text(text) => text.windows(5).any(|word| word == b"TAG-="),
        _ => false,
    };
    RuleSet {
        name: format!("random {number}"),
        may_be_unclear: files.iter().any(takes_tags),
        files,
    }
}
