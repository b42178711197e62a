//! What needs root: the program on real device nodes, real mounts and real group files.
//!
//! `cargo test --test root` as root. Most of it needs a KVM driver as well, since
//! without one there is nothing to be done on a node; what cannot run says so and fails.
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
