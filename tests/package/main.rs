//! The package tier: tests of the man pages, the completions, `make install` and the Debian package. Needs root, make,
//! the binary of `make build`, cargo-deb, dpkg, lintian, mandoc, groff, bash, zsh and fish.
//!
//! `cargo test --test package` as root.
#![allow(clippy::disallowed_methods)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod completions;
mod deb;
mod install;
mod man;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use clap::CommandFactory;
use libvirt_kvm_init::cli::Cli;

use support::{ok, require_commands};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `make` in the repository, without the flags of a `make` that runs this test.
fn make() -> Command {
    require_commands(&["make"]);
    let mut make = Command::new("make");
    make.current_dir(repository());
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    make
}

/// The directory with the man pages and completions, generated once.
fn generated() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
        ok(make()
            .arg("man")
            .arg(format!("GENERATED={}", directory.display())));
        directory
    })
}

/// The program's command line with all commands and options.
fn described() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// The names of the commands.
fn commands() -> Vec<String> {
    let command = described();
    let subcommands = command.get_subcommands();
    subcommands
        .map(|subcommand| subcommand.get_name().to_owned())
        .collect()
}

/// The manual pages, by file name.
fn pages() -> Vec<String> {
    let of_commands = commands().into_iter();
    let of_commands = of_commands.map(|name| format!("libvirt-kvm-init-{name}.8"));
    of_commands
        .chain(["libvirt-kvm-init.8".to_owned()])
        .collect()
}

/// Every file below a directory as `mode path`, sorted; directories are not listed.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
                continue;
            }
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            let path = entry.path();
            let path = path.strip_prefix(root).unwrap().display();
            found.push(format!("{mode:04o} {path}"));
        }
    }
    found.sort();
    found
}
