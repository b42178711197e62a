//! What is installed beside the binary, and how: man pages, completions, `make install`, the Debian
//! package. Needs root, make, `make build`, cargo-deb, dpkg, lintian, mandoc, groff, bash, zsh and fish.
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

/// `make` in the repository. What it is told is not what a `make` around this test was told.
fn make() -> Command {
    require_commands(&["make"]);
    let mut make = Command::new("make");
    make.current_dir(repository());
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    make
}

/// The man pages and completions, made once.
fn generated() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
        ok(make()
            .arg("man")
            .arg(format!("GENERATED={}", folder.display())));
        folder
    })
}

/// The program's command with all that its verbs take.
fn described() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// The names of the verbs.
fn verbs() -> Vec<String> {
    let command = described();
    let verbs = command.get_subcommands();
    verbs.map(|verb| verb.get_name().to_owned()).collect()
}

/// The manual pages, by file name.
fn pages() -> Vec<String> {
    let of_verbs = verbs().into_iter();
    let of_verbs = of_verbs.map(|verb| format!("libvirt-kvm-init-{verb}.8"));
    of_verbs.chain(["libvirt-kvm-init.8".to_owned()]).collect()
}

/// Every file below a folder as `mode path`, sorted; folders without their modes.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
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
