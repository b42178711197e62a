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
