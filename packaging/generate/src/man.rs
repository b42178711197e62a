//! Manual pages in roff: one for the program and one for each command.

use std::path::Path;
use std::{fs, io};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use libvirt_kvm_init::config::variable;
use libvirt_kvm_init::verdict::Verdict;

use crate::help::{Exits, Help};
use crate::texts::{self, NAME};

const SECTION: u8 = 8;

/// The data for all pages.
struct Manual<'a> {
    /// The program's clap command, built.
    program: &'a Command,
    /// The program's commands, in the order of the help.
    commands: Vec<&'a Command>,
    /// The date in the footer.
    date: &'a str,
}

/// Writes all pages. `program` must be built.
pub fn write(program: &Command, directory: &Path, date: &str) -> io::Result<()> {
    let commands = program.get_subcommands().collect();
    let manual = Manual {
        program,
        commands,
        date,
    };
    fs::create_dir_all(directory)?;
    let file = |page: &str| directory.join(format!("{page}.{SECTION}"));
    fs::write(file(NAME), manual.overview()?)?;
    for command in &manual.commands {
        fs::write(file(&page_of(command)), manual.page(command)?)?;
    }
    Ok(())
}

impl Manual<'_> {
    /// The page of the program.
    fn overview(&self) -> io::Result<Vec<u8>> {
        let mut page = self.start(self.program, NAME)?;
        let mut roff = Roff::new();
        roff.control("SH", ["SYNOPSIS"]);
        let option = [roman(" ["), italic("OPTION"), roman("...]")];
        let command = [bold(NAME), roman(" "), italic("COMMAND")];
        roff.text([&command[..], &option].concat());
        roff.control("SH", ["DESCRIPTION"]);
        paragraphs(&mut roff, &texts::ABOUT);
        roff.control("SH", ["COMMANDS"]);
        for command in &self.commands {
            let page = reference(&page_of(command), SECTION);
            tagged(&mut roff, page, &about(command));
        }
        roff.control("SH", ["OPTIONS"]);
        let flag = |short, long| vec![bold(short), roman(", "), bold(long)];
        tagged(&mut roff, flag("-h", "--help"), texts::HELP);
        tagged(&mut roff, flag("-V", "--version"), texts::VERSION);
        roff.control("SH", ["EXIT STATUS"]);
        paragraphs(&mut roff, &[texts::EXITS]);
        for verdict in Verdict::ALL {
            exit(&mut roff, verdict, verdict.word());
        }
        roff.control("SH", ["ENVIRONMENT"]);
        paragraphs(&mut roff, &[texts::ENVIRONMENT]);
        for (name, _, text) in texts::VARIABLES {
            tagged(&mut roff, vec![bold(name)], text);
        }
        files(&mut roff, None);
        self.see_also(&mut roff, NAME);
        roff.to_writer(&mut page)?;
        Ok(page)
    }

    /// The page of a command.
    fn page(&self, command: &Command) -> io::Result<Vec<u8>> {
        let name = command.get_name();
        let help = command.get_after_help().map(ToString::to_string);
        let help = Help::parse(&help.unwrap_or_default());
        let mut page = self.start(command, &page_of(command))?;
        let mut roff = Roff::new();
        roff.control("SH", ["SYNOPSIS"]);
        synopsis(&mut roff, command);
        roff.control("SH", ["DESCRIPTION"]);
        let mut description = vec![about(command)];
        description.extend(help.paragraphs);
        match name {
            // The help of exec describes where its report goes.
            "exec" => {}
            "ready" => description.push(texts::NO_REPORT.to_owned()),
            _ => description.push(texts::REPORT.to_owned()),
        }
        paragraphs(&mut roff, &description);
        roff.to_writer(&mut page)?;
        Man::new(command.clone()).render_options_section(&mut page)?;

        let mut roff = Roff::new();
        roff.control("SH", ["EXIT STATUS"]);
        exits(&mut roff, name, help.exits);
        environment(&mut roff, command);
        files(&mut roff, Some(name));
        roff.control("SH", ["EXAMPLES"]);
        for example in help.examples {
            let typed = vec![bold(example.command)];
            tagged(&mut roff, typed, &sentence(&example.when));
        }
        self.see_also(&mut roff, &page_of(command));
        roff.to_writer(&mut page)?;
        Ok(page)
    }

    /// Title and NAME section.
    fn start(&self, command: &Command, name: &str) -> io::Result<Vec<u8>> {
        let version = self.program.get_version().unwrap_or_default();
        let line = command.get_about().map(ToString::to_string);
        let line = line.unwrap_or_default().replace('`', "");
        let man = Man::new(command.clone().about(line))
            .title(name.to_uppercase())
            .section(SECTION.to_string())
            .date(self.date)
            .source(format!("{NAME} {version}"))
            .manual("System Administration");
        let mut page = Vec::new();
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        Ok(page)
    }

    fn see_also(&self, roff: &mut Roff, own: &str) {
        let commands = self.commands.iter().map(|command| page_of(command));
        let ours = std::iter::once(NAME.to_owned()).chain(commands);
        let ours = ours.filter(|page| page != own).map(|page| (page, SECTION));
        let others = texts::SEE_ALSO.map(|(page, section)| (page.to_owned(), section));
        let mut line = Vec::new();
        for (page, section) in ours.chain(others) {
            if !line.is_empty() {
                line.push(roman(", "));
            }
            line.extend(reference(&page, section));
        }
        roff.control("SH", ["SEE ALSO"]);
        roff.text(line);
    }
}

/// The usage line of the help, with `[OPTIONS]` instead of all options.
fn synopsis(roff: &mut Roff, command: &Command) {
    let usage = command.clone().render_usage().to_string();
    let start = format!("{NAME} {}", command.get_name());
    let rest = usage.split_once(&start).map_or("", |(_, rest)| rest);
    roff.text([bold(start), roman(rest)]);
}

/// The command's description in the list of commands, as a sentence.
fn about(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string);
    sentence(&about.unwrap_or_default().replace('`', ""))
}

fn page_of(command: &Command) -> String {
    format!("{NAME}-{}", command.get_name())
}

fn reference(page: &str, section: u8) -> Vec<Inline> {
    vec![bold(page), roman(format!("({section})"))]
}

/// Paragraphs after a section heading.
fn paragraphs(roff: &mut Roff, texts: &[impl AsRef<str>]) {
    for (place, text) in texts.iter().enumerate() {
        if place > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(text.as_ref())]);
    }
}

fn tagged(roff: &mut Roff, tag: Vec<Inline>, text: &str) {
    roff.control("TP", []);
    roff.text(tag);
    roff.text([roman(text)]);
}

/// Capitalizes the text and adds a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}

/// An exit code with its full description. `words` begins with the word of the verdict.
fn exit(roff: &mut Roff, verdict: Verdict, words: &str) {
    let tag = vec![bold(verdict.code().to_string()), roman(format!(" {words}"))];
    tagged(roff, tag, texts::exit(verdict));
}

/// The exit codes of a command as in its help; codes of verdicts with their full description.
fn exits(roff: &mut Roff, command: &str, exits: Option<Exits>) {
    let mut codes = match exits {
        Some(Exits::Codes(codes)) => codes,
        Some(Exits::Text(text)) => {
            roff.text([roman(sentence(&text))]);
            return;
        }
        None => return,
    };
    codes.sort();
    let reports = texts::ALIGN.contains(&command);
    for (code, words) in codes {
        let verdict = Verdict::ALL.into_iter().find(|known| {
            known.code() == code
                && words.starts_with(known.word())
                && (reports || *known == Verdict::Usage)
        });
        match verdict {
            Some(verdict) => exit(roff, verdict, &words),
            None => tagged(roff, vec![bold(code.to_string())], &sentence(&words)),
        }
    }
    if reports {
        roff.control("PP", []);
        paragraphs(roff, &[texts::NPD]);
    }
}

/// The variables that correspond to options, then the others.
fn environment(roff: &mut Roff, command: &Command) {
    let name = command.get_name();
    let valued = command
        .get_opts()
        .filter(|option| option.get_action().takes_values());
    let options: Vec<_> = valued.filter_map(|option| option.get_long()).collect();
    let others = texts::VARIABLES
        .iter()
        .filter(|(_, commands, _)| commands.contains(&name));
    if options.is_empty() {
        return;
    }
    roff.control("SH", ["ENVIRONMENT"]);
    for option in options {
        let text = format!("Same as --{option}.");
        tagged(roff, vec![bold(variable(option))], &text);
    }
    for (variable, _, text) in others {
        tagged(roff, vec![bold(*variable)], text);
    }
}

fn files(roff: &mut Roff, command: Option<&str>) {
    let uses = |commands: &[&str]| command.is_none_or(|name| commands.contains(&name));
    let files: Vec<_> = texts::FILES
        .iter()
        .filter(|(_, commands, _)| uses(commands))
        .collect();
    if files.is_empty() {
        return;
    }
    roff.control("SH", ["FILES"]);
    for (path, _, text) in files {
        tagged(roff, vec![italic(*path)], text);
    }
}
