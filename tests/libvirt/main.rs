//! The libvirt tier: tests with the distribution's libvirtd and QEMU, and with libvirt's own parser of qemu.conf. Run
//! `cargo test --test libvirt` as root.
#![allow(clippy::disallowed_methods)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod guest;
mod qemu_conf_oracle;
