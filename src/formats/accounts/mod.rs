//! The account files group(5) and passwd(5) as glibc's `files` service reads them.
//!
//! The files are parsed here instead of looked up through NSS, because they are in another root
//! directory: an nscd that shares its socket with the container would return the host's entries.
//! libvirtd in that root reads the files through glibc, so these parsers follow glibc even for
//! malformed lines.
//!
//! The parsers work on bytes because neither file has a defined encoding.

#![forbid(unsafe_code)]

pub mod edit;
pub mod group;
pub(crate) mod line;
pub mod passwd;
pub(crate) mod strtoul;
