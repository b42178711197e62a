//! Tests every file in examples/ with the tool that it is for.
//!
//! Each tool has a module, so that tests/run can skip and report those whose tool is not installed. In each module,
//! `on_a_node` has the tests that also need root and KVM.
#![allow(clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod ansible;
mod grafana;
mod kubectl;
mod kubernetes;
mod npd;
mod promtool;
mod shell;
mod systemd;
