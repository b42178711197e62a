//! Parses the YAML file of `--config`: one mapping of option names to scalar values.
#![forbid(unsafe_code)]

use super::options::OPTIONS;
use super::{Given, Origin, Values};
use crate::error::Error;

/// The largest configuration file, in bytes.
const MAX_SIZE: usize = 64 << 10;

/// Whether lists or keys may be nested so deeply that the YAML parser overflows its stack: it limits `[` and `{`, but
/// not `- - -` and `? ? ?`, which need two bytes per level.
fn nested_on_one_line(text: &str) -> bool {
    const MAX_LEVELS: usize = 256;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let level = |pair: &&[u8]| matches!(pair, [b'-' | b'?', b' ' | b'\t']);
    let levels = lines.map(|line| line.as_bytes().windows(2).filter(level).count());
    levels.sum::<usize>() > MAX_LEVELS
}

/// Line and value of the first forbidden character: a control character, U+2028 or U+2029, or a byte order mark within
/// the text. The parser takes NUL as the end of the file, and a carriage return alone as a line end, which editors do
/// not show.
fn control_character(text: &str) -> Option<(usize, char)> {
    let mut line = 1;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\n' => line += 1,
            '\t' => {}
            '\r' if chars.peek() == Some(&'\n') => {}
            '\u{2028}' | '\u{2029}' | '\u{feff}' => return Some((line, char)),
            control if control.is_control() => return Some((line, char)),
            _ => {}
        }
    }
    None
}

/// The first line of a second YAML document.
fn second_document(text: &str) -> Option<usize> {
    let mut begun = false;
    for (index, line) in text.lines().enumerate() {
        let marker = line.starts_with("---");
        if marker && begun {
            return Some(index + 1);
        }
        begun |= !line.trim().is_empty() && !line.starts_with('#');
    }
    None
}

/// The first line after the parsed document that contains more than a comment or the end marker (`...`). The parser
/// ignores the rest without an error.
fn text_after(document: &marked_yaml::Span, text: &str) -> Option<usize> {
    let at = |marker: Option<&marked_yaml::Marker>| {
        let index = marker.map_or(0, marked_yaml::Marker::character);
        let start = text.char_indices().nth(index);
        &text[start.map_or(text.len(), |(start, _)| start)..]
    };
    let mut rest = at(document.end());
    // The parser's end of `{...}` is its last character or a comma before it; the end of a block mapping is the text
    // after it.
    if at(document.start()).starts_with('{') {
        rest = rest.trim_start_matches([',', ' ', '\t', '\r', '\n']);
        while let Some(comment) = rest.strip_prefix('#') {
            rest = comment.split_once('\n').map_or("", |(_, next)| next);
            rest = rest.trim_start_matches([',', ' ', '\t', '\r', '\n']);
        }
        rest = rest.strip_prefix('}').unwrap_or(rest);
    }
    let is_nothing = |line: &str| {
        let line = line.trim();
        let end = line.strip_prefix("... ").map(str::trim_start);
        line.is_empty() || line == "..." || end.unwrap_or(line).starts_with('#')
    };
    let first = rest.lines().position(|line| !is_nothing(line))?;
    let before = &text[..text.len() - rest.len()];
    Some(before.matches('\n').count() + first + 1)
}

/// Rejects text that the parser reads differently from a person, or that could overflow the parser's stack.
fn check_text(file: &str, text: &str) -> Result<(), Error> {
    if let Some((line, char)) = control_character(text) {
        let char = char.escape_unicode();
        return Err(Error::Usage(format!(
            "{file}:{line}: control character {char} is not allowed; write it as an escape in a quoted value"
        )));
    }
    if text.len() > MAX_SIZE || nested_on_one_line(text) {
        return Err(Error::Usage(format!(
            "{file}: too large or too deeply nested, expected `option: value` lines"
        )));
    }
    match second_document(text) {
        Some(line) => Err(Error::Usage(format!(
            "{file}:{line}: second document, expected only one"
        ))),
        None => Ok(()),
    }
}

/// The option with this name, or an error that lists all keys.
fn known_key(name: &str) -> Result<&'static str, String> {
    let mut keys = OPTIONS
        .iter()
        .filter(|option| option.is_key)
        .map(|option| option.name);
    keys.clone().find(|key| *key == name).ok_or_else(|| {
        let first = keys.next().unwrap_or_default().to_owned();
        let known = keys.fold(first, |known, key| known + ", " + key);
        format!("unknown key `{name}`, expected one of: {known}")
    })
}

impl Values {
    /// Adds the values of a configuration file. `file` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Usage`] with file and line, if the content is not a mapping of known keys to single values.
    pub(super) fn add_yaml(&mut self, file: &str, content: &[u8]) -> Result<(), Error> {
        let Ok(text) = std::str::from_utf8(content) else {
            return Err(Error::Usage(format!(
                "{file}: not UTF-8, expected a YAML file"
            )));
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        check_text(file, text)?;
        let options = marked_yaml::LoaderOptions::default()
            .error_on_duplicate_keys(true)
            .prevent_coercion(true);
        let node = match marked_yaml::parse_yaml_with_options(0, text, options) {
            Ok(node) => node,
            Err(error) => return self.yaml_error(file, text, &error),
        };
        let line_of = |span: &marked_yaml::Span| span.start().map_or(1, marked_yaml::Marker::line);
        let Some(mapping) = node.as_mapping() else {
            let line = line_of(node.span());
            return Err(Error::Usage(format!(
                "{file}:{line}: expected `option: value` lines"
            )));
        };
        if let Some(line) = text_after(node.span(), text) {
            let why = "text after the end of the document; remove it";
            return Err(Error::Usage(format!("{file}:{line}: {why}")));
        }
        for (name, value) in mapping.iter() {
            let line = line_of(name.span());
            let key = known_key(name.as_str())
                .map_err(|why| Error::Usage(format!("{file}:{line}: {why}")))?;
            let Some(scalar) = value.as_scalar() else {
                return Err(Error::Usage(format!(
                    "{file}:{line}: {key}: expected one value, not a list or mapping"
                )));
            };
            let null = ["", "~", "null", "Null", "NULL"].contains(&scalar.as_str());
            if scalar.as_str().is_empty() || null && scalar.may_coerce() {
                continue;
            }
            let file = file.to_owned();
            let origin = Origin::File { file, line, key };
            let text = scalar.as_str().to_owned();
            self.given.insert(key, Given { text, origin });
        }
        Ok(())
    }

    /// Accepts a file that contains only comments, and turns any other error of the parser into a usage error.
    fn yaml_error(
        &self,
        file: &str,
        text: &str,
        error: &marked_yaml::LoadError,
    ) -> Result<(), Error> {
        let mut lines = text.lines().map(str::trim);
        if lines.all(|line| line.is_empty() || line.starts_with('#') || line == "---") {
            return Ok(());
        }
        if let marked_yaml::LoadError::DuplicateKey(inner) = error {
            let line = inner
                .key
                .span()
                .start()
                .map_or(1, marked_yaml::Marker::line);
            let key = inner.key.as_str();
            return Err(Error::Usage(format!(
                "{file}:{line}: duplicate key `{key}`"
            )));
        }
        Err(Error::Usage(format!(
            "{file}:{error}: expected `option: value` lines"
        )))
    }
}
