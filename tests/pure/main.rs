//! The pure tier: tests of parsers, decisions, reports, options and documentation. It needs only the sources;
//! `cargo test` runs it.
#![allow(clippy::disallowed_methods)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

#[cfg(feature = "logs")]
mod accounts_properties;
mod config;
mod diagnose;
mod examples;
mod formats;
#[cfg(feature = "logs")]
mod fuzz_replay;
mod guarded_plan;
mod helm_patch;
mod identity;
#[cfg(feature = "logs")]
mod logs;
mod observation;
mod pages;
mod persist_plan;
#[cfg(feature = "logs")]
#[path = "../../fuzz/properties.rs"]
mod properties;
mod readme;
mod report;
mod size;
mod workflows;
