//! What `watch` has done, for monitors.
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
    heals: BTreeMap<&'static str, u64>,
    last_heal: Option<SystemTime>,
    last_look: Option<SystemTime>,
}

impl Metrics {
    /// Something was repaired.
    pub fn healed(&mut self, actions: impl Iterator<Item = Action>) {
        for action in actions {
            *self.heals.entry(action.word()).or_default() += 1;
            self.last_heal = Some(SystemTime::now());
        }
    }

    /// How many changes were made.
    pub fn repairs(&self) -> u64 {
        self.heals.values().sum()
    }

    /// All was looked at.
    pub fn looked(&mut self, now: SystemTime) {
        self.last_look = Some(now);
    }

    /// Whether all was looked at before.
    pub fn has_looked(&self) -> bool {
        self.last_look.is_some()
    }

    /// The report's gauges, and the counts.
    pub fn prometheus(&self, report: &Report, is_ready: bool, now: SystemTime) -> String {
        let mut text = monitors::prometheus(report, self.last_look.unwrap_or(now));
        let ready = u8::from(is_ready);
        let mut one = |name: &str, kind: &str, help: &str, samples: &[String]| {
            let name = format!("libvirt_kvm_init_{name}");
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for sample in samples {
                let _ = writeln!(text, "{name}{sample}");
            }
        };
        let help = "1 if QEMU could open the device when it was last tried, else 0.";
        one("ready", "gauge", help, &[format!(" {ready}")]);
        // Each kind is there from the start, so that its first increase shows.
        let kinds = Action::ALL.map(|action| {
            let count = self.heals.get(action.word()).copied().unwrap_or(0);
            format!("{{action=\"{}\"}} {count}", action.word())
        });
        let help = "Changes that were made to mend drift, by kind, since the start.";
        one("heals_total", "counter", help, &kinds);
        if let Some(last) = self.last_heal {
            let help = "When drift was last mended, in seconds since 1970.";
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
