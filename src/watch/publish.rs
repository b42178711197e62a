//! A file in which others read the state.

use std::path::Path;

use crate::sys::public;

/// One of them, and how that went.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// What was said last about a file that could not be written.
    said: Option<String>,
    /// Whether somebody acts on what it says, so that none is better than one that is out of date.
    is_trusted: bool,
    /// Whether what killed runs have left beside it was taken away.
    is_clear: bool,
}

impl Published {
    /// One that is acted on.
    pub(super) fn trusted() -> Self {
        Self {
            said: None,
            is_trusted: true,
            is_clear: false,
        }
    }

    /// Takes away what an earlier run left there, or what is kept elsewhere from now on.
    pub(super) fn withdraw(&self, path: Option<&Path>) {
        let error = path.and_then(|path| public::withdraw(path).err());
        if let Some(error) = error {
            log::warn!("what it says is out of date: {error}");
        }
    }

    /// Writes it, if it was asked for. What goes wrong is said when it begins, and when it is over.
    pub(super) fn write(&mut self, path: Option<&Path>, content: impl FnOnce() -> String) {
        let Some(path) = path else {
            return;
        };
        if !std::mem::replace(&mut self.is_clear, true) {
            public::clear(path);
        }
        let error = public::publish(path, content().as_bytes(), |_| Ok(())).err();
        let error = error.map(|error| error.to_string());
        if error.is_some() && self.is_trusted {
            let _ = public::withdraw(path);
        }
        if error != self.said {
            match &error {
                Some(error) => log::warn!("{} is not up to date: {error}", path.display()),
                None => log::info!("{} is up to date again", path.display()),
            }
            self.said = error;
        }
    }
}
