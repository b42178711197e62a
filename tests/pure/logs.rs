//! `logs`: matching of lines, grouping into incidents, and reading of files of every kind. The files in
//! tests/data/logs have the format of real logs, with invented data.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use libvirt_kvm_init::codes::Cause;
use libvirt_kvm_init::commands::logs::causes::Outcome;
use libvirt_kvm_init::commands::logs::lines::{Hit, domain_of_path, printable};
use libvirt_kvm_init::commands::logs::patterns::{Form, LONGEST, PATTERNS};
use libvirt_kvm_init::commands::logs::report::LogReport;

fn program() -> Command {
    Command::new(support::program())
}

fn logs(args: &[&Path]) -> (i32, LogReport) {
    let out = program()
        .args(["logs", "--format", "json"])
        .args(args)
        .output()
        .unwrap();
    report(&out)
}

fn report(out: &Output) -> (i32, LogReport) {
    let text = String::from_utf8(out.stdout.clone()).unwrap();
    let report: LogReport = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&out.stderr)));
    assert_eq!(out.status.code(), Some(report.exit_code.into()));
    (report.exit_code.into(), report)
}

fn piped(input: impl FnOnce(&mut dyn Write) + Send) -> (i32, LogReport) {
    let mut child = program()
        .args(["logs", "--format", "json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    input(&mut stdin);
    drop(stdin);
    report(&child.wait_with_output().unwrap())
}

fn text(text: &str) -> (i32, LogReport) {
    piped(|pipe| pipe.write_all(text.as_bytes()).unwrap())
}

const FAILURE: &str = "2026-02-10T07:15:01.402211Z qemu-system-x86_64: Could not access KVM kernel \
                       module: Permission denied\n";

#[test]
fn each_kvm_message_maps_to_its_cause() {
    // line => cause
    let table = [
        (
            "Could not access KVM kernel module: Permission denied",
            Cause::Ownership,
        ),
        (
            "Could not access KVM kernel module: Operation not permitted\r",
            Cause::DeviceCgroup,
        ),
        (
            "Could not access KVM kernel module: No such file or directory",
            Cause::Missing,
        ),
        (
            "Could not access KVM kernel module: No such device",
            Cause::NoDriver,
        ),
        (
            "Could not access KVM kernel module: No such device or address",
            Cause::NoDriver,
        ),
        (
            "Could not access KVM kernel module: Is a directory",
            Cause::NotKvm,
        ),
        (
            "qemu-kvm: Could not access KVM kernel module: Device or resource busy",
            Cause::Busy,
        ),
        (
            "Could not access KVM kernel module: Es ist kaputt",
            Cause::Unknown,
        ),
        ("Could not access KVM kernel module", Cause::Unknown),
        (
            "qemu-system-x86_64: failed to initialize KVM: Permission denied",
            Cause::Ownership,
        ),
        (
            "-accel kvm: failed to initialize kvm: Inappropriate ioctl for device",
            Cause::NotKvm,
        ),
        (
            "ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy",
            Cause::Busy,
        ),
        (
            "q: ioctl(KVM_CREATE_VM) failed: Device or resource busy",
            Cause::Busy,
        ),
        (
            "ioctl(KVM_CREATE_VM) failed: 19 No such device",
            Cause::Unknown,
        ),
        ("kvm version too old", Cause::NotKvm),
        ("kvm version not supported", Cause::ApiVersion),
        (
            "Domain requires KVM, but it is not available. Check",
            Cause::Missing,
        ),
        (
            "invalid argument: the accel 'kvm' is not supported by '/usr/bin/q'",
            Cause::Missing,
        ),
        (
            "Emulator '/usr/bin/q' does not support virt type 'kvm'",
            Cause::Missing,
        ),
        (
            "invalid argument: could not find capabilities for arch=x86_64 domaintype=kvm ",
            Cause::Missing,
        ),
    ];
    for (line, expected) in table {
        let hit = Hit::read(line.as_bytes(), 0).unwrap_or_else(|| panic!("{line}"));
        let outcome = Outcome::of(hit.form, hit.errno);
        assert_eq!(outcome.cause, expected, "{line}");
        assert!(!outcome.advice.is_empty(), "{line}");
    }
    for (before, rest, form) in PATTERNS {
        let text = format!("{before}{rest}");
        let hit = Hit::read(format!("x {text}: y").as_bytes(), 0);
        assert_eq!(hit.map(|hit| hit.form), Some(form), "{text}");
        assert!(text.len() <= LONGEST, "{text}");
    }
    let disabled = Hit::read(b"ioctl(KVM_CREATE_VM) failed: 19 No such device", 0).unwrap();
    let outcome = Outcome::of(disabled.form, disabled.errno);
    assert!(outcome.advice.contains("BIOS"));
}

#[test]
fn unrelated_lines_do_not_match() {
    for line in [
        "",
        "KVM",
        "kvm",
        "Could not access the KVM kernel module",
        "-accel kvm",
        "<domain type='kvm'>",
        "kvm version 12",
        "Domain requires kvm",
        "could not access KVM kernel module",
    ] {
        assert_eq!(Hit::read(line.as_bytes(), 0), None, "{line}");
    }
}

#[test]
fn line_yields_guest_request_and_time() {
    let line = b"2026-02-10 08:15:16.300 7 ERROR nova.compute.manager [req-77777777-3333-4c5d-9e0f-\
        cccccccccccc req-88888888-4444-4c5d-9e0f-dddddddddddd u p - - d d] [instance: \
        6F1C2D3E-0002-4a5b-8c6d-000000000002] Instance failed to spawn: 2026-02-10T07:15:15.811200Z \
        qemu-system-x86_64: Could not access KVM kernel module: Permission denied";
    let hit = Hit::read(line, 0).unwrap();
    assert_eq!(hit.form, Form::Access);
    let instance = hit.guest.instance.unwrap().to_string();
    assert_eq!(instance, "6f1c2d3e-0002-4a5b-8c6d-000000000002");
    let request = hit.guest.request.unwrap().to_string();
    assert_eq!(request, "88888888-4444-4c5d-9e0f-dddddddddddd");
    assert_eq!(
        (hit.time.utc, hit.time.local),
        (Some(1_770_707_715), Some(1_770_711_316))
    );
}

#[test]
fn domain_name_is_taken_from_the_log_path() {
    let domain = |path: &str| domain_of_path(Path::new(path)).map(String::from);
    let one = Some("instance-00000001".to_owned());
    for path in [
        "instance-00000001.log",
        "instance-00000001.log.1",
        "instance-00000001.log-20260210.gz",
    ] {
        assert_eq!(
            domain(&format!("/var/log/libvirt/qemu/{path}")),
            one,
            "{path}"
        );
    }
    assert_eq!(domain("/var/log/libvirt/libvirtd.log"), None);
    assert_eq!(domain("/var/log/libvirt/qemu/.log"), None);
    assert_eq!(domain("/var/log/libvirt/qemu/x.logo"), None);
}

#[test]
fn control_characters_in_logs_are_escaped() {
    assert_eq!(
        printable(b"a\x1b[31m\r\n\xff\xe2\x80\xae\xc2\x9bz"),
        "a\\u{1b}[31m\\u{d}\\u{a}\\xff\\u{202e}\\u{9b}z"
    );
}

#[test]
fn one_incident_is_counted_once_across_nova_libvirt_and_qemu() {
    let (code, report) = logs(&[Path::new("tests/data/logs")]);
    assert_eq!(code, 1);
    let seen: Vec<_> = report
        .guests
        .iter()
        .map(|guest| {
            (
                guest.domain.as_deref().unwrap_or("-"),
                guest.instance.as_deref().map_or("-", |uuid| &uuid[9..13]),
                guest.requests.join(" "),
                guest.count,
                guest.first.as_deref().unwrap_or("-"),
                guest.cause,
                guest.result.as_str(),
            )
        })
        .collect();
    let request = |short: &str| short.to_owned();
    assert_eq!(
        seen,
        [
            (
                "-",
                "-",
                request(""),
                1,
                "2026-02-10T09:30:00Z",
                Cause::Missing,
                "none"
            ),
            (
                "instance-00000002",
                "0002",
                request(""),
                1,
                "2026-02-10T08:00:00Z",
                Cause::Busy,
                "EBUSY"
            ),
            (
                "instance-00000002",
                "0002",
                request("req-88888888-4444-4c5d-9e0f-dddddddddddd"),
                1,
                "2026-02-10T07:15:15Z",
                Cause::Ownership,
                "EACCES"
            ),
            (
                "instance-00000001",
                "0001",
                request("req-4d8e6f2a-1111-4c5d-9e0f-aaaaaaaaaaaa"),
                1,
                "2026-02-10T07:15:01Z",
                Cause::Ownership,
                "EACCES"
            ),
        ]
    );
}

#[test]
fn nova_log_alone_names_guests_in_utc_and_local_time() {
    let nova = fs::read_to_string("tests/data/logs/nova/nova-compute.log").unwrap();
    // With a local time two hours ahead of UTC, Nova's timestamps shift and those of QEMU do not.
    let local: String = nova
        .lines()
        .map(|line| line.replacen("2026-02-10 07:", "2026-02-10 09:", 1) + "\r\n")
        .collect();
    for log in [nova, local] {
        let (code, report) = text(&log);
        assert_eq!((code, report.guests.len()), (1, 2), "{report:?}");
        let times: Vec<_> = report
            .guests
            .iter()
            .map(|guest| guest.first.clone().unwrap())
            .collect();
        assert_eq!(times, ["2026-02-10T07:15:15Z", "2026-02-10T07:15:01Z"]);
        assert!(
            report.guests.iter().all(|guest| guest.count == 1),
            "{report:?}"
        );
        assert_eq!(
            report.guests[1].domain.as_deref(),
            Some("instance-00000001")
        );
    }
}

#[test]
fn traceback_without_guest_name_is_one_failure() {
    let (code, report) = text(
        "2026-02-10 07:15:03.552 ERROR nova.virt.libvirt.guest libvirt.libvirtError: internal error: qemu unexpectedly closed the monitor: Could not access KVM kernel module: Permission denied\n\
         2026-02-10 07:15:03.552 ERROR nova.virt.libvirt.guest qemu-system-x86_64: -accel kvm: failed to initialize kvm: Permission denied\n\
         2026-02-10 07:15:03.552 ERROR oslo_messaging.rpc.server libvirt.libvirtError: internal error: qemu unexpectedly closed the monitor: Could not access KVM kernel module: Permission denied\n\
         2026-02-10 07:15:03.552 ERROR oslo_messaging.rpc.server 2026-02-10T07:15:02.562872Z qemu-system-x86_64: -accel kvm: failed to initialize kvm: Permission denied\n",
    );
    assert_eq!(
        (code, report.guests.len(), report.guests[0].count),
        (1, 1, 1)
    );
    assert_eq!(
        report.guests[0].first.as_deref(),
        Some("2026-02-10T07:15:02Z")
    );
}

#[test]
fn qemu_line_of_another_day_is_a_separate_failure() {
    let (_, report) = text(&format!(
        "2026-02-08 07:15:03.022 7 ERROR nova [instance: 6f1c2d3e-0001-4a5b-8c6d-000000000001] \
         Could not access KVM kernel module: Permission denied\n{FAILURE}"
    ));
    let times: Vec<_> = report.guests.iter().map(|guest| &guest.first).collect();
    assert_eq!(times.len(), 2, "{report:?}");
    assert_eq!(times[0].as_deref(), Some("2026-02-10T07:15:01Z"));
    assert_eq!(times[1].as_deref(), Some("2026-02-08T07:15:03"));
}

#[test]
fn failures_without_timestamps_are_counted_by_message() {
    let once = "Could not access KVM kernel module: Permission denied\nqemu-system-x86_64: -accel kvm: failed to initialize kvm: Permission denied\n";
    let (_, report) = text(&once.repeat(3));
    assert_eq!((report.guests.len(), report.guests[0].count), (1, 3));
    assert_eq!(report.guests[0].first, None);
    let (_, report) =
        text("kvm version too old\nq: failed to initialize kvm: Inappropriate ioctl for device\n");
    assert_eq!(
        (report.guests[0].cause, report.guests[0].result.as_str()),
        (Cause::NotKvm, "ENOTTY")
    );
}

#[test]
fn each_failed_start_of_a_guest_is_counted() {
    let mut log = String::new();
    for minute in 0..5 {
        for second in [0, 5] {
            log += &format!(
                "2026-02-10 07:0{minute}:0{second}.000+0000: starting up libvirt version: 9.0.0\n\
                 -name guest=web,debug-threads=on \\\n-uuid 6f1c2d3e-0001-4a5b-8c6d-000000000001 \\\n\
                 Could not access KVM kernel module: Permission denied\n\
                 2026-02-10T07:0{minute}:0{second}.300000Z qemu: -accel kvm: failed to initialize kvm: Permission denied\n"
            );
        }
    }
    let (_, report) = text(&log);
    assert_eq!(
        (report.guests.len(), report.guests[0].count),
        (1, 10),
        "{report:?}"
    );
    assert_eq!(report.guests[0].domain.as_deref(), Some("web"));
}

#[test]
fn invalid_utf8_and_crlf_are_tolerated() {
    let (code, report) = piped(|pipe| {
        pipe.write_all(b"\xff\xfe\x00\xc3(\r\n\xf0\x9f ").unwrap();
        pipe.write_all(FAILURE.trim_end().as_bytes()).unwrap();
        pipe.write_all(b"\r\n\x00\x1b]0;evil\x07\r\n").unwrap();
    });
    assert_eq!((code, report.guests[0].cause), (1, Cause::Ownership));
}

#[test]
fn message_across_a_block_boundary_is_found() {
    for shift in 0..80 {
        let filler = "x".repeat(99) + "\n";
        let mut log = filler.repeat((2 << 20) / 100 + 1);
        log.truncate((2 << 20) - 60 + shift);
        log += "\n";
        log += FAILURE;
        log += &filler.repeat(1_000);
        let (code, report) = text(&log);
        assert_eq!((code, report.guests.len()), (1, 1), "{shift}");
        assert_eq!(
            report.guests[0].first.as_deref(),
            Some("2026-02-10T07:15:01Z"),
            "{shift}"
        );
    }
}

/// A log of several blocks with records of all sizes and sparse and dense parts; no record ends at a block boundary.
fn large_log() -> String {
    let mut log = String::new();
    let mut number = 0_u64;
    while log.len() < 21 << 20 {
        number += 1;
        let (hour, minute, second) = (number / 3600 % 24, number / 60 % 60, number % 60);
        let dense = (number / 20_000).is_multiple_of(3);
        let time = format!("2026-02-10 {hour:02}:{minute:02}:{second:02}.910");
        if number.is_multiple_of(if dense { 40 } else { 9_973 }) {
            let guest = number % 1_009;
            log += &format!(
                "{time} 7 ERROR nova.virt.libvirt.guest [None req-4d8e6f2a-1111-4c5d-9e0f-{number:012x} u p] \
                 Error launching a defined domain with XML: <domain type='kvm'>\n  <name>instance-{guest:08x}</name>\n  \
                 <uuid>6f1c2d3e-0001-4a5b-8c6d-{guest:012x}</uuid>\n{}</domain>\n: libvirt.libvirtError: internal error: \
                 Could not access KVM kernel module: Permission denied\n\
                 2026-02-10T{hour:02}:{minute:02}:{second:02}.402211Z qemu-system-x86_64: -accel kvm: failed to initialize kvm: Permission denied\n",
                "  <x/>\n".repeat(usize::try_from(number % 3_000).unwrap())
            );
        }
        log += &format!("{time} 7 DEBUG nova.compute.manager nothing {number:x}\n");
    }
    log
}

#[test]
fn large_file_and_pipe_give_the_same_report() {
    let log = large_log();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nova-compute.log");
    fs::write(&path, &log).unwrap();
    let (code, by_pipe) = text(&log);
    assert_eq!(code, 1);
    assert!(by_pipe.guests.len() > 500, "{}", by_pipe.guests.len());
    let (_, by_file) = logs(&[&path]);
    assert_eq!(by_file, by_pipe);
    // The same under a process limit that allows no further thread.
    let out = Command::new("prlimit")
        .arg("--nproc=0:0")
        .arg(program().get_program())
        .args(["logs", "--format", "json"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(report(&out).1, by_pipe);
    // The file may end at any offset.
    for length in [
        (8 << 20) + 1,
        10 << 20,
        (10 << 20) + 1,
        (10 << 20) + 4096,
        (10 << 20) + 4161,
    ] {
        fs::write(&path, &log[..length]).unwrap();
        assert_eq!(logs(&[&path]).1, text(&log[..length]).1, "{length}");
    }
}

#[test]
fn line_of_100_mib_is_read_in_bounded_memory() {
    let mut child = program()
        .args(["logs", "--format", "json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let block = vec![b'k'; 1 << 20];
    for number in 0..100 {
        if number == 70 {
            stdin.write_all(FAILURE.trim_end().as_bytes()).unwrap();
        }
        stdin.write_all(&block).unwrap();
    }
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let worker = fs::read_to_string(children).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", worker.trim())).unwrap();
    drop(stdin);
    let (code, report) = report(&child.wait_with_output().unwrap());
    assert_eq!(
        (code, report.guests.len(), report.guests[0].count),
        (1, 1, 1)
    );
    assert_eq!(
        report.guests[0].first.as_deref(),
        Some("2026-02-10T07:15:01Z")
    );
    let peak: u64 = field(&status, "VmHWM:")
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(peak < 16 << 10, "{peak} KiB");
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap()
        .trim()
}

#[test]
fn guest_list_is_bounded_and_the_rest_counted() {
    let (code, report) = piped(|pipe| {
        let mut log = std::io::BufWriter::new(pipe);
        for number in 0..30_000 {
            let (hour, minute, second) = (number / 3600, number / 60 % 60, number % 60);
            writeln!(
                log,
                "2026-02-10 {hour:02}:{minute:02}:{second:02}.000 7 ERROR nova [instance: \
                 6f1c2d3e-0001-4a5b-8c6d-{number:012x}] Could not access KVM kernel module: Permission denied"
            )
            .unwrap();
        }
    });
    assert_eq!(
        (code, report.guests.len(), report.others),
        (1, 10_000, 20_000)
    );
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn gzip_is_decompressed_and_truncation_reported() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let noise = (0..200_000_u64).map(|n| format!("{:x}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let log = FAILURE.to_owned() + &noise.collect::<String>();
    // Two gzip members, as appending creates them.
    let whole = [gzip(b"nothing\n"), gzip(log.as_bytes())].concat();
    fs::write(at("nova.log.2.gz"), &whole).unwrap();
    let (code, report) = logs(&[directory.path()]);
    assert_eq!(
        (code, report.guests.len(), report.unreadable.len()),
        (1, 1, 0)
    );
    fs::write(at("nova.log.2.gz"), &whole[..whole.len() - 1000]).unwrap();
    let (code, report) = logs(&[directory.path()]);
    assert_eq!(
        (code, report.guests.len(), report.unreadable.len()),
        (1, 1, 1)
    );
    assert!(
        report.unreadable[0].error.contains("too early"),
        "{report:?}"
    );
    // If no failure was found and a file could not be read completely, `logs` fails.
    let dull = gzip(b"nothing\n");
    fs::write(at("nova.log.2.gz"), &dull[..dull.len() - 3]).unwrap();
    assert_eq!(logs(&[directory.path()]).0, 4);
    fs::write(at("nova.log.2.gz"), b"\xfd7zXZ\0and so on").unwrap();
    let (code, report) = logs(&[directory.path()]);
    assert_eq!(code, 4);
    assert!(report.unreadable[0].error.contains("xz"), "{report:?}");
}

#[test]
fn directories_are_read_once_without_following_links() {
    let directory = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(outside.path().join("secret.log"), FAILURE).unwrap();
    fs::create_dir_all(at("a/b/c")).unwrap();
    symlink("..", at("a/b/loop")).unwrap();
    symlink(outside.path(), at("out")).unwrap();
    symlink(outside.path().join("secret.log"), at("a/secret.log")).unwrap();
    nix::unistd::mkfifo(&at("a/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (code, report) = logs(&[directory.path()]);
    assert_eq!((code, report.read.files, report.read.skipped), (0, 0, 4));
    fs::write(at("a/b/c/x.log"), FAILURE).unwrap();
    fs::hard_link(at("a/b/c/x.log"), at("y.log")).unwrap();
    let (code, report) = logs(&[directory.path(), &at("a"), &at("y.log")]);
    assert_eq!((code, report.read.files, report.guests[0].count), (1, 1, 1));
    // A path on the command line is read even if it is a link.
    assert_eq!(logs(&[&at("a/secret.log")]).0, 1);
}

#[test]
fn unreadable_files_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory
        .path()
        .join(std::ffi::OsStr::from_bytes(b"no\x1bne\xff.log"));
    let (code, report) = logs(&[&missing]);
    assert_eq!(code, 4);
    assert!(
        report.unreadable[0].path.ends_with("no\\u{1b}ne\\xff.log"),
        "{report:?}"
    );
    assert!(report.unreadable[0].error.contains("ENOENT"));
    let good = directory.path().join("good.log");
    fs::write(&good, FAILURE).unwrap();
    let (code, report) = logs(&[&missing, &good]);
    assert_eq!((code, report.unreadable.len()), (1, 1));
    assert!(report.summary.contains("ENOENT"));
}

#[test]
fn invalid_format_is_a_usage_error() {
    let out = program()
        .args(["logs", "--format", "xml", "-"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.contains("--format: bad value `xml`"), "{stderr}");
}

#[test]
fn table_fits_80_columns() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("qemu")).unwrap();
    let name = format!("qemu/{}\x1b[2J.log", "a-very-long-name-".repeat(12));
    fs::write(directory.path().join(name), FAILURE).unwrap();
    let out = program()
        .arg("logs")
        .args([
            Path::new("tests/data/logs"),
            directory.path(),
            Path::new("/nowhere/at/all"),
        ])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        text.contains("instance-00000001        1 2026-02-10 07:15:01"),
        "{text}"
    );
    assert!(text.contains("ENOENT"), "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}
