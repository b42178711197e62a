//! Other people's files as their owners read them: pure parsers, without I/O.
#![forbid(unsafe_code)]

pub mod accounts;
pub mod posix_acl;
pub mod qemu_conf;
pub mod udev;
pub mod userdb;
