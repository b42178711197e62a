//! The keys of rules (udev(7), and those that only its source knows), and what each may be written with.

/// A key that udevd knows. Declared in the order in which udevd handles the parts of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Action,
    Devpath,
    Kernel,
    Kernels,
    Symlink,
    Name,
    Env,
    Tag,
    Tags,
    Subsystem,
    Subsystems,
    Driver,
    Drivers,
    Attr,
    Attrs,
    Const,
    Sysctl,
    Test,
    Program,
    Import,
    Result,
    Owner,
    Group,
    Mode,
    Seclabel,
    Options,
    Run,
    Goto,
    Label,
}

impl Key {
    /// As it is written.
    pub(super) fn name(self) -> String {
        format!("{self:?}").to_uppercase()
    }
}

/// What stands between a key and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// `==`
    Match,
    /// `!=`
    NoMatch,
    /// `+=`
    Add,
    /// `-=`
    Remove,
    /// `=`
    Assign,
    /// `:=`
    Final,
}

impl Op {
    /// Whether it compares instead of setting.
    pub(super) fn is_match(self) -> bool {
        matches!(self, Self::Match | Self::NoMatch)
    }
}

/// The attributes, in braces, that a key takes.
pub(super) enum Attr {
    None,
    /// Any, and one is needed.
    Any,
    /// One of these is needed.
    OneOf(&'static [&'static [u8]]),
    /// None, or one of these.
    NoneOr(&'static [&'static [u8]]),
    /// None, or an octal number.
    Mode,
}

/// The operators that a key takes.
pub(super) enum Ops {
    /// `==` and `!=`
    Match,
    /// All but `==`, `!=` and `-=`
    Set,
    /// All but `-=`
    AllButRemove,
    All,
    /// `=`
    Assign,
}

impl Ops {
    pub(super) fn take(&self, op: Op) -> bool {
        match self {
            Self::Match => op.is_match(),
            Self::Set => !op.is_match() && op != Op::Remove,
            Self::AllButRemove => op != Op::Remove,
            Self::All => true,
            Self::Assign => op == Op::Assign,
        }
    }
}

type Row = (&'static [u8], Key, Attr, Ops);

/// The sources of `IMPORT`, in the order in which udevd asks them.
pub(super) const IMPORTS: [&[u8]; 6] = [
    b"file", b"program", b"builtin", b"db", b"cmdline", b"parent",
];

/// Every key, those that stock rules have most of first.
const KEYS: [Row; 29] = [
    (b"SUBSYSTEM", Key::Subsystem, Attr::None, Ops::Match),
    (b"KERNEL", Key::Kernel, Attr::None, Ops::Match),
    (b"ENV", Key::Env, Attr::Any, Ops::AllButRemove),
    (b"ACTION", Key::Action, Attr::None, Ops::Match),
    (b"GOTO", Key::Goto, Attr::None, Ops::Assign),
    (b"GROUP", Key::Group, Attr::None, Ops::Set),
    (b"MODE", Key::Mode, Attr::None, Ops::Set),
    (b"ATTRS", Key::Attrs, Attr::Any, Ops::Match),
    (b"ATTR", Key::Attr, Attr::Any, Ops::AllButRemove),
    (
        b"IMPORT",
        Key::Import,
        Attr::OneOf(&IMPORTS),
        Ops::AllButRemove,
    ),
    (b"SYMLINK", Key::Symlink, Attr::None, Ops::All),
    (b"TAG", Key::Tag, Attr::None, Ops::All),
    (
        b"RUN",
        Key::Run,
        Attr::NoneOr(&[b"program", b"builtin"]),
        Ops::Set,
    ),
    (b"LABEL", Key::Label, Attr::None, Ops::Assign),
    (b"SUBSYSTEMS", Key::Subsystems, Attr::None, Ops::Match),
    (b"KERNELS", Key::Kernels, Attr::None, Ops::Match),
    (b"OPTIONS", Key::Options, Attr::None, Ops::Set),
    (b"TEST", Key::Test, Attr::Mode, Ops::Match),
    (b"DRIVERS", Key::Drivers, Attr::None, Ops::Match),
    (b"DRIVER", Key::Driver, Attr::None, Ops::Match),
    (b"DEVPATH", Key::Devpath, Attr::None, Ops::Match),
    (b"NAME", Key::Name, Attr::None, Ops::AllButRemove),
    (b"OWNER", Key::Owner, Attr::None, Ops::Set),
    (b"PROGRAM", Key::Program, Attr::None, Ops::AllButRemove),
    (b"RESULT", Key::Result, Attr::None, Ops::Match),
    (b"TAGS", Key::Tags, Attr::None, Ops::Match),
    (
        b"CONST",
        Key::Const,
        Attr::OneOf(&[b"arch", b"virt", b"cvm"]),
        Ops::Match,
    ),
    (b"SYSCTL", Key::Sysctl, Attr::Any, Ops::AllButRemove),
    (b"SECLABEL", Key::Seclabel, Attr::Any, Ops::Set),
];

/// The key of this name, and what it takes.
pub(super) fn key(name: &[u8]) -> Option<&'static Row> {
    KEYS.iter().find(|(known, ..)| *known == name)
}

/// Properties that the kernel and udevd set themselves; a rule that tries is dropped.
pub(super) fn is_fixed_property(name: &[u8]) -> bool {
    const FIXED: &str =
        "ACTION DEVLINKS DEVNAME DEVPATH DEVTYPE DRIVER IFINDEX MAJOR MINOR SUBSYSTEM TAGS";
    FIXED.split(' ').any(|fixed| fixed.as_bytes() == name)
}
