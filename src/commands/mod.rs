//! The commands, one per file.

pub mod apply;
pub mod check;
pub mod exec;
pub mod install;
#[cfg(feature = "logs")]
pub mod logs;
pub mod output;
#[cfg(feature = "watch")]
pub mod ready;
#[cfg(feature = "watch")]
pub mod watch;

use std::env::var_os;
use std::path::Path;

use crate::config::Output;
use crate::config::options::Flags;
use crate::error::Result;
use crate::pipeline::Request;
use crate::report::Report;
use crate::sys::root::read_here;
use crate::verdict::Verdict;

/// Runs `apply` or `check`, prints the report, and returns the exit code.
pub fn run(flags: &Flags, command: impl Fn(&Request) -> Report) -> u8 {
    match resolve(flags) {
        Ok((request, to)) => {
            output::note_format(to.format);
            output::print_report(&command(&request), Some(to.format))
        }
        Err(usage) => output::print_report(&Report::new(Verdict::Usage, usage.to_string()), None),
    }
}

/// Combines the flags with the environment of this process and the configuration file.
fn resolve(flags: &Flags) -> Result<(Request, Output)> {
    let read = |path: &Path| read_here(path).map_err(|error| error.to_string());
    Request::resolve(flags, |name| var_os(name), read)
}
