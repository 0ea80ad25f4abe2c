//! One shard on this node: propose a change, read what is there.
//!
//! A shard knows keys, values and versions; it knows no protobuf, no other shard and no network. Changes go through the
//! [`Committer`], in order; reads go straight to the engine on the caller's thread and wait only when they saw something that
//! is not durable yet ([`Shard::settled`]).
//!
//! Promises: a [`Ticket`] that answers `Ok` stands for a write that is as safe as configured and visible to every later read.
//! A command is applied whole or not at all. Commands apply in the order in which [`Shard::propose`] was called.
//!
//! Callers: `router/`; `server` opens shards and moves their clocks.

mod committer;
mod replica;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use self::committer::{Committer, QUEUE_BYTES_MAX};
use self::committer::{Proposal, Queue};
use self::replica::Replica;
use crate::command::{Change, Command};
use crate::error::{Error, Reason, Result};
use crate::machine;
use crate::machine::record::{self, RowKey, Stored};
use crate::storage::{self, Direction, EntryRef, KeyRange, StorageEngine};
use crate::ticket::{Ticket, ticket};
use crate::types::{Key, ShardId, Value, Version};
use crate::util::time::{Clock, Timestamp};

/// A document as a read finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What is stored.
    pub value: Value,
    /// The version of the write that stored it.
    pub version: Version,
    /// Whole seconds left until it expires, rounded up, at least 1; `None`: it does not expire.
    pub ttl_seconds: Option<u32>,
}

/// Figures of one shard.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardStatus {
    /// Which shard.
    pub id: ShardId,
    /// The newest version given out.
    pub last_version: Version,
    /// Commands applied since it was opened.
    pub writes: u64,
    /// Reads served since it was opened; a page counts as one.
    pub reads: u64,
    /// What the engine says.
    pub engine: storage::EngineStatus,
}

/// One shard, open for reads and writes. Cheap to clone; clones are the same shard.
#[derive(Clone)]
pub struct Shard {
    replica: Arc<Replica>,
    queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
}

impl Shard {
    /// Opens shard `id` on its engine, writing through `committer`.
    ///
    /// # Errors
    ///
    /// What the engine's reads fail with; CORRUPTION when its rows make no sense.
    pub fn open(
        id: ShardId,
        engine: Arc<dyn StorageEngine>,
        committer: &Committer,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let last_version = machine::last_version(&*engine)
            .map_err(|error| Error::new(error.reason(), format!("{id}: {}", error.message())))?;
        let replica = Arc::new(Replica::new(id, engine, last_version));
        Ok(Self { replica, queue: committer.queue(), clock })
    }

    /// Which shard it is.
    pub fn id(&self) -> ShardId {
        self.replica.id
    }

    /// Queues a command; the ticket tells what came of it. The order of calls is the order of application.
    ///
    /// # Errors
    ///
    /// OVERLOADED or NOT_SERVING: certainly not applied.
    pub fn propose(&self, command: Command) -> Result<Ticket> {
        let (caller, ticket) = ticket();
        let replica = Arc::clone(&self.replica);
        self.queue.push(Proposal { replica, command, caller })?;
        Ok(ticket)
    }

    /// Moves the shard's clock to now when a key may have expired, so that it is gone although nobody writes.
    ///
    /// # Errors
    ///
    /// As [`Self::propose`].
    pub fn tick(&self) -> Result<Option<Ticket>> {
        let due =
            self.replica.engine.next_expiry().is_some_and(|expiry| expiry <= self.clock.now());
        if due {
            self.propose(Command { change: Change::Tick, request_id: None }).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The document under `key`.
    ///
    /// # Errors
    ///
    /// CORRUPTION or INTERNAL, when the engine cannot read it.
    pub fn get(&self, key: &[u8]) -> Result<Option<Document>> {
        self.replica.reads.fetch_add(1, Ordering::Relaxed);
        let mut found = Ok(None);
        self.replica.engine.get_with(&record::document_key(key), &mut |entry| {
            found = self.document(entry).map(Some);
        })?;
        found
    }

    /// The documents under `keys`, all of one moment; `visit` gets the position of each key that is there.
    ///
    /// # Errors
    ///
    /// As [`Self::get`]; and the first that `visit` returns.
    pub fn get_many(
        &self,
        keys: &[&[u8]],
        visit: &mut dyn FnMut(usize, Document) -> Result<()>,
    ) -> Result<()> {
        self.replica.reads.fetch_add(1, Ordering::Relaxed);
        let rows: Vec<_> = keys.iter().map(|key| record::document_key(key)).collect();
        let rows: Vec<&[u8]> = rows.iter().map(RowKey::as_slice).collect();
        let mut result = Ok(());
        self.replica.engine.get_many(&rows, &mut |position, entry| {
            if result.is_ok() {
                result = self.document(entry).and_then(|document| visit(position, document));
            }
        })?;
        result
    }

    /// The shard as it is now, for scans. Short ones only: each holds back the engine's garbage collection.
    pub fn reader(&self) -> ShardReader {
        self.replica.reads.fetch_add(1, Ordering::Relaxed);
        ShardReader { engine: Arc::clone(&self.replica.engine), now: self.clock.now() }
    }

    /// Whether all that a read which has just returned may have seen is durable.
    pub fn is_settled(&self) -> bool {
        self.replica.is_settled()
    }

    /// Waits until all that a read which has just returned may have seen is durable.
    ///
    /// # Errors
    ///
    /// READ_ONLY when that will never be, because the disk failed.
    pub async fn settled(&self) -> Result<()> {
        self.replica.settled().await
    }

    /// Figures for operators.
    pub fn status(&self) -> ShardStatus {
        ShardStatus {
            id: self.replica.id,
            last_version: self.replica.last_version(),
            writes: self.replica.writes.load(Ordering::Relaxed),
            reads: self.replica.reads.load(Ordering::Relaxed),
            engine: self.replica.engine.status(),
        }
    }

    /// The engine, for what concerns it alone: flush, compaction, checkpoints.
    pub fn engine(&self) -> &Arc<dyn StorageEngine> {
        &self.replica.engine
    }

    fn document(&self, entry: EntryRef<'_>) -> Result<Document> {
        let stored = decode(entry)?;
        let ttl_seconds =
            entry.expires_at.map(|expires_at| seconds_left(expires_at, self.clock.now()));
        Ok(Document { value: stored.value(), version: stored.version, ttl_seconds })
    }
}

/// What a shard's scans read from.
pub struct ShardReader {
    engine: Arc<dyn StorageEngine>,
    now: Timestamp,
}

impl ShardReader {
    /// The documents of `range` in order, all of one moment.
    ///
    /// # Errors
    ///
    /// As [`Shard::get`].
    pub fn scan(&self, range: KeyRange<'_>, direction: Direction) -> Result<DocumentScan<'_>> {
        let start = record::document_key(range.start);
        let end = range.end.map(record::document_key);
        let end = end.as_deref().unwrap_or(&record::DOCUMENTS_END);
        let rows = self.engine.scan(KeyRange::new(&start, Some(end)), direction)?;
        Ok(DocumentScan { rows, now: self.now })
    }
}

/// A running scan over documents.
pub struct DocumentScan<'a> {
    rows: Box<dyn storage::Scan + 'a>,
    now: Timestamp,
}

/// A document of a scan, borrowed from it.
pub struct ScannedDocument<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Whole seconds left until it expires, as in [`Document`].
    pub ttl_seconds: Option<u32>,
    stored: Stored<'a>,
}

impl ScannedDocument<'_> {
    /// The version of the write that stored it.
    pub fn version(&self) -> Version {
        self.stored.version
    }

    /// Bytes of its value.
    pub fn value_bytes(&self) -> usize {
        self.stored.content_bytes()
    }

    /// The value, copied.
    pub fn value(&self) -> Value {
        self.stored.value()
    }
}

impl DocumentScan<'_> {
    /// The next document; `None` at the end.
    ///
    /// # Errors
    ///
    /// As [`Shard::get`]; the scan is over then.
    #[expect(clippy::should_implement_trait, reason = "what it gives out borrows from the scan")]
    pub fn next(&mut self) -> Result<Option<ScannedDocument<'_>>> {
        let Some(entry) = self.rows.next()? else { return Ok(None) };
        let stored = decode(entry)?;
        let key = entry.key.get(1..).unwrap_or_default();
        let ttl_seconds = entry.expires_at.map(|expires_at| seconds_left(expires_at, self.now));
        Ok(Some(ScannedDocument { key, ttl_seconds, stored }))
    }
}

fn decode(entry: EntryRef<'_>) -> Result<Stored<'_>> {
    Stored::decode(entry.value)
        .ok_or_else(|| Error::new(Reason::Corruption, "a stored row is not a document"))
}

fn seconds_left(expires_at: Timestamp, now: Timestamp) -> u32 {
    let left = expires_at.saturating_since(now).as_millis().div_ceil(1_000);
    u32::try_from(left).unwrap_or(u32::MAX).max(1)
}

/// The key of a scanned document as text; `None` when it is not one, which is damage.
pub fn key_text(key: &[u8]) -> Option<Key> {
    Key::new(std::str::from_utf8(key).ok()?.to_owned()).ok()
}
