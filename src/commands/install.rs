//! Puts this very binary into a volume, for pods whose libvirt image does not contain it.

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

/// The version of the JSON form.
pub const SCHEMA: u32 = 1;
/// What the file is called, and what patches of pods mount.
pub const NAME: &str = "libvirt-kvm-init";
/// The version that is installed.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `install` did. Its JSON form is a contract: fields are added, never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Installed {
    /// [`SCHEMA`]
    pub schema: u32,
    /// `ok`, `usage`, `refused` or `failed`.
    pub verdict: Verdict,
    /// The process' exit code.
    pub exit_code: u8,
    /// One sentence.
    pub summary: String,
    /// Where the binary is, or should be.
    pub path: String,
    /// The program's version.
    pub version: String,
    /// Whether it was written; not where it was there already.
    pub written: bool,
}

impl Installed {
    /// Prints it, nothing of it on stdout without a format. Gives the exit code.
    pub fn say(&self, format: Option<Format>) -> u8 {
        let text = match format {
            Some(Format::Json) => self.to_json().unwrap_or_default(),
            Some(_) => self.line(),
            None => String::new(),
        };
        let closing = (self.verdict != Verdict::Ok).then(|| self.closing_line());
        finish(&text, self.exit_code, Verdict::Failed.code(), closing)
    }

    /// A run that did not end well.
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

    /// One line for people; nothing where it failed, which the closing line says.
    pub fn line(&self) -> String {
        match self.verdict {
            Verdict::Ok => format!("{}\n", escape_control(&self.summary)),
            _ => String::new(),
        }
    }

    /// One line of JSON and a newline.
    ///
    /// # Errors
    /// None that can happen: every key is a string.
    pub fn to_json(&self) -> serde_json::Result<String> {
        json_line(self)
    }

    /// The last line of a run that did not end well.
    pub fn closing_line(&self) -> String {
        let word = self.verdict.word();
        escape_control(&format!("libvirt-kvm-init: {word}: {}", self.summary))
    }
}

/// Puts the binary into `directory`, and prints the report in the format that a flag or the environment names. Gives
/// the exit code.
pub fn run(directory: &Path, format: Option<&String>) -> u8 {
    match config::format(format, |name| std::env::var_os(name)) {
        Ok(format) => install(directory).say(Some(format)),
        Err(usage) => {
            let report = Installed::failed(Verdict::Usage, directory, usage.to_string());
            report.say(Some(Format::Table))
        }
    }
}

/// Puts the binary into `directory`. It is left alone only if it is a regular file, with one name, owned by
/// root, 0755, with the same bytes; anything else that has its name is replaced, a link as well, and
/// nothing is written through it.
pub fn install(directory: &Path) -> Installed {
    let path = directory.join(NAME);
    match put(&path) {
        Ok(written) => Installed::done(&path, written),
        Err(error) => Installed::failed(error.verdict(), &path, error.to_string()),
    }
}

/// Whether it had to be written.
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
            // Who may not take away what a killed run has left finds the program all the same.
            if directory.has_leftovers(&name)
                && directory.lock(LockFile::Own, Duration::ZERO).is_ok()
            {
                directory.clear(&name, found.as_ref());
            }
            return Ok(false);
        }
        directory.lock(LockFile::Own, LOCK_WAIT)?;
        // Another run may have been faster.
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

/// Why the volume is no place for the binary.
fn unfit(unfit: OutputDirError) -> Error {
    let error = match unfit {
        OutputDirError::Call(error) => error,
        untrusted @ OutputDirError::Untrusted { .. } => {
            return Error::Refused(untrusted.to_string());
        }
    };
    match error.errno {
        Errno::ENOENT | Errno::ENOTDIR => Error::Usage(format!(
            "{error}; give a directory, and mount the volume there first"
        )),
        Errno::EROFS | Errno::EACCES | Errno::EPERM => Error::Syscall {
            error,
            on: Object::Binary,
        },
        _ => error.into(),
    }
}
