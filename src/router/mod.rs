//! From keys to shards: sends each key's operation to the shard that owns it, and merges what concerns many shards.
//!
//! `xxh64(key)` picks one of equal slices of the hash space, so every node and client computes the same. The router never
//! touches an engine, and knows no protobuf.
//!
//! Each shard's part of an operation is atomic and linearizable; an operation over several shards is not atomic as a whole.
//!
//! Callers: `api/`.

mod merge;
mod query;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use tokio::time::{Instant, timeout_at};

pub use self::merge::{Item, Page};
pub use self::query::{PageLimits, Query};
use crate::command::{Change, Command, Outcome, TtlSeconds};
use crate::error::{Error, Reason, Result};
pub use crate::shard::Freshness;
use crate::shard::{Document, Shard, ShardStatus};
use crate::storage::KeyRange;
use crate::ticket::Ticket;
use crate::types::{Key, RequestId, ShardId, Value, Version};

/// All shards of this node, by slice of the hash space. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    shards: std::sync::Arc<[Shard]>,
}

/// Which of `shards` equal slices of the hash space `key` falls into.
pub fn shard_of(key: &[u8], shards: u32) -> ShardId {
    let hash = xxhash_rust::xxh64::xxh64(key, 0);
    let slice = (u128::from(hash) * u128::from(shards)) >> 64;
    ShardId(u32::try_from(slice).expect("a slice is below the number of shards"))
}

/// One value to store; see [`Change::Put`].
#[derive(Debug, Clone)]
pub struct Put {
    /// Under which key.
    pub key: Key,
    /// What.
    pub value: Value,
    /// When it expires.
    pub ttl: Option<TtlSeconds>,
    /// Only if the key has this version.
    pub if_version: Option<Version>,
    /// Makes a repeat answer as the first did.
    pub request_id: Option<RequestId>,
}

impl Router {
    /// Routes to `shards`, which are all slices in order of id.
    ///
    /// # Panics
    ///
    /// When there is none, or one stands in the wrong place: a defect of the caller.
    pub fn new(shards: Vec<Shard>) -> Self {
        assert!(!shards.is_empty(), "a node has at least one shard");
        for (position, shard) in shards.iter().enumerate() {
            assert_eq!(shard.id().0 as usize, position, "shards are given in order of id");
        }
        Self { shards: shards.into() }
    }

    /// All shards in order of id.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Stores one value; its version.
    ///
    /// # Errors
    ///
    /// VERSION_MISMATCH, OVERLOADED and the like: not applied. OUTCOME_UNKNOWN after `deadline` or a failed disk.
    pub fn put(
        &self,
        put: Put,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<Version>> + use<>> {
        let Put { key, value, ttl, if_version, request_id } = put;
        let shard = self.shard(key.as_bytes());
        let ticket = shard
            .propose(Command { change: Change::Put { key, value, ttl, if_version }, request_id })?;
        Ok(async move {
            match wait(ticket, deadline).await? {
                Outcome::Put { version } => Ok(version),
                other => Err(refusal(other)),
            }
        })
    }

    /// Removes one key; whether it was there.
    ///
    /// # Errors
    ///
    /// As [`Self::put`].
    pub fn delete(
        &self,
        key: Key,
        if_version: Option<Version>,
        request_id: Option<RequestId>,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<bool>> + use<>> {
        let shard = self.shard(key.as_bytes());
        let ticket =
            shard.propose(Command { change: Change::Delete { key, if_version }, request_id })?;
        Ok(async move {
            match wait(ticket, deadline).await? {
                Outcome::Delete { deleted } => Ok(deleted),
                other => Err(refusal(other)),
            }
        })
    }

    /// Stores many values, each shard's part whole or not at all; how many.
    ///
    /// # Errors
    ///
    /// As [`Self::put`] while no shard has applied its part; OUTCOME_UNKNOWN when only some have.
    pub fn batch_put(
        &self,
        entries: Vec<(Key, Value)>,
        ttl: Option<TtlSeconds>,
        request_id: Option<RequestId>,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<u32>> + use<>> {
        let mut parts: Vec<Vec<(Key, Value)>> = vec![Vec::new(); self.shards.len()];
        for (key, value) in entries {
            let shard = shard_of(key.as_bytes(), self.shard_count());
            parts[shard.0 as usize].push((key, value));
        }
        let mut tickets = Vec::new();
        let mut refused = None;
        for (shard, entries) in
            self.shards.iter().zip(parts).filter(|(_, entries)| !entries.is_empty())
        {
            let command = Command {
                change: Change::PutMany { entries, ttl },
                request_id: request_id.clone(),
            };
            match shard.propose(command) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) if tickets.is_empty() => return Err(error),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        Ok(async move {
            let answers = join_all(tickets.into_iter().map(|ticket| wait(ticket, deadline))).await;
            batch_outcome(answers, refused)
        })
    }

    /// The document under `key`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// CORRUPTION or INTERNAL when it cannot be read, READ_ONLY when it may be lost after a failed disk.
    pub async fn get(
        &self,
        key: &[u8],
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Option<Document>> {
        let shard = self.shard(key);
        prepared(shard, freshness, deadline).await?;
        let document = shard.get(key)?;
        settled(shard, freshness, deadline).await?;
        Ok(document)
    }

    /// As [`Self::get`] when nothing has to be waited for; `None` otherwise.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub fn get_now(&self, key: &[u8], freshness: Freshness) -> Result<Option<Option<Document>>> {
        let shard = self.shard(key);
        if !shard.is_prepared(freshness)? {
            return Ok(None);
        }
        let document = shard.get(key)?;
        Ok((freshness == Freshness::Stale || shard.is_settled()).then_some(document))
    }

    /// The documents under `keys`, in their order, missing ones left out. Each shard's part is of one moment.
    ///
    /// # Errors
    ///
    /// As [`Self::get`]; LIMIT_EXCEEDED when keys and values are more than `bytes_max` bytes.
    pub async fn batch_get(
        &self,
        keys: Vec<Key>,
        bytes_max: usize,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Vec<Item>> {
        let mut parts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (position, key) in keys.iter().enumerate() {
            let shard = shard_of(key.as_bytes(), self.shard_count()).0 as usize;
            parts.entry(shard).or_default().push(position);
        }
        let touched: Vec<_> = parts.keys().map(|&id| &self.shards[id]).collect();
        try_join_all(touched.iter().map(|shard| prepared(shard, freshness, deadline))).await?;
        let router = self.clone();
        let items = blocking(move || router.read_many(keys, parts, bytes_max)).await?;
        try_join_all(touched.iter().map(|shard| settled(shard, freshness, deadline))).await?;
        Ok(items)
    }

    /// Reads `keys`, of which `parts` has the positions by shard.
    fn read_many(
        &self,
        keys: Vec<Key>,
        parts: BTreeMap<usize, Vec<usize>>,
        bytes_max: usize,
    ) -> Result<Vec<Item>> {
        let mut found: Vec<Option<Document>> = vec![None; keys.len()];
        let mut bytes = 0;
        for (id, positions) in parts {
            let part: Vec<&[u8]> =
                positions.iter().map(|&position| keys[position].as_bytes()).collect();
            self.shards[id].get_many(&part, &mut |index, document| {
                let position = positions[index];
                bytes += keys[position].as_bytes().len() + document.value.bytes().len();
                if bytes > bytes_max {
                    return Err(Error::limit(
                        "kvstore.limits.page-size",
                        "the answer",
                        bytes_max,
                        bytes,
                        "bytes",
                    ));
                }
                found[position] = Some(document);
                Ok(())
            })?;
        }
        let items = keys.into_iter().zip(found).filter_map(|(key, document)| {
            let Document { value, version, ttl_seconds } = document?;
            Some(Item { key, value: Some(value), version, ttl_seconds })
        });
        Ok(items.collect())
    }

    /// One page of `query`, in order; each shard's part is of one moment.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn page(
        &self,
        query: Query,
        limits: PageLimits,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<Page> {
        try_join_all(self.shards.iter().map(|shard| prepared(shard, freshness, deadline))).await?;
        let router = self.clone();
        let page = blocking(move || merge::page(&router.shards, &query, limits)).await?;
        try_join_all(self.shards.iter().map(|shard| settled(shard, freshness, deadline))).await?;
        Ok(page)
    }

    /// Figures of all shards in order of id. Blocks for a moment: not for runtime threads that serve requests.
    ///
    /// # Errors
    ///
    /// NOT_SERVING.
    pub fn status(&self) -> Result<Vec<ShardStatus>> {
        self.shards.iter().map(Shard::status).collect()
    }

    /// Gives the space of deleted and expired keys back, in one shard or all; how many were compacted. Blocks.
    ///
    /// # Errors
    ///
    /// FAILED_PRECONDITION when there is no such shard; what the engine fails with.
    pub fn compact(&self, only: Option<ShardId>) -> Result<u32> {
        let mut compacted = 0;
        for shard in self.chosen(only)? {
            shard.engine()?.compact(KeyRange::ALL)?;
            compacted += 1;
        }
        Ok(compacted)
    }

    /// Makes all that was written durable in the engines' tables. Blocks.
    ///
    /// # Errors
    ///
    /// What the engine fails with; the other shards are flushed all the same.
    pub fn flush(&self) -> Result<()> {
        let flush = |shard: &Shard| shard.engine()?.flush().map_err(Error::from);
        let flushed: Vec<_> = self.shards.iter().map(flush).collect();
        flushed.into_iter().collect()
    }

    fn chosen(&self, only: Option<ShardId>) -> Result<&[Shard]> {
        let Some(id) = only else { return Ok(&self.shards) };
        let position = id.0 as usize;
        self.shards.get(position..=position).ok_or_else(|| {
            let message =
                format!("there is no {id}; this cluster has {} shards, from 0", self.shards.len());
            Error::new(Reason::FailedPrecondition, message)
        })
    }

    fn shard(&self, key: &[u8]) -> &Shard {
        &self.shards[shard_of(key, self.shard_count()).0 as usize]
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> u32 {
        u32::try_from(self.shards.len()).expect("the configuration allows few shards")
    }
}

/// Waits for an answer, but not beyond the deadline.
async fn wait(mut ticket: Ticket, deadline: Instant) -> Result<Outcome> {
    match timeout_at(deadline, &mut ticket).await {
        Ok(answer) => answer,
        Err(_) => Err(ticket.give_up()),
    }
}

/// Waits until a read of `shard` may begin.
async fn prepared(shard: &Shard, freshness: Freshness, deadline: Instant) -> Result<()> {
    if shard.is_prepared(freshness)? {
        return Ok(());
    }
    timeout_at(deadline, shard.prepare(freshness)).await.unwrap_or_else(|_| {
        let message = "the deadline passed while the read waited for a quorum of its shard";
        Err(Error::new(Reason::NoQuorum, message))
    })
}

/// Waits until what a read of `shard` saw is durable.
async fn settled(shard: &Shard, freshness: Freshness, deadline: Instant) -> Result<()> {
    if freshness == Freshness::Stale || shard.is_settled() {
        return Ok(());
    }
    timeout_at(deadline, shard.settled()).await.unwrap_or_else(|_| {
        let message =
            "the deadline passed while the read waited for earlier writes to become durable";
        Err(Error::overloaded(message, Duration::from_millis(50)))
    })
}

/// Runs a page's worth of engine work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::new(Reason::Internal, format!("a read failed: {error}")))
    })
}

/// What a batch came to over its shards: applied everywhere, nowhere, or nobody can say for all of it.
fn batch_outcome(answers: Vec<Result<Outcome>>, refused: Option<Error>) -> Result<u32> {
    let mut stored = 0;
    let mut applied = false;
    let mut failure = refused;
    for answer in answers {
        match answer {
            Ok(Outcome::PutMany { count }) => {
                stored += count;
                applied = true;
            }
            Ok(other) => failure = Some(refusal(other)),
            Err(error) => {
                applied |= error.reason() == Reason::OutcomeUnknown;
                failure = Some(error);
            }
        }
    }
    match failure {
        None => Ok(stored),
        Some(error) if !applied => Err(error),
        Some(error) => Err(Error::new(
            Reason::OutcomeUnknown,
            format!("some shards stored their part of the batch, not all: {}", error.message()),
        )),
    }
}

/// Why a command did nothing.
fn refusal(outcome: Outcome) -> Error {
    match outcome {
        Outcome::Mismatch { expected, actual } => {
            let message = match (expected, actual) {
                (Version::ABSENT, _) => {
                    format!("the key exists with version {actual}, not absent as required")
                }
                (_, Version::ABSENT) => {
                    format!("the key does not exist, version {expected} was required")
                }
                _ => format!("the key has version {actual}, {expected} was required"),
            };
            Error::new(Reason::VersionMismatch, message)
                .with("expected", expected)
                .with("actual", actual)
        }
        Outcome::RequestIdReused => Error::new(
            Reason::InvalidRequestId,
            "this request id was used for another kind of write within the last 10 minutes",
        ),
        other => Error::new(Reason::Internal, format!("the shard answered {other:?}")),
    }
}
