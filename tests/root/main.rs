//! Tests that need root: the program on real devices, mounts and group files.
//!
//! `cargo test --test root` as root. Most tests also need a KVM driver. A test that cannot run fails and prints what
//! is missing.
#![allow(clippy::disallowed_methods)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod accounts_oracle;
mod candidates;
mod check;
mod confined;
mod device;
mod exec;
mod foreign_text;
mod group_file;
mod group_file_out;
mod guarded;
mod hostile;
mod inherited;
mod input;
mod install;
#[cfg(feature = "logs")]
mod logs;
mod memory;
mod node_view;
mod outputs;
mod partial_view;
mod persist;
mod place;
mod privileges;
mod races;
mod readme;
mod ready;
mod rights;
mod settle;
mod udev_oracle;
