//! What the program can be asked to do, a command a file.

pub mod apply;
pub mod check;

#[cfg(feature = "logs")]
pub mod logs;
