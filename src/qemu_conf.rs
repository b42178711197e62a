//! qemu.conf as libvirt reads it.
