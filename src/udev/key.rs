//! The keys of rules (udev(7), and those that only its source knows).

/// A key that udevd knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Action,
    Attr,
    Attrs,
    Const,
    Devpath,
    Driver,
    Drivers,
    Env,
    Goto,
    Group,
    Import,
    Kernel,
    Kernels,
    Label,
    Mode,
    Name,
    Options,
    Owner,
    Program,
    Result,
    Run,
    Seclabel,
    Subsystem,
    Subsystems,
    Symlink,
    Sysctl,
    Tag,
    Tags,
    Test,
}

/// How each is written, those that stock rules have most of first.
const NAMES: [(&[u8], Key); 29] = [
    (b"SUBSYSTEM", Key::Subsystem),
    (b"KERNEL", Key::Kernel),
    (b"ENV", Key::Env),
    (b"ACTION", Key::Action),
    (b"GOTO", Key::Goto),
    (b"GROUP", Key::Group),
    (b"MODE", Key::Mode),
    (b"ATTRS", Key::Attrs),
    (b"ATTR", Key::Attr),
    (b"IMPORT", Key::Import),
    (b"SYMLINK", Key::Symlink),
    (b"TAG", Key::Tag),
    (b"RUN", Key::Run),
    (b"LABEL", Key::Label),
    (b"SUBSYSTEMS", Key::Subsystems),
    (b"KERNELS", Key::Kernels),
    (b"OPTIONS", Key::Options),
    (b"TEST", Key::Test),
    (b"DRIVERS", Key::Drivers),
    (b"DRIVER", Key::Driver),
    (b"DEVPATH", Key::Devpath),
    (b"NAME", Key::Name),
    (b"OWNER", Key::Owner),
    (b"PROGRAM", Key::Program),
    (b"RESULT", Key::Result),
    (b"TAGS", Key::Tags),
    (b"CONST", Key::Const),
    (b"SYSCTL", Key::Sysctl),
    (b"SECLABEL", Key::Seclabel),
];

/// The key of this name.
pub(super) fn key(name: &[u8]) -> Option<Key> {
    let found = NAMES.iter().find(|(known, _)| *known == name);
    found.map(|(_, key)| *key)
}
