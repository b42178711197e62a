//! Makes `/dev/kvm` usable by the QEMU user of a libvirt pod, and proves it.
//!
//! ```text
//! flags, environment, YAML -> Config -+
//! pod root, host root, device --------+-> observe -> decide -> steps -> observe again
//!                                                                    -> prove -> report
//! ```
//!
//! [`observe`] takes one snapshot of every fact, [`plan`] decides from it without looking at
//! anything else, [`apply`] does the steps and has the result proven by [`prove`], and everything
//! that is printed comes from one [`report::Report`]. What touches the machine is in [`sys`].

pub mod accounts;
pub mod acl;
pub mod apply;
pub mod check;
pub mod cli;
pub mod config;
pub mod diagnose;
pub mod exec;
pub mod exit;
pub mod forecast;
pub mod hostdb;
pub mod install;
pub mod judge;
#[cfg(feature = "logs")]
pub mod logs;
pub mod monitors;
pub mod observe;
pub mod oddities;
pub mod place;
pub mod plan;
pub mod prove;
pub mod qemu;
pub mod qemu_conf;
#[cfg(feature = "watch")]
pub mod ready;
pub mod report;
pub mod resolve;
pub mod snapshot;
pub mod steps;
pub mod sys;
pub mod table;
pub mod udev;
pub mod udev_read;
#[cfg(feature = "watch")]
pub mod watch;
