//! Measures how time and memory grow with the size of the input.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Setting;
use crate::logs::{Mix, space, write_log};
use crate::machine::available;
use crate::page::{Page, bytes, count, ms};
use crate::plot::{Panel, Series, write};
use crate::runs::{Job, in_turn, wall};
use crate::stage::{RULES, Stage};
use crate::traced::peak;
use support::{in_namespace, program, scratch};

/// A slope up to this counts as linear: cache misses add a little.
const LINEAR: f64 = 1.15;

/// From this size on, `logs` should use constant memory.
const LARGE: f64 = 16_777_216.0;

/// The result for one size.
struct Point {
    size: f64,
    shown: String,
    seconds: f64,
    kib: Option<u64>,
}

/// The results for several sizes of one input.
struct Line {
    name: String,
    points: Vec<Point>,
}

impl Line {
    fn seconds(&self) -> Vec<(f64, f64)> {
        self.points
            .iter()
            .map(|point| (point.size, point.seconds))
            .collect()
    }

    fn memory(&self) -> Vec<(f64, f64)> {
        let known = self.points.iter().filter(|point| point.kib.is_some());
        known
            .map(|point| (point.size, point.kib.unwrap_or(1) as f64))
            .collect()
    }
}

/// The slope of the linear regression through the logarithms of all points, and the slope of the last step.
pub fn slopes(points: &[(f64, f64)]) -> (f64, f64) {
    let logs: Vec<_> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / logs.len() as f64;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = logs.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = logs.iter().map(|point| (point.0 - x).powi(2)).sum();
    let [.., a, b] = logs[..] else {
        return (0.0, 0.0);
    };
    (above / below, (b.1 - a.1) / (b.0 - a.0))
}

/// Measures one job for each size.
fn line(name: &str, jobs: Vec<(u64, String, Job)>, rounds: usize) -> Line {
    let mut sizes = Vec::new();
    let mut all = Vec::new();
    for (size, shown, job) in jobs {
        sizes.push((size, shown));
        all.push(job);
    }
    let runs = in_turn(&all, rounds, Duration::from_secs(40));
    let points = sizes.into_iter().zip(&all).zip(&runs);
    let points = points.map(|(((size, shown), job), runs)| {
        assert!(
            runs.iter().all(|run| run.code == runs[0].code) && runs[0].code <= 1,
            "{}, {shown}: exit code {}",
            job.name,
            runs[0].code
        );
        Point {
            size: size as f64,
            shown,
            seconds: wall(runs),
            kib: peak(&mut job.command()),
        }
    });
    Line {
        name: name.to_owned(),
        points: points.collect(),
    }
}

/// Adds the table, the verdict and the plot of one input.
fn show(page: &mut Page, setting: &Setting, what: (&str, &str, &str), lines: &[Line]) {
    let (title, axis, file) = what;
    let mut rows = Vec::new();
    let mut time = Vec::new();
    let mut memory = Vec::new();
    let mut notes = (Vec::new(), Vec::new());
    let mut verdicts = Vec::new();
    for line in lines {
        let first = line.points[0].seconds;
        for point in &line.points {
            rows.push(vec![
                line.name.clone(),
                point.shown.clone(),
                ms(point.seconds),
                format!("{:.2}", point.seconds / first),
                ms(point.seconds - first),
                point
                    .kib
                    .map_or("-".to_owned(), |kib| format!("{} KiB", count(kib))),
            ]);
        }
        let (all, last) = slopes(&line.seconds());
        let linear = if last <= LINEAR { "yes" } else { "no" };
        let slope = format!("slope {all:.2}, last step {last:.2}");
        notes.0.push(format!("{}: {slope}", line.name));
        let (all_memory, last_memory) = slopes(&line.memory());
        notes.1.push(format!(
            "{}: slope {all_memory:.2}, last step {last_memory:.2}",
            line.name
        ));
        verdicts.push(format!(
            "{}: {slope}; memory {all_memory:.2}, last step {last_memory:.2}. Linear or better: {linear}.",
            line.name
        ));
        let series = |points| Series {
            name: line.name.clone(),
            points,
        };
        time.push(series(
            line.seconds().iter().map(|(x, y)| (*x, y * 1e3)).collect(),
        ));
        memory.push(series(line.memory()));
    }
    page.table(
        &[
            title,
            axis,
            "median",
            "ratio to the smallest",
            "difference",
            "peak memory",
        ],
        &rows,
    );
    for verdict in verdicts {
        page.paragraph(&verdict);
    }
    let panel = |title: &str, y: &str, series, notes| Panel {
        title: title.to_owned(),
        x: axis.to_owned(),
        y: y.to_owned(),
        series,
        notes,
    };
    write(
        &setting.out.join("plots").join(file),
        &[
            panel(&format!("{title}: time"), "ms", time, notes.0),
            panel(&format!("{title}: peak memory"), "KiB", memory, notes.1),
        ],
    );
    page.image(file, &format!("{title}: time and peak memory over {axis}"));
}

pub fn measure(page: &mut Page, setting: &Setting) {
    page.paragraph(&format!(
        "The values are medians of whole processes; the sizes are measured in turn. The first slope is that of a \
         log-log regression through all points. Start-up dominates small sizes and flattens it, so the slope of \
         the last step decides: up to {LINEAR} counts as linear."
    ));
    in_namespace(|| group_file(page, setting));
    in_namespace(|| members(page, setting));
    in_namespace(|| rules(page, setting));
    in_namespace(|| log_files(page, setting));
}

/// Creates another pod root with this group file.
fn pod(stage: &Stage, name: &str, group: &str) -> PathBuf {
    let root = scratch().join(name);
    fs::create_dir_all(root.join("etc/libvirt")).unwrap();
    fs::create_dir_all(root.join("usr")).unwrap();
    for file in ["etc/passwd", "etc/libvirt/qemu.conf"] {
        fs::copy(stage.pod.at(file), root.join(file)).unwrap();
    }
    fs::write(root.join("etc/group"), group).unwrap();
    root
}

fn apply(stage: &Stage, root: &Path) -> Job {
    let mut words = stage.words("apply", &stage.bare);
    words[3] = root.to_str().unwrap().to_owned();
    Job::new("apply", &words)
}

const TAIL: &str = "nova:x:42424:\n";

fn group_file(page: &mut Page, setting: &Setting) {
    let stage = Stage::new();
    let (mut settled, mut renumbered) = (Vec::new(), Vec::new());
    // At most 8 MiB, the size limit of a group file.
    for lines in [100, 1_000, 10_000, 100_000, 180_000_u64] {
        let others: String = (3..lines)
            .map(|n| format!("group{n}:x:{}:user{n},other{n}\n", 200_000 + n))
            .collect();
        let of = |gid: u32| format!("root:x:0:\n{others}kvm:x:{gid}:nova\n{TAIL}");
        let root = pod(&stage, &format!("settled-{lines}"), &of(108));
        settled.push((lines, count(lines), apply(&stage, &root)));
        let root = pod(&stage, &format!("wrong-{lines}"), &of(424));
        let (wrong, to) = (of(424), root.join("etc/group"));
        let job = apply(&stage, &root).before(move || fs::write(&to, &wrong).unwrap());
        renumbered.push((lines, count(lines), job));
    }
    let rounds = setting.rounds(31, 7);
    let lines = [
        line("nothing to do", settled, rounds),
        line("kvm renumbered", renumbered, rounds),
    ];
    show(
        page,
        setting,
        ("`apply`, group file", "lines", "group-lines.svg"),
        &lines,
    );
    let more = lines[0].points[3].seconds - lines[0].points[0].seconds;
    page.target(
        "nothing to do, 100,000 lines compared with 100, difference in ms",
        more * 1e3,
        50.0,
    );
    page.end_list();
}

fn members(page: &mut Page, setting: &Setting) {
    let stage = Stage::new();
    let jobs = (2..=5).map(|power| {
        let members = 10_u64.pow(power);
        let names: String = (1..members).map(|n| format!("user{n},")).collect();
        let group = format!("root:x:0:\nkvm:x:108:{names}nova\n{TAIL}");
        let root = pod(&stage, &format!("members-{members}"), &group);
        (members, count(members), apply(&stage, &root))
    });
    let lines = [line("nothing to do", jobs.collect(), setting.rounds(31, 7))];
    let what = (
        "`apply`, members of kvm",
        "members on one line",
        "members.svg",
    );
    show(page, setting, what, &lines);
}

fn rules(page: &mut Page, setting: &Setting) {
    let stage = Stage::new();
    let Some(node) = &stage.ruled else {
        page.paragraph("Not measured: udev rules (target/oracle contains no udev package).");
        return;
    };
    let mut texts: Vec<_> = fs::read_dir(node.at(RULES)).unwrap().flatten().collect();
    texts.sort_by_key(fs::DirEntry::file_name);
    let texts: Vec<_> = texts
        .iter()
        .map(|entry| fs::read(entry.path()).unwrap())
        .collect();
    let jobs = [10, 32, 100, 316, 1000].map(|files| {
        let root = scratch().join(format!("node-{files}"));
        let directory = root.join(RULES);
        fs::create_dir_all(&directory).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        for file in ["etc/group", "etc/passwd"] {
            fs::copy(stage.bare.at(file), root.join(file)).unwrap();
        }
        fs::create_dir(root.join("dev")).unwrap();
        support::bind(Path::new("/dev"), &root.join("dev"));
        for (n, text) in texts.iter().cycle().take(files).enumerate() {
            fs::write(directory.join(format!("50-{n:04}.rules")), text).unwrap();
        }
        let mut words = stage.words("apply", node);
        words[5] = root.to_str().unwrap().to_owned();
        let job = Job::new("apply", &words);
        (files as u64, count(files as u64), job)
    });
    page.paragraph(&format!(
        "The distribution's {} rules files ({} in total) are copied repeatedly under other names.",
        texts.len(),
        bytes(texts.iter().map(|text| text.len() as u64).sum())
    ));
    let lines = [line("nothing to do", jobs.into(), setting.rounds(31, 7))];
    let what = ("`apply`, udev rules", "rules files", "rules.svg");
    show(page, setting, what, &lines);
}

fn log_files(page: &mut Page, setting: &Setting) {
    let mut jobs = Vec::new();
    // Files in a tmpfs take memory: half of it stays free.
    let most = available() / 2;
    let mut total = 0;
    for power in [0, 2, 4, 6, 8, 10] {
        let size = 1_u64 << (20 + power);
        total += size;
        if total > most {
            page.paragraph(&format!(
                "Not measured: logs of {} and more (too little memory).",
                bytes(size)
            ));
            break;
        }
        let file = scratch().join(format!("{power}.log"));
        write_log(&file, size, Mix::USUAL);
        jobs.push((size, bytes(size), of_log(&file)));
    }
    let huge = setting.disk.join("huge.log");
    let wanted: u64 = 10 << 30;
    if !setting.huge {
        page.paragraph("Not measured: a log of 10 GiB (only with BENCH_HUGE=1).");
    } else if space(&setting.disk) < wanted + (1 << 30) {
        page.paragraph("Not measured: a log of 10 GiB (too little free space on the disk).");
    } else {
        write_log(&huge, wanted, Mix::USUAL);
        jobs.push((wanted, "10 GiB, from the disk".to_owned(), of_log(&huge)));
    }
    page.paragraph("The logs repeat a generated block of 8 MiB. They are on tmpfs, so the disk has no influence.");
    let lines = [line("logs", jobs, setting.rounds(9, 3))];
    let _ = fs::remove_file(&huge);
    show(page, setting, ("`logs`", "bytes", "logs.svg"), &lines);
    // A small file does not fill the buffers.
    let large = lines[0].points.iter().filter(|point| point.size >= LARGE);
    let kib: Vec<_> = large.filter_map(|point| point.kib).collect();
    let (Some(least), Some(most)) = (kib.iter().min(), kib.iter().max()) else {
        return;
    };
    let constant = if most - least <= 1024 { "yes" } else { "no" };
    page.paragraph(&format!(
        "From {} on, peak memory is between {} and {} KiB. Constant (within 1 MiB): {constant}.",
        bytes(LARGE as u64),
        count(*least),
        count(*most)
    ));
}

fn of_log(file: &Path) -> Job {
    let bin = program();
    Job::new(
        "logs",
        &[
            bin.as_os_str(),
            "logs".as_ref(),
            "-q".as_ref(),
            file.as_os_str(),
        ],
    )
}
