//! The LSM engine: sorted, immutable tables under one cache, and what merges them.
//!
//! Built from the bottom up. Here so far: [`key`] (internal keys and their order), [`options`] (how a table is laid
//! out), [`table`] (its file: written once, read by anyone) and [`cache`] (the blocks in memory, of all engines of a
//! process).
//!
//! Invariants: synchronous; no file but through [`util::fs`](crate::util::fs); no clock, no randomness of its own.

pub(crate) mod cache;
mod catalogue;
mod checkpoint;
mod compact;
pub(crate) mod compaction;
mod engine;
mod environment;
pub(crate) mod files;
mod flush;
pub(crate) mod key;
pub(crate) mod level;
pub(crate) mod manifest;
mod memtable;
mod merge;
pub(crate) mod options;
mod read;
mod recovery;
mod scan;
mod shared;
mod status;
pub(crate) mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tree;
pub(crate) mod version;
mod worker;
mod write;

pub use self::environment::LsmEnvironment;
pub use self::options::LsmOptions;
