//! The pod tier: runs the pods that the patches of helm-patch render, as containers of podman and runc.
//!
//! The containers with their mounts and privileges come from tests/goldens and are started as a kubelet does: the init
//! containers one after the other, then the libvirt container, each with a new writable layer. All of them share one
//! /dev, created for the test. libvirtd and QEMU are the distribution's.
//!
//! Needs root, a usable KVM, on Debian or Ubuntu the packages podman, runc, libvirt-daemon-system, libvirt-clients and
//! qemu-system-x86, and a udev that tests/run unpacks: `cargo test --test pod`. Every test has its own mount and PID
//! namespaces and its own podman storage, which are removed with it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod failures;
mod kubelet;
mod node;
mod order;
mod unprivileged;
