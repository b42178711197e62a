//! `generate OUT DATE`: the man pages (OUT/man/man8), with DATE (such as 2025-11-03) in their footers, and
//! what completes the command line in bash, zsh and fish (OUT/completions).
//!
//! All that the pages say of verbs, options, examples and exit codes is the program's own help, read from
//! [`libvirt_kvm_init::cli::Cli`]; what it leaves unsaid is in `texts`.

#![allow(
    clippy::disallowed_methods,
    reason = "nothing here runs on a node: a half-written page is written again"
)]
#![allow(clippy::print_stderr, reason = "a tool of the build")]

mod completions;
mod help;
mod man;
mod texts;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use libvirt_kvm_init::cli::Cli;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, date] = arguments.as_slice() else {
        eprintln!("usage: generate OUT DATE");
        return ExitCode::from(2);
    };
    match write(Path::new(out), date) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate: {out}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(out: &Path, date: &str) -> io::Result<()> {
    // Verbs are described when they are asked for: only a built command has their options.
    let mut command = Cli::command();
    command.build();
    man::write(&command, &out.join("man/man8"), date)?;
    completions::write(&Cli::command(), &out.join("completions"))
}
