//! What completes the command line in a shell.

use std::path::Path;
use std::{fs, io};

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, ValueHint};
use clap_complete::Shell;

use crate::texts::{self, NAME};

/// Writes one file for each shell, by the name under which that shell looks for it. `command` is not built.
pub fn write(command: &Command, folder: &Path) -> io::Result<()> {
    let command = hinted(command);
    for (shell, file) in [
        (Shell::Bash, NAME.to_owned()),
        (Shell::Zsh, format!("_{NAME}")),
        (Shell::Fish, format!("{NAME}.fish")),
    ] {
        let path = folder.join(shell.to_string()).join(file);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(path, text(shell, &command))?;
    }
    Ok(())
}

/// What a shell reads.
fn text(shell: Shell, command: &Command) -> String {
    let generate = |name: &str| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), name, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    if shell != Shell::Bash {
        return generate(NAME);
    }
    // For a name with hyphens clap_complete (4.6.11) sets the verb under one name and asks for it under
    // another. So it is given a name without, which only the registration must not have.
    let plain = NAME.replace('-', "_");
    let registered = |name: &str| format!(" -o default {name}\n");
    generate(&plain).replace(&registered(&plain), &registered(NAME))
}

/// The command with what each value may be, which the program itself decides only once it has read all
/// of flags, environment and file.
fn hinted(command: &Command) -> Command {
    let verbs = command
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned());
    let verbs: Vec<String> = verbs.collect();
    verbs.into_iter().fold(command.clone(), |command, verb| {
        command.mut_subcommand(&verb, |mut described| {
            // Only a built verb has its options.
            described.build();
            described.mut_args(|arg| hint(&verb, arg))
        })
    })
}

fn hint(verb: &str, arg: Arg) -> Arg {
    let Some(name) = arg.get_value_names().and_then(<[_]>::first).cloned() else {
        return arg;
    };
    if let Some(values) = texts::values(verb, arg.get_id().as_str()) {
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
