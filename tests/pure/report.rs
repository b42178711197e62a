//! The JSON report: what a stored one says is what this version reads and writes.

use libvirt_kvm_init::codes::{Action, WarningCode};
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::verdict::Verdict;
use serde_json::Value;

/// A run that mended the incident: the device was 0:424, the pod's kvm too, the node's is 108.
const STORED: &str = include_str!("../data/report.json");

#[test]
fn a_stored_report_is_read_and_written_as_it_stands() {
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
fn it_is_one_line() {
    let report: Report = serde_json::from_str(STORED).unwrap();
    let text = report.to_json().unwrap();
    assert_eq!(text.find('\n'), Some(text.len() - 1));
}

#[test]
fn changes_are_called_in_text_what_json_calls_them() {
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

/// Names come from files that somebody else wrote.
#[test]
fn a_text_can_neither_paint_nor_turn_round_a_terminal() {
    let text = "a\u{1b}[2J\n\u{9b}1m\u{202e}b\u{2066}\u{200b}\u{2028}\u{feff}\u{e9}";
    let shown = libvirt_kvm_init::text::escape_control(text);
    let want = "a\\u{1b}[2J\\n\\u{9b}1m\\u{202e}b\\u{2066}\\u{200b}\\u{2028}\\u{feff}\u{e9}";
    assert_eq!(shown, want);
    let report = Report::new(Verdict::Failed, text);
    let line = libvirt_kvm_init::report::monitors::npd(&report);
    assert_eq!(line, "failed: a [2J  1m b    \u{e9}\n");
}

/// Every character that Unicode calls a format, or a separator of lines or paragraphs.
#[test]
fn every_format_character_is_hidden() {
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

/// DEL, C1, what turns the writing direction, and what is outside of the first plane.
#[test]
fn json_is_the_same_and_holds_no_hidden_character() {
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
