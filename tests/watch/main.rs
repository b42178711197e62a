//! `watch` on real devices, mounts and group files: `cargo test --test watch` as root, with a KVM driver and the udev
//! that tests/run unpacks.
//!
//! Measured times are printed. The limits that fail a test are ten times the values of a quiet machine.
#![allow(clippy::disallowed_methods)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod crowd;
mod directories;
mod drifts;
mod files;
mod flood;
mod guarded;
mod idle;
mod impostor;
mod keeps;
mod libvirtd;
mod memory;
mod polled;
mod reverts;
mod start;
