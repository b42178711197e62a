//! Tests of the man pages.

use std::fs;
use std::process::Command;

use libvirt_kvm_init::config::variable;
use libvirt_kvm_init::verdict::Verdict;

use crate::{commands, described, files, generated, pages};
use support::{require_commands, run};

/// A page as a terminal shows it, with line breaks and repeated spaces collapsed.
fn rendered(page: &str) -> String {
    let path = generated().join("man/man8").join(page);
    // Turn off hyphenation.
    let text = fs::read_to_string(path).unwrap();
    let plain = format!(".nh\n{text}");
    let source = generated().join(format!("{page}.plain"));
    fs::write(&source, plain).unwrap();
    let mut groff = Command::new("groff");
    groff.args(["-man", "-Tascii", "-P-cbou", "-rLL=1000n"]);
    let (code, out, err) = run(groff.arg(&source));
    fs::remove_file(source).unwrap();
    assert_eq!((code, err.as_str()), (0, ""), "{page}");
    let words: Vec<_> = out.split_whitespace().collect();
    words.join(" ")
}

#[test]
fn man_pages_pass_mandoc_and_groff() {
    require_commands(&["mandoc", "groff"]);
    for page in pages() {
        let path = generated().join("man/man8").join(&page);
        let mut mandoc = Command::new("mandoc");
        let output = run(mandoc.args(["-Tlint", "-Wwarning"]).arg(&path));
        assert_eq!(output, (0, String::new(), String::new()), "{page}");
        let mut groff = Command::new("groff");
        let output = run(groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(&path));
        assert_eq!(output, (0, String::new(), String::new()), "{page}");
    }
}

/// There is one page for the program and one for each command.
#[test]
fn each_command_has_a_page_with_all_its_options() {
    require_commands(&["groff"]);
    let mut want: Vec<_> = pages().iter().map(|page| format!("0644 {page}")).collect();
    want.sort();
    assert_eq!(files(&generated().join("man/man8")), want);
    for command in described().get_subcommands() {
        let name = command.get_name();
        let page = rendered(&format!("libvirt-kvm-init-{name}.8"));
        let has = |what: &str| assert!(page.contains(what), "{name}: {what}: {page}");
        has(&format!("SYNOPSIS libvirt-kvm-init {name} "));
        for section in ["NAME", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES"] {
            has(&format!(" {section} "));
        }
        has("SEE ALSO libvirt-kvm-init(8), ");
        for option in command
            .get_arguments()
            .filter(|option| !option.is_hide_set())
        {
            if let Some(help) = option.get_help() {
                has(&help.to_string());
            }
            if let Some(long) = option.get_long() {
                has(&format!("--{long}"));
                if option.get_action().takes_values() {
                    has(&format!("{} As --{long}.", variable(long)));
                }
            }
        }
        // Every example in the help text below the options is in the page.
        let help = command.get_after_help().unwrap().to_string();
        for line in help.lines().filter(|line| line.starts_with("  libvirt")) {
            has(line.trim());
        }
    }
}

#[test]
fn overview_page_lists_commands_and_verdicts() {
    require_commands(&["groff"]);
    let page = rendered("libvirt-kvm-init.8");
    for command in commands() {
        let name = format!("libvirt-kvm-init-{command}");
        assert!(page.contains(&format!("{name}(8)")), "{name}: {page}");
    }
    for verdict in Verdict::ALL {
        let code = format!(" {} {} ", verdict.code(), verdict.word());
        assert!(page.contains(&code), "{code}: {page}");
    }
    for section in ["ENVIRONMENT", "FILES", "SEE ALSO"] {
        assert!(page.contains(section), "{section}: {page}");
    }
}
