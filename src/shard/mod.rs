//! One shard, from this node: propose a change, read what is here.
//!
//! A shard knows keys, values and versions; it knows no protobuf, no other shard and no network. What makes its writes safe is either the engine's own log on
//! this node alone, behind a [`Committer`], or a Raft group (`raft/`), whose replica may be here or not. A read begins with [`Shard::seat`], which tells whether it can be done here, and has
//! three steps: [`Shard::prepare`] (a replicated shard asks a quorum whether what is here is fresh), the read of the engine on the caller's thread, and [`Shard::settled`] (a
//! shard that stands alone waits until what was seen is durable). The first and the last cost nothing where they are not needed.
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
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::committer::{Committer, QUEUE_BYTES_MAX};
use self::committer::{Proposal, Queue};
use self::replica::Replica;
use crate::command::{Change, Command};
use crate::error::{Error, Reason, Result};
use crate::machine::record::{self, RowKey, Stored};
use crate::raft::{self, Group, Place};
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

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Freshness {
    /// Sees every write acknowledged before the read began, and nothing that could still be lost.
    #[default]
    Linearizable,
    /// As linearizable, as long as the clocks of the nodes run at nearly one rate.
    Lease,
    /// Whatever is at hand.
    Stale,
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
    /// Its group; `None` when it is not replicated.
    pub group: Option<raft::Status>,
}

/// What a read holds on to from its first step to its last: the replica that was here when it began, although another may take its place meanwhile.
#[derive(Clone)]
pub struct Seat(Option<Arc<Group>>);

/// One shard, open for reads and writes. Cheap to clone; clones are the same shard.
#[derive(Clone)]
pub struct Shard {
    id: ShardId,
    source: Source,
    reads: Arc<AtomicU64>,
}

/// What makes writes safe, and reads fresh.
#[derive(Clone)]
enum Source {
    /// The engine's own log, on this node alone.
    Alone { replica: Arc<Replica>, queue: Arc<Queue>, clock: Arc<dyn Clock> },
    /// The group's log, on a majority of its nodes.
    Replicated(Arc<Place>),
}

impl Shard {
    /// Opens shard `id` on its engine, on this node alone, writing through `committer`.
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
        let last_version = match engine.get(&record::LAST_VERSION)? {
            None => Version::ABSENT,
            Some(row) => {
                let bytes = row.value.as_ref().try_into().map_err(|_| {
                    Error::new(
                        Reason::Corruption,
                        format!("{id}: the row of the last version is malformed"),
                    )
                })?;
                Version(u64::from_le_bytes(bytes))
            }
        };
        let replica = Arc::new(Replica::new(id, engine, last_version));
        let source = Source::Alone { replica, queue: committer.queue(), clock };
        Ok(Self { id, source, reads: Arc::default() })
    }

    /// Shard `id` of a cluster, whose replica is in `place` or elsewhere.
    pub fn replicated(id: ShardId, place: Arc<Place>) -> Self {
        Self { id, source: Source::Replicated(place), reads: Arc::default() }
    }

    /// Which shard it is.
    pub const fn id(&self) -> ShardId {
        self.id
    }

    /// Where the shard is, in a cluster.
    pub const fn place(&self) -> Option<&Arc<Place>> {
        match &self.source {
            Source::Alone { .. } => None,
            Source::Replicated(place) => Some(place),
        }
    }

    /// Queues a command; the ticket tells what came of it. The order of calls is the order of application.
    ///
    /// # Errors
    ///
    /// OVERLOADED or NOT_SERVING: certainly not applied.
    pub fn propose(&self, command: Command) -> Result<Ticket> {
        match &self.source {
            Source::Alone { replica, queue, .. } => {
                let (caller, ticket) = ticket();
                queue.push(Proposal { replica: Arc::clone(replica), command, caller })?;
                Ok(ticket)
            }
            Source::Replicated(place) => place.propose(command),
        }
    }

    /// Moves the shard's clock to now when a key may have expired, so that it is gone although nobody writes. The leader does.
    ///
    /// # Errors
    ///
    /// As [`Self::propose`].
    pub fn tick(&self) -> Result<Option<Ticket>> {
        let due = match &self.source {
            Source::Alone { replica, clock, .. } => {
                let now = clock.now();
                replica.engine.next_expiry().is_some_and(|at| at <= now)
            }
            Source::Replicated(place) => place.seated().is_some_and(|group| group.clock_is_due()),
        };
        if due {
            self.propose(Command { change: Change::Tick, request_id: None }).map(Some)
        } else {
            Ok(None)
        }
    }

    /// What a read that is to be so fresh may read here; `None`: another node has to be asked.
    pub fn seat(&self, freshness: Freshness) -> Option<Seat> {
        match &self.source {
            Source::Alone { .. } => Some(Seat(None)),
            Source::Replicated(place) => {
                place.reader(freshness == Freshness::Stale).map(|group| Seat(Some(group)))
            }
        }
    }

    /// Whether the replica of `seat` still is the one that is here.
    pub fn holds(&self, seat: &Seat) -> bool {
        let now = match &self.source {
            Source::Alone { .. } => return true,
            Source::Replicated(place) => place.seated(),
        };
        now.as_ref().map(Arc::as_ptr) == seat.0.as_ref().map(Arc::as_ptr)
    }

    /// Whether a read may begin now; otherwise [`Self::prepare`] it.
    ///
    /// # Errors
    ///
    /// NO_LEADER for a stale read that would be too stale.
    pub fn is_prepared(&self, seat: &Seat, freshness: Freshness) -> Result<bool> {
        match (&seat.0, freshness) {
            (None, _) => Ok(true),
            (Some(group), Freshness::Stale) => group.check_stale().map(|()| true),
            (Some(_), Freshness::Linearizable | Freshness::Lease) => Ok(false),
        }
    }

    /// Returns when a read may begin: what it finds then is as fresh as asked for.
    ///
    /// # Errors
    ///
    /// NO_LEADER, NO_QUORUM; NOT_SERVING when another node may know better.
    pub async fn prepare(&self, seat: &Seat, freshness: Freshness) -> Result<()> {
        let Some(group) = &seat.0 else { return Ok(()) };
        match freshness {
            Freshness::Linearizable => group.confirm().await,
            Freshness::Lease => group.confirm_by_lease().await,
            Freshness::Stale => group.check_stale(),
        }
    }

    /// Whether all that a read which has just returned may have seen is durable.
    pub fn is_settled(&self) -> bool {
        match &self.source {
            Source::Alone { replica, .. } => replica.is_settled(),
            // Only what a majority has durably is applied.
            Source::Replicated(_) => true,
        }
    }

    /// Waits until all that a read which has just returned may have seen is durable.
    ///
    /// # Errors
    ///
    /// READ_ONLY when that will never be, because the disk failed.
    pub async fn settled(&self) -> Result<()> {
        match &self.source {
            Source::Alone { replica, .. } => replica.settled().await,
            Source::Replicated(_) => Ok(()),
        }
    }

    /// The document under `key`.
    ///
    /// # Errors
    ///
    /// CORRUPTION or INTERNAL, when the engine cannot read it.
    pub fn get(&self, seat: &Seat, key: &[u8]) -> Result<Option<Document>> {
        self.read(seat, |engine| {
            let mut found = Ok(None);
            engine.get_with(&record::document_key(key), &mut |entry| {
                found = self.document(seat, entry).map(Some);
            })?;
            found
        })
    }

    /// The documents under `keys`, all of one moment; `visit` gets the position of each key that is there.
    ///
    /// # Errors
    ///
    /// As [`Self::get`]; and the first that `visit` returns.
    pub fn get_many(
        &self,
        seat: &Seat,
        keys: &[&[u8]],
        visit: &mut dyn FnMut(usize, Document) -> Result<()>,
    ) -> Result<()> {
        let rows: Vec<_> = keys.iter().map(|key| record::document_key(key)).collect();
        let rows: Vec<&[u8]> = rows.iter().map(RowKey::as_slice).collect();
        self.read(seat, |engine| {
            let mut result = Ok(());
            engine.get_many(&rows, &mut |position, entry| {
                if result.is_ok() {
                    result =
                        self.document(seat, entry).and_then(|document| visit(position, document));
                }
            })?;
            result
        })
    }

    /// The shard as it is now, for scans. Short ones only: each holds back the engine's garbage collection.
    ///
    /// # Errors
    ///
    /// INTERNAL, for a seat of another shard.
    pub fn reader(&self, seat: &Seat) -> Result<ShardReader> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let engine = match self.seated(seat)? {
            Seated::Alone(replica, _) => Arc::clone(&replica.engine),
            Seated::Replica(group) => group.state().engine(),
        };
        Ok(ShardReader { engine, now: self.now(seat)? })
    }

    /// Figures for operators.
    ///
    /// # Errors
    ///
    /// NOT_SERVING when it is not on this node.
    pub fn status(&self) -> Result<ShardStatus> {
        let (last_version, writes, group) = match &self.source {
            Source::Alone { replica, .. } => {
                (replica.last_version(), replica.writes.load(Ordering::Relaxed), None)
            }
            Source::Replicated(place) => {
                let group = place.seated().ok_or_else(|| self.not_here())?;
                let state = group.state();
                (state.last_version(), state.writes(), Some(group.status()))
            }
        };
        Ok(ShardStatus {
            id: self.id,
            last_version,
            writes,
            reads: self.reads.load(Ordering::Relaxed),
            engine: self.engine()?.status(),
            group,
        })
    }

    /// Whether the shard, or a replica of it, is on this node.
    pub fn is_here(&self) -> bool {
        self.place().is_none_or(|place| place.seated().is_some())
    }

    /// The engine of now, for what concerns it alone: flush, compaction, checkpoints.
    ///
    /// # Errors
    ///
    /// NOT_SERVING when it is not on this node.
    pub fn engine(&self) -> Result<Arc<dyn StorageEngine>> {
        match &self.source {
            Source::Alone { replica, .. } => Ok(Arc::clone(&replica.engine)),
            Source::Replicated(place) => {
                Ok(place.seated().ok_or_else(|| self.not_here())?.state().engine())
            }
        }
    }

    fn read<T>(
        &self,
        seat: &Seat,
        read: impl FnOnce(&dyn StorageEngine) -> Result<T>,
    ) -> Result<T> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        match self.seated(seat)? {
            Seated::Alone(replica, _) => read(&*replica.engine),
            Seated::Replica(group) => group.state().with_engine(read),
        }
    }

    fn document(&self, seat: &Seat, entry: EntryRef<'_>) -> Result<Document> {
        let stored = decode(entry)?;
        let left = |expires_at| Ok::<_, Error>(seconds_left(expires_at, self.now(seat)?));
        let ttl_seconds = entry.expires_at.map(left).transpose()?;
        Ok(Document { value: stored.value(), version: stored.version, ttl_seconds })
    }

    /// What time it is in the shard.
    fn now(&self, seat: &Seat) -> Result<Timestamp> {
        Ok(match self.seated(seat)? {
            Seated::Alone(_, clock) => clock.now(),
            Seated::Replica(group) => group.now(),
        })
    }

    fn seated<'a>(&'a self, seat: &'a Seat) -> Result<Seated<'a>> {
        match (&self.source, &seat.0) {
            (Source::Alone { replica, clock, .. }, None) => Ok(Seated::Alone(replica, &**clock)),
            (Source::Replicated(_), Some(group)) => Ok(Seated::Replica(group)),
            _ => Err(Error::new(Reason::Internal, "a seat of another shard")),
        }
    }

    fn not_here(&self) -> Error {
        Error::new(Reason::NotServing, format!("this node has no replica of {} now", self.id))
    }
}

/// What a [`Seat`] is of.
enum Seated<'a> {
    Alone(&'a Replica, &'a dyn Clock),
    Replica(&'a Group),
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
