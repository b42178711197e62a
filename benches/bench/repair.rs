//! Measures how fast `watch` repairs drift, and the cost of `watch` while nothing happens.

use std::path::Path;
use std::time::Duration;

use crate::Setting;
use crate::page::{Page, count, ms};
use crate::plot::{Panel, Series, write};
use crate::runs::part;
use support::drift::{DRIFTS, PAUSE, time};
use support::watch::{Watch, watch};
use support::{Scene, in_namespace, mknod_char};

pub fn measure(page: &mut Page, setting: &Setting) {
    in_namespace(|| {
        let scene = Scene::settled();
        mknod_char(Path::new("/dev/canary"), (1, 3), 0, 0, 0o600);
        let running = Watch::start(&mut watch(&scene));

        std::thread::sleep(Duration::from_secs(1));
        let quiet = setting.rounds(10, 3) as u64;
        let (woken, used) = (running.wakeups(), running.nanoseconds());
        std::thread::sleep(Duration::from_secs(quiet));
        let (woken, used) = (running.wakeups() - woken, running.nanoseconds() - used);
        page.table(
            &["while nothing happens", "in this run"],
            &[
                vec!["seconds".into(), quiet.to_string()],
                vec!["wake-ups".into(), count(woken)],
                vec!["CPU time".into(), ms(used as f64 / 1e9)],
                vec![
                    "peak memory so far".into(),
                    format!("{} KiB", count(running.status("VmHWM"))),
                ],
            ],
        );

        let rounds = setting.rounds(100, 20);
        let mut kinds: Vec<Vec<f64>> = vec![Vec::new(); DRIFTS.len()];
        let before = running.nanoseconds();
        for _ in 0..rounds {
            for ((name, drift), times) in DRIFTS.iter().zip(&mut kinds) {
                std::thread::sleep(PAUSE);
                let took = time(*drift);
                let took = took.unwrap_or_else(|| panic!("not repaired within 10 s: {name}"));
                times.push(took.as_secs_f64());
            }
        }
        let used = running.nanoseconds() - before;
        let all: Vec<_> = kinds.concat();
        page.paragraph(&format!(
            "Each kind of drift is caused {rounds} times, {} in total, {} ms apart. The time is measured from just \
             before the drift until a process that polls the device without a pause sees it repaired. CPU time for \
             each repair: {}, without the child processes of the proof; peak memory: {} KiB.",
            count(all.len() as u64),
            PAUSE.as_millis(),
            ms(used as f64 / 1e9 / all.len() as f64),
            count(running.status("VmHWM"))
        ));
        let row = |name: &str, times: &[f64]| {
            let at = |thousandth| ms(part(times.to_vec(), thousandth));
            vec![name.to_owned(), at(0), at(500), at(900), at(990), at(1000)]
        };
        let mut rows: Vec<_> = DRIFTS
            .iter()
            .zip(&kinds)
            .map(|((name, _), times)| row(name, times))
            .collect();
        rows.push(row("all", &all));
        page.table(
            &["drift", "minimum", "median", "90 %", "99 %", "maximum"],
            &rows,
        );
        page.target(
            "drift to repaired, median, ms",
            part(all.clone(), 500) * 1e3,
            2.0,
        );
        page.target(
            "drift to repaired, worst, ms",
            part(all.clone(), 1000) * 1e3,
            20.0,
        );
        page.target("wake-ups while nothing happens", woken as f64, 0.0);
        page.end_list();
        tail(page, setting, all);
    });
}

/// Plots the share of drifts that lasted at least a given time.
fn tail(page: &mut Page, setting: &Setting, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let of = times.len() as f64;
    // All of the twenty longest drifts, and one in a hundred of all drifts.
    let (step, last) = (times.len() / 100, times.len().saturating_sub(20));
    let points = times.iter().enumerate();
    let points = points.filter(|(place, _)| *place >= last || place % step.max(1) == 0);
    let points = points.map(|(place, time)| (time * 1e3, (of - place as f64) / of * 100.0));
    write(
        &setting.out.join("plots/heal.svg"),
        &[Panel {
            title: "`watch`: share of drifts by duration".to_owned(),
            x: "ms".to_owned(),
            y: "% that lasted at least this long".to_owned(),
            series: vec![Series {
                name: format!("{} drifts of {} kinds", times.len(), DRIFTS.len()),
                points: points.collect(),
            }],
            notes: Vec::new(),
        }],
    );
    page.image(
        "heal.svg",
        "Share of drifts that lasted at least a given time",
    );
}
