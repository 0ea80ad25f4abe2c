//! The LSM engine: sorted, immutable tables under one cache, and what merges them.
//!
//! Built from the bottom up; each file opens with what it is.
//!
//! | what | where |
//! |---|---|
//! | internal keys and their order | `key` |
//! | tables: written once, read by anyone; blocks in memory, of all engines of a process | `table`, `options`, `cache` |
//! | memtables | `memtable` |
//! | which tables there are: levels, versions, the manifest; which of them are open | `files`, `open_files`, `level`, `version`, `manifest` |
//! | what is merged when, and how | `compaction` |
//! | reading: one key, a range | `tree`, `read`, `merge`, `scan` |
//! | one engine, phase by phase | `engine`, `write`, `flush`, `compact`, `checkpoint`, `recovery`, `status` |
//! | all engines of a node | `environment`, `catalogue`, `shared`, `room`, `settings`, `worker` |
//! | a closed environment, for operators | `inspect` |
//!
//! ARCHITECTURE.md tells a write and a read through all of it, down to the bytes.
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
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod inspect;
pub(crate) mod key;
pub(crate) mod level;
pub(crate) mod manifest;
mod memtable;
mod merge;
pub(crate) mod open_files;
pub(crate) mod options;
mod read;
mod recovery;
mod room;
mod scan;
mod settings;
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
pub use self::inspect::{EngineFigures, Inspection, LevelFigures, RawEntry, Verification};
pub use self::settings::LsmOptions;
