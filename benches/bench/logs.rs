//! Compares `logs` with ripgrep on the same file.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use libvirt_kvm_init::commands::logs::patterns::PATTERNS;

use crate::Setting;
use crate::machine::{available, tool};
use crate::page::{Page, bytes, ms};
use crate::runs::{Job, in_turn, median, wall};
use support::random::Random;
use support::{in_namespace, program, run, scratch};

const BLOCK: usize = 8 << 20;

/// The density of KVM lines in a generated log.
#[derive(Clone, Copy)]
pub struct Mix {
    /// One line in this many contains KVM without a failure.
    named: usize,
    /// One line in this many is a failure.
    failed: usize,
}

impl Mix {
    pub const USUAL: Self = Self {
        named: 1_000,
        failed: 20_000,
    };
    const DENSE: Self = Self {
        named: 20,
        failed: 2_000,
    };
}

/// Generates lines in the formats of Nova and libvirt.
fn block(mix: Mix) -> Vec<u8> {
    let mut random = Random(0x4B56_4D00_2026);
    let mut text = String::with_capacity(BLOCK + 1024);
    while text.len() < BLOCK {
        let (hour, minute, second) = (random.below(24), random.below(60), random.below(60));
        let (milli, id, other) = (
            random.below(1000),
            random.below(1 << 30),
            random.below(1 << 30),
        );
        let when = format!("2026-11-22 {hour:02}:{minute:02}:{second:02}.{milli:03}");
        let nova = format!(
            "7 INFO nova.virt.libvirt.driver [None req-{id:08x}-aaaa-bbbb-cccc-{other:012x} - - - - -]"
        );
        let guest = format!("[instance: {other:08x}-1111-2222-3333-{id:012x}]");
        text += &if random.below(mix.failed) == 0 {
            format!("{when} {nova} {guest} Could not access KVM kernel module: Permission denied\n")
        } else if random.below(mix.named) == 0 {
            format!(
                "{when}+0000: 12: debug : qemuBuild:{milli} : <domain type='kvm' id='{milli}'> name={other:08x}\n"
            )
        } else {
            match random.below(3) {
                0 => format!("{when} {nova} {guest} VM Resumed (Lifecycle Event)\n"),
                1 => format!(
                    "{when} 7 DEBUG oslo_concurrency.lockutils [req-{id:08x}] Lock \"compute_resources\" acquired \
                     by :: waited 0.{milli:03}s inner /usr/lib/python3/dist-packages/oslo_concurrency/lockutils.py:355\n"
                ),
                _ => format!(
                    "{when}+0000: 12: debug : virThreadJobClear:{milli} : Thread {id:012x} finished job \
                     remoteDispatchConnectGetAllDomainStats with ret={other:08x}\n"
                ),
            }
        };
    }
    let end = text.rfind('\n').map_or(text.len(), |end| end + 1);
    text.truncate(end);
    text.into_bytes()
}

/// Writes a generated log of exactly `size` bytes.
pub fn write_log(file: &Path, size: u64, mix: Mix) {
    let block = block(mix);
    let mut to = BufWriter::new(File::create(file).unwrap());
    let mut left = size;
    while left > 0 {
        let part = block.len().min(usize::try_from(left).unwrap());
        to.write_all(&block[..part]).unwrap();
        left -= part as u64;
    }
    to.flush().unwrap();
}

/// The free bytes in the file system of a directory.
pub fn space(directory: &Path) -> u64 {
    let mut cmd = Command::new("df");
    let (_, out, _) = run(cmd.args(["--output=avail", "-B1"]).arg(directory));
    let line = out.lines().nth(1).unwrap_or_default();
    line.trim().parse().unwrap_or(0)
}

pub fn measure(page: &mut Page, setting: &Setting) {
    let Some(rg) = tool("rg") else {
        page.paragraph("Not measured: rg is missing.");
        return;
    };
    in_namespace(|| {
        let size: u64 = if available() > 4 << 30 && !setting.quick {
            1 << 30
        } else {
            256 << 20
        };
        page.paragraph(&format!(
            "All commands read the same file of {}, which is in memory. `rg` prints the number of matching lines; \
             `logs` finds the same messages and reports the guest, the time and the cause of each. `rg` gets the \
             texts of `logs` as a list (`-F -f`) and as one alternation. The last two rows do less than `logs`: \
             one searches only for `KVM` and `kvm`, the other only reads.",
            bytes(size)
        ));
        let memory = scratch().join("nova.log");
        let disk = setting.disk.join("nova.log");
        write_log(&memory, size, Mix::USUAL);
        compare(
            page,
            setting,
            &rg,
            &memory,
            "tmpfs; one line in 1,000 with KVM",
        );
        write_log(&memory, size, Mix::DENSE);
        compare(
            page,
            setting,
            &rg,
            &memory,
            "tmpfs; one line in 20 with KVM",
        );
        fs::remove_file(&memory).unwrap();
        if space(&setting.disk) > size + (1 << 30) {
            write_log(&disk, size, Mix::USUAL);
            compare(
                page,
                setting,
                &rg,
                &disk,
                "disk, in the page cache; one line in 1,000 with KVM",
            );
            fs::remove_file(&disk).unwrap();
        } else {
            page.paragraph("Not measured: the same on a disk (too little free space).");
        }
    });
}

fn compare(page: &mut Page, setting: &Setting, rg: &Path, file: &Path, place: &str) {
    let list = scratch().join("patterns");
    let texts = PATTERNS.map(|(before, rest, _)| format!("{before}{rest}"));
    fs::write(&list, texts.join("\n") + "\n").unwrap();
    let literal = |text: &str| {
        let special = |c: char| "()[]{}.*+?|\\^$".contains(c);
        text.chars()
            .flat_map(|c| special(c).then_some('\\').into_iter().chain([c]))
            .collect::<String>()
    };
    let regex: Vec<_> = texts.iter().map(|text| literal(text)).collect();
    let job = |name: &str, program: PathBuf, words: &[&str]| {
        let mut all = vec![program.into_os_string()];
        all.extend(words.iter().map(Into::into));
        all.push(file.into());
        Job::new(name, &all)
    };
    let rg = || rg.to_owned();
    let jobs = [
        job("`logs`", program(), &["logs", "-q"]),
        job(
            "`rg -c -F -f`, the same texts",
            rg(),
            &["-c", "-F", "-f", list.to_str().unwrap()],
        ),
        job("`rg -c`, one alternation", rg(), &["-c", &regex.join("|")]),
        job(
            "`rg -c -F -e KVM -e kvm`",
            rg(),
            &["-c", "-F", "-e", "KVM", "-e", "kvm"],
        ),
        job("`cat`", tool("cat").unwrap(), &[]),
    ];
    let runs = in_turn(&jobs, setting.rounds(11, 3), Duration::from_secs(40));
    let logs = wall(&runs[0]);
    let size = fs::metadata(file).unwrap().len() as f64;
    let rows: Vec<_> = jobs
        .iter()
        .zip(&runs)
        .map(|(job, runs)| {
            let half = wall(runs);
            vec![
                job.name.clone(),
                ms(half),
                format!("{:.2}", half / logs),
                ms(median(runs.iter().map(|run| run.cpu))),
                format!("{:.1} GB/s", size / half / 1e9),
                runs[0].code.to_string(),
            ]
        })
        .collect();
    page.table(
        &[
            &format!("on {place}"),
            "median",
            "ratio to `logs`",
            "CPU",
            "speed",
            "exit code",
        ],
        &rows,
    );
    page.target(
        "ratio of `logs` to `rg -c -F -f`",
        logs / wall(&runs[1]),
        1.0 / 3.0,
    );
    page.target(
        "ratio of `logs` to `rg -c` with one alternation",
        logs / wall(&runs[2]),
        1.0 / 3.0,
    );
    page.end_list();
}
