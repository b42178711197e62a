//! `install`: copies the running binary into a volume, for pods whose libvirt image does not contain it.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::output::finish;
use crate::config::{self, Format};
use crate::error::{Error, Object, Result};
use crate::sys::file::{LOCK_WAIT, LockFile};
use crate::sys::output_dir::{OutputDirError, Purpose, open_output};
use crate::sys::self_exe::SelfExe;
use crate::text::{escape_control, json_line};
use crate::verdict::Verdict;

/// The version of the JSON schema.
pub const SCHEMA: u32 = 1;
/// The file name, which the patches in helm-patch mount.
pub const NAME: &str = "libvirt-kvm-init";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The report of `install`. Its JSON form is stable: fields can be added but are never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Installed {
    pub schema: u32,
    /// `ok`, `usage`, `refused` or `failed`.
    pub verdict: Verdict,
    pub exit_code: u8,
    /// One sentence.
    pub summary: String,
    /// The path of the installed binary.
    pub path: String,
    pub version: String,
    /// False if an identical binary already existed.
    pub written: bool,
}

impl Installed {
    /// Prints the report, without a format only the closing line, and returns the exit code.
    pub fn print(&self, format: Option<Format>) -> u8 {
        let text = match format {
            Some(Format::Json) => self.to_json().unwrap_or_default(),
            Some(_) => self.line(),
            None => String::new(),
        };
        let closing = (self.verdict != Verdict::Ok).then(|| self.closing_line());
        finish(&text, self.exit_code, Verdict::Failed.code(), closing)
    }

    pub fn failed(verdict: Verdict, path: &Path, summary: String) -> Self {
        Self {
            schema: SCHEMA,
            verdict,
            exit_code: verdict.code(),
            summary,
            path: path.display().to_string(),
            version: VERSION.to_owned(),
            written: false,
        }
    }

    fn done(path: &Path, written: bool) -> Self {
        let how = if written { "written" } else { "already there" };
        let summary = format!("{NAME} {VERSION} -> {} ({how})", path.display());
        Self {
            written,
            ..Self::failed(Verdict::Ok, path, summary)
        }
    }

    /// The report as one line of text. Empty after a failure, which the closing line reports.
    pub fn line(&self) -> String {
        match self.verdict {
            Verdict::Ok => format!("{}\n", escape_control(&self.summary)),
            _ => String::new(),
        }
    }

    /// One line of JSON and a newline.
    pub fn to_json(&self) -> serde_json::Result<String> {
        json_line(self)
    }

    /// The last line on stderr after a failure.
    pub fn closing_line(&self) -> String {
        let word = self.verdict.word();
        escape_control(&format!("libvirt-kvm-init: {word}: {}", self.summary))
    }
}

/// Copies the binary into `directory`, prints the report, and returns the exit code. `format` is the value of `--format`.
pub fn run(directory: &Path, format: Option<&String>) -> u8 {
    match config::format(format, |name| std::env::var_os(name)) {
        Ok(format) => install(directory).print(Some(format)),
        Err(usage) => {
            let report = Installed::failed(Verdict::Usage, directory, usage.to_string());
            report.print(Some(Format::Table))
        }
    }
}

/// Copies the binary into `directory`. An existing file is kept only if it is a regular file with one link, owned by
/// root, mode 0755, with the same content. Anything else of that name is replaced; a symlink is not followed.
pub fn install(directory: &Path) -> Installed {
    let path = directory.join(NAME);
    match put(&path) {
        Ok(written) => Installed::done(&path, written),
        Err(error) => Installed::failed(error.verdict(), &path, error.to_string()),
    }
}

/// Returns whether the binary was written.
fn put(path: &Path) -> Result<bool> {
    let on_binary = |error| Error::Syscall {
        error,
        on: Object::Binary,
    };
    let mut program = SelfExe::running()?;
    let (mut directory, name) = open_output(path, Purpose::Write).map_err(unfit)?;
    let mut done = || {
        let found = directory.find(&name)?;
        if program.is(&name, found.as_ref())? {
            // Remove leftovers of a killed run. Without the lock they stay, which does no harm.
            if directory.has_leftovers(&name)
                && directory.lock(LockFile::Own, Duration::ZERO).is_ok()
            {
                directory.clear(&name, found.as_ref());
            }
            return Ok(false);
        }
        directory.lock(LockFile::Own, LOCK_WAIT)?;
        // Another run may have written it before this one had the lock.
        let found = directory.find(&name)?;
        if program.is(&name, found.as_ref())? {
            return Ok(false);
        }
        program
            .copy(&directory, &name, found.as_ref())
            .map(|()| true)
    };
    done().map_err(on_binary)
}

/// The error if the binary cannot be written into this directory.
fn unfit(unfit: OutputDirError) -> Error {
    let error = match unfit {
        OutputDirError::Call(error) => error,
        untrusted @ OutputDirError::Untrusted { .. } => {
            return Error::Refused(untrusted.to_string());
        }
    };
    match error.errno {
        Errno::ENOENT => Error::Usage(format!(
            "the directory does not exist: {error}; create it, or mount the volume before this step"
        )),
        Errno::ENOTDIR => Error::Usage(format!(
            "not a directory: {error}; use a directory, or mount the volume before this step"
        )),
        Errno::EROFS | Errno::EACCES | Errno::EPERM => Error::Syscall {
            error,
            on: Object::Binary,
        },
        _ => error.into(),
    }
}
