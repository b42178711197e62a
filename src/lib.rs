//! Makes `/dev/kvm` usable by the QEMU user of a libvirt pod, and proves it.
//!
//! ```text
//!     parse                observe                decide             act              prove
//!
//! flags, environment,   the device, the pod's     pure: one       the group file   a child becomes
//! YAML                  files, the node's         snapshot,       first, the       the QEMU user and
//!                       files and udev rules      one decision    device last      opens the device
//!
//!   cli, config ------> observe ----------------> plan ---------> steps ---------> prove
//!                       (place, view, hostdb,     (resolve,       (sys)            (qemu, diagnose,
//!                       udev_read)                udev, acl,         |             judge)
//!                          ^                      accounts,          |                |
//!                          |                      qemu_conf)         |                |
//!                          +------- and once more, for the proof ----+                |
//!                                                                                     v
//!                                        report -> table, JSON, npd, Prometheus, exit code
//!
//! apply   the whole way
//! check   without the steps; says what will happen next instead (forecast, oddities)
//! exec    the whole way in a child, then becomes a command
//! watch   the whole way, and again at each event; ready reads what it found
//! logs    a way of its own: lines -> incidents -> guests
//! install copies this binary
//! ```
//!
//! [`observe`] takes one snapshot of every fact, [`plan`] decides from it without looking at
//! anything else, [`apply`] does the [`steps`] and has the result proven by [`prove`], and everything
//! that is printed comes from one [`report::Report`]. What touches the machine is in [`sys`].

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
