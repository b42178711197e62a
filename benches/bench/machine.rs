//! The machine, and the versions of the tools in the comparison.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::page::{Page, bytes};

/// The path of an installed command.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut directories = path.split(':').map(PathBuf::from);
    directories.find_map(|directory| Some(directory.join(name)).filter(|path| path.is_file()))
}

/// The first line that a command prints.
pub fn first_line(words: &[&str]) -> Option<String> {
    let out = Command::new(tool(words[0])?).args(&words[1..]).output();
    let out = out.ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text.lines().next().map(|line| line.trim().to_owned());
    line.filter(|line| !line.is_empty())
}

/// The value of a field in a file below /proc.
pub fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches([':', ' ', '\t']).trim().to_owned())
}

/// The available memory in bytes.
pub fn available() -> u64 {
    let field = field("/proc/meminfo", "MemAvailable").unwrap_or_default();
    let kib = field.split_whitespace().next().and_then(|n| n.parse().ok());
    kib.unwrap_or(0_u64) << 10
}

/// The number of processes: `apply` and `check` inspect each one to find libvirtd and QEMU.
pub fn processes() -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let is_pid = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_pid))
        .count()
}

/// The load averages of one, five and fifteen minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let words: Vec<_> = text.split(' ').take(3).collect();
    words.join(" ")
}

pub fn head(page: &mut Page, quick: bool) {
    page.title("Benchmark results");
    page.paragraph(
        "Written by `make bench`. All values were measured in one run on one machine. On other machines only the \
         ratios are comparable.",
    );
    if quick {
        page.paragraph(
            "This is a quick run (`BENCH=quick`) with fewer rounds, so the values vary more.",
        );
    }
    let unknown = || "unknown".to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let memory = memory.split(' ').next().and_then(|kib| kib.parse().ok());
    let mut rows = vec![
        (
            "date",
            first_line(&["date", "-u", "+%F"]).unwrap_or_else(unknown),
        ),
        (
            "commit",
            first_line(&["git", "describe", "--always", "--dirty"]).unwrap_or_else(unknown),
        ),
        (
            "kernel",
            first_line(&["uname", "-srm"]).unwrap_or_else(unknown),
        ),
        (
            "processor",
            field("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
        ),
        ("cores", cores.to_string()),
        ("memory", bytes(memory.unwrap_or(0_u64) << 10)),
        ("load at the start", load()),
        (
            "distribution",
            first_line(&[
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
            first_line(&["dpkg-query", "-W", "-f", "${Package} ${Version}", package])
                .unwrap_or_else(unknown)
        });
        rows.push((name, version.unwrap_or_else(|| "missing".to_owned())));
    }
    let rustc = first_line(&["rustc", "--version"]).unwrap_or_else(unknown);
    rows.push(("rustc", rustc));
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    page.table(&["", "this run"], &rows);
}
