//! The table of calls and outcomes.

use std::collections::BTreeMap;

/// The number of runs with each outcome, by the name of the failed call.
#[derive(Default)]
pub struct Table(BTreeMap<String, BTreeMap<String, u32>>);

impl Table {
    pub fn add(&mut self, call: &str, outcome: &str) {
        let row = self.0.entry(call.to_owned()).or_default();
        *row.entry(outcome.to_owned()).or_default() += 1;
    }

    /// Prints the table with one call, since other tests print at the same time.
    pub fn print(&self, title: &str) {
        let mut text = format!("\n{title}\n{:<18}{:>6}", "call", "failed");
        OUTCOMES
            .iter()
            .for_each(|name| text += &format!("{name:>9}"));
        let mut all = BTreeMap::new();
        let line = |call: &str, row: &BTreeMap<String, u32>| {
            let counts = OUTCOMES.map(|name| row.get(name).copied().unwrap_or(0));
            let counts = counts.map(|count| format!("{count:>9}")).concat();
            format!("\n{call:<18}{:>6}{counts}", row.values().sum::<u32>())
        };
        for (call, row) in &self.0 {
            text += &line(call, row);
            for (name, count) in row {
                *all.entry(name.clone()).or_default() += count;
            }
        }
        println!("{text}{}\n", line("all", &all));
    }
}

/// `outdated`: the state is correct, but a published file is missing or of an earlier run.
const OUTCOMES: [&str; 10] = [
    "ok", "outdated", "usage", "refused", "failed", "unproven", "absent", "no-cmd", "killed",
    "abort",
];

pub fn outcome(code: Result<i32, i32>) -> &'static str {
    match code {
        Ok(0) => "ok",
        Ok(2) => "usage",
        Ok(3) => "refused",
        Ok(4) => "failed",
        Ok(5) => "unproven",
        Ok(6) => "absent",
        Ok(126 | 127) => "no-cmd",
        Err(9) => "killed",
        Err(6) => "abort",
        other => panic!("ended with {other:?}"),
    }
}
