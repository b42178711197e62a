//! `watch` on real device nodes, real mounts and real group files: `cargo test --test watch` as root, with a KVM
//! driver and the udev that tests/run unpacks.
//!
//! What is timed is printed; the bounds that fail a test are ten times what a quiet machine reaches.
#![allow(clippy::disallowed_methods)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

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
