//! `make bench`: what the program costs, beside what people use today, on the same machine in the same run.
//!
//! Nothing is asserted: what is measured is printed, and what is not measured is named. Everything happens in
//! private mount namespaces with a /dev of their own.
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
mod heal;
mod logs;
mod machine;
mod page;
mod plot;
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

/// How much is measured, and where it goes.
pub struct Setting {
    /// `BENCH=quick`: fewer rounds.
    pub quick: bool,
    /// `BENCH_HUGE=1`: a log of 10 GiB too.
    pub huge: bool,
    /// Where RESULTS.md and plots/ are written.
    pub out: PathBuf,
    /// A folder on a disk, for what shall not be in memory. Emptied by who used it.
    pub disk: PathBuf,
}

impl Setting {
    /// A number of rounds.
    pub fn rounds(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

type Part = (&'static str, &'static str, fn(&mut Page, &Setting));

const PARTS: [Part; 6] = [
    ("startup", "One short run", startup::measure),
    ("counts", "What a run asks of the kernel", counts::measure),
    ("size", "Size", size::measure),
    ("scale", "Scale", scale::measure),
    ("logs", "`logs` beside ripgrep", logs::measure),
    ("watch", "`watch`", heal::measure),
];

fn main() {
    let project = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let says = |name: &str, value: &str| std::env::var_os(name).is_some_and(|is| is == value);
    let only = std::env::var("BENCH_ONLY").ok();
    let disk = project.join("target/bench");
    let quick = says("BENCH", "quick");
    let whole = !quick && only.is_none();
    let setting = Setting {
        quick,
        huge: says("BENCH_HUGE", "1"),
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
            page.say(&format!(
                "**The rest of this part was not measured:** {}",
                text.unwrap_or_default().trim().replace('\n', " ")
            ));
        }
        eprintln!("[{name}: {:.0} s]", started.elapsed().as_secs_f64());
    }
    page.say(&format!(
        "All of it took {:.0} s; the load at the end is {}. What is measured here is at most a little more than one \
         process at a time: a load well over 1 says that the machine had other work, and ratios of medians are less \
         sure.",
        start.elapsed().as_secs_f64(),
        machine::load()
    ));
    let file = setting.out.join("RESULTS.md");
    std::fs::write(&file, page.text()).unwrap();
    eprintln!("written: {}", file.display());
}
