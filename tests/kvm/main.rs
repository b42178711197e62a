//! The verdicts, with the distribution's QEMU as oracle: what the program says must be what a QEMU
//! meets that is started as libvirt starts it. Needs root, a usable KVM, Debian's qemu-system-x86,
//! acl, util-linux and strace, and a udev that tests/run unpacks: `cargo test --test kvm`.
//!
//! Left to pure tests (tests/pure/diagnose.rs), because a machine with a working KVM cannot be made to show
//! them: a security module's denial, another API version, a missing driver, and a processor that
//! another hypervisor holds.
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
