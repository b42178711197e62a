//! Where it was measured, and with which peers.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::page::{Page, bytes};

/// Where a command of the distribution is.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut folders = path.split(':').map(PathBuf::from);
    folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()))
}

/// The first line that a command says, or why there is none.
pub fn says(words: &[&str]) -> Option<String> {
    let out = Command::new(tool(words[0])?).args(&words[1..]).output();
    let out = out.ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text.lines().next().map(|line| line.trim().to_owned());
    line.filter(|line| !line.is_empty())
}

/// A field of a file of /proc.
pub fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches([':', ' ', '\t']).trim().to_owned())
}

/// Memory that can be had, in bytes.
pub fn available() -> u64 {
    let field = field("/proc/meminfo", "MemAvailable").unwrap_or_default();
    let kib = field.split_whitespace().next().and_then(|n| n.parse().ok());
    kib.unwrap_or(0_u64) << 10
}

/// How many processes there are: `apply` and `check` look at each for a running libvirtd or QEMU.
pub fn processes() -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(number))
        .count()
}

/// The load of the last one, five and fifteen minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let words: Vec<_> = text.split(' ').take(3).collect();
    words.join(" ")
}

pub fn head(page: &mut Page, quick: bool) {
    page.title("What it costs");
    page.say(
        "Written by `make bench`. Every number of a table was measured in one run on one machine, beside its \
         peers; only ratios mean something elsewhere.",
    );
    if quick {
        page.say("A quick run (`BENCH=quick`): fewer rounds, so the numbers vary more.");
    }
    let unknown = || "unknown".to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let memory = memory.split(' ').next().and_then(|kib| kib.parse().ok());
    let mut rows = vec![
        ("date", says(&["date", "-u", "+%F"]).unwrap_or_else(unknown)),
        (
            "commit",
            says(&["git", "describe", "--always", "--dirty"]).unwrap_or_else(unknown),
        ),
        ("kernel", says(&["uname", "-srm"]).unwrap_or_else(unknown)),
        (
            "processor",
            field("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
        ),
        ("cores", cores.to_string()),
        ("memory", bytes(memory.unwrap_or(0_u64) << 10)),
        ("load at the start", load()),
        (
            "distribution",
            says(&[
                "sh",
                "-c",
                ". /etc/os-release; echo \"${PRETTY_NAME:-$ID}\"",
            ])
            .unwrap_or_else(unknown),
        ),
    ];
    let packages = [
        ("bash", "bash"),
        ("virt-host-validate", "libvirt-clients"),
        ("kvm-ok", "cpu-checker"),
        ("rg", "ripgrep"),
        ("hyperfine", "hyperfine"),
        ("strace", "strace"),
        ("perf", "linux-perf"),
        ("valgrind", "valgrind"),
        ("setpriv", "util-linux"),
    ];
    for (name, package) in packages {
        let version = tool(name).map(|_| {
            says(&["dpkg-query", "-W", "-f", "${Package} ${Version}", package])
                .unwrap_or_else(unknown)
        });
        rows.push((name, version.unwrap_or_else(|| "not here".to_owned())));
    }
    let rustc = says(&["rustc", "--version"]).unwrap_or_else(unknown);
    rows.push(("rustc", rustc));
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    page.table(&["", "this run"], &rows);
}
