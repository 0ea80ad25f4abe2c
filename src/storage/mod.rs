//! The storage engine seam: an ordered map from byte keys to byte values, durable on one node.
//!
//! [`StorageEngine`] is what a shard stands on; `lsm`, `sled` and `memory` implement it and pass the same scripts and model
//! tests (`storage/testing`). An [`Environment`] holds all engines of a node: one data directory, one lock, shared caches
//! and one group commit.
//!
//! Invariants: synchronous; knows no async runtime, no replication, no protobuf, no shard id. Never asks what time it is: time
//! comes in batches. Could be published alone.
//!
//! # Expiry
//!
//! An entry may carry `expires_at`. Every engine has a **clock**, a [`Timestamp`] that only batches move
//! ([`WriteBatch::advance_clock`]), never backwards, and that is durable with them. A read hides every entry whose
//! `expires_at` is at or before the clock it reads at, so that all replicas that applied the same batches answer alike.
//! Engines reclaim hidden entries by themselves, whenever it suits them; that is never visible.
//!
//! # Reserved keys
//!
//! Keys whose first byte is [`RESERVED_PREFIX`] are the caller's bookkeeping: stored and scanned like all others, but left
//! out of [`EngineStatus::keys`] and [`EngineStatus::bytes`].

mod batch;
mod dump;
mod error;
mod limits;
pub mod lsm;
pub mod memory;
mod names;
pub mod sled;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use self::batch::{Operation, WriteBatch};
pub use self::error::{Error, Result};
use crate::util::time::Timestamp;
use crate::wal;

/// First byte of the keys that are not counted in [`EngineStatus`].
pub const RESERVED_PREFIX: u8 = 0;

/// Longest key an engine must take, in bytes. Longer ones are [`Error::Invalid`].
pub const KEY_BYTES_MAX: usize = 8 * 1024;

/// Longest value an engine must take, in bytes. Longer ones are [`Error::Invalid`].
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Largest batch an engine must take, in bytes of its encoding. Larger ones are [`Error::Invalid`].
pub const BATCH_BYTES_MAX: usize = 128 * 1024 * 1024;

/// How far a write is safe when `write` returns. Later levels include earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Nothing promised yet: visible, and in the buffer of the engine's log where it keeps one. A later write or barrier of a
    /// higher level covers it. Costs no system call. In an environment without a log of its own (the caller replays from
    /// his) only a flush makes it durable.
    None,
    /// Handed to the operating system: survives a killed process, not a power loss.
    Buffered,
    /// On stable storage: survives a power loss. So does, then, every write of this engine before it, whatever its level was.
    Sync,
}

/// Numbers the batches of one engine, in the order in which they took effect. Zero is before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seqno(pub u64);

/// The order of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Smallest key first.
    Forward,
    /// Largest key first.
    Reverse,
}

/// The keys from `start`, inclusive, to `end`, exclusive. Empty when `end` is at or before `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange<'a> {
    /// First key in the range; empty: from the first key there is.
    pub start: &'a [u8],
    /// First key beyond it; `None`: to the last key there is.
    pub end: Option<&'a [u8]>,
}

impl<'a> KeyRange<'a> {
    /// All keys.
    pub const ALL: KeyRange<'static> = KeyRange { start: &[], end: None };

    /// The keys from `start` to before `end`.
    pub const fn new(start: &'a [u8], end: Option<&'a [u8]>) -> Self {
        Self { start, end }
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start && self.end.is_none_or(|end| key < end)
    }

    /// Whether no key lies in the range.
    pub fn is_empty(&self) -> bool {
        self.end.is_some_and(|end| end <= self.start)
    }
}

/// One entry, borrowed from the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// When it expires; `None`: never. Always after the clock it was read at.
    pub expires_at: Option<Timestamp>,
}

/// One value with its expiry, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// When it expires; `None`: never. Always after the clock it was read at.
    pub expires_at: Option<Timestamp>,
}

/// Reads entries, either the newest ([`StorageEngine`]) or those of one moment ([`StorageEngine::view`]).
///
/// # Concurrency
///
/// Any thread may call anything at any time. Calls may read from disk; none waits for a write or a sync.
pub trait Reader: Send + Sync {
    /// Hands the entry under `key` to `visit` without copying it; returns whether there is one. `visit` is called at most
    /// once, and must be short: it may run under a lock or a pin.
    fn get_with(&self, key: &[u8], visit: &mut dyn FnMut(EntryRef<'_>)) -> Result<bool>;

    /// The entry under `key`, copied.
    fn get(&self, key: &[u8]) -> Result<Option<Entry>> {
        let mut found = None;
        self.get_with(key, &mut |entry| {
            found = Some(Entry {
                value: Bytes::copy_from_slice(entry.value),
                expires_at: entry.expires_at,
            });
        })?;
        Ok(found)
    }

    /// As [`Self::get_with`] for many keys: `visit` gets the position in `keys` of each key that is there, in any order.
    /// Keys may repeat. All keys are read at one moment.
    fn get_many(&self, keys: &[&[u8]], visit: &mut dyn FnMut(usize, EntryRef<'_>)) -> Result<()>;

    /// The entries of `range` in order, all of one moment: that of the call.
    fn scan<'a>(&'a self, range: KeyRange<'_>, direction: Direction) -> Result<Box<dyn Scan + 'a>>;

    /// The clock that reads happen at.
    fn clock(&self) -> Timestamp;
}

/// A running scan. Holds back garbage collection until it is dropped, so it should be short; long listings are cut into
/// many scans.
pub trait Scan: Send {
    /// The next entry; `None` at the end, and ever after. After an error the scan is over: `None` from then on.
    fn next(&mut self) -> Result<Option<EntryRef<'_>>>;
}

/// An ordered map from byte keys to byte values, durable on one node.
///
/// # Contract
///
/// * [`write`](Self::write) applies the whole batch or nothing, also across a crash; its operations apply in their order.
/// * What survives a crash is a prefix of the writes: a lost write is never older than one that survived. [`Durability`]
///   says how long the prefix is at least.
/// * An **empty batch** with [`Durability::Sync`] is a barrier: it makes every earlier write durable and nothing else. A barrier
///   costs a sync only when none has begun since this engine's last write, on whichever engine of the environment it was.
/// * A batch written with `None` or `Buffered` is visible when the call returns; readers may see it before it is durable.
/// * A read sees every batch whose `write` returned before the read began, and no part of a batch that has not taken effect.
/// * After a failed write or sync of the log the engine is **poisoned**: every later write is [`Error::Poisoned`] until the
///   environment is opened again, because what the page cache holds after a failed sync is unknown (Rebello et al., ATC
///   '20). Reads go on. [`Error::DiskFull`] found *before* anything was written does not poison, nor does a file that cannot
///   be made, of which [`Error::NoHandles`] is one cause.
/// * [`Error::Invalid`], [`Error::Poisoned`], [`Error::DiskFull`] and [`Error::NoHandles`] change nothing, nor does any other error that leaves the
///   engine writable (damage that was met before anything was written). After an error that poisons, the batch may be visible,
///   and may or may not survive. So a writer whose batch is applied and who then waits in vain for somebody else's sync gets
///   [`Error::Io`], not [`Error::Poisoned`].
///
/// # Concurrency
///
/// Any thread may call anything. Writes may block on disk and on back-pressure, so async code must not call them from a
/// runtime thread. Concurrent synced writes share syncs, also over engines of one environment.
pub trait StorageEngine: Reader + 'static {
    /// Applies `batch`. Returns its number once it is visible and as safe as `durability` says.
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<Seqno>;

    /// Whether a write without durability may wait now: for the disk, or because the engine is behind. A hint, never waits itself; for async
    /// code, which then has other tasks moved out of the way first.
    fn may_wait(&self) -> bool;

    /// Freezes the present state for reading. Cheap; holds back garbage collection until dropped.
    fn view(&self) -> Result<Box<dyn Reader>>;

    /// Makes everything written so far durable in the engine's own tables, so that a caller's log of it can be cut.
    fn flush(&self) -> Result<()>;

    /// Rewrites the entries of `range` so that deleted, overwritten and expired ones give their space back.
    fn compact(&self, range: KeyRange<'_>) -> Result<()>;

    /// Writes a consistent, synced copy of the present state into `directory`, which must be empty or not exist
    /// ([`Error::Invalid`] otherwise), sharing files where it can. [`Environment::install`] takes it back.
    fn checkpoint(&self, directory: &Path) -> Result<()>;

    /// Sizes and counts for operators. Approximate while writes go on; `keys` and `bytes` may be approximate at all times.
    fn status(&self) -> EngineStatus;

    /// The newest batch that a power loss now would not take.
    fn durable(&self) -> Seqno;

    /// A time ahead of the clock and not after the earliest expiry that still lies ahead of it; `None`: nothing will expire.
    /// Tells the caller when moving the clock is worth a batch.
    fn next_expiry(&self) -> Option<Timestamp>;
}

/// Sizes and counts of one engine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineStatus {
    /// Entries that reads can see, without reserved keys.
    pub keys: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Bytes of files that belong to this engine alone.
    pub disk_bytes: u64,
    /// Bytes of main memory that belong to this engine alone.
    pub memory_bytes: u64,
    /// Whether writes are taken: false once poisoned.
    pub writable: bool,
    /// More figures, by name; units are in the names. Not a contract.
    pub figures: BTreeMap<&'static str, f64>,
}

/// All engines of one node: one directory, locked against a second process; shared caches, budgets and group commit.
///
/// # Contract
///
/// * Names are 1 to 64 characters of `[a-z0-9-]`.
/// * Opening an engine that does not exist creates it, durably. One engine is open at most once: a second `open` of a name
///   that is still in use is [`Error::Invalid`].
/// * An engine is open, and its name in use, as long as a handle or a view of it lives. Dropping the last one closes it; what
///   was written stays as safe as it was, and nothing more is promised:
///   call [`StorageEngine::flush`] or write a barrier first.
/// * `remove` and `install` are atomic across a crash: afterwards there is the old engine, the new one, or none.
pub trait Environment: Send + Sync + 'static {
    /// Which engine this is: `lsm`, `sled` or `memory`.
    fn kind(&self) -> &'static str;

    /// Opens the engine `name`, or creates it.
    fn open(&self, name: &str) -> Result<Arc<dyn StorageEngine>>;

    /// Erases the engine `name`, which must not be open. No error when there is none.
    fn remove(&self, name: &str) -> Result<()>;

    /// The names of all engines there are, sorted.
    fn list(&self) -> Result<Vec<String>>;

    /// Replaces the engine `name`, which must not be open, by the copy that [`StorageEngine::checkpoint`] made of an engine of
    /// the same kind. The copy is checked first and stays as it is.
    fn install(&self, name: &str, checkpoint: &Path) -> Result<()>;

    /// Sizes of what all engines share and hold together.
    fn status(&self) -> EnvironmentStatus;
}

/// Sizes of an environment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EnvironmentStatus {
    /// Bytes of all its files.
    pub disk_bytes: u64,
    /// Bytes of main memory it holds: caches, memtables, indexes.
    pub memory_bytes: u64,
    /// Whether every engine takes writes.
    pub writable: bool,
    /// What the log of its engines has done; `None` where there is none, or it does not say.
    pub log: Option<wal::Counts>,
    /// More figures, by name; units are in the names. Not a contract.
    pub figures: BTreeMap<&'static str, f64>,
}

/// Whether `name` may name an engine: 1 to 64 characters of `[a-z0-9-]`.
pub fn check_name(name: &str) -> Result<()> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=64).contains(&name.len()) && name.bytes().all(legal) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "engine name {name:?}: allowed are 1 to 64 characters of [a-z0-9-]"
    )))
}
