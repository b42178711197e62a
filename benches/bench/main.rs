//! `make bench`: compares the program with existing tools, on one machine in one run.
//!
//! Nothing is asserted. The results list each measurement, and each one that is left out, with the reason.
//! Everything runs in private mount namespaces with a private /dev.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

mod counts;
mod logs;
mod machine;
mod page;
mod plot;
mod repair;
mod runs;
mod scale;
mod size;
mod stage;
mod startup;
mod traced;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use page::Page;

pub struct Setting {
    /// `BENCH=quick`: fewer rounds.
    pub quick: bool,
    /// `BENCH_HUGE=1`: also a log of 10 GiB.
    pub huge: bool,
    /// The directory for RESULTS.md and plots/.
    pub out: PathBuf,
    /// A directory on a disk, for files that should not be in memory. Each benchmark removes its own files.
    pub disk: PathBuf,
}

impl Setting {
    pub fn rounds(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

type Part = (&'static str, &'static str, fn(&mut Page, &Setting));

const PARTS: [Part; 6] = [
    ("startup", "Duration of one run", startup::measure),
    (
        "counts",
        "System calls, instructions and memory of one run",
        counts::measure,
    ),
    ("size", "Size", size::measure),
    ("scale", "Scale", scale::measure),
    ("logs", "`logs` compared with ripgrep", logs::measure),
    ("watch", "`watch`", repair::measure),
];

fn main() {
    let project = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let is_set = |name: &str, value: &str| std::env::var_os(name).is_some_and(|is| is == value);
    let only = std::env::var("BENCH_ONLY").ok();
    let disk = project.join("target/bench");
    let quick = is_set("BENCH", "quick");
    let whole = !quick && only.is_none();
    let setting = Setting {
        quick,
        huge: is_set("BENCH_HUGE", "1"),
        out: if whole {
            project.join("benches")
        } else {
            disk.clone()
        },
        disk,
    };
    std::fs::create_dir_all(&setting.disk).unwrap();
    std::fs::create_dir_all(setting.out.join("plots")).unwrap();

    let start = Instant::now();
    let mut page = Page::default();
    machine::head(&mut page, quick);
    for (name, title, part) in PARTS {
        if only
            .as_ref()
            .is_some_and(|only| !only.split(',').any(|part| part == name))
        {
            continue;
        }
        page.heading(title);
        let started = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| part(&mut page, &setting)));
        if let Err(panic) = done {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            page.paragraph(&format!(
                "**The rest of this part was not measured:** {}",
                text.unwrap_or_default().trim().replace('\n', " ")
            ));
        }
        eprintln!("[{name}: {:.0} s]", started.elapsed().as_secs_f64());
    }
    page.paragraph(&format!(
        "The whole run took {:.0} s; the load averages at the end are {}. The benchmarks rarely run more than one \
         process at a time: a load well above 1 means that the machine had other work, which makes the ratios less \
         reliable.",
        start.elapsed().as_secs_f64(),
        machine::load()
    ));
    let file = setting.out.join("RESULTS.md");
    std::fs::write(&file, page.text()).unwrap();
    eprintln!("written: {}", file.display());
}
