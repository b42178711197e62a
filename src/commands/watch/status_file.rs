//! The files that `watch` writes for other programs: the status file and the metrics file.

use std::fs::File;
use std::path::Path;

use nix::errno::Errno;

use crate::sys::claim::{Claimed, claim};
use crate::sys::output_file;

/// An output file. Write errors are logged when they begin and when they end.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// The last logged write error.
    logged: Option<String>,
    /// Whether the temporary files of killed runs were removed.
    is_clear: bool,
}

impl Published {
    /// Replaces the file, if a path is configured.
    pub(super) fn write(&mut self, path: Option<&Path>, content: impl FnOnce() -> String) {
        if let Some(path) = path {
            if !std::mem::replace(&mut self.is_clear, true) {
                output_file::clear(path);
            }
            let done = output_file::publish(path, content().as_bytes(), |_| Ok(()));
            self.log_change(path, done.err().map(|error| error.to_string()));
        }
    }

    fn log_change(&mut self, path: &Path, error: Option<String>) {
        if error != self.logged {
            match &error {
                Some(error) => log::warn!("{} is not up to date: {error}", path.display()),
                None => log::info!("{} is up to date again", path.display()),
            }
            self.logged = error;
        }
    }
}

/// The status file, which readiness probes use. This process holds a lock on the published file as long as it
/// lives; the lock also shows whether the proof is ok (sys/claim.rs).
#[derive(Debug, Default)]
pub(super) struct Status {
    published: Published,
    /// The published file, and whether its lock shows that the proof is ok.
    held: Option<(Claimed, bool)>,
}

impl Status {
    /// Removes the status file of an earlier run, or the one at a path that is no longer configured.
    pub(super) fn withdraw(&mut self, path: Option<&Path>) {
        self.held = None;
        let error = path.and_then(|path| output_file::withdraw(path).err());
        if let Some(error) = error {
            log::warn!("cannot remove the stale status file: {error}");
        }
    }

    /// Replaces the status file, if a path is configured. If that fails, for example because the volume is
    /// full, the old file stays, or an empty one replaces it where the state of the proof differs: for `ready` the
    /// lock decides.
    pub(super) fn write(
        &mut self,
        path: Option<&Path>,
        is_proven: bool,
        content: impl FnOnce() -> String,
    ) {
        let Some(path) = path else {
            return;
        };
        let publish = |content: &[u8]| {
            let prepare = |file: &File| claim(file, is_proven);
            output_file::publish(path, content, prepare)
        };
        let error = match publish(content().as_bytes()) {
            Ok(file) => {
                self.held = Some((Claimed(file), is_proven));
                None
            }
            Err(error) => {
                let is_current = matches!(self.held, Some((_, claimed)) if claimed == is_proven);
                let is_full = matches!(error.errno, Errno::ENOSPC | Errno::EDQUOT);
                if is_full
                    && !is_current
                    && let Ok(file) = publish(b"")
                {
                    self.held = Some((Claimed(file), is_proven));
                }
                if let Some((file, claimed)) = self
                    .held
                    .as_mut()
                    .filter(|(_, claimed)| *claimed != is_proven)
                    && claim(&file.0, is_proven).is_ok()
                {
                    *claimed = is_proven;
                }
                Some(error.to_string())
            }
        };
        self.published.log_change(path, error);
    }
}
