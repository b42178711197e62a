//! `generate OUT DATE`: writes the man pages to OUT/man/man8, with DATE (such as 2025-11-03) in the footers, and the
//! completions for bash, zsh and fish to OUT/completions.
//!
//! Commands, options, examples and exit codes come from the program's help ([`libvirt_kvm_init::cli::Cli`]), the other
//! texts from `texts`.

#![allow(
    clippy::disallowed_methods,
    reason = "build tool: an incomplete page is generated again"
)]
#![allow(clippy::print_stderr, reason = "build tool")]

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
    // The options of the subcommands are deferred until the command is built.
    let mut command = Cli::command();
    command.build();
    man::write(&command, &out.join("man/man8"), date)?;
    completions::write(&Cli::command(), &out.join("completions"))
}
