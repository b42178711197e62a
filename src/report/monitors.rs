//! The report in the formats of node-problem-detector and Prometheus.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::report::Report;
use crate::text::is_hidden;
use crate::verdict::Verdict;

/// node-problem-detector's limit for a message (`max_output_length`). It counts bytes, and may cut within a
/// character.
const NPD_WIDTH: usize = 80;

/// Marks a message that was cut.
const MORE: &str = "...";

/// One line for node-problem-detector's custom plugin monitor: verdict, cause and summary, cut to 80 bytes.
pub fn npd(report: &Report) -> String {
    let mut line = report.verdict.word().to_owned();
    if let Some(cause) = report.proof.cause {
        let _ = write!(line, " ({})", cause.word());
    }
    let _ = write!(line, ": {}", report.summary);
    let or_space = |c: char| if is_hidden(c) { ' ' } else { c };
    let mut line: String = line.chars().map(or_space).collect();
    if line.len() > NPD_WIDTH {
        line.truncate(line.floor_char_boundary(NPD_WIDTH - MORE.len()));
        line.push_str(MORE);
    }
    line.push('\n');
    line
}

/// node-problem-detector's exit code for a state that could not be determined.
pub const NPD_UNKNOWN: u8 = 2;

/// node-problem-detector's exit code: 0 no problem, 1 problem, 2 unknown.
pub fn npd_code(report: &Report) -> u8 {
    match report.verdict {
        // Also a missing KVM with `--missing skip`.
        _ if report.exit_code == Verdict::Ok.code() => 0,
        Verdict::Usage | Verdict::Failed => NPD_UNKNOWN,
        _ => 1,
    }
}

/// The report as gauges in Prometheus' text exposition format.
pub fn prometheus(report: &Report, now: SystemTime) -> String {
    let mut text = String::new();
    let verdicts = Verdict::ALL.map(|verdict| {
        let set = u32::from(verdict == report.verdict);
        (format!("{{verdict=\"{}\"}}", verdict.word()), set.into())
    });
    let help = "1 for the verdict of the last run, 0 for all others.";
    gauge(&mut text, "verdict", help, &verdicts);
    let cause = report.proof.cause.map_or("", |cause| cause.word());
    let result = escaped(report.proof.result.as_str());
    let labels = format!("{{cause=\"{cause}\",result=\"{result}\"}}");
    let help = "Always 1; the labels are the result and cause of the last attempt to open the device as QEMU.";
    gauge(&mut text, "proof_info", help, &[(labels, 1)]);
    for (name, help, gid) in gids(report) {
        if let Some(gid) = gid {
            gauge(&mut text, name, help, &[(String::new(), gid.into())]);
        }
    }
    let mut warnings: Vec<(String, u64)> = Vec::new();
    for warning in &report.warnings {
        let labels = format!("{{code=\"{}\"}}", warning.code.word());
        match warnings.iter_mut().find(|(known, _)| *known == labels) {
            Some((_, count)) => *count += 1,
            None => warnings.push((labels, 1)),
        }
    }
    if !warnings.is_empty() {
        let help = "Number of warnings of the last run, by code.";
        gauge(&mut text, "warnings", help, &warnings);
    }
    let since = now.duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    let help = "Unix time at which the last run ended, in seconds.";
    let sample = [(String::new(), seconds)];
    gauge(&mut text, "last_run_timestamp_seconds", help, &sample);
    text
}

/// Name, help text and value of the gauge for each GID in the report.
fn gids(report: &Report) -> [(&'static str, &'static str, Option<u32>); 4] {
    [
        (
            "target_gid",
            "GID that the device and the pod's group should have.",
            report.target.as_ref().map(|target| target.gid),
        ),
        (
            "device_gid",
            "GID of the device.",
            report.device.as_ref().and_then(|device| device.gid),
        ),
        (
            "host_gid",
            "GID of the group in the node's group database.",
            report.host.as_ref().and_then(|host| host.kvm_gid),
        ),
        (
            "pod_gid",
            "GID of the group in the pod's group file.",
            report.pod.as_ref().and_then(|pod| pod.kvm_gid),
        ),
    ]
}

fn gauge(text: &mut String, name: &str, help: &str, samples: &[(String, u64)]) {
    let name = format!("libvirt_kvm_init_{name}");
    let _ = writeln!(text, "# HELP {name} {help}");
    let _ = writeln!(text, "# TYPE {name} gauge");
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

/// Escapes a label value. The exposition format defines escapes for backslash, quote and newline. Other hidden
/// characters become the text of a Rust escape, with its backslash escaped: `\\u{1b}`.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for char in value.chars() {
        match char {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            hidden if is_hidden(hidden) => {
                text.push('\\');
                text.extend(hidden.escape_default());
            }
            other => text.push(other),
        }
    }
    text
}
