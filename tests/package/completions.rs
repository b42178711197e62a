//! Runs bash, zsh and fish with the generated completions.

use std::process::Command;

use crate::{commands, described, generated};
use support::{ok, require_commands};

const FORMATS: [&str; 4] = ["json", "npd", "prometheus", "table"];

fn completions(shell: &str, file: &str) -> String {
    let path = generated().join("completions").join(shell).join(file);
    path.display().to_string()
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The completions that bash offers for the last of `words`.
fn bash(words: &[&str]) -> Vec<String> {
    require_commands(&["bash"]);
    // Like bash, call the registered function with command, word and previous word.
    let script = r#"
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        registered=$(complete -p "$1") || exit 1
        [[ $registered =~ -F\ ([^ ]+) ]] || exit 1
        "${BASH_REMATCH[1]}" "$1" "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", script, "bash"]);
    command.arg(completions("bash", "libvirt-kvm-init"));
    sorted(&ok(command.arg("libvirt-kvm-init").args(words)))
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn bash_completes_commands_options_and_values() {
    let mut want = commands();
    want.extend(owned(&["--help", "--version", "-V", "-h"]));
    want.sort();
    assert_eq!(bash(&[""]), want);
    assert_eq!(bash(&["ch"]), ["check"]);
    assert_eq!(bash(&["check", "--format", ""]), FORMATS);
    assert_eq!(bash(&["logs", "--format", ""]), ["json", "table"]);
    assert_eq!(bash(&["watch", "--metr"]), ["--metrics-file"]);
    assert_eq!(bash(&["apply", "--metr"]), [""]);
    assert_eq!(bash(&["apply", "--proof", "c"]), ["create-vm"]);
    for subcommand in described().get_subcommands() {
        let offered = bash(&[subcommand.get_name(), "--"]);
        let mut options: Vec<_> = subcommand
            .get_opts()
            .filter_map(|option| option.get_long())
            .collect();
        options.push("help");
        for option in options {
            let option = format!("--{option}");
            assert!(
                offered.contains(&option),
                "{}: {option}",
                subcommand.get_name()
            );
        }
    }
}

#[test]
fn fish_completes_commands_options_and_values() {
    require_commands(&["fish"]);
    let fish = |line: &str| {
        let script = "source $argv[1]; complete -C $argv[2]";
        let mut command = Command::new("fish");
        command.args(["--no-config", "-c", script]);
        command.arg(completions("fish", "libvirt-kvm-init.fish"));
        let out = ok(command.arg(format!("libvirt-kvm-init {line}")));
        // fish prints a tab and a description after each word.
        let words = out.lines().map(|line| line.split('\t').next().unwrap());
        sorted(&words.collect::<Vec<_>>().join("\n"))
    };
    let mut want = commands();
    want.sort();
    assert_eq!(fish(""), want);
    assert_eq!(fish("check --format "), FORMATS);
    assert_eq!(fish("watch --metr"), ["--metrics-file"]);
    assert!(fish("apply --metr").is_empty());
}

/// Runs zsh on a pseudoterminal, since it completes only on a terminal.
#[test]
fn zsh_completes_commands_and_values() {
    require_commands(&["zsh", "timeout"]);
    let script = r#"
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "PS1=; stty cols 300; fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; print READ''Y"
        zpty -r shell seen '*READY*' || exit 1
        zpty -w -n shell "$2"$'\t\t'
        zpty -r shell seen "*$3*" || exit 1
        print -r -- "$seen""#;
    let zsh = |line: &str, last: &str| {
        let mut command = Command::new("timeout");
        command.args(["60", "zsh", "-f", "-c", script, "zsh"]);
        let directory = generated().join("completions/zsh");
        command
            .arg(directory)
            .arg(format!("libvirt-kvm-init {line}"));
        ok(command.arg(last).env("TERM", "dumb"))
    };
    for format in FORMATS {
        let seen = zsh("check --format ", "table");
        assert!(seen.contains(format), "{format}: {seen}");
    }
    for name in commands() {
        let seen = zsh("", "and repair it");
        assert!(seen.contains(&name), "{name}: {seen}");
    }
}
