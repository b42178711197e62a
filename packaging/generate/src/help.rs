//! Splits the text below the options of a command's `--help` into paragraphs, examples and exit codes.

#[derive(Debug, PartialEq, Eq)]
pub struct Example {
    pub command: String,
    /// Purpose of the example.
    pub when: String,
}

/// The exit codes.
#[derive(Debug, PartialEq, Eq)]
pub enum Exits {
    /// Codes with their meanings as in the help.
    Codes(Vec<(u8, String)>),
    /// Free text.
    Text(String),
}

#[derive(Debug)]
pub struct Help {
    /// The paragraphs before the examples.
    pub paragraphs: Vec<String>,
    pub examples: Vec<Example>,
    pub exits: Option<Exits>,
}

impl Help {
    /// Parses the text: blocks are separated by empty lines; examples and exit codes have headings.
    pub fn parse(text: &str) -> Self {
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

/// Joins the lines of a wrapped paragraph.
fn joined(block: &str) -> String {
    block.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Commands are indented by two spaces, their purpose by six.
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

/// Parses `0 ok, 1 drift`; any other text stays a sentence.
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
    fn splits_help_into_paragraphs_examples_and_exit_codes() {
        let help = Help::parse(
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
    fn exit_codes_within_a_sentence_stay_text() {
        let text = "apply's, and 126 for one that cannot run";
        assert_eq!(exits(text), Exits::Text(text.to_owned()));
    }
}
