//! Foundations that know nothing of this project: time, checksums and codings, the file system seam.
//!
//! Invariant: imports nothing from the crate.

pub mod coding;
pub mod fs;
pub(crate) mod interleave;
pub mod time;
