//! Simulates upgrades of a fleet of 10,000 nodes: how many guests fail to start with the chart's libvirt.sh, with
//! the init step alone, and with `watch`.
//!
//! A start fails if the GID of the device and the GID of the pod's group differ at that moment, as the tests
//! show on one node. The rate of guest starts and the times of the upgrades are assumptions, which the output
//! lists. The time that `watch` needs is an upper bound of the measurements of `make bench`. The seed is fixed, so
//! each run has the same result.

#![allow(clippy::print_stdout, clippy::disallowed_methods)]

mod picture;

use std::process::ExitCode;
use std::{env, fs};

const NODES: usize = 10_000;
/// Guest starts, including hard reboots and migrations to a node.
const STARTS_PER_NODE_AND_HOUR: f64 = 0.5;
const HOURS: f64 = 14.0;
/// The hours between which nodes are upgraded, in random order.
const WAVE: (f64, f64) = (2.0, 6.0);
/// The hour at which an operator starts a rolling restart of the DaemonSet.
const RESTART: f64 = 10.0;
const PODS_AT_ONCE: usize = 100;
const POD_HOURS: f64 = 1.0 / 60.0;
/// The time that `watch` needs to repair a drift: more than the maximum of a thousand measurements.
const REPAIR_MS: f64 = 20.0;
/// The number of points of each line in the picture.
const BINS: usize = 84;

/// The method that sets the device and the pod's group.
#[derive(Clone, Copy)]
enum Method {
    /// chmod and chown to the GID of the pod's image when the pod starts.
    LibvirtSh,
    /// `apply` or `exec` when the pod starts.
    InitStep,
    /// The init step, and `watch` as a sidecar.
    Watch,
}

const METHODS: [(Method, &str); 3] = [
    (Method::LibvirtSh, "chart's libvirt.sh"),
    (Method::InitStep, "init step alone"),
    (Method::Watch, "with watch"),
];

/// The effect of an upgrade on a node.
#[derive(Clone, Copy)]
enum Wave {
    /// udevd restarts: the device gets the node's GID, which stays the same.
    Restarts,
    /// The GID of the node's group changes, and udev sets it on the device.
    Renumbers,
}

const WAVES: [(Wave, &str); 2] = [
    (Wave::Restarts, "udevd is upgraded and restarted"),
    (Wave::Renumbers, "the GID of the node's kvm group changes"),
];

fn main() -> ExitCode {
    let repair = REPAIR_MS;
    println!(
        "## Simulation of a fleet\n\nA simulation with a fixed seed: {NODES} nodes, {STARTS_PER_NODE_AND_HOUR} guest \
         starts per node and hour, {HOURS} hours.\nEach node is upgraded once between hour {} and hour {}. At hour \
         {RESTART} an operator starts a rolling restart\nof the DaemonSet, {PODS_AT_ONCE} pods at a time, one \
         minute each. These values are assumptions. The simulation uses\n{repair} ms as the time in which `watch` \
         repairs a drift, more than the maximum of the measurements above.\n",
        WAVE.0, WAVE.1
    );
    println!("| upgrade | chart's libvirt.sh | init step alone | with watch |");
    println!("| --- | --- | --- | --- |");
    let mut panels = Vec::new();
    for (wave, title) in WAVES {
        let mut lines = Vec::new();
        let mut row = format!("| {title} |");
        for (method, name) in METHODS {
            let (failed, starts) = failures(method, wave, repair / 3_600_000.0);
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
    println!("\n![Failed guest starts over time, cumulative](plots/fleet.svg)");
    if let Some(path) = env::var_os("FLEET_SVG")
        && let Err(error) = fs::write(path, picture::draw(&panels, HOURS, WAVE, RESTART))
    {
        println!("cannot write the picture: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The failed starts in each bin, and the number of all starts. `repair` is in hours.
fn failures(method: Method, wave: Wave, repair: f64) -> (Vec<usize>, usize) {
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
            if !opens(method, wave, now, upgraded, restarted, repair) {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let bin = (now / HOURS * BINS as f64) as usize;
                failed[bin.min(BINS - 1)] += 1;
            }
        }
    }
    (failed, starts)
}

/// Whether QEMU can open the device: the pod's group has the device's GID.
fn opens(method: Method, wave: Wave, now: f64, upgraded: f64, restarted: f64, repair: f64) -> bool {
    const IMAGE_GID: u32 = 424;
    const OLD_NODE_GID: u32 = 108;
    let node_gid = match wave {
        Wave::Renumbers if now >= upgraded => 929_292,
        Wave::Renumbers | Wave::Restarts => OLD_NODE_GID,
    };
    let (device, pod) = match method {
        // The latest change of the device counts: udev's at the upgrade, or libvirt.sh's at the restart of the pod.
        Method::LibvirtSh if now >= upgraded && now < restarted => (node_gid, IMAGE_GID),
        Method::LibvirtSh => (IMAGE_GID, IMAGE_GID),
        // The pod has the GID that the node had when the pod started.
        Method::InitStep if now >= restarted => (node_gid, node_gid),
        Method::InitStep => (node_gid, OLD_NODE_GID),
        Method::Watch if now >= upgraded + repair => (node_gid, node_gid),
        Method::Watch => (node_gid, OLD_NODE_GID),
    };
    device == pod
}

/// splitmix64: distributes evenly enough, and has the same results on all machines.
struct Dice(u64);

impl Dice {
    /// A value above 0 and at most 1.
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
