//! Makes `/dev/kvm` usable by the QEMU user of a libvirt pod, and proves it.
//!
//! The tree is the pipeline. A module imports only what stands below it.
//!
//! ```text
//! main        parse, start the log, dispatch, print, exit
//!   cli       the command line as clap takes it
//!   commands  apply, check, exec, install, ready, watch, logs
//!   pipeline  observe -> plan -> execute -> prove -> judge -> report, for apply, check and watch
//!   report    what is printed: table, JSON, node-problem-detector, Prometheus
//!   judge     pure: the verdict, its summary and advice; what happens to the device next
//!   prove     a child with the QEMU identity opens the device; what its answer means
//!   execute   the steps: the group file and the udev rule, the device last
//!   plan      pure: the target GID, the safety rules, the steps
//!   observe   one snapshot of the node, the pod, the device and the daemons
//!   config    flags, environment and YAML -> Sources, Policy, Output
//!   error     why a run ends early, and what to do next
//!   sys       system calls; unsafe code in one file
//!   formats   pure: other people's files as their owners read them
//!   text, codes, verdict
//! ```
//!
//! [`observe::observe`] takes [`config::Sources`], [`plan::plan`] an observation and a [`config::Policy`];
//! [`judge::judge`] takes all of it, and [`report::build`] makes the one [`report::Report`] from that. `watch`
//! goes the same way at each event, `exec` in a child before it becomes a command.

pub mod cli;
pub mod codes;
pub mod commands;
pub mod config;
pub mod error;
pub mod execute;
pub mod formats;
pub mod judge;
pub mod observe;
pub mod pipeline;
pub mod plan;
pub mod prove;
pub mod report;
pub mod sys;
pub mod text;
pub mod verdict;
