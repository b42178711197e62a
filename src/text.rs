//! Text for a report: lists that fit a line, and names from files that may hold anything.
#![forbid(unsafe_code)]

use serde::Serialize;

/// The first `most` of a list, and how many more there are: one line has to hold it. Nothing of an empty list.
pub fn join_first(list: impl Iterator<Item = String>, most: usize, between: &str) -> String {
    let mut list = list.fuse();
    let mut text = list.by_ref().take(most).collect::<Vec<_>>().join(between);
    match list.count() {
        0 => {}
        more => text.push_str(&format!(" and {more} more")),
    }
    text
}

/// Whether a character ends a line, or is not seen itself and moves or joins what is: Unicode's categories
/// Cf, Zl and Zp (soft hyphen, joiners, controls of writing direction, annotations, tags).
pub fn is_format(char: char) -> bool {
    matches!(char, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// Whether a character is not to be seen as it is: a control character, or one of [`is_format`].
pub fn is_hidden(char: char) -> bool {
    char.is_control() || is_format(char)
}

/// A text for a terminal or a log: names from files may hold anything.
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

/// One line of JSON and a newline. serde_json escapes what JSON requires and no more: DEL, the C1 controls
/// and [`is_format`] stand in its text as they are, and only within strings. Here they are escapes too, so
/// that the text steers no terminal, and is the same to whatever parses it.
///
/// # Errors
/// serde_json's: a key that is no string.
pub fn json_line(value: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string(value)?;
    let mut line = String::with_capacity(text.len() + 1);
    for char in text.chars() {
        if is_hidden(char) {
            // Outside of the first plane as a surrogate pair.
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
