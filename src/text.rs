//! Text for reports and logs: shortened lists, and escapes for control characters.
#![forbid(unsafe_code)]

use serde::Serialize;

/// Joins the first `most` items of a list and appends the number of the rest (" and 3 more"), so that it fits on one
/// line. Empty for an empty list.
pub fn join_first(list: impl Iterator<Item = String>, most: usize, between: &str) -> String {
    let mut list = list.fuse();
    let mut text = list.by_ref().take(most).collect::<Vec<_>>().join(between);
    match list.count() {
        0 => {}
        more => text.push_str(&format!(" and {more} more")),
    }
    text
}

/// Whether a character is in the Unicode categories Cf, Zl or Zp: invisible characters that change how others are
/// displayed (soft hyphen, joiners, text direction, annotations, tags), and separators of lines and paragraphs.
pub fn is_format(char: char) -> bool {
    matches!(char, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// Whether a character must be escaped in output: a control character, or one of [`is_format`].
pub fn is_hidden(char: char) -> bool {
    char.is_control() || is_format(char)
}

/// Escapes control and format characters for a terminal or a log: names from files can contain any character.
pub fn escape_control(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        if is_hidden(char) {
            plain.extend(char.escape_default());
        } else {
            plain.push(char);
        }
    }
    plain
}

/// One line of JSON and a newline. serde_json escapes only what JSON requires; DEL, the C1 controls and the
/// characters of [`is_format`], which occur only within strings, stay as they are. They are escaped here too, so that
/// the text cannot control a terminal; a parser reads the same values.
///
/// # Errors
/// If a map has a key that is not a string.
pub fn json_line(value: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string(value)?;
    let mut line = String::with_capacity(text.len() + 1);
    for char in text.chars() {
        if is_hidden(char) {
            // Characters beyond U+FFFF become a surrogate pair.
            for unit in char.encode_utf16(&mut [0; 2]) {
                line.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            line.push(char);
        }
    }
    line.push('\n');
    Ok(line)
}
