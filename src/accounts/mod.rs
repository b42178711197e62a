//! group(5) and passwd(5).
