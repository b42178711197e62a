//! Every file in examples/, with the tool that it is for.
//!
//! There is a module for each tool, so that the runner can leave out, and name, those whose tool the machine lacks.
//! In each of them `on_a_node` is what also needs root and KVM.
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
