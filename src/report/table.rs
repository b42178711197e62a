//! The report as a table for terminals: node, pod and QEMU side by side, IDs and names, within 80 columns.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::codes::{Permission, ProofWord};
use crate::report::{Device, Report};
use crate::text::{escape_control, join_first};
use crate::verdict::Verdict;

/// The width of the table, in characters.
const WIDTH: usize = 80;
/// The width of the first column.
const LABEL: usize = 10;
/// The width of each other column.
const COLUMN: usize = 23;

/// The only device of the node that is inspected, whatever `--device` is set to.
const NODES: &str = "/dev/kvm";

/// Maximum number of QEMU's groups that are listed.
const GROUPS: usize = 16;

/// The report as a table. `colour` marks the verdict with terminal colours.
pub fn table(report: &Report, colour: bool) -> String {
    let mut text = String::new();
    if let Some(device) = &report.device {
        let rows = [
            ["".to_owned(), "NODE".into(), "POD".into(), "QEMU".into()],
            [
                group_name(report),
                node_gid(report),
                pod_gid(report),
                qemu(report),
            ],
            [
                device.path.clone(),
                node_device(report),
                pod_device(device),
                opens(report),
            ],
        ];
        for row in rows {
            push_row(&mut text, &row);
        }
        text.push('\n');
    }
    for (label, paragraph) in paragraphs(report) {
        push(&mut text, label, &paragraph);
    }
    let start = text.len();
    push(&mut text, report.verdict.word(), &report.summary);
    if colour {
        paint(&mut text, start, report.verdict);
    }
    text
}

/// The labelled paragraphs below the columns.
fn paragraphs(report: &Report) -> Vec<(&'static str, String)> {
    let mut labelled = Vec::new();
    if let Some(target) = &report.target {
        let mode = target.mode.as_ref().map(|mode| format!(", mode {mode}"));
        let mode = mode.unwrap_or_default();
        let text = format!("{} from {}{mode}", target.gid, target.at);
        labelled.push(("target", text));
    }
    let acl = report.device.as_ref().and_then(|device| device.acl.clone());
    labelled.extend(acl.map(|acl| ("acl", acl)));
    labelled.extend(permission(report).map(|text| ("permission", text)));
    for change in &report.changes {
        let label = if change.applied {
            "changed"
        } else {
            "to change"
        };
        labelled.push((label, change.to_string()));
    }
    for warning in &report.warnings {
        let text = format!("{}: {}", warning.code.word(), warning.text);
        labelled.push(("warning", text));
    }
    let cause = report.proof.cause.map(|cause| cause.word().to_owned());
    labelled.extend(cause.map(|cause| ("cause", cause)));
    let label = if report.advice_is_reason() {
        "reason"
    } else {
        "advice"
    };
    let advice = report.proof.advice.clone();
    labelled.extend(advice.map(|advice| (label, advice)));
    labelled
}

fn paint(text: &mut String, start: usize, verdict: Verdict) {
    let code = match verdict {
        Verdict::Ok => "\x1b[1;32m",
        Verdict::Drift | Verdict::Absent => "\x1b[1;33m",
        _ => "\x1b[1;31m",
    };
    text.insert_str(start + verdict.word().len(), "\x1b[0m");
    text.insert_str(start, code);
}

fn group_name(report: &Report) -> String {
    let pod = report.pod.as_ref().map(|pod| pod.group.clone());
    format!("group {}", pod.unwrap_or_default())
}

fn node_gid(report: &Report) -> String {
    match &report.host {
        None => "cannot be read".to_owned(),
        Some(host) => gid(host.kvm_gid),
    }
}

fn pod_gid(report: &Report) -> String {
    report
        .pod
        .as_ref()
        .map_or_else(String::new, |pod| gid(pod.kvm_gid))
}

fn gid(gid: Option<u32>) -> String {
    gid.map_or_else(|| "none".to_owned(), |gid| gid.to_string())
}

fn qemu(report: &Report) -> String {
    let Some(qemu) = &report.qemu else {
        return "unknown".to_owned();
    };
    let name = match (&qemu.user, qemu.stand_in) {
        (_, true) => "nobody",
        (Some(user), _) => user,
        (None, _) => "no name",
    };
    let more = qemu.groups.iter().filter(|gid| **gid != qemu.gid);
    let more = join_first(more.map(ToString::to_string), GROUPS, "+");
    let plus = if more.is_empty() { "" } else { "+" };
    format!("{}:{}{plus}{more} ({name})", qemu.uid, qemu.gid)
}

fn node_device(report: &Report) -> String {
    let Some(host) = &report.host else {
        return "cannot be read".to_owned();
    };
    let device = report.device.as_ref();
    let same = device.and_then(|device| device.same_inode_as_host);
    let name = match device {
        Some(device) if device.path != NODES => format!("{NODES} "),
        _ => String::new(),
    };
    match (&host.device, same) {
        (_, Some(true)) => "same device".to_owned(),
        (Some(device), _) => format!("{name}{}:{} {}", device.uid, device.gid, device.mode),
        (None, _) => "not found".to_owned(),
    }
}

fn pod_device(device: &Device) -> String {
    let (Some(uid), Some(gid), Some(mode)) = (device.uid, device.gid, &device.mode) else {
        return device.kind.clone();
    };
    let name = match (&device.group_in_pod, &device.group_on_host) {
        (Some(pod), Some(host)) if pod == host => pod.clone(),
        (Some(pod), Some(host)) => format!("pod {pod}, node {host}"),
        (Some(pod), None) => format!("pod {pod}"),
        (None, Some(host)) => format!("node {host}"),
        (None, None) => "no name".to_owned(),
    };
    format!("{uid}:{gid} {mode} ({name})")
}

fn opens(report: &Report) -> String {
    match (&report.proof.result, report.proof.api_version) {
        (ProofWord::Ok, Some(version)) => format!("opens, API {version}"),
        (ProofWord::Ok, None) => "opens".to_owned(),
        (ProofWord::Off | ProofWord::None, _) => "not tested".to_owned(),
        (result, _) => format!("cannot open: {}", result.as_str()),
    }
}

/// The computed permission, followed by the result of open(2).
fn permission(report: &Report) -> Option<String> {
    let proof = &report.proof;
    let acl = report.device.as_ref()?.acl.is_some();
    let by = match (proof.computed?, acl) {
        (Permission::Allowed, false) => "owner, group and mode allow access",
        (Permission::Allowed, true) => "owner, group, mode and ACL allow access",
        (Permission::Denied, false) => "owner, group and mode deny access",
        (Permission::Denied, true) => "owner, group, mode and ACL deny access",
    };
    let open = match &proof.result {
        ProofWord::Ok => "open(2) succeeds".to_owned(),
        ProofWord::Off | ProofWord::None => "open(2) was not tried".to_owned(),
        // open(2) or a later check of the opened file showed another device or API version.
        ProofWord::Mismatch => "another device or API version than expected".to_owned(),
        ProofWord::Errno(name) => format!("open(2) fails: {name}"),
    };
    Some(format!("{by}; {open}"))
}

/// Appends one row. A cell that is too wide continues on the next lines; a label that is too wide gets lines of its
/// own above the row.
fn push_row(text: &mut String, row: &[String; 4]) {
    let [label, cells @ ..] = row.each_ref().map(|cell| escape_control(cell));
    let mut label = label.as_str();
    if label.chars().count() > LABEL {
        for piece in pieces(label, WIDTH) {
            text.push_str(&piece);
            text.push('\n');
        }
        label = "";
    }
    let cells = cells.map(|cell| wrapped(&cell, COLUMN - 1));
    let height = cells.iter().map(Vec::len).max().unwrap_or(0);
    for at in 0..height.max(1) {
        let mut line = format!("{:LABEL$} ", if at == 0 { label } else { "" });
        for cell in &cells {
            let part = cell.get(at).map_or("", String::as_str);
            let _ = write!(line, "{part:COLUMN$}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// Breaks a cell between words, and a word that is too wide before a `+` or else at the full width.
fn wrapped(cell: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in cell.split_whitespace() {
        if let Some(line) = lines.last_mut()
            && line.chars().count() + 1 + word.chars().count() <= width
        {
            line.push(' ');
            line.push_str(word);
            continue;
        }
        let before_plus = |head: &str, next: char| match next {
            '+' => None,
            _ => head.rfind('+').filter(|at| *at > 0),
        };
        lines.extend(parts(word, width, before_plus));
    }
    lines
}

/// Breaks a word that is too wide after a `/` or a comma, or else at the full width.
fn pieces(word: &str, width: usize) -> Vec<String> {
    let after_slash = |head: &str, _| head.rfind(['/', ',']).filter(|at| *at > 0).map(|at| at + 1);
    parts(word, width, after_slash)
}

/// Breaks a word into pieces of at most `width` characters. `place` gets the part that fits and the next character;
/// it may return an earlier position at which to break.
fn parts(word: &str, width: usize, place: impl Fn(&str, char) -> Option<usize>) -> Vec<String> {
    let mut rest = word;
    let mut pieces = Vec::new();
    while let Some((end, next)) = rest.char_indices().nth(width) {
        let (head, _) = rest.split_at(end);
        let (head, tail) = rest.split_at(place(head, next).unwrap_or(end));
        pieces.push(head.to_owned());
        rest = tail;
    }
    pieces.push(rest.to_owned());
    pieces
}

/// Appends a labelled paragraph, wrapped between words.
fn push(text: &mut String, label: &str, paragraph: &str) {
    let paragraph = escape_control(paragraph);
    let mut line = format!("{label:LABEL$} ");
    let indent = line.chars().count();
    let mut used = indent;
    let room = WIDTH - indent;
    for word in paragraph
        .split_whitespace()
        .flat_map(|word| pieces(word, room))
    {
        let length = word.chars().count();
        if used > indent && used + 1 + length > WIDTH {
            line.push('\n');
            line.extend(std::iter::repeat_n(' ', indent));
            used = indent;
        }
        if used > indent {
            line.push(' ');
            used += 1;
        }
        line.push_str(&word);
        used += length;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_wider_than_its_column_is_wrapped() {
        let table = [
            ("", &[][..]),
            ("0:108 0660 (kvm)", &["0:108 0660 (kvm)"]),
            (
                "0:424 0660 (pod kvm, node libvirt)",
                &["0:424 0660 (pod kvm,", "node libvirt)"],
            ),
            (
                "42424:424+42424+501+1000000001 (nova)",
                &["42424:424+42424+501", "+1000000001 (nova)"],
            ),
            (
                "1:2 (a-name-that-is-wider-than-it-all)",
                &["1:2", "(a-name-that-is-wider-", "than-it-all)"],
            ),
            (
                "1:2+100000001+100000002+100000003",
                &["1:2+100000001", "+100000002+100000003"],
            ),
            (
                "12345678901234567890é3+1",
                &["12345678901234567890é3", "+1"],
            ),
        ];
        for (cell, want) in table {
            assert_eq!(wrapped(cell, COLUMN - 1), want, "{cell}");
        }
    }

    /// Names in files can be very long, so wrapping must not take quadratic time.
    #[test]
    fn a_word_of_megabytes_is_wrapped() {
        let word = "é+".repeat(1 << 20);
        assert_eq!(wrapped(&word, COLUMN - 1).concat(), word);
        let word = "/é".repeat(1 << 20);
        assert_eq!(pieces(&word, WIDTH).concat(), word);
    }

    #[test]
    fn at_most_sixteen_groups_are_listed() {
        let mut report = Report::new(Verdict::Ok, "");
        report.qemu = Some(crate::report::Qemu {
            user: Some("nova".to_owned()),
            uid: 1,
            gid: 2,
            groups: (2..100_000).collect(),
            stand_in: false,
        });
        let all: String = (3..19).map(|gid| format!("+{gid}")).collect();
        assert_eq!(qemu(&report), format!("1:2{all} and 99981 more (nova)"));
    }

    #[test]
    fn the_nodes_device_is_named_if_the_pods_has_another_path() {
        let mut report = Report::new(Verdict::Ok, "");
        let json = r#"{"root": "/", "device": {"uid": 0, "gid": 108, "mode": "0660"}}"#;
        report.host = serde_json::from_str(json).unwrap();
        for (path, want) in [
            ("/dev/kvm", "0:108 0660"),
            ("/dev/null", "/dev/kvm 0:108 0660"),
        ] {
            let json = format!(r#"{{"path": "{path}", "kind": "missing"}}"#);
            report.device = serde_json::from_str(&json).unwrap();
            assert_eq!(node_device(&report), want);
        }
    }

    #[test]
    fn a_label_wider_than_its_column_gets_its_own_line() {
        let row = ["/dev/something/kvm", "same device", "x", "y"].map(str::to_owned);
        let mut text = String::new();
        push_row(&mut text, &row);
        let want =
            "/dev/something/kvm\n           same device            x                      y\n";
        assert_eq!(text, want);
    }
}
