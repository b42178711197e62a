//! A fleet of 10,000 nodes through two bad days: how many guests fail to start with the chart's lines,
//! with the init step alone, and with `watch`.
//!
//! It is a simulation, and no measurement: what a start meets follows from whose number the device and
//! the pod have at that moment, which the tests show on one node. How often guests start and when nodes
//! are upgraded are assumptions, stated in the output. How long `watch` takes at most is what `make bench`
//! measures. The same seed gives the same picture.

#![allow(clippy::print_stdout, clippy::disallowed_methods)]

mod picture;

use std::process::ExitCode;
use std::{env, fs};

const NODES: usize = 10_000;
/// Starts of guests, hard reboots and migrations to a node among them.
const STARTS_PER_NODE_AND_HOUR: f64 = 0.5;
const HOURS: f64 = 14.0;
/// When nodes are upgraded, one after the other in no order.
const WAVE: (f64, f64) = (2.0, 6.0);
/// When somebody has understood it, and restarts the DaemonSet: so many pods at once, so long each.
const RESTART: f64 = 10.0;
const PODS_AT_ONCE: usize = 100;
const POD_HOURS: f64 = 1.0 / 60.0;
/// How long `watch` takes: more than the longest of a thousand drifts.
const HEAL_MS: f64 = 20.0;
/// What the picture counts in.
const BINS: usize = 84;

/// What keeps the device right.
#[derive(Clone, Copy)]
enum Way {
    /// chmod and chown to the number of the pod's image, when the pod starts.
    ChartsLines,
    /// `apply` or `exec`, when the pod starts.
    InitStep,
    /// And `watch` beside it.
    Watch,
}

const WAYS: [(Way, &str); 3] = [
    (Way::ChartsLines, "the chart's lines"),
    (Way::InitStep, "init step alone"),
    (Way::Watch, "with watch"),
];

/// What the wave does to a node.
#[derive(Clone, Copy)]
enum Wave {
    /// udevd is restarted: the device gets the number that the node has always had.
    Restarts,
    /// The node's number becomes another one, and udev gives it to the device.
    Renumbers,
}

const WAVES: [(Wave, &str); 2] = [
    (Wave::Restarts, "udevd is upgraded, and restarted"),
    (Wave::Renumbers, "the node's kvm gets another number"),
];

fn main() -> ExitCode {
    let heal = HEAL_MS;
    println!(
        "## At fleet size\n\nA simulation, seeded, of {NODES} nodes with {STARTS_PER_NODE_AND_HOUR} starts of \
         guests a node and hour, for\n{HOURS} hours. Between hour {} and hour {} each node is upgraded once. At \
         hour {RESTART} somebody has understood\nit and restarts the DaemonSet, {PODS_AT_ONCE} pods at once, a \
         minute each. These are assumptions. That watch\nheals within {heal} ms is what the worst of a thousand \
         drifts above stays below.\n",
        WAVE.0, WAVE.1
    );
    println!("| what happens | the chart's lines | init step alone | with watch |");
    println!("| --- | --- | --- | --- |");
    let mut panels = Vec::new();
    for (wave, title) in WAVES {
        let mut lines = Vec::new();
        let mut row = format!("| {title} |");
        for (way, name) in WAYS {
            let (failed, starts) = failures(way, wave, heal / 3_600_000.0);
            let total: usize = failed.iter().sum();
            row.push_str(&format!(" {total} of {starts} starts fail |"));
            let sums = failed.iter().scan(0, |sum, more| {
                *sum += more;
                Some(*sum)
            });
            lines.push((name, sums.collect::<Vec<usize>>()));
        }
        println!("{row}");
        panels.push((title, lines));
    }
    println!("\n![Guest starts that fail, summed up over the hours](plots/fleet.svg)");
    if let Some(path) = env::var_os("FLEET_SVG")
        && let Err(error) = fs::write(path, picture::draw(&panels, HOURS, WAVE, RESTART))
    {
        println!("the picture was not written: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Starts that fail, by bin, and how many there were. `heal` is in hours.
fn failures(way: Way, wave: Wave, heal: f64) -> (Vec<usize>, usize) {
    let mut dice = Dice(20_260_408);
    let mut failed = vec![0; BINS];
    let mut starts = 0;
    for node in 0..NODES {
        let upgraded = WAVE.0 + dice.unit() * (WAVE.1 - WAVE.0);
        let batch = u32::try_from(node / PODS_AT_ONCE).unwrap_or(u32::MAX);
        let restarted = RESTART + f64::from(batch) * POD_HOURS;
        let mut now = 0.0;
        loop {
            now -= dice.unit().ln() / STARTS_PER_NODE_AND_HOUR;
            if now >= HOURS {
                break;
            }
            starts += 1;
            if !opens(way, wave, now, upgraded, restarted, heal) {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let bin = (now / HOURS * BINS as f64) as usize;
                failed[bin.min(BINS - 1)] += 1;
            }
        }
    }
    (failed, starts)
}

/// Whether QEMU can open the device: its group is the device's.
fn opens(way: Way, wave: Wave, now: f64, upgraded: f64, restarted: f64, heal: f64) -> bool {
    const IMAGES: u32 = 424;
    const NODES_OLD: u32 = 108;
    let nodes = match wave {
        Wave::Renumbers if now >= upgraded => 929_292,
        Wave::Renumbers | Wave::Restarts => NODES_OLD,
    };
    let (device, pod) = match way {
        // The last of two wins: udev at the upgrade, the chart's lines when the pod was started anew.
        Way::ChartsLines if now >= upgraded && now < restarted => (nodes, IMAGES),
        Way::ChartsLines => (IMAGES, IMAGES),
        // The pod has the number that the node had when the pod was started.
        Way::InitStep if now >= restarted => (nodes, nodes),
        Way::InitStep => (nodes, NODES_OLD),
        Way::Watch if now >= upgraded + heal => (nodes, nodes),
        Way::Watch => (nodes, NODES_OLD),
    };
    device == pod
}

/// splitmix64: enough to spread events evenly, and the same everywhere.
struct Dice(u64);

impl Dice {
    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let high = u32::try_from(mixed >> 32).unwrap_or(u32::MAX);
        (f64::from(high) + 1.0) / (f64::from(u32::MAX) + 1.0)
    }
}
