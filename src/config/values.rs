//! Parsers for the values of options.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Gid;

use super::{Format, Missing, ProofKind};

/// Returns the value, or as error a description of the expected values, for "invalid value …, expected …".
pub type Parser<T> = fn(&str) -> Result<T, &'static str>;

/// A path without NUL, so that it can be passed to open(2).
pub fn path(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() || text.contains('\0') {
        return Err("a path");
    }
    Ok(PathBuf::from(text))
}

/// A file that will be replaced by rename. Files in /dev are rejected: /dev is the node's, and replacing /dev/null or
/// /dev/stdout would remove them for all its processes.
pub fn output(text: &str) -> Result<PathBuf, &'static str> {
    let path = path(text)?;
    if path.parent() == Some(Path::new("/dev")) {
        return Err("a file outside /dev, such as one in a volume");
    }
    Ok(path)
}

pub fn group(text: &str) -> Result<String, &'static str> {
    // A little wider than the names that useradd(8) accepts. The name is written to a line of group(5).
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let starts_well = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if starts_well && text.len() <= 32 && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("a group name: a letter or _, then letters, digits, _ . or -, at most 32 characters")
}

/// A decimal GID that can own a file.
pub fn gid(text: &str) -> Result<Gid, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let gid = digits.then(|| text.parse().ok()).flatten();
    match gid {
        Some(raw) if is_id(raw) => Ok(Gid::from_raw(raw)),
        _ => Err("a GID from 1 to 4294967294"),
    }
}

/// Whether a UID or GID is valid as a target: 0 is root, and 4294967295 means "unchanged" in chown(2), setregid(2) and
/// others.
pub fn is_id(raw: u32) -> bool {
    raw != 0 && raw != u32::MAX
}

/// An octal mode, with or without a leading `0` or `0o`.
pub fn mode(text: &str) -> Result<u16, &'static str> {
    let text = text.strip_prefix("0o").unwrap_or(text);
    let digits = text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = digits.then(|| u16::from_str_radix(text, 8).ok()).flatten();
    match mode {
        Some(mode) if mode & 0o660 == 0o660 && mode & !0o666 == 0 => Ok(mode),
        _ => Err("an octal mode with rw for owner and group and no x, such as 0660 or 0666"),
    }
}

/// A whole number and a unit.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "a whole number with a unit, such as 500ms, 30s, 2m or 1h";
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..end].parse().map_err(|_| EXPECTED)?;
    let millis = match &text[end..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(EXPECTED),
    };
    // One day is longer than any boot, and its milliseconds fit the int of poll(2).
    let total = number
        .checked_mul(millis)
        .filter(|total| *total <= 86_400_000);
    total.map(Duration::from_millis).ok_or("at most 24h")
}

/// A duration of at least one second.
pub fn recheck(text: &str) -> Result<Duration, &'static str> {
    let least = Duration::from_secs(1);
    let long_enough = duration(text)?;
    let long_enough = Some(long_enough).filter(|duration| *duration >= least);
    long_enough.ok_or("a duration of at least 1s, such as 30s or 5m")
}

pub fn bool(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("true or false"),
    }
}

pub fn proof(text: &str) -> Result<ProofKind, &'static str> {
    match text {
        "api-version" => Ok(ProofKind::ApiVersion),
        "create-vm" => Ok(ProofKind::CreateVm),
        "off" => Ok(ProofKind::Off),
        _ => Err("api-version, create-vm or off"),
    }
}

pub fn missing(text: &str) -> Result<Missing, &'static str> {
    match text {
        "fail" => Ok(Missing::Fail),
        "skip" => Ok(Missing::Skip),
        _ => Err("fail or skip"),
    }
}

pub fn format(text: &str) -> Result<Format, &'static str> {
    match text {
        "table" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        "npd" => Ok(Format::Npd),
        "prometheus" => Ok(Format::Prometheus),
        _ => Err("table, json, npd or prometheus"),
    }
}

/// A format of `install` and `logs`; the formats for monitoring belong to `check`.
pub fn log_format(text: &str) -> Result<Format, &'static str> {
    match format(text) {
        Ok(format @ (Format::Table | Format::Json)) => Ok(format),
        _ => Err("table or json"),
    }
}
