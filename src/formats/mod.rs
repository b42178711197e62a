//! Pure parsers, without I/O, for files of other programs. Each one reads a file as its own program does
//! (glibc, libvirt, udevd, the kernel).
#![forbid(unsafe_code)]

pub mod accounts;
pub mod posix_acl;
pub mod qemu_conf;
pub mod udev;
pub mod userdb;
