//! One generation of a replica's state: an engine, and how far it is.

use std::sync::Arc;

use parking_lot::Mutex;

use super::super::types::{LogId, SnapshotMeta};
use super::rows;
use crate::error::{Error, Reason, Result};
use crate::machine;
use crate::storage::{Durability, Environment, StorageEngine, WriteBatch};
use crate::types::Version;

/// See the [module](self).
pub(super) struct Generation {
    pub(super) number: u64,
    /// Its engine's name.
    pub(super) name: String,
    pub(super) engine: Arc<dyn StorageEngine>,
    /// Moved by the state machine after its batch is in the engine; `flushed` by who has flushed.
    pub(super) progress: Mutex<Progress>,
}

/// How far a generation is. `flushed <= applied`.
pub(super) struct Progress {
    pub(super) applied: SnapshotMeta,
    pub(super) flushed: SnapshotMeta,
    pub(super) last_version: Version,
    /// Bytes of the entries applied since it was opened, and as of the last flush.
    pub(super) applied_bytes: u64,
    pub(super) flushed_bytes: u64,
}

/// What was applied and is not known to be flushed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unflushed {
    /// Entries of the log.
    pub entries: u64,
    /// Their bytes in the log.
    pub bytes: u64,
}

impl Generation {
    /// Opens the engine `name`, or creates it. What it holds is durable then.
    pub(super) fn open(environment: &dyn Environment, number: u64, name: String) -> Result<Self> {
        let engine = environment.open(&name)?;
        // An engine with a log of its own may have found what a killed process left in the page cache.
        engine.write(&WriteBatch::new(), Durability::Sync)?;
        let named = |error: Error| match error.reason() {
            Reason::Corruption => {
                Error::new(Reason::Corruption, format!("{name}: {}", error.message()))
            }
            _ => error,
        };
        let applied = rows::read(&*engine).map_err(named)?;
        let last_version = machine::last_version(&*engine).map_err(named)?;
        let flushed = applied.clone();
        let progress =
            Progress { applied, flushed, last_version, applied_bytes: 0, flushed_bytes: 0 };
        Ok(Self { number, name, engine, progress: Mutex::new(progress) })
    }
}

impl Progress {
    /// Notes that all up to `meta` is flushed, which was applied when there were `bytes` of entries.
    pub(super) fn note_flushed(&mut self, meta: SnapshotMeta, bytes: u64) {
        // Two that flush at the same time may come back in any order.
        if meta.last_log_id > self.flushed.last_log_id {
            self.flushed = meta;
            self.flushed_bytes = bytes;
        }
    }

    pub(super) fn unflushed(&self) -> Unflushed {
        let next = |log_id: Option<LogId>| log_id.map_or(0, |log_id| log_id.index + 1);
        Unflushed {
            entries: next(self.applied.last_log_id) - next(self.flushed.last_log_id),
            bytes: self.applied_bytes - self.flushed_bytes,
        }
    }
}
