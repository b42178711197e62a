//! What the program can be asked to do, a command a file.

pub mod apply;
pub mod check;
pub mod exec;
pub mod install;
#[cfg(feature = "logs")]
pub mod logs;
#[cfg(feature = "watch")]
pub mod ready;
#[cfg(feature = "watch")]
pub mod watch;
