//! The kvm tier compares the program's verdicts with QEMU, started with the credentials that libvirt sets. It needs
//! root, a usable KVM, Debian's qemu-system-x86, acl, util-linux and strace, and a udev that tests/run unpacks:
//! `cargo test --test kvm`.
//!
//! tests/pure/diagnose.rs covers the causes that a machine with a working KVM cannot produce: another API version, a
//! missing driver, and another hypervisor that uses hardware virtualization.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod advice;
mod bpf;
mod causes;
mod child;
mod held;
mod helm_values;
mod landlock;
#[cfg(feature = "logs")]
mod logs;
mod oracle;
mod persist;
mod property;
mod state;
mod udevd;
