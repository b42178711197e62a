//! The values of options: what each may be, and what to say when it is not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Gid;

use super::{Format, Missing, ProofKind};

/// Gives the value, or says what was expected instead.
pub type Parser<T> = fn(&str) -> Result<T, &'static str>;

/// A path that can be opened.
pub fn path(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() || text.contains('\0') {
        return Err("a path");
    }
    Ok(PathBuf::from(text))
}

/// A file that is replaced by one of its name. Nothing in /dev is: that is the node's, and /dev/null or
/// /dev/stdout, which a file's name can be elsewhere, would be gone for everybody on it.
pub fn output(text: &str) -> Result<PathBuf, &'static str> {
    let path = path(text)?;
    if path.parent() == Some(Path::new("/dev")) {
        return Err("a file in a volume; /dev is the node's, with its devices");
    }
    Ok(path)
}

/// A group's name as shadow's tools accept it.
pub fn group(text: &str) -> Result<String, &'static str> {
    // What shadow's tools accept as a name, a little wider; it ends up in a line of group(5).
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let starts_well = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if starts_well && text.len() <= 32 && text.bytes().all(fine) {
        return Ok(text.to_owned());
    }
    Err("a group's name: a letter or _, then letters, digits, _ . or -, at most 32")
}

/// A decimal GID that can own something.
pub fn gid(text: &str) -> Result<Gid, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    match number {
        Some(raw) if is_id(raw) => Ok(Gid::from_raw(raw)),
        _ => Err("a number from 1 to 4294967294"),
    }
}

/// 0 is root's, and 4294967295 means "unchanged" to chown(2) and its like.
pub fn is_id(raw: u32) -> bool {
    raw != 0 && raw != u32::MAX
}

/// An octal mode.
pub fn mode(text: &str) -> Result<u16, &'static str> {
    let text = text.strip_prefix("0o").unwrap_or(text);
    let digits = text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = digits.then(|| u16::from_str_radix(text, 8).ok()).flatten();
    match mode {
        Some(mode) if mode & 0o660 == 0o660 && mode & !0o666 == 0 => Ok(mode),
        _ => Err("an octal mode with rw for owner and group and no x, such as 0660 or 0666"),
    }
}

/// A whole number and its unit.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "a whole number with its unit: 500ms, 30s, 2m, 1h";
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..end].parse().map_err(|_| EXPECTED)?;
    let millis = match &text[end..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(EXPECTED),
    };
    // A day is longer than any boot; more would not fit poll(2)'s clock.
    let total = number
        .checked_mul(millis)
        .filter(|total| *total <= 86_400_000);
    total.map(Duration::from_millis).ok_or("at most 24h")
}

/// A duration that is worth waiting for.
pub fn recheck(text: &str) -> Result<Duration, &'static str> {
    let least = Duration::from_secs(1);
    let long_enough = duration(text)?;
    let long_enough = Some(long_enough).filter(|duration| *duration >= least);
    long_enough.ok_or("a whole number with its unit, from 1s on")
}

/// A switch.
pub fn bool(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err("true or false"),
    }
}

/// How far the proof goes.
pub fn proof(text: &str) -> Result<ProofKind, &'static str> {
    match text {
        "api-version" => Ok(ProofKind::ApiVersion),
        "create-vm" => Ok(ProofKind::CreateVm),
        "off" => Ok(ProofKind::Off),
        _ => Err("api-version, create-vm or off"),
    }
}

/// What a node without KVM means.
pub fn missing(text: &str) -> Result<Missing, &'static str> {
    match text {
        "fail" => Ok(Missing::Fail),
        "skip" => Ok(Missing::Skip),
        _ => Err("fail or skip"),
    }
}

/// How the report is written.
pub fn format(text: &str) -> Result<Format, &'static str> {
    match text {
        "table" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        "npd" => Ok(Format::Npd),
        "prometheus" => Ok(Format::Prometheus),
        _ => Err("table, json, npd or prometheus"),
    }
}

/// How the report on logs is written; monitors ask `check`.
pub fn log_format(text: &str) -> Result<Format, &'static str> {
    match format(text) {
        Ok(format @ (Format::Table | Format::Json)) => Ok(format),
        _ => Err("table or json"),
    }
}
