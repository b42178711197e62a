//! Makes `/dev/kvm` usable by the QEMU user of a libvirt pod, and proves it.

pub mod accounts;
pub mod qemu_conf;
