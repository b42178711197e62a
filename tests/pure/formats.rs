//! Output formats: the line and exit code for node-problem-detector, Prometheus' text format, and the table.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use libvirt_kvm_init::codes::{Cause, Warning, WarningCode};
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::report::monitors::{npd, npd_code, prometheus};
use libvirt_kvm_init::report::table::table;
use libvirt_kvm_init::verdict::Verdict;

const STORED: &str = include_str!("../data/report.json");

fn stored() -> Report {
    serde_json::from_str(STORED).unwrap()
}

/// Texts that hostile names in files could produce.
const TEXTS: [&str; 8] = [
    "",
    "short",
    "two\nlines\r\nand\ta tab \u{1b}[31m red \0 nul \u{85} next \u{2028} line \u{2029} paragraph",
    "a long one that goes on and on and on and on and on and on and on and on and on and on",
    "ÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöüÄÖÜäöü",
    "日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語",
    "😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀",
    "quotes \" and \\ backslashes \\n {braces=\"x\"} # hash",
];

#[test]
fn npd_output_is_one_line_of_at_most_80_characters() {
    for verdict in Verdict::ALL {
        for cause in [None, Some(Cause::SecurityModule)] {
            for text in TEXTS {
                // Try every length around the limit.
                for pad in 0..90 {
                    let mut report = Report::new(verdict, "x".repeat(pad) + text);
                    report.proof.cause = cause;
                    let line = npd(&report);
                    let body = line.strip_suffix('\n').unwrap();
                    assert!(body.chars().count() <= 80, "{body}");
                    // node-problem-detector truncates by bytes.
                    assert!(body.len() <= 80, "{body}");
                    assert!(!body.chars().any(char::is_control), "{body:?}");
                    assert_eq!(body.lines().count(), 1, "{body:?}");
                    assert!(!body.contains(['\u{2028}', '\u{2029}']), "{body:?}");
                    assert!(body.starts_with(verdict.word()), "{body}");
                    let whole = format!("{}: {}", verdict.word(), report.summary);
                    if cause.is_none() && whole.chars().count() > 80 {
                        assert!(body.ends_with("..."), "{body}");
                    }
                }
            }
        }
    }
}

#[test]
fn npd_line_contains_cause_and_summary() {
    let mut report = Report::new(Verdict::Drift, "QEMU cannot open /dev/kvm");
    assert_eq!(npd(&report), "drift: QEMU cannot open /dev/kvm\n");
    report.proof.cause = Some(Cause::Ownership);
    assert_eq!(
        npd(&report),
        "drift (ownership): QEMU cannot open /dev/kvm\n"
    );
}

#[test]
fn npd_maps_verdicts_to_three_exit_codes() {
    let table = [
        (Verdict::Ok, 0),
        (Verdict::Drift, 1),
        (Verdict::Usage, 2),
        (Verdict::Refused, 1),
        (Verdict::Failed, 2),
        (Verdict::Unproven, 1),
        (Verdict::Absent, 1),
    ];
    assert_eq!(table.map(|(verdict, _)| verdict), Verdict::ALL);
    for (verdict, want) in table {
        assert_eq!(npd_code(&Report::new(verdict, "")), want, "{verdict:?}");
    }
    // A missing KVM that is accepted (--missing skip) is fine.
    let mut report = Report::new(Verdict::Absent, "");
    report.exit_code = 0;
    assert_eq!(npd_code(&report), 0);
}

/// Checks the text against Prometheus' exposition format (HELP and TYPE once per metric and before its samples, all
/// samples of a metric together, no duplicates, numeric values), and returns the samples by name and labels.
fn metrics(text: &str) -> BTreeMap<String, String> {
    assert!(text.ends_with('\n'), "{text}");
    let mut samples = BTreeMap::new();
    let mut seen: Vec<String> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let (name, help) = line
            .strip_prefix("# HELP ")
            .unwrap()
            .split_once(' ')
            .unwrap();
        assert!(!help.is_empty() && help.ends_with('.'), "{line}");
        assert!(
            !seen.contains(&name.to_owned()),
            "duplicate metric {name}\n{text}"
        );
        let plain = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(name.starts_with("libvirt_kvm_init_") && name.chars().all(plain));
        seen.push(name.to_owned());
        assert_eq!(lines.next(), Some(format!("# TYPE {name} gauge").as_str()));
        let mut count = 0;
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let rest = key.strip_prefix(name).unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert_labels(rest);
            assert_eq!(
                samples.insert(key.to_owned(), value.to_owned()),
                None,
                "{key}"
            );
            count += 1;
        }
        assert!(count > 0, "{name} has no sample\n{text}");
    }
    samples
}

/// Asserts that the labels are empty or `{name="value",…}` with quote, backslash and newline escaped.
fn assert_labels(labels: &str) {
    if labels.is_empty() {
        return;
    }
    let inner = labels.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
    let mut rest = inner;
    loop {
        let (name, value) = rest.split_once("=\"").unwrap();
        assert!(
            name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
            "{labels}"
        );
        let mut chars = value.char_indices();
        let end = loop {
            match chars
                .next()
                .unwrap_or_else(|| panic!("unterminated: {labels}"))
            {
                (_, '\\') => {
                    let (_, escaped) = chars.next().unwrap();
                    assert!(matches!(escaped, '\\' | '"' | 'n'), "{labels}");
                }
                (at, '"') => break at,
                _ => {}
            }
        };
        rest = &value[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    assert_eq!(rest, "", "{labels}");
}

fn gauges(report: &Report) -> BTreeMap<String, String> {
    let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let all = metrics(&prometheus(report, now)).into_iter();
    let short = |key: String| key.trim_start_matches("libvirt_kvm_init_").to_owned();
    all.map(|(key, value)| (short(key), value)).collect()
}

#[test]
fn prometheus_output_has_the_gauges_that_alerts_use() {
    let mut report = stored();
    report
        .warnings
        .push(Warning::new(WarningCode::Collision, "again"));
    report
        .warnings
        .push(Warning::new(WarningCode::NscdSocket, "x"));
    let found = gauges(&report);
    for (key, want) in [
        ("verdict{verdict=\"ok\"}", "1"),
        ("verdict{verdict=\"drift\"}", "0"),
        ("proof_info{cause=\"\",result=\"ok\"}", "1"),
        ("target_gid", "108"),
        ("device_gid", "108"),
        ("host_gid", "108"),
        ("pod_gid", "108"),
        ("warnings{code=\"collision\"}", "2"),
        ("warnings{code=\"nscd-socket\"}", "1"),
        ("last_run_timestamp_seconds", "1700000000"),
    ] {
        assert_eq!(
            found.get(key).map(String::as_str),
            Some(want),
            "{key}: {found:?}"
        );
    }
}

#[test]
fn prometheus_sets_one_verdict_and_omits_unknown_gids() {
    for verdict in Verdict::ALL {
        let found = gauges(&Report::new(verdict, "x"));
        let set = found
            .iter()
            .filter(|(key, value)| key.starts_with("verdict{") && *value == "1");
        let set: Vec<_> = set.map(|(key, _)| key.clone()).collect();
        assert_eq!(set, [format!("verdict{{verdict=\"{}\"}}", verdict.word())]);
        assert!(!found.keys().any(|key| key.ends_with("_gid")), "{found:?}");
        assert!(found.contains_key("last_run_timestamp_seconds"));
    }
}

#[test]
fn prometheus_label_values_are_escaped() {
    let mut report = stored();
    for text in TEXTS {
        report.proof.result = text.to_owned().into();
        report.proof.cause = Some(Cause::NoDriver);
        gauges(&report);
    }
    for hidden in ["a\u{1b}[2Jb", "a\rb", "a\u{9b}b", "a\u{202e}b"] {
        report.proof.result = hidden.to_owned().into();
        let text = prometheus(&report, UNIX_EPOCH);
        let line = |c: char| libvirt_kvm_init::text::is_hidden(c) && c != '\n';
        assert!(!text.chars().any(line), "{text:?}");
    }
    report.proof.result = "a\u{1b}b".to_owned().into();
    let found = gauges(&report);
    let want = "proof_info{cause=\"no-driver\",result=\"a\\\\u{1b}b\"}";
    assert!(found.contains_key(want), "{found:?}");
    report.proof.result = "a\"b\\c\nd".to_owned().into();
    let found = gauges(&report);
    let want = "proof_info{cause=\"no-driver\",result=\"a\\\"b\\\\c\\nd\"}";
    assert!(found.contains_key(want), "{found:?}");
}

#[test]
fn table_fits_80_columns_with_any_path() {
    let deep =
        "/proc/4194304/root/var/lib/kubelet/pods/11111111-2222-3333-4444-555555555555/volumes/x";
    for path in ["/proc/12345/root", deep, &"x".repeat(200), "/"] {
        let mut report = stored();
        report.device.as_mut().unwrap().path = format!("{path}/dev/kvm");
        report.host.as_mut().unwrap().root = path.to_owned();
        report.pod.as_mut().unwrap().root = path.to_owned();
        report.target.as_mut().unwrap().at = format!("{path}/etc/group:2");
        report.summary = format!("{path}/etc/group is missing or out of date");
        let text = format!("libvirtd started before {path}/etc/group changed");
        report
            .warnings
            .push(Warning::new(WarningCode::LibvirtdStale, text));
        let text = table(&report, false);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}\n{text}");
        }
        // Wrapping loses no text.
        let joined: String = text.split_whitespace().collect();
        assert!(joined.contains(&format!("{path}/etc/group:2")), "{text}");
    }
}

#[test]
fn table_shows_the_computed_permission() {
    let mut report = stored();
    let line = "permission owner, group and mode allow access; open(2) succeeds\n";
    assert!(
        table(&report, false).contains(line),
        "{}",
        table(&report, false)
    );
    report.device.as_mut().unwrap().acl = Some("u::rw-,g::rw-,o::---".to_owned());
    report.proof.result = "EACCES".to_owned().into();
    let line = "permission owner, group, mode and ACL allow access; open(2) fails: EACCES\n";
    assert!(
        table(&report, false).contains(line),
        "{}",
        table(&report, false)
    );
    report.proof.computed = None;
    assert!(!table(&report, false).contains("permission"));
}
