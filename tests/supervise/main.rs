//! The process that supervises the work: what it does about a file system that never answers, and about signals:
//! `cargo test --test supervise -- --ignored` as root, with a KVM driver and /dev/fuse.
#![allow(missing_docs, clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../root/support.rs"]
#[allow(dead_code)]
mod support;

mod fuse;
mod hang;
mod signals;
