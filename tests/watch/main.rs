//! `watch` on real device nodes, real mounts and real group files: `cargo test --test watch --
//! --ignored` as root, with a KVM driver and the udev that tests/run unpacks.
//!
//! What is timed is printed; the bounds that fail a test are ten times what a quiet machine reaches.
#![allow(missing_docs, clippy::disallowed_methods)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/drift_kinds.rs"]
mod drift_kinds;
#[path = "../common/holders.rs"]
mod holders;
#[path = "../common/impostor.rs"]
#[allow(clippy::disallowed_methods)]
mod impostors;
#[path = "../common/metrics.rs"]
mod metrics;
#[path = "../common/peak.rs"]
#[allow(dead_code)]
mod peak;
#[path = "../common/process.rs"]
mod process;
#[path = "../common/rule_sets.rs"]
mod rule_sets;
#[path = "../root/support.rs"]
#[allow(dead_code)]
mod support;
#[path = "../common/udevd.rs"]
mod udev;

mod crowd;
mod drifts;
mod files;
mod flood;
mod folders;
mod guarded;
mod idle;
mod impostor;
mod keeps;
mod libvirtd;
mod memory;
mod polled;
mod start;
mod war;
