//! The account files group(5) and passwd(5) as glibc's `files` service reads them.
//!
//! The files are parsed here and never asked of the name service: the lookups are about another
//! root directory, and a name service daemon whose socket is shared with the host would answer for
//! the host. What libvirtd later sees in that root is glibc's reading, so glibc's reading is what
//! these parsers follow, down to lines that are never written on purpose.
//!
//! Everything works on bytes: neither file has an encoding.

#![forbid(unsafe_code)]

pub mod edit;
pub mod group;
pub(crate) mod line;
pub mod passwd;
pub(crate) mod strtoul;
