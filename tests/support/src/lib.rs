//! Code shared by tests and benches: private mount namespaces with their own /dev, directory trees used as the file
//! system of a pod or a node, the program under test, and the oracles that it is compared with.
//!
//! It is built once for all tests and benches and does not use the library under test.
#![allow(clippy::disallowed_methods)] // these calls change only files of a test
#![allow(clippy::new_without_default)] // `new` mounts file systems and creates devices

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
