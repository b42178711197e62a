//! What completes the command line in a shell.

use std::path::Path;
use std::{fs, io};

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, ValueHint};
use clap_complete::Shell;

use crate::texts::{self, NAME};

/// Writes one file for each shell, by the name under which that shell looks for it.
pub fn write(command: &Command, folder: &Path) -> io::Result<()> {
    let mut command = hinted(command);
    for (shell, file) in [
        (Shell::Bash, NAME.to_owned()),
        (Shell::Zsh, format!("_{NAME}")),
        (Shell::Fish, format!("{NAME}.fish")),
    ] {
        let path = folder.join(shell.to_string()).join(file);
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, NAME, &mut text);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(path, text)?;
    }
    Ok(())
}

/// The command with what each value may be, which the program itself decides only once it has read all
/// of flags, environment and file.
fn hinted(command: &Command) -> Command {
    let mut command = command.clone();
    command.build();
    let verbs: Vec<String> = command
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    for verb in verbs {
        command = command.mut_subcommand(&verb, |described| {
            described.mut_args(|arg| hint(&verb, arg))
        });
    }
    command
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
