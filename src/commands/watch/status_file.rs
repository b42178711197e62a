//! A file in which others read the state.

use std::fs::File;
use std::path::Path;

use nix::errno::Errno;

use crate::sys::claim::{Claimed, claim};
use crate::sys::output_file;

/// One that is for people and monitors to read: what goes wrong is said when it begins, and when it is over.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// What was said last about a file that could not be written.
    said: Option<String>,
    /// Whether what killed runs have left beside it was taken away.
    is_clear: bool,
}

impl Published {
    /// Writes it, if it was asked for.
    pub(super) fn write(&mut self, path: Option<&Path>, content: impl FnOnce() -> String) {
        if let Some(path) = path {
            if !std::mem::replace(&mut self.is_clear, true) {
                output_file::clear(path);
            }
            let done = output_file::publish(path, content().as_bytes(), |_| Ok(()));
            self.tell(path, done.err().map(|error| error.to_string()));
        }
    }

    fn tell(&mut self, path: &Path, error: Option<String>) {
        if error != self.said {
            match &error {
                Some(error) => log::warn!("{} is not up to date: {error}", path.display()),
                None => log::info!("{} is up to date again", path.display()),
            }
            self.said = error;
        }
    }
}

/// The one that probes act on. While this process lives, it holds a lock on the file that it published, which says
/// so, and whether the proof is ok (sys/claim.rs).
#[derive(Debug, Default)]
pub(super) struct Status {
    published: Published,
    /// The file that stands there, and whether it is claimed as proven.
    held: Option<(Claimed, bool)>,
}

impl Status {
    /// Takes away what an earlier run left there, or what is kept elsewhere from now on.
    pub(super) fn withdraw(&mut self, path: Option<&Path>) {
        self.held = None;
        let error = path.and_then(|path| output_file::withdraw(path).err());
        if let Some(error) = error {
            log::warn!("what it says is out of date: {error}");
        }
    }

    /// Writes it, if it was asked for. Where that fails, in a full volume for example, a file that says as much about
    /// the proof stays, or an empty one takes its place: the lock says what counts.
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
                let says_as_much = matches!(self.held, Some((_, said)) if said == is_proven);
                let is_full = matches!(error.errno, Errno::ENOSPC | Errno::EDQUOT);
                if is_full
                    && !says_as_much
                    && let Ok(file) = publish(b"")
                {
                    self.held = Some((Claimed(file), is_proven));
                }
                if let Some((file, said)) =
                    self.held.as_mut().filter(|(_, said)| *said != is_proven)
                    && claim(&file.0, is_proven).is_ok()
                {
                    *said = is_proven;
                }
                Some(error.to_string())
            }
        };
        self.published.tell(path, error);
    }
}
