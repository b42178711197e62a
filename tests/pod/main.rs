//! The pod tier: what the patches of helm-patch render, run as containers by podman and runc.
//!
//! Containers, their mounts and rights are taken from tests/goldens, and are started as a kubelet
//! would: the init containers one after the other, then the libvirt container, each with a fresh
//! writable layer. All of them share one /dev, made for the test. libvirtd and QEMU are the distribution's.
//!
//! Needs root, a usable KVM, and of Debian or Ubuntu: podman, runc, libvirt-daemon-system,
//! libvirt-clients, qemu-system-x86; and a udev that tests/run unpacks: `cargo test --test pod`. Every test
//! has mount and PID namespaces and a storage of podman of its own, which end with it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod failures;
mod kubelet;
mod node;
mod order;
mod unprivileged;
