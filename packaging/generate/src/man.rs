//! Manual pages in roff: one of the program, one of each verb.

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

/// What every page is made from.
struct Manual<'a> {
    /// The program; built.
    program: &'a Command,
    /// Its verbs, in the order of the help.
    verbs: Vec<&'a Command>,
    /// The date in the footer.
    date: &'a str,
}

/// Writes all pages. `program` is built.
pub fn write(program: &Command, folder: &Path, date: &str) -> io::Result<()> {
    let verbs = program.get_subcommands().collect();
    let manual = Manual {
        program,
        verbs,
        date,
    };
    fs::create_dir_all(folder)?;
    let file = |page: &str| folder.join(format!("{page}.{SECTION}"));
    fs::write(file(NAME), manual.overview()?)?;
    for verb in &manual.verbs {
        fs::write(file(&page_of(verb)), manual.verb(verb)?)?;
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
        let verb = [bold(NAME), roman(" "), italic("VERB")];
        roff.text([&verb[..], &option].concat());
        roff.control("SH", ["DESCRIPTION"]);
        paragraphs(&mut roff, &texts::ABOUT);
        roff.control("SH", ["COMMANDS"]);
        for verb in &self.verbs {
            tagged(&mut roff, reference(&page_of(verb), SECTION), &about(verb));
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

    /// The page of a verb.
    fn verb(&self, verb: &Command) -> io::Result<Vec<u8>> {
        let name = verb.get_name();
        let help = verb.get_after_help().map(ToString::to_string);
        let help = Help::read(&help.unwrap_or_default());
        let mut page = self.start(verb, &page_of(verb))?;
        let mut roff = Roff::new();
        roff.control("SH", ["SYNOPSIS"]);
        synopsis(&mut roff, verb);
        roff.control("SH", ["DESCRIPTION"]);
        let mut description = vec![about(verb)];
        description.extend(help.paragraphs);
        // That of exec is in its help.
        if name != "exec" {
            description.push(texts::REPORT.to_owned());
        }
        paragraphs(&mut roff, &description);
        roff.to_writer(&mut page)?;
        Man::new(verb.clone()).render_options_section(&mut page)?;

        let mut roff = Roff::new();
        roff.control("SH", ["EXIT STATUS"]);
        exits(&mut roff, name, help.exits);
        environment(&mut roff, verb);
        files(&mut roff, Some(name));
        roff.control("SH", ["EXAMPLES"]);
        for example in help.examples {
            let command = vec![bold(example.command)];
            tagged(&mut roff, command, &sentence(&example.when));
        }
        self.see_also(&mut roff, &page_of(verb));
        roff.to_writer(&mut page)?;
        Ok(page)
    }

    /// Title and name.
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
        let verbs = self.verbs.iter().map(|verb| page_of(verb));
        let ours = std::iter::once(NAME.to_owned()).chain(verbs);
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

/// The usage line: the program's own, which leaves the options' names to their section.
fn synopsis(roff: &mut Roff, verb: &Command) {
    let usage = verb.clone().render_usage().to_string();
    let start = format!("{NAME} {}", verb.get_name());
    let rest = usage.split_once(&start).map_or("", |(_, rest)| rest);
    roff.text([bold(start), roman(rest)]);
}

/// The verb's line in the list, as a sentence.
fn about(verb: &Command) -> String {
    let about = verb.get_about().map(ToString::to_string);
    sentence(&about.unwrap_or_default().replace('`', ""))
}

fn page_of(verb: &Command) -> String {
    format!("{NAME}-{}", verb.get_name())
}

fn reference(page: &str, section: u8) -> Vec<Inline> {
    vec![bold(page), roman(format!("({section})"))]
}

/// What follows the section's heading, with space between.
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

/// With a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}

/// A code in full. `words` begins with the verdict's.
fn exit(roff: &mut Roff, verdict: Verdict, words: &str) {
    let tag = vec![bold(verdict.code().to_string()), roman(format!(" {words}"))];
    tagged(roff, tag, texts::exit(verdict));
}

/// The verb's own words for its codes, and the full meaning where they are a verdict's.
fn exits(roff: &mut Roff, verb: &str, exits: Option<Exits>) {
    let mut codes = match exits {
        Some(Exits::Codes(codes)) => codes,
        Some(Exits::Text(text)) => {
            roff.text([roman(sentence(&text))]);
            return;
        }
        None => return,
    };
    codes.sort();
    let reports = texts::ALIGN.contains(&verb);
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

/// The options that are also variables, and the variables that are no options.
fn environment(roff: &mut Roff, verb: &Command) {
    let name = verb.get_name();
    let valued = verb
        .get_opts()
        .filter(|option| option.get_action().takes_values());
    let options: Vec<_> = valued.filter_map(|option| option.get_long()).collect();
    let others = texts::VARIABLES
        .iter()
        .filter(|(_, verbs, _)| verbs.contains(&name));
    if options.is_empty() {
        return;
    }
    roff.control("SH", ["ENVIRONMENT"]);
    for option in options {
        let text = format!("As --{option}.");
        tagged(roff, vec![bold(variable(option))], &text);
    }
    for (variable, _, text) in others {
        tagged(roff, vec![bold(*variable)], text);
    }
}

fn files(roff: &mut Roff, verb: Option<&str>) {
    let uses = |verbs: &[&str]| verb.is_none_or(|verb| verbs.contains(&verb));
    let files: Vec<_> = texts::FILES
        .iter()
        .filter(|(_, verbs, _)| uses(verbs))
        .collect();
    if files.is_empty() {
        return;
    }
    roff.control("SH", ["FILES"]);
    for (path, _, text) in files {
        tagged(roff, vec![italic(*path)], text);
    }
}
