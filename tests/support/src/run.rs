//! The program under test, commands, and their results.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program under test: `KVM_INIT_TEST_BIN` (a release or static build), or the build of cargo, whose path cargo
/// passes to tests and benches.
pub fn program() -> PathBuf {
    let names = ["KVM_INIT_TEST_BIN", "CARGO_BIN_EXE_libvirt-kvm-init"];
    let path = names.into_iter().find_map(std::env::var_os);
    path.expect("no program to test: set KVM_INIT_TEST_BIN or run the test with cargo")
        .into()
}

/// True if `KVM_INIT_TEST_BIN` is set: only a release build must meet the limits of memory and processor time.
pub fn is_release() -> bool {
    std::env::var_os("KVM_INIT_TEST_BIN").is_some()
}

/// Runs a command to its end; returns the exit code (128 + signal number if a signal ended it), stdout and stderr.
pub fn run(cmd: &mut Command) -> (i32, String, String) {
    use std::os::unix::process::ExitStatusExt;
    let out = cmd
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{cmd:?}: {e}"));
    let code = out
        .status
        .code()
        .or_else(|| out.status.signal().map(|s| 128 + s))
        .unwrap();
    (
        code,
        String::from_utf8_lossy(&out.stdout).into_owned(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

/// Runs a command that must succeed and returns its stdout.
pub fn ok(cmd: &mut Command) -> String {
    let (code, stdout, stderr) = run(cmd);
    assert_eq!(code, 0, "{cmd:?}\n{stdout}{stderr}");
    stdout
}
/// `apply` without options, in an environment with PATH only.
pub fn apply() -> Command {
    command(&program(), &["apply"])
}

/// A command of the program for this pod on this node.
pub fn program_command(name: &str, pod: &Path, node: &Path) -> Command {
    let mut cmd = command(&program(), &[name, "--root"]);
    cmd.arg(pod).arg("--host-root").arg(node);
    cmd
}

/// A command in an environment with PATH only.
pub fn command(path: &Path, args: &[&str]) -> Command {
    let mut cmd = Command::new(path);
    cmd.args(args).env_clear().env("PATH", PATH);
    cmd
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The result of a run.
#[derive(Debug)]
pub struct Run {
    /// The exit code, or 128 + signal number if a signal ended the run.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    shown: String,
}

/// Runs the program and checks the rules for every run: no panic, no colour, no line of the table over 80 columns, and
/// on failure a last line with the reason.
pub fn go(cmd: &mut Command) -> Run {
    let shown = format!("{cmd:?}");
    let (code, out, err) = run(cmd);
    let run = Run {
        code,
        out,
        err,
        shown,
    };
    let text = format!("{run}");
    assert!(!run.err.contains("panicked"), "{text}");
    assert!(!run.out.contains('\x1b'), "{text}");
    assert!((0..=6).contains(&run.code), "{text}");
    if !run.out.starts_with('{') {
        assert_fits(&run.out);
    }
    if run.code != 0 {
        let last = run.err.lines().last().unwrap_or_default();
        assert!(last.starts_with("libvirt-kvm-init: "), "{text}");
    }
    run
}

/// Asserts that every line has at most 80 columns, unless a single word is wider.
pub fn assert_fits(table: &str) {
    for line in table.lines() {
        let width = line.chars().count();
        let longest = line.split_whitespace().map(|word| word.chars().count());
        // The longest word with its label.
        let longest = longest.max().unwrap_or_default() + 11;
        assert!(width <= 80.max(longest), "{width} columns: {line}\n{table}");
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            code,
            out,
            err,
            shown,
        } = self;
        write!(f, "{shown}\nexit code {code}\n{out}{err}")
    }
}

impl Run {
    /// Asserts the exit code.
    #[track_caller]
    pub fn code(self, want: i32) -> Self {
        assert_eq!(self.code, want, "{self}");
        self
    }

    /// Asserts that the last line contains all of these parts.
    #[track_caller]
    pub fn last_line_has(self, parts: &[&str]) -> Self {
        let last = self.err.lines().last().unwrap_or_default();
        for part in parts {
            assert!(
                last.contains(part),
                "`{part}` is not in the last line\n{self}"
            );
        }
        self
    }

    /// Parses stdout as a report.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self}"))
    }
}

/// Runs with `--format json` and returns exit code and report.
#[track_caller]
pub fn report(cmd: &mut Command) -> (i32, serde_json::Value) {
    let run = go(cmd.args(["--format", "json"]));
    let report = run.json();
    assert_eq!(report["exit_code"], run.code, "{run}");
    (run.code, report)
}

/// The codes of a report's warnings, without the one about QEMU processes of the machine itself.
pub fn warnings(report: &serde_json::Value) -> Vec<String> {
    let all = report["warnings"].as_array().unwrap().iter();
    all.map(|warning| warning["code"].as_str().unwrap().to_owned())
        .filter(|code| code != "old-gid-in-use")
        .collect()
}
