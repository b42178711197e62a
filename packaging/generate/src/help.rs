//! What a verb's `--help` says below its options, in its parts.

/// An example: the command, and when it is of use.
#[derive(Debug, PartialEq, Eq)]
pub struct Example {
    /// As it is typed.
    pub command: String,
    /// When.
    pub when: String,
}

/// How a run ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Exits {
    /// Codes and what they mean, in the words of the help.
    Codes(Vec<(u8, String)>),
    /// What is no plain list.
    Text(String),
}

/// The parts.
#[derive(Debug)]
pub struct Help {
    /// Before the examples, a paragraph each.
    pub paragraphs: Vec<String>,
    /// The examples.
    pub examples: Vec<Example>,
    /// The exit codes.
    pub exits: Option<Exits>,
}

impl Help {
    /// Takes the text apart: blocks between empty lines, of which two have headings.
    pub fn read(text: &str) -> Self {
        let mut help = Self {
            paragraphs: Vec::new(),
            examples: Vec::new(),
            exits: None,
        };
        for block in text.split("\n\n") {
            let (first, rest) = block.split_once('\n').unwrap_or((block, ""));
            if matches!(first, "Examples:" | "Example:") {
                help.examples = examples(rest);
            } else if let Some(codes) = joined(block).strip_prefix("Exit codes: ") {
                help.exits = Some(exits(codes));
            } else {
                help.paragraphs.push(joined(block));
            }
        }
        help
    }
}

/// One line of a wrapped paragraph.
fn joined(block: &str) -> String {
    block.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A command stands two blanks in, what it is for six.
fn examples(block: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("      "), examples.last_mut()) {
            (Some(text), Some(last)) => {
                let space = if last.when.is_empty() { "" } else { " " };
                last.when = format!("{}{space}{}", last.when, text.trim());
            }
            _ => examples.push(Example {
                command: line.trim().to_owned(),
                when: String::new(),
            }),
        }
    }
    examples
}

/// `0 ok, 1 drift`, each with its number; everything else is a sentence.
fn exits(text: &str) -> Exits {
    let code = |item: &str| {
        let (code, meaning) = item.split_once(' ')?;
        Some((code.parse().ok()?, meaning.to_owned()))
    };
    let codes: Option<Vec<_>> = text.split(", ").map(code).collect();
    codes.map_or_else(|| Exits::Text(text.to_owned()), Exits::Codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_its_parts() {
        let help = Help::read(
            "One\ntwo.\n\nExamples:\n  a -b\n      first\n  c | d\n      second,\n      longer\n\n\
             Exit codes: 0 ok, 1 drift (--dry-run),\n6 absent",
        );
        assert_eq!(help.paragraphs, ["One two."]);
        let example = |command: &str, when: &str| Example {
            command: command.to_owned(),
            when: when.to_owned(),
        };
        let want = [example("a -b", "first"), example("c | d", "second, longer")];
        assert_eq!(help.examples, want);
        let codes = [(0, "ok"), (1, "drift (--dry-run)"), (6, "absent")];
        let codes = codes.map(|(code, text)| (code, text.to_owned()));
        assert_eq!(help.exits, Some(Exits::Codes(codes.to_vec())));
    }

    #[test]
    fn codes_in_a_sentence_stay_one() {
        let text = "apply's, and 126 for one that cannot run";
        assert_eq!(exits(text), Exits::Text(text.to_owned()));
    }
}
