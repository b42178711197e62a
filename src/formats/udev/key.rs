//! The keys of rules (udev(7), and undocumented ones from udevd's source), with the attributes and operators
//! that each key accepts.

/// A key of a rule. Declared in the order in which udevd evaluates the parts of a rule.
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
    /// The key as written in rules.
    pub(super) fn name(self) -> String {
        format!("{self:?}").to_uppercase()
    }
}

/// The operator between a key and its value.
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
    pub(super) fn is_match(self) -> bool {
        matches!(self, Self::Match | Self::NoMatch)
    }
}

/// The attributes, in braces, that a key accepts.
pub(super) enum Attr {
    None,
    /// Any attribute; required.
    Any,
    /// One of these; required.
    OneOf(&'static [&'static [u8]]),
    /// One of these; optional.
    NoneOr(&'static [&'static [u8]]),
    /// An octal number; optional.
    Mode,
}

/// The operators that a key accepts.
pub(super) enum Ops {
    /// `==` and `!=`
    Match,
    /// All except `==`, `!=` and `-=`
    Set,
    /// All except `-=`
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

/// The sources of `IMPORT`, in the order in which udevd evaluates them.
pub(super) const IMPORTS: [&[u8]; 6] = [
    b"file", b"program", b"builtin", b"db", b"cmdline", b"parent",
];

/// Every key, with those first that are most frequent in stock rules.
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

/// The key of this name, with its attributes and operators.
pub(super) fn key(name: &[u8]) -> Option<&'static Row> {
    KEYS.iter().find(|(known, ..)| *known == name)
}

/// Whether only the kernel and udevd set this property; udevd drops a rule that sets it.
pub(super) fn is_fixed_property(name: &[u8]) -> bool {
    const FIXED: &str =
        "ACTION DEVLINKS DEVNAME DEVPATH DEVTYPE DRIVER IFINDEX MAJOR MINOR SUBSYSTEM TAGS";
    FIXED.split(' ').any(|fixed| fixed.as_bytes() == name)
}
