//! Makes `/dev/kvm` usable by the QEMU user of a libvirt pod, tested as that user.
//!
//! The modules form a pipeline. Each imports only modules that are listed below it (tests/layers checks this).
//!
//! ```text
//! main        parse, start the log, dispatch, print, exit
//!   cli       the command line as clap parses it
//!   commands  apply, check, exec, install, ready, watch, logs
//!   pipeline  observe -> plan -> execute -> prove -> judge -> report, for apply, check and watch
//!   report    output formats: table, JSON, node-problem-detector, Prometheus
//!   judge     pure: the verdict, its summary and advice; the effect of the next udev events
//!   prove     opens the device in a child with the QEMU identity, and finds the cause of a failure
//!   execute   carries out the steps: group file and udev rule, the device last
//!   plan      pure: target GID, safety rules, steps
//!   observe   one snapshot of the node, the pod, the device and the daemons
//!   config    flags, environment and YAML -> Sources, Policy, Output
//!   error     errors that end a run, with advice
//!   sys       system calls; `unsafe` is confined to one file
//!   formats   pure: parsers for files of other programs, compatible with those programs
//!   text, codes, verdict
//! ```
//!
//! [`observe::observe`] takes [`config::Sources`]; [`plan::plan`] takes the observation and a [`config::Policy`];
//! [`judge::judge`] takes both and the proof, and [`report::build`] makes the [`report::Report`]. `watch` runs the
//! pipeline at each event, `exec` runs it in a child before it executes the command.

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
