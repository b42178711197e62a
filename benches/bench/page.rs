//! The results as Markdown.

/// Collects the results; each piece is also printed at once.
#[derive(Default)]
pub struct Page {
    text: String,
}

impl Page {
    fn put(&mut self, piece: &str) {
        print!("{piece}");
        self.text.push_str(piece);
    }

    pub fn text(&self) -> &str {
        self.text.trim_end_matches('\n')
    }

    pub fn title(&mut self, text: &str) {
        self.put(&format!("# {text}\n\n"));
    }

    pub fn heading(&mut self, text: &str) {
        self.put(&format!("## {text}\n\n"));
    }

    /// Adds a paragraph, wrapped at 110 columns.
    pub fn paragraph(&mut self, text: &str) {
        let mut column = 0;
        let mut folded = String::new();
        for word in text.split_whitespace() {
            let width = word.chars().count();
            if column > 0 && column + 1 + width > 110 {
                folded.push('\n');
                column = 0;
            } else if column > 0 {
                folded.push(' ');
                column += 1;
            }
            folded.push_str(word);
            column += width;
        }
        self.put(&format!("{folded}\n\n"));
    }

    /// Adds a table. All columns but the first are right-aligned.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells
                .max()
                .unwrap_or(0)
                .max(head[column].chars().count())
                .max(3)
        };
        let widths: Vec<_> = (0..head.len()).map(width).collect();
        let line = |cells: &[String]| {
            let mut line = String::from("|");
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let gap = " ".repeat(width - cell.chars().count());
                line += &if column == 0 {
                    format!(" {cell}{gap} |")
                } else {
                    format!(" {gap}{cell} |")
                };
            }
            line + "\n"
        };
        let head: Vec<_> = head.iter().map(|cell| (*cell).to_owned()).collect();
        let rule = |(column, width): (usize, &usize)| match column {
            0 => format!(" {} |", "-".repeat(*width)),
            _ => format!(" {}: |", "-".repeat(width - 1)),
        };
        let rule: String = widths.iter().enumerate().map(rule).collect();
        let body: String = rows.iter().map(|row| line(row)).collect();
        self.put(&format!("{}|{rule}\n{body}\n", line(&head)));
    }

    pub fn image(&mut self, file: &str, what: &str) {
        self.put(&format!("![{what}](plots/{file})\n\n"));
    }

    /// Adds a list item that compares a value with its target.
    pub fn target(&mut self, what: &str, value: f64, at_most: f64) {
        let verdict = if value <= at_most {
            "met"
        } else {
            "**missed**"
        };
        self.put(&format!(
            "- {what}: {value:.2} (target: at most {at_most:.3}, {verdict})\n"
        ));
    }

    pub fn end_list(&mut self) {
        self.put("\n");
    }
}

/// A number with thousands separators.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in milliseconds, or in seconds from one second on.
pub fn ms(seconds: f64) -> String {
    let ms = seconds * 1e3;
    match ms {
        ..10.0 => format!("{ms:.3} ms"),
        ..1000.0 => format!("{ms:.1} ms"),
        _ => format!("{:.2} s", ms / 1e3),
    }
}

/// A size in B, KiB, MiB or GiB.
pub fn bytes(number: u64) -> String {
    match number {
        0..1024 => format!("{number} B"),
        1024..1_048_576 => format!("{} KiB", number >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", number >> 20),
        _ => format!("{} GiB", number >> 30),
    }
}
