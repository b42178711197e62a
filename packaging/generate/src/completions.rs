//! Completion scripts for bash, zsh and fish.

use std::path::Path;
use std::{fs, io};

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, ValueHint};
use clap_complete::Shell;

use crate::texts::{self, NAME};

/// Writes one file per shell, with the name that the shell expects. `command` must not be built yet.
pub fn write(command: &Command, directory: &Path) -> io::Result<()> {
    let command = hinted(command);
    for (shell, file) in [
        (Shell::Bash, NAME.to_owned()),
        (Shell::Zsh, format!("_{NAME}")),
        (Shell::Fish, format!("{NAME}.fish")),
    ] {
        let path = directory.join(shell.to_string()).join(file);
        fs::create_dir_all(path.parent().unwrap_or(directory))?;
        fs::write(path, text(shell, &command))?;
    }
    Ok(())
}

fn text(shell: Shell, command: &Command) -> String {
    let generate = |name: &str| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), name, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    if shell != Shell::Bash {
        return generate(NAME);
    }
    // If the name contains hyphens, clap_complete (4.6.11) generates a bash script that stores the subcommand under one
    // name and reads it under another. So generate it with underscores, and correct the name in the registration.
    let plain = NAME.replace('-', "_");
    let registered = |name: &str| format!(" -o default {name}\n");
    generate(&plain).replace(&registered(&plain), &registered(NAME))
}

/// Adds the permitted values of options. The program itself does not declare them to clap, because it checks values
/// only after merging flags, environment and file.
fn hinted(command: &Command) -> Command {
    let names = command
        .get_subcommands()
        .map(|one| one.get_name().to_owned());
    let names: Vec<String> = names.collect();
    names.into_iter().fold(command.clone(), |command, name| {
        command.mut_subcommand(&name, |mut subcommand| {
            // The options are deferred until the subcommand is built.
            subcommand.build();
            subcommand.mut_args(|arg| hint(&name, arg))
        })
    })
}

fn hint(command: &str, arg: Arg) -> Arg {
    let Some(name) = arg.get_value_names().and_then(<[_]>::first).cloned() else {
        return arg;
    };
    if let Some(values) = texts::values(command, arg.get_id().as_str()) {
        return arg.value_parser(PossibleValuesParser::new(values.iter().copied()));
    }
    arg.value_hint(match name.as_str() {
        "FILE" | "STATUS-FILE" => ValueHint::FilePath,
        "DIR" => ValueHint::DirPath,
        "PATH" => ValueHint::AnyPath,
        "USER" => ValueHint::Username,
        "CMD" => ValueHint::CommandName,
        _ => ValueHint::Other,
    })
}
