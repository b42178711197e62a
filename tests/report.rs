//! The JSON report: what a stored one says is what this version reads and writes.
#![allow(missing_docs)]

use libvirt_kvm_init::exit::Verdict;
use libvirt_kvm_init::report::{Action, Code, Report};
use serde_json::Value;

/// A run that mended the incident: the device was 0:424, the pod's kvm too, the node's is 108.
const STORED: &str = include_str!("data/report.json");

#[test]
fn a_stored_report_is_read_and_written_as_it_stands() {
    let report: Report = serde_json::from_str(STORED).unwrap();
    assert_eq!(report.verdict, Verdict::Ok);
    assert_eq!(report.exit_code, report.verdict.code());
    let actions: Vec<_> = report.changes.iter().map(|change| change.action).collect();
    let want = [Action::SetGroupGid, Action::SetDeviceOwner];
    assert_eq!(actions, want);
    let codes: Vec<_> = report.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(codes, [Code::Collision]);
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
    use libvirt_kvm_init::report::Action::{
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
    let shown = libvirt_kvm_init::report::plain(text);
    let want = "a\\u{1b}[2J\\n\\u{9b}1m\\u{202e}b\\u{2066}\\u{200b}\\u{2028}\\u{feff}\u{e9}";
    assert_eq!(shown, want);
    let report = Report::new(Verdict::Failed, text);
    let line = libvirt_kvm_init::monitors::npd(&report);
    assert_eq!(line, "failed: a [2J  1m b    \u{e9}\n");
}
