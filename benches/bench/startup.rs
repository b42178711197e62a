//! Measures the duration of one run of each command.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Setting;
use crate::machine::{processes, tool};
use crate::page::{Page, ms};
use crate::runs::{Job, Once, in_turn, median, part, wall};
use crate::stage::{Stage, baselines, script};
use support::in_namespace;

/// The names of the jobs that the targets refer to.
const CHART: &str = "the chart's libvirt.sh, three lines (bash)";
const VALIDATE: &str = "virt-host-validate qemu";

/// The jobs to compare, with the indexes of those that the targets refer to.
pub struct Compared {
    pub jobs: Vec<Job>,
    /// The index of `apply` with the most rules.
    pub apply: usize,
    /// The index of `check` with the most rules.
    pub check: usize,
    /// The number of baselines, which come first.
    pub baselines: usize,
}

impl Compared {
    pub fn index(&self, name: &str) -> Option<usize> {
        self.jobs.iter().position(|job| job.name == name)
    }
}

/// The jobs for this stage. Adds a note to the page for each tool that is missing.
pub fn compared(page: &mut Page, stage: &Stage) -> Compared {
    let mut jobs: Vec<_> = baselines()
        .into_iter()
        .map(|(compiler, program)| Job::new(&format!("baseline, static, {compiler}"), &[program]))
        .collect();
    let baselines = jobs.len();
    let script_of = |name: &str, words: &[&str]| {
        let mut all = vec![tool("bash").unwrap().to_str().unwrap().to_owned()];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        Job::new(name, &all)
    };
    if tool("bash").is_some() {
        jobs.push(script_of(CHART, &[&script("chart-lines.sh")]));
        let host = stage.bare.path().to_str().unwrap();
        jobs.push(script_of(
            "the job of `apply` as a script (bash)",
            &[&script("whole-job.sh"), host],
        ));
    }
    for words in [vec!["virt-host-validate", "qemu"], vec!["kvm-ok"]] {
        if let Some(path) = tool(words[0]) {
            let mut all = vec![path.to_str().unwrap().to_owned()];
            all.extend(words[1..].iter().map(|word| (*word).to_owned()));
            jobs.push(Job::new(&words.join(" "), &all));
        } else {
            page.paragraph(&format!("Not measured: {} is missing.", words[0]));
        }
    }
    let mut add = |command: &str, node, with: &str| {
        jobs.push(Job::new(
            &format!("`{command}`, {with}"),
            &stage.words(command, node),
        ));
        jobs.len() - 1
    };
    let mut apply = add("apply", &stage.bare, "no udev rules");
    let mut check = add("check", &stage.bare, "no udev rules");
    if let Some(node) = &stage.ruled {
        let with = format!("{} udev rules files", stage.rules);
        apply = add("apply", node, &with);
        check = add("check", node, &with);
    } else {
        page.paragraph(
            "Not measured: with the distribution's udev rules (target/oracle contains none).",
        );
    }
    Compared {
        jobs,
        apply,
        check,
        baselines,
    }
}

pub fn measure(page: &mut Page, setting: &Setting) {
    in_namespace(|| {
        let stage = Stage::new();
        let compared = compared(page, &stage);
        let jobs = &compared.jobs;
        let rounds = setting.rounds(800, 120);
        let runs = in_turn(jobs, rounds, Duration::from_secs(90));
        page.paragraph(&format!(
            "Each value covers a whole process, from before posix_spawn to after wait4, with stdout and stderr to \
             /dev/null. The commands run in turn, each once per round, so that all of them run under the same \
             conditions; {} rounds. No command has anything left to change. A baseline is a program that only \
             returns; the ratios in the table refer to the first one. {} processes were running, and there were \
             {} udev rules files.",
            runs[0].len(),
            processes(),
            stage.rules
        ));
        let baseline = wall(&runs[0]);
        let chart = compared.index(CHART).map(|place| wall(&runs[place]));
        let ratio =
            |of: f64, to: Option<f64>| to.map_or("-".to_owned(), |to| format!("{:.2}", of / to));
        let rows: Vec<_> = jobs
            .iter()
            .zip(&runs)
            .map(|(job, runs)| {
                let half = wall(runs);
                let walls: Vec<_> = runs.iter().map(|run| run.wall).collect();
                vec![
                    job.name.clone(),
                    ms(half),
                    ms(part(walls, 250)),
                    ratio(half, Some(baseline)),
                    ratio(half, chart),
                    ms(median(runs.iter().map(|run| run.cpu))),
                    runs[0].code.to_string(),
                ]
            })
            .collect();
        page.table(
            &[
                "command",
                "median",
                "p25",
                "ratio to baseline",
                "ratio to libvirt.sh",
                "CPU",
                "exit code",
            ],
            &rows,
        );
        targets(page, &compared, &runs);
        early(page, &compared, &runs);
        hyperfine(page, setting, &compared);
    });
}

fn targets(page: &mut Page, compared: &Compared, runs: &[Vec<Once>]) {
    let apply = wall(&runs[compared.apply]);
    let baselines = compared.jobs.iter().zip(runs).take(compared.baselines);
    // The target is for the baseline in C, which starts with the distribution's libc.
    for (job, runs) in baselines.filter(|(job, _)| job.name.contains(", C (")) {
        page.target(
            &format!("ratio of `apply` to the {}", job.name),
            apply / wall(runs),
            3.0,
        );
    }
    if let Some(chart) = compared.index(CHART) {
        page.target(
            "ratio of `apply` to the chart's libvirt.sh",
            apply / wall(&runs[chart]),
            0.45,
        );
    }
    if let Some(peer) = compared.index(VALIDATE) {
        let check = wall(&runs[compared.check]);
        page.target(
            "ratio of `check` to virt-host-validate",
            check / wall(&runs[peer]),
            0.125,
        );
    }
    page.end_list();
}

/// Lists commands with another exit code than 0: virt-host-validate and kvm-ok end early on a machine whose
/// processor lacks virtualization flags.
fn early(page: &mut Page, compared: &Compared, runs: &[Vec<Once>]) {
    let mut early = Vec::new();
    for (job, runs) in compared.jobs.iter().zip(runs) {
        if runs[0].code != 0 {
            let mut cmd = Command::new("sh");
            cmd.args(["-c", &job.line()]);
            let (_, out, _) = support::run(&mut cmd);
            let line = out.lines().next().unwrap_or_default();
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            early.push(format!("{} ({}): \"{line}\"", job.name, runs[0].code));
        }
    }
    if !early.is_empty() {
        page.paragraph(&format!(
            "Commands with another exit code than 0 may have ended early on this machine, which makes them look \
             faster than elsewhere. Their first lines of output: {}.",
            early.join("; ")
        ));
    }
}

/// Repeats the measurement with hyperfine as a cross-check.
fn hyperfine(page: &mut Page, setting: &Setting, compared: &Compared) {
    let Some(hyperfine) = tool("hyperfine") else {
        page.paragraph("Not measured: the cross-check (hyperfine is missing).");
        return;
    };
    let mut rounds = vec![Vec::new(); compared.jobs.len()];
    let runs = setting.rounds(20, 10);
    let turns = setting.rounds(5, 2);
    for _ in 0..turns {
        for (job, medians) in compared.jobs.iter().zip(&mut rounds) {
            match once(&hyperfine, &job.line(), runs) {
                Ok(half) => medians.push(half),
                Err(why) => {
                    page.paragraph(&format!(
                        "Not measured: the cross-check of {}: {why}",
                        job.name
                    ));
                    return;
                }
            }
        }
    }
    page.paragraph(&format!(
        "The cross-check repeats the measurement with hyperfine, without a shell (`-N`). hyperfine finishes all runs \
         of one command before the next one, so it is called {turns} times in turn for {runs} runs of each command; \
         the values are medians of the medians."
    ));
    let halves: Vec<_> = rounds.into_iter().map(median).collect();
    let rows: Vec<_> = compared
        .jobs
        .iter()
        .zip(&halves)
        .map(|(job, half)| {
            vec![
                job.name.clone(),
                ms(*half),
                format!("{:.2}", half / halves[0]),
            ]
        })
        .collect();
    page.table(&["command", "hyperfine", "ratio to baseline"], &rows);
}

fn once(hyperfine: &Path, line: &str, runs: usize) -> Result<f64, String> {
    let out = support::scratch().join("hyperfine.json");
    let mut cmd = Command::new(hyperfine);
    cmd.args(["-N", "-i", "--style", "none", "--warmup", "2", "--runs"]);
    cmd.arg(runs.to_string()).arg("--export-json").arg(&out);
    let (code, _, err) = support::run(cmd.arg(line));
    if code != 0 {
        return Err(err.trim().to_owned());
    }
    let text = std::fs::read_to_string(&out).map_err(|e| e.to_string())?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let half = json["results"][0]["median"].as_f64();
    half.ok_or_else(|| "no median in the output".to_owned())
}
