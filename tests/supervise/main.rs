//! The supervising process: file systems that never answer, and signals.
//! `cargo test --test supervise` as root, with a KVM driver and a kernel that has FUSE.
#![allow(clippy::disallowed_methods)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod fuse;
mod hang;
mod signals;
