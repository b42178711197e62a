//! The program under test, commands, and what they come to.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program under test: `KVM_INIT_TEST_BIN` (a release or static build), or the one that cargo has built and
/// names to tests and benches.
pub fn program() -> PathBuf {
    let names = ["KVM_INIT_TEST_BIN", "CARGO_BIN_EXE_libvirt-kvm-init"];
    let path = names.into_iter().find_map(std::env::var_os);
    path.expect("neither KVM_INIT_TEST_BIN nor cargo names the program to test")
        .into()
}

/// Whether the program under test is one that `KVM_INIT_TEST_BIN` names: a release build, which alone is held to
/// bounds of memory and processor time.
pub fn is_release() -> bool {
    std::env::var_os("KVM_INIT_TEST_BIN").is_some()
}

/// Runs a command to its end: exit code (128 + the signal's number if one ended it), stdout, stderr.
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

/// Runs a command that must succeed, and gives its stdout.
pub fn ok(cmd: &mut Command) -> String {
    let (code, stdout, stderr) = run(cmd);
    assert_eq!(code, 0, "{cmd:?}\n{stdout}{stderr}");
    stdout
}
/// `apply` without any option, in an environment without any variable but PATH.
pub fn apply() -> Command {
    command(&program(), &["apply"])
}

/// A verb of the program for this pod on this node.
pub fn verb(verb: &str, pod: &Path, node: &Path) -> Command {
    let mut cmd = command(&program(), &[verb, "--root"]);
    cmd.arg(pod).arg("--host-root").arg(node);
    cmd
}

/// A command in an environment without any variable but PATH.
pub fn command(path: &Path, args: &[&str]) -> Command {
    let mut cmd = Command::new(path);
    cmd.args(args).env_clear().env("PATH", PATH);
    cmd
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// The exit code, or 128 + the number of the signal that ended it.
    pub code: i32,
    /// What it wrote on stdout.
    pub out: String,
    /// What it wrote on stderr.
    pub err: String,
    shown: String,
}

/// Runs the program, and checks what holds for every run: no panic, no colour, no line of the table
/// over 80 columns, and on failure a last line that says why.
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

/// Every line has at most 80 columns, unless one word alone is wider.
pub fn assert_fits(table: &str) {
    for line in table.lines() {
        let width = line.chars().count();
        let longest = line.split_whitespace().map(|word| word.chars().count());
        // The word and the label before it.
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
    /// The exit code must be this one.
    #[track_caller]
    pub fn code(self, want: i32) -> Self {
        assert_eq!(self.code, want, "{self}");
        self
    }

    /// The last line must contain all of these.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        let last = self.err.lines().last().unwrap_or_default();
        for part in parts {
            assert!(
                last.contains(part),
                "`{part}` is not in the last line\n{self}"
            );
        }
        self
    }

    /// The report.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self}"))
    }
}

/// Runs with `--format json`, and gives the report.
#[track_caller]
pub fn report(cmd: &mut Command) -> (i32, serde_json::Value) {
    let run = go(cmd.args(["--format", "json"]));
    let report = run.json();
    assert_eq!(report["exit_code"], run.code, "{run}");
    (run.code, report)
}

/// The codes of a report's warnings, but for the one that is about the machine's own QEMUs.
pub fn warnings(report: &serde_json::Value) -> Vec<String> {
    let all = report["warnings"].as_array().unwrap().iter();
    all.map(|warning| warning["code"].as_str().unwrap().to_owned())
        .filter(|code| code != "old-gid-in-use")
        .collect()
}
