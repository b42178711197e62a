//! One short run of each command: how long.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Setting;
use crate::machine::{processes, tool};
use crate::page::{Page, ms};
use crate::runs::{Job, Once, in_turn, median, part, wall};
use crate::stage::{Stage, floors, script};
use support::in_namespace;

/// Names that the figures asked for refer to.
const CHART: &str = "the chart's three lines (bash)";
const VALIDATE: &str = "virt-host-validate qemu";

/// Everything that is compared, and the places in it of what is asked about.
pub struct Compared {
    pub jobs: Vec<Job>,
    /// Places of apply and check with the most rules.
    pub apply: usize,
    pub check: usize,
    /// So many floors come first.
    pub floors: usize,
}

impl Compared {
    pub fn place(&self, name: &str) -> Option<usize> {
        self.jobs.iter().position(|job| job.name == name)
    }
}

/// What each command is, on this stage. A peer that is not here is named on the page.
pub fn compared(page: &mut Page, stage: &Stage) -> Compared {
    let mut jobs: Vec<_> = floors()
        .into_iter()
        .map(|(compiler, program)| Job::new(&format!("floor, static, in {compiler}"), &[program]))
        .collect();
    let floors = jobs.len();
    let script_of = |name: &str, words: &[&str]| {
        let mut all = vec![tool("bash").unwrap().to_str().unwrap().to_owned()];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        Job::new(name, &all)
    };
    if tool("bash").is_some() {
        jobs.push(script_of(CHART, &[&script("chart-lines.sh")]));
        let host = stage.bare.path().to_str().unwrap();
        jobs.push(script_of(
            "the whole job by hand (bash)",
            &[&script("whole-job.sh"), host],
        ));
    }
    for words in [vec!["virt-host-validate", "qemu"], vec!["kvm-ok"]] {
        if let Some(path) = tool(words[0]) {
            let mut all = vec![path.to_str().unwrap().to_owned()];
            all.extend(words[1..].iter().map(|word| (*word).to_owned()));
            jobs.push(Job::new(&words.join(" "), &all));
        } else {
            page.say(&format!("Not measured: no {} here.", words[0]));
        }
    }
    let mut add = |verb: &str, node, with: &str| {
        jobs.push(Job::new(
            &format!("`{verb}`, {with}"),
            &stage.words(verb, node),
        ));
        jobs.len() - 1
    };
    let mut apply = add("apply", &stage.bare, "no udev rules");
    let mut check = add("check", &stage.bare, "no udev rules");
    if let Some(node) = &stage.ruled {
        let with = format!("{} files of udev rules", stage.rules);
        apply = add("apply", node, &with);
        check = add("check", node, &with);
    } else {
        page.say("Not measured: with the distribution's udev rules; target/oracle has none.");
    }
    Compared {
        jobs,
        apply,
        check,
        floors,
    }
}

pub fn measure(page: &mut Page, setting: &Setting) {
    in_namespace(|| {
        let stage = Stage::new();
        let compared = compared(page, &stage);
        let jobs = &compared.jobs;
        let rounds = setting.rounds(800, 120);
        let runs = in_turn(jobs, rounds, Duration::from_secs(90));
        page.say(&format!(
            "Whole processes, from before posix_spawn to after wait4, stdout and stderr to /dev/null. The \
             commands take turns, each once a round, so that all of them see the same machine; {} rounds. \
             Nothing is left to do for any of them. A floor is a program that only returns; \
             ratios in the table are to the first. {} processes run, {} files of udev rules.",
            runs[0].len(),
            processes(),
            stage.rules
        ));
        let floor = wall(&runs[0]);
        let chart = compared.place(CHART).map(|place| wall(&runs[place]));
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
                    ratio(half, Some(floor)),
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
                "of the floor",
                "of the chart's lines",
                "CPU",
                "exit code",
            ],
            &rows,
        );
        asked(page, &compared, &runs);
        early(page, &compared, &runs);
        hyperfine(page, setting, &compared);
    });
}

/// The three figures.
fn asked(page: &mut Page, compared: &Compared, runs: &[Vec<Once>]) {
    let apply = wall(&runs[compared.apply]);
    for (job, runs) in compared.jobs.iter().zip(runs).take(compared.floors) {
        page.asked(
            &format!("`apply` to the {}", job.name),
            apply / wall(runs),
            4.0,
        );
    }
    if let Some(chart) = compared.place(CHART) {
        page.asked(
            "`apply` to the chart's lines",
            apply / wall(&runs[chart]),
            0.25,
        );
    }
    if let Some(peer) = compared.place(VALIDATE) {
        let check = wall(&runs[compared.check]);
        page.asked(
            "`check` to virt-host-validate",
            check / wall(&runs[peer]),
            0.125,
        );
    }
    page.end();
}

/// A peer that ends early on a machine without the processor's flags has done less than it would elsewhere.
fn early(page: &mut Page, compared: &Compared, runs: &[Vec<Once>]) {
    let mut seen = Vec::new();
    for (job, runs) in compared.jobs.iter().zip(runs) {
        if runs[0].code != 0 {
            let mut cmd = Command::new("sh");
            cmd.args(["-c", &job.line()]);
            let (_, out, _) = support::run(&mut cmd);
            let line = out.lines().next().unwrap_or_default();
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            seen.push(format!("{} ({}): \"{line}\"", job.name, runs[0].code));
        }
    }
    if !seen.is_empty() {
        page.say(&format!(
            "Those that did not end with 0 may have ended earlier here than elsewhere, which makes them look \
             faster. Their first lines: {}.",
            seen.join("; ")
        ));
    }
}

/// The same once more with another clock.
fn hyperfine(page: &mut Page, setting: &Setting, compared: &Compared) {
    let Some(hyperfine) = tool("hyperfine") else {
        page.say("Not measured: the cross check, no hyperfine here.");
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
                    page.say(&format!(
                        "Not measured: the cross check of {}: {why}",
                        job.name
                    ));
                    return;
                }
            }
        }
    }
    page.say(&format!(
        "As a cross check the same with hyperfine, without a shell (`-N`). It runs one command to its end \
         before the next, so it is called for {runs} runs of each in turn, {turns} times; medians of the medians."
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
    page.table(&["command", "hyperfine", "of the floor"], &rows);
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
    half.ok_or_else(|| "it says no median".to_owned())
}
