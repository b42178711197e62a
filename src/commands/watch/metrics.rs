//! Counters of `watch`, for the file that `--metrics-file` names.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::codes::Action;
use crate::report::Report;
use crate::report::monitors;

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub struct Metrics {
    repairs: BTreeMap<&'static str, u64>,
    last_repair: Option<SystemTime>,
    last_check: Option<SystemTime>,
}

impl Metrics {
    /// Counts one repair for each action.
    pub fn count_repairs(&mut self, actions: impl Iterator<Item = Action>) {
        for action in actions {
            *self.repairs.entry(action.word()).or_default() += 1;
            self.last_repair = Some(SystemTime::now());
        }
    }

    /// The number of repairs, of all actions together.
    pub fn repairs(&self) -> u64 {
        self.repairs.values().sum()
    }

    /// Records that a check has ended.
    pub fn record_check(&mut self, now: SystemTime) {
        self.last_check = Some(now);
    }

    /// Whether a check has ended before.
    pub fn has_checked(&self) -> bool {
        self.last_check.is_some()
    }

    /// The report's gauges, followed by the gauges and counters of `watch`. Before the first check has
    /// ended, `now` stands for its time.
    pub fn prometheus(&self, report: &Report, is_ready: bool, now: SystemTime) -> String {
        let mut text = monitors::prometheus(report, self.last_check.unwrap_or(now));
        let ready = u8::from(is_ready);
        let mut one = |name: &str, kind: &str, help: &str, samples: &[String]| {
            let name = format!("libvirt_kvm_init_{name}");
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for sample in samples {
                let _ = writeln!(text, "{name}{sample}");
            }
        };
        let help = "1 if QEMU could open the device at the last check, else 0.";
        one("ready", "gauge", help, &[format!(" {ready}")]);
        // Each action has a sample from the start: increase() does not count a series that begins at 1.
        let counts = Action::ALL.map(|action| {
            let count = self.repairs.get(action.word()).copied().unwrap_or(0);
            format!("{{action=\"{}\"}} {count}", action.word())
        });
        let help = "Changes made to repair drift since the start, by action.";
        one("heals_total", "counter", help, &counts);
        if let Some(last) = self.last_repair {
            let help = "When drift was last repaired, in seconds since 1970.";
            let sample = format!(" {}", seconds(last));
            one("last_heal_timestamp_seconds", "gauge", help, &[sample]);
        }
        text
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
