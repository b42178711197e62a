//! The JSON report: a stored report must be read and written unchanged, and texts must be escaped.

use libvirt_kvm_init::codes::{Action, WarningCode};
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::verdict::Verdict;
use serde_json::Value;

/// The report of a run that repaired the incident: the device and the pod's kvm had GID 424, the node's kvm has 108.
const STORED: &str = include_str!("../data/report.json");

#[test]
fn stored_report_round_trips() {
    let report: Report = serde_json::from_str(STORED).unwrap();
    assert_eq!(report.verdict, Verdict::Ok);
    assert_eq!(report.exit_code, report.verdict.code());
    let actions: Vec<_> = report.changes.iter().map(|change| change.action).collect();
    let want = [Action::SetGroupGid, Action::SetDeviceOwner];
    assert_eq!(actions, want);
    let codes: Vec<_> = report.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(codes, [WarningCode::Collision]);
    let written: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    let stored: Value = serde_json::from_str(STORED).unwrap();
    assert_eq!(written, stored);
}

#[test]
fn json_report_is_one_line() {
    let report: Report = serde_json::from_str(STORED).unwrap();
    let text = report.to_json().unwrap();
    assert_eq!(text.find('\n'), Some(text.len() - 1));
}

#[test]
fn action_words_equal_their_json_values() {
    use libvirt_kvm_init::codes::Action::{
        AddGroup, AddMember, SetDeviceAcl, SetDeviceMode, SetDeviceOwner, SetGroupGid,
        WriteGroupFile, WriteUdevRule,
    };
    for action in [
        SetGroupGid,
        AddGroup,
        AddMember,
        SetDeviceOwner,
        SetDeviceMode,
        SetDeviceAcl,
        WriteGroupFile,
        WriteUdevRule,
    ] {
        assert_eq!(serde_json::to_value(action).unwrap(), action.word());
    }
}

/// Names come from files that other users may write.
#[test]
fn control_and_bidi_characters_are_escaped() {
    let text = "a\u{1b}[2J\n\u{9b}1m\u{202e}b\u{2066}\u{200b}\u{2028}\u{feff}\u{e9}";
    let shown = libvirt_kvm_init::text::escape_control(text);
    let want = "a\\u{1b}[2J\\n\\u{9b}1m\\u{202e}b\\u{2066}\\u{200b}\\u{2028}\\u{feff}\u{e9}";
    assert_eq!(shown, want);
    let report = Report::new(Verdict::Failed, text);
    let line = libvirt_kvm_init::report::monitors::npd(&report);
    assert_eq!(line, "failed: a [2J  1m b    \u{e9}\n");
}

/// All characters of the Unicode categories Cc, Cf, Zl and Zp.
#[test]
fn unicode_control_and_format_characters_are_hidden() {
    use libvirt_kvm_init::text::is_hidden;
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::{Config, RngSeed, TestRunner};
    let config = Config {
        rng_seed: RngSeed::Fixed(108),
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let format = proptest::string::string_regex("[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}]").unwrap();
    let seen = proptest::string::string_regex("[\\p{L}\\p{M}\\p{N}\\p{P}\\p{S}\\p{Zs}]").unwrap();
    for (regex, is) in [(format, true), (seen, false)] {
        for _ in 0..20_000 {
            let text = regex.new_tree(&mut runner).unwrap().current();
            let char = text.chars().next().unwrap();
            assert_eq!(is_hidden(char), is, "{}", char.escape_unicode());
        }
    }
}

/// Among them DEL, C1 controls, bidirectional controls, and characters outside the Basic Multilingual Plane.
#[test]
fn json_escapes_hidden_characters_and_round_trips() {
    use libvirt_kvm_init::text::is_hidden;
    let hidden: String = ('\0'..=char::MAX).filter(|char| is_hidden(*char)).collect();
    let text = format!("a{hidden}\"\\\u{e4}\u{1f600}");
    let mut report = Report::new(Verdict::Failed, text.as_str());
    report.proof.advice = Some(text);
    let json = report.to_json().unwrap();
    assert!(json.contains("\\u007f\\u0080"), "{json}");
    assert!(
        json.contains("\\u202e") && json.contains("\\udb40\\udc41"),
        "{json}"
    );
    assert!(json.contains("\u{e4}\u{1f600}"), "{json}");
    let line = json.strip_suffix('\n').unwrap();
    assert!(!line.chars().any(is_hidden));
    assert_eq!(serde_json::from_str::<Report>(line).unwrap(), report);
}
