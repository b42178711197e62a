//! Parses qemu.conf as libvirt does, to find the user and group that QEMU will run as.
//!
//! libvirtd resolves both settings once, when it starts, and refuses to start if it cannot parse the
//! file. A parser more lenient than libvirt's would therefore test the wrong identity, or miss why
//! libvirtd does not run. Source of the behaviour: libvirt `virConfReadFile` (src/util/virconf.c)
//! and `virGetUserID`/`virGetGroupID` (src/util/virutil.c), observed with 9.0.0.
//!
//! `cgroup_device_acl` can exclude /dev/kvm for every guest; it is evaluated together with the two
//! settings that can disable it. Other settings are only checked for syntax, because an error in
//! them stops libvirtd too.

#![forbid(unsafe_code)]

use std::fmt;

use crate::formats::accounts::strtoul::strtoul;

/// The largest file that libvirt reads, in bytes.
pub const MAX_SIZE: usize = 10 * 1024 * 1024;

/// The settings that determine which user QEMU runs as. Of several settings of one name, libvirt uses
/// the first. `None` means the distribution's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QemuConf {
    pub user: Option<Setting>,
    pub group: Option<Setting>,
    /// The line of the first `cgroup_device_acl`, if it excludes /dev/kvm.
    pub keeps_kvm_out: Option<usize>,
}

/// A string setting and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The text between the quotes, up to the first NUL.
    pub value: Vec<u8>,
    /// The 1-based line of the setting's name.
    pub line: usize,
}

/// Why libvirtd refuses to start with this file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// 1-based, as in libvirt's own message; for a setting of the wrong type, the setting's line.
    pub line: usize,
    /// The setting that contains the error, if any.
    pub key: Option<String>,
    /// The syntax element that libvirt's parser expected at this position.
    pub expected: &'static str,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: expected {}", self.line, self.expected)?;
        match &self.key {
            Some(key) => write!(f, " in the setting '{key}'"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for SyntaxError {}

/// Parses the content of qemu.conf.
///
/// # Errors
///
/// [`SyntaxError`] if libvirtd would refuse to start: for text that is not a statement, a comment or
/// space (a file that contains only spaces is refused, an empty file is not), for `user` or `group`
/// with a number or a list, and for a file of more than [`MAX_SIZE`] bytes. With several errors, the
/// one that libvirt reports.
pub fn parse(file: &[u8]) -> Result<QemuConf, SyntaxError> {
    let error = |line, key, expected| SyntaxError {
        line,
        key,
        expected,
    };
    if file.len() > MAX_SIZE {
        return Err(error(1, None, "at most 10 MiB"));
    }
    let mut cursor = Cursor {
        file,
        at: 0,
        line: 1,
    };
    let mut found: [Option<(usize, Value)>; SETTINGS.len()] = Default::default();
    let mut key = None;
    while !cursor.at_end() {
        let statement = statement(&mut cursor, &mut key)
            .and_then(|statement| separator(&mut cursor).map(|()| statement))
            .map_err(|expected| error(cursor.line, key.take(), expected))?;
        let Some((name, line, value)) = statement else {
            continue;
        };
        for (slot, setting) in found.iter_mut().zip(SETTINGS) {
            if setting == name {
                slot.get_or_insert((line, value));
                break;
            }
        }
    }
    let [user, group, device_acl, controllers, namespaces] = found;
    let string = |name: &str, found: Option<(usize, Value)>| match found {
        None => Ok(None),
        Some((line, Value::String(value))) => Ok(Some(Setting { value, line })),
        Some((line, Value::List(_) | Value::Number)) => {
            Err(error(line, Some(name.to_owned()), "a string"))
        }
    };
    // libvirt creates a /dev with only the listed devices for each guest unless `namespaces` lacks
    // "mount" (`qemuDomainPopulateDevices`), and a device cgroup that allows only these devices unless
    // `cgroup_controllers` lacks "devices" (`qemuSetupDevicesCgroup`).
    let lacks = |list: &Option<(usize, Value)>, name: &[u8]| matches!(list, Some((_, Value::List(list))) if !list.iter().any(|found| found == name));
    let is_disabled = lacks(&namespaces, b"mount") && lacks(&controllers, b"devices");
    let keeps_out = lacks(&device_acl, b"/dev/kvm") && !is_disabled;
    Ok(QemuConf {
        user: string("user", user)?,
        group: string("group", group)?,
        keeps_kvm_out: device_acl.map(|(line, _)| line).filter(|_| keeps_out),
    })
}

/// The settings that are evaluated.
const SETTINGS: [&[u8]; 5] = [
    b"user",
    b"group",
    b"cgroup_device_acl",
    b"cgroup_controllers",
    b"namespaces",
];

/// The list elements that are kept. All others are dropped, because lists can be very long.
const ELEMENTS: [&[u8]; 3] = [b"/dev/kvm", b"mount", b"devices"];

/// The parsed value of a setting.
enum Value {
    String(Vec<u8>),
    /// The elements of [`ELEMENTS`] that the list contains; those in nested lists do not count.
    List(Vec<Vec<u8>>),
    Number,
}

/// A setting's name, line and value.
type Statement<'a> = (&'a [u8], usize, Value);

/// The syntax element that was expected where parsing stopped.
type Expected = &'static str;

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
    line: usize,
}

impl<'a> Cursor<'a> {
    fn at_end(&self) -> bool {
        self.at >= self.file.len()
    }

    /// The byte at the cursor; NUL at the end of the file, as in C.
    fn byte(&self) -> u8 {
        self.file.get(self.at).copied().unwrap_or(0)
    }

    fn rest(&self) -> &'a [u8] {
        self.file.get(self.at..).unwrap_or_default()
    }

    /// Advances while `accept` returns true, and returns the bytes passed over.
    fn take(&mut self, accept: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.rest();
        let len = rest.iter().position(|b| !accept(*b)).unwrap_or(rest.len());
        self.at += len;
        rest.get(..len).unwrap_or_default()
    }

    fn skip_spaces(&mut self) {
        self.take(is_space);
    }

    fn skip_lines(&mut self) {
        let passed = self.take(|b| is_space(b) || is_end_of_line(b));
        self.line += newlines(passed);
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_end_of_line(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn newlines(text: &[u8]) -> usize {
    text.iter().filter(|b| **b == b'\n').count()
}

/// Parses a setting; returns `None` for a comment. Sets `key` to the name of the setting as soon as it is
/// known, for the error message.
fn statement<'a>(
    cursor: &mut Cursor<'a>,
    key: &mut Option<String>,
) -> Result<Option<Statement<'a>>, Expected> {
    *key = None;
    cursor.skip_lines();
    if cursor.byte() == b'#' {
        cursor.take(|b| !is_end_of_line(b));
        return Ok(None);
    }
    if !cursor.byte().is_ascii_alphabetic() {
        return Err("a name");
    }
    let line = cursor.line;
    let name = cursor.take(|b| b.is_ascii_alphanumeric() || b == b'_');
    *key = Some(String::from_utf8_lossy(name).into_owned());
    cursor.skip_spaces();
    if cursor.byte() != b'=' {
        return Err("an assignment");
    }
    cursor.at += 1;
    let value = value(cursor)?;
    cursor.skip_spaces();
    if cursor.byte() == b'#' {
        cursor.take(|b| !is_end_of_line(b));
    }
    Ok(Some((name, line, value)))
}

fn separator(cursor: &mut Cursor<'_>) -> Result<(), Expected> {
    cursor.skip_spaces();
    if cursor.at_end() {
        return Ok(());
    }
    match cursor.byte() {
        b';' => cursor.at += 1,
        byte if is_end_of_line(byte) => {}
        _ => return Err("a separator"),
    }
    cursor.skip_lines();
    Ok(())
}

/// Parses a value. Lists can be nested to any depth, so a counter is used instead of recursion: no
/// file can exhaust the stack.
fn value(cursor: &mut Cursor<'_>) -> Result<Value, Expected> {
    let mut depth = 0usize;
    let mut list = Vec::new();
    loop {
        cursor.skip_spaces();
        match cursor.byte() {
            b'"' | b'\'' => match (string(cursor)?, depth) {
                (text, 0) => return Ok(Value::String(text)),
                (text, 1) if ELEMENTS.contains(&&text[..]) && !list.contains(&text) => {
                    list.push(text)
                }
                _ => {}
            },
            b'0'..=b'9' | b'-' | b'+' => {
                number(cursor)?;
                if depth == 0 {
                    return Ok(Value::Number);
                }
            }
            b'[' => {
                cursor.at += 1;
                cursor.skip_lines();
                depth += 1;
                if !cursor.at_end() && cursor.byte() != b']' {
                    continue;
                }
            }
            _ => return Err("a value"),
        }
        // A value, or the `[` of an empty list, was read: close lists, or continue with the next value.
        while depth > 0 {
            cursor.skip_lines();
            if cursor.at_end() {
                return Err("the end of the list");
            }
            if cursor.byte() == b',' {
                cursor.at += 1;
                cursor.skip_lines();
                if cursor.byte() != b']' {
                    break;
                }
            }
            if cursor.byte() != b']' {
                return Err("a separator in the list");
            }
            cursor.at += 1;
            depth -= 1;
        }
        if depth == 0 {
            return Ok(Value::List(list));
        }
    }
}

fn number(cursor: &mut Cursor<'_>) -> Result<(), Expected> {
    if matches!(cursor.byte(), b'-' | b'+') {
        cursor.at += 1;
    }
    if cursor.take(|b| b.is_ascii_digit()).is_empty() {
        return Err("a digit");
    }
    Ok(())
}

fn string(cursor: &mut Cursor<'_>) -> Result<Vec<u8>, Expected> {
    const TRIPLE: &[u8] = b"\"\"\"";
    let rest = cursor.rest();
    let text = match rest.strip_prefix(TRIPLE) {
        // libvirt recognizes an empty triple-quoted string only if more text follows it.
        Some(inner) if rest.len() > 2 * TRIPLE.len() => {
            let found = inner.windows(TRIPLE.len()).position(|w| w == TRIPLE);
            let len = found.unwrap_or(inner.len());
            let text = inner.get(..len).unwrap_or_default();
            cursor.line += newlines(match found {
                Some(_) => text,
                // Without the closing quotes, libvirt stops before the last two bytes.
                None => inner.get(..len - 2).unwrap_or_default(),
            });
            cursor.at += len + 2 * TRIPLE.len();
            found.map(|_| text)
        }
        _ => {
            let quote = cursor.byte();
            cursor.at += 1;
            let text = cursor.take(|b| b != quote && !is_end_of_line(b));
            let closed = cursor.byte() == quote;
            cursor.at += 1;
            closed.then_some(text)
        }
    };
    let text = text.ok_or("the end of the string")?;
    Ok(text.split(|b| *b == 0).next().unwrap_or_default().to_vec())
}

/// How libvirt interprets a value of `user` or `group`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdSpec<'a> {
    /// `+N`: always a UID or GID.
    Number(u32),
    /// Any other value: a name if a user or group of that name exists, otherwise a UID or GID.
    NameOrNumber {
        name: &'a [u8],
        /// The value as UID or GID, if it is a valid one.
        number: Option<u32>,
    },
}

/// Interprets a value of `user` or `group` as libvirt does. `None` if it is empty, or if `+` is not
/// followed by a valid ID. 4294967295, which libvirt also reads from -1, is not a valid ID.
pub fn id_spec(value: &[u8]) -> Option<IdSpec<'_>> {
    match value {
        [] => None,
        [b'+', digits @ ..] => id(digits).map(IdSpec::Number),
        name => Some(IdSpec::NameOrNumber {
            name,
            number: id(name),
        }),
    }
}

/// An unsigned 32-bit number as libvirt's `virStrToLong_ui` reads it: negative numbers wrap around.
fn id(text: &[u8]) -> Option<u32> {
    let number = strtoul(text).filter(|number| number.in_range)?;
    let id = if number.negative {
        u32::try_from(number.value.wrapping_neg())
            .ok()?
            .wrapping_neg()
    } else {
        u32::try_from(number.value).ok()?
    };
    (id != u32::MAX).then_some(id)
}

#[cfg(test)]
mod tests;
