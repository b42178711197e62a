//! What the tests and benches share: a private mount namespace with a /dev of its own, trees that stand for a
//! pod's or a node's file system, the program under test, and the oracles that it is compared with.
//!
//! Each binary that uses it is linked with one build of it. It uses nothing of the library under test.
#![allow(clippy::disallowed_methods)] // what changes files here changes a test's own
#![allow(clippy::new_without_default)] // `new` mounts and makes devices

mod files;
mod limits;
mod namespace;
mod run;
mod scene;
mod tree;

pub mod drift;
pub mod golden;
pub mod guest;
pub mod holders;
pub mod impostor;
pub mod metrics;
pub mod peak;
pub mod random;
pub mod rule_sets;
pub mod udevd;
pub mod watch;
pub mod yaml;

pub use files::*;
pub use limits::*;
pub use namespace::*;
pub use run::*;
pub use scene::*;
pub use tree::*;
