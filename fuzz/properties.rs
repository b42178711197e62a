//! Invariants for arbitrary input bytes, one function per fuzz target. tests/pure/fuzz_replay.rs calls them with every
//! file in corpus/.
//!
//! If a property has parameters besides the file, the first bytes of the input select them, so that seeds can be written
//! by hand: `1kvm:x:424:` is the selector `1` and a group file.
#![allow(dead_code, clippy::unwrap_used)] // each target calls one; a panic reports the failure

#[path = "account_files.rs"]
pub mod account_files;

use std::cell::RefCell;
use std::io::Read;
use std::path::Path;

use libvirt_kvm_init::commands::logs::aggregate::Aggregator;
use libvirt_kvm_init::commands::logs::report::{self, LogReport};
use libvirt_kvm_init::commands::logs::scan::Scanner;
use libvirt_kvm_init::commands::logs::stream::Stream;
use libvirt_kvm_init::config::options::Flags;
use libvirt_kvm_init::formats::accounts::edit::{Change, EditError, Want, align};
use libvirt_kvm_init::formats::accounts::{group, passwd};
use libvirt_kvm_init::formats::posix_acl::{
    Acl, FilePermissions, READ_WRITE, Subject, Tag, permits,
};
use libvirt_kvm_init::formats::qemu_conf::{self, QemuConf};
use libvirt_kvm_init::formats::udev::own_rule::{OwnRule, Rules};
use libvirt_kvm_init::formats::udev::{self, Database, Event, RuleFile, Udevd};
use libvirt_kvm_init::formats::userdb::record;
use libvirt_kvm_init::observe::group_db::GroupDb;
use libvirt_kvm_init::pipeline::Request;
use libvirt_kvm_init::text::is_hidden;
use nix::unistd::{Gid, Uid};

/// Panics if the invariants do not hold for the input.
type Property = fn(&[u8]);

/// All targets, with the names of their corpora.
pub const TARGETS: [(&str, Property); 8] = [
    ("group", group),
    ("passwd", passwd),
    ("qemu_conf", qemu_conf),
    ("udev", udev),
    ("yaml", yaml),
    ("acl", acl),
    ("userdb", userdb),
    ("logs", logs),
];

/// An edit makes and reports the wanted change, changes no other byte, and a second edit changes nothing; or it is
/// refused because a name contains characters that are not allowed.
pub fn group(data: &[u8]) {
    let Some((choice, file)) = data.split_first() else {
        return;
    };
    account_files::group_look_ups(file);
    let gid = [108, 424, 1, u32::MAX - 1][usize::from(choice & 3)];
    let member = [None, Some("nova"), Some("b"), Some("a b")][usize::from(choice >> 2 & 3)];
    let mut want = Want {
        group: b"kvm",
        gid: Gid::from_raw(gid),
        member: member.map(str::as_bytes),
    };
    group_edit(file, &want);
    // Names in the file, and the text before the first colon.
    let first = file.split(|b| matches!(b, b':' | b'\n')).next();
    for name in group::groups(file).map(|found| found.name).chain(first) {
        want.group = name;
        group_edit(file, &want);
    }
}

fn group_edit(file: &[u8], want: &Want<'_>) {
    let is_plain = |name: &[u8]| {
        let stem = name.strip_suffix(b"$").unwrap_or(name);
        let letters = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
        let first = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
        stem.first().is_some_and(first) && stem.iter().all(letters) && name.len() <= 32
    };
    match align(file, want) {
        Ok((_, changes)) => {
            for change in changes {
                match change {
                    Change::SetGid { .. } => {}
                    Change::AddGroup { .. } => assert!(is_plain(want.group)),
                    Change::AddMember { user } => assert!(is_plain(&user)),
                }
            }
            account_files::edit(file, want);
        }
        Err(EditError::Name { name, .. }) => {
            assert!([Some(want.group), want.member].contains(&Some(&name)));
            assert!(!is_plain(&name));
        }
        Err(other) => panic!("{other}"),
    }
}

/// Lookups find the entries, and the meaning of a line does not depend on its position.
pub fn passwd(data: &[u8]) {
    account_files::passwd_look_ups(data);
    let entries = |file| -> Vec<(Vec<u8>, Uid, Gid)> {
        let entry = |user: passwd::User<'_>| (user.name.to_vec(), user.uid, user.gid);
        passwd::users(file).map(entry).collect()
    };
    let lines = data.split(|b| *b == b'\n').take(64);
    let alone: Vec<_> = lines.flat_map(entries).collect();
    let mut whole = entries(data);
    whole.truncate(alone.len());
    assert_eq!(alone, whole);
}

/// Errors contain a valid line number; an added setting can be read back and does not change the others.
pub fn qemu_conf(data: &[u8]) {
    let newlines = data.iter().filter(|b| **b == b'\n').count();
    let conf = qemu_conf::parse(data);
    assert_eq!(conf, qemu_conf::parse(data));
    match &conf {
        Err(error) => {
            assert!((1..=newlines + 1).contains(&error.line), "{error}");
            assert!(!error.to_string().is_empty());
        }
        Ok(conf) => {
            for setting in [&conf.user, &conf.group].into_iter().flatten() {
                assert!((1..=newlines + 1).contains(&setting.line));
                qemu_conf::id_spec(&setting.value);
            }
            let added = [data, b"\nuser = \"+108\"\n"].concat();
            let user = conf.user.clone().unwrap_or(qemu_conf::Setting {
                value: b"+108".to_vec(),
                line: newlines + 2,
            });
            let user = Some(user);
            let conf = conf.clone();
            assert_eq!(qemu_conf::parse(&added), Ok(QemuConf { user, ..conf }));
        }
    }
    qemu_conf::id_spec(data);
    let line = data.split(|b| matches!(b, b'\n' | b'\r' | b'"' | 0));
    for value in line.take(8) {
        // The text between the quotes cannot contain quotes, so that it does not begin a triple-quoted string.
        let text = [b"group = \"", value, b"\"\n"].concat();
        let setting = qemu_conf::parse(&text).unwrap().group.unwrap();
        assert_eq!(setting.value, value);
    }
}

/// Predictions are deterministic, contain only valid modes, and apply the rule of `--persist` when it takes precedence.
pub fn udev(data: &[u8]) {
    let Some((choice, rules)) = data.split_first() else {
        return;
    };
    let udevd = Udevd {
        version: [None, Some(252), Some(257), Some(258), Some(260)]
            .get(usize::from(choice & 7))
            .copied()
            .flatten(),
        ..Udevd::default()
    };
    let db = Database {
        group: &|name| match name {
            "kvm" => Some(Gid::from_raw(108)),
            "root" => Some(Gid::from_raw(0)),
            "big" => Some(Gid::from_raw(929_292)),
            _ => None,
        },
        user: &|name| match name {
            "qemu" => Some(Uid::from_raw(107)),
            _ => None,
        },
        complete: true,
    };
    // A line `||||` starts the next file.
    let mut parts = vec![Vec::new()];
    for line in rules.split_inclusive(|b| *b == b'\n') {
        match parts.last_mut() {
            Some(part) if line != b"||||\n" => part.extend_from_slice(line),
            _ => parts.push(Vec::new()),
        }
    }
    let file = |(number, content)| RuleFile {
        path: format!("/usr/lib/udev/rules.d/{:02}-a.rules", number + 50),
        content,
    };
    let files = Rules {
        files: parts.into_iter().take(8).enumerate().map(file).collect(),
        hidden: None,
    };
    let predictions = udev::predict(&files.all(), &udevd, &db);
    assert_eq!(predictions, udev::predict(&files.all(), &udevd, &db));
    for file in &files.files {
        if let Some(own_rule) = OwnRule::of(&file.content) {
            assert_eq!(own_rule.file().content, file.content);
        }
    }
    for diagnostic in predictions.ignored.iter().chain(&predictions.unclear) {
        assert!(
            diagnostic.rule.starts_with("/usr/lib/udev/rules.d/") && !diagnostic.why.is_empty()
        );
    }
    let own_rule = OwnRule {
        gid: Gid::from_raw(555),
        mode: 0o664,
    };
    let own = own_rule.file();
    let with = udev::predict(&files.with(&own), &udevd, &db);
    for event in [Event::Start, Event::Add, Event::Change] {
        for outcome in [&predictions, &with].map(|all| all.of(event).outcome()) {
            assert!(outcome.and_then(|o| o.mode).unwrap_or(0) <= 0o7777);
        }
        let Some(outcome) = with.of(event).outcome() else {
            continue;
        };
        // If an earlier `:=` made the group final, the rule sets only the rest.
        if outcome.rule.starts_with(&own.path) && outcome.gid.is_some() {
            assert_eq!(outcome.gid, Some(own_rule.gid));
        }
        let by_own =
            |rule: &Option<String>| rule.as_ref().is_some_and(|r| r.starts_with(&own.path));
        // If an earlier `:=` made the mode final, setting the group still implies mode 0660.
        if by_own(&outcome.mode_rule) {
            assert!([own_rule.mode, 0o660].map(Some).contains(&outcome.mode));
        }
        if by_own(&outcome.owner_rule) {
            assert_eq!(outcome.uid, Some(Uid::from_raw(0)));
        }
    }
}

/// Errors contain the file name; no text is ignored; a written value can be read back.
pub fn yaml(data: &[u8]) {
    let flags = Flags::new([("config", "c.yaml")]);
    let resolve = |yaml: &[u8]| {
        let resolved = Request::resolve(&flags, |_| None, |_| Ok(yaml.to_vec()));
        resolved.map_err(|error| error.to_string())
    };
    let config = resolve(data);
    assert_eq!(config, resolve(data));
    match config {
        Err(text) => assert!(text.starts_with("c.yaml:"), "{text}"),
        Ok(_) => {
            for more in [&b"\n...\nunknown: 1\n"[..], b"\n...\n}\n"] {
                let text = resolve(&[data, more].concat()).unwrap_err();
                assert!(text.starts_with("c.yaml:"), "{text}");
            }
        }
    }
    // More of these characters are rejected as deeply nested lists.
    if let Ok(text) = std::str::from_utf8(data)
        && !text.is_empty()
        && text.matches(['-', '?']).count() < 256
    {
        // Characters that are forbidden in the file can be written as escapes.
        let quoted = serde_json::to_string(text).unwrap();
        let escape = |c: char| match c {
            '\u{2028}' | '\u{2029}' | '\u{feff}' => format!("\\u{:04x}", u32::from(c)),
            c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        };
        let quoted: String = quoted.chars().map(escape).collect();
        let written = format!("# {{}}\nqemu-group: a\nqemu-user: {quoted}\nstrict: true\n");
        let policy = resolve(written.as_bytes()).unwrap().0.policy;
        assert_eq!(policy.qemu_user.unwrap().text, text);
        assert_eq!(policy.qemu_group.unwrap().text, "a");
        assert!(policy.strict);
    }
}

/// A parsed ACL is written back unchanged, and a repair grants more access only to the owning group.
pub fn acl(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first_chunk::<2>() else {
        return;
    };
    let Some(acl) = Acl::parse(bytes) else {
        return;
    };
    assert_eq!(Acl::parse(&acl.to_bytes()).as_ref(), Some(&acl));
    let choice = u16::from_le_bytes(*choice);
    let exact = (choice & 0x8000 != 0).then_some(choice & 0o777);
    let repaired = acl.repaired(exact);
    assert_eq!(repaired.repaired(exact), repaired);
    let mode = exact.unwrap_or(0);
    assert_eq!(acl.with_mode(mode).with_mode(mode), acl.with_mode(mode));
    let (mut uids, mut gids) = (vec![0, 7], vec![0, 7]);
    for entry in bytes[4..].chunks_exact(8).take(16) {
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        match entry[0] {
            0x02 => uids.push(id),
            0x08 => gids.push(id),
            _ => {}
        }
    }
    // The device's owner and owning group. An entry can also name that group.
    let owner = Uid::from_raw(0);
    let group = Gid::from_raw(*gids.last().unwrap());
    let may = |acl: &Acl, subject: &Subject<'_>, want| {
        let permissions = FilePermissions {
            uid: owner,
            gid: group,
            mode: 0,
            acl: Some(acl),
        };
        permits(&permissions, subject, want)
    };
    for uid in uids.iter().map(|raw| Uid::from_raw(*raw)) {
        let named = acl.get(Tag::User(uid)).is_some();
        for (gid, also) in gids.iter().zip(gids.iter().cycle().skip(1)) {
            let (gid, groups) = (Gid::from_raw(*gid), [Gid::from_raw(*also)]);
            for groups in [&groups[..], &[]] {
                let subject = Subject { uid, gid, groups };
                let member = gid == group || groups.contains(&group);
                if uid == owner || member && !named {
                    assert!(exact.is_some() || may(&repaired, &subject, READ_WRITE));
                    continue;
                }
                let listed = named
                    || acl.get(Tag::Group(gid)).is_some()
                    || groups.iter().any(|gid| acl.get(Tag::Group(*gid)).is_some());
                for want in 1..=7 {
                    let before = may(&acl, &subject, want);
                    let after = may(&repaired, &subject, want);
                    if listed || exact.is_none() {
                        assert!(
                            before || !after,
                            "{acl} -> {repaired}: {subject:?} {want:o}"
                        );
                    }
                    if exact.is_none() {
                        assert_eq!(before, after, "{acl} -> {repaired}: {subject:?} {want:o}");
                    }
                }
            }
        }
    }
}

/// A record is accepted only from a file with its own name or GID, and lookups then find it.
pub fn userdb(data: &[u8]) {
    for at in ["usr/lib/userdb/kvm.group", "etc/userdb/78.group"] {
        let Some(found) = record(at, data) else {
            continue;
        };
        let (name, gid) = (found.name.clone(), found.gid);
        assert!(data.trim_ascii_start().starts_with(b"{"));
        assert!(at.ends_with(&format!("/{name}.group")) || at.ends_with(&format!("/{gid}.group")));
        let db = GroupDb {
            files: vec![("etc/group", b"root:x:0:\n".to_vec())],
            records: vec![found],
            ..GroupDb::default()
        };
        if name != "root" {
            assert_eq!(db.by_name(&name).unwrap().gid, gid);
        }
        if gid.as_raw() != 0 {
            assert_eq!(db.name_of(gid).as_deref(), Some(name.as_str()));
            assert_eq!(
                db.other_owner(gid, &format!("not-{name}")),
                Some((name.clone(), format!("/{at}")))
            );
            if name != "root" {
                assert_eq!(db.other_owner(gid, &name), None);
            }
        }
    }
    if let Ok(name) = std::str::from_utf8(data)
        && !name.is_empty()
        && !name.contains('/')
    {
        let json = serde_json::json!({ "groupName": name, "gid": 78 }).to_string();
        for at in [
            format!("etc/userdb/{name}.group"),
            "etc/userdb/78.group".to_owned(),
        ] {
            let found = record(&at, json.as_bytes()).unwrap();
            assert_eq!((found.name.as_str(), found.gid.as_raw()), (name, 78));
        }
    }
}

/// The report does not depend on the sizes of the reads, and its text and JSON contain no control characters.
pub fn logs(data: &[u8]) {
    let Some((choice, log)) = data.split_first() else {
        return;
    };
    // A line `||||` starts the next stream.
    let mut streams = vec![Vec::new()];
    for line in log.split_inclusive(|b| *b == b'\n') {
        match streams.last_mut() {
            Some(stream) if line != b"||||\n" => stream.extend_from_slice(line),
            _ => streams.push(Vec::new()),
        }
    }
    streams.truncate(4);
    let paths = ["qemu/instance-0000000a.log", "nova-compute.log"].map(Path::new);
    let read = |scanner: &mut Scanner, step: usize| {
        let mut aggregator = Aggregator::default();
        for (number, stream) in streams.iter().enumerate() {
            let path = paths[usize::from(choice >> number & 1)];
            let number = u32::try_from(number).unwrap();
            let mut lines = Stream::new(number, path, 1_770_000_000, &mut aggregator);
            let input = Steps { rest: stream, step };
            scanner.scan(input, |found| lines.take(found)).unwrap();
            lines.end();
        }
        LogReport::new(aggregator.finish(), report::Read::default(), Vec::new())
    };
    // The buffer is large, so it is reused; its old content must not affect the result.
    thread_local!(static SCANNER: RefCell<Scanner> = RefCell::default());
    let report = SCANNER.with_borrow_mut(|scanner| {
        let report = read(scanner, usize::MAX);
        assert_eq!(report, read(scanner, 1 + usize::from(choice >> 4) * 7));
        report
    });
    let text = report.table();
    assert!(!text.chars().any(|c| is_hidden(c) && c != '\n'), "{text:?}");
    let json = report.to_json().unwrap();
    assert!(!json.trim_end().chars().any(is_hidden), "{json}");
    assert_eq!(serde_json::from_str::<LogReport>(&json).unwrap(), report);
    let messages = log.iter().filter(|b| **b == b'\n').count() + streams.len();
    let reported: u64 = report.guests.iter().map(|guest| guest.count).sum();
    assert!(reported + report.others <= u64::try_from(messages).unwrap());
}

/// A reader that returns at most `step` bytes per call.
struct Steps<'a> {
    rest: &'a [u8],
    step: usize,
}

impl Read for Steps<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = self.step.min(self.rest.len());
        let (mut now, rest) = self.rest.split_at(len);
        let got = now.read(buffer)?;
        self.rest = if got == len { rest } else { &self.rest[got..] };
        Ok(got)
    }
}
