//! From keys to shards: sends each key's operation to the shard that owns it, and merges what concerns many shards.
//!
//! `xxh64(key)` picks one of equal slices of the hash space, so every node and client computes the same. The router never
//! touches an engine, and knows no protobuf.
//!
//! Each shard's part of an operation is atomic and linearizable; an operation over several shards is not atomic as a whole.
//!
//! Any node takes any operation, whichever shards it holds: writes go through the shard's place (`raft/place`), reads are answered here or by a node that is asked once (`gather.rs`,
//! `fit.rs`, `remote.rs`, and `answers.rs` on its side). What concerns engines (compaction, flush) is of the shards that are here.
//!
//! Callers: `api/`.

mod answers;
mod batch;
mod fit;
mod gather;
mod merge;
mod query;
mod reads;
mod remote;
#[cfg(test)]
mod tests;

use std::future::Future;

use tokio::time::{Instant, timeout_at};

pub use self::answers::Answerer;
pub use self::merge::{Item, Page};
pub use self::query::{PageLimits, Query};
pub use self::remote::Figures;
use crate::command::{Change, Command, Outcome, TtlSeconds};
use crate::error::{Error, Reason, Result};
pub use crate::shard::Freshness;
use crate::shard::Shard;
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

    /// Gives the space of deleted and expired keys back, in one shard or all that are here; how many were compacted. Blocks.
    ///
    /// # Errors
    ///
    /// FAILED_PRECONDITION when there is no such shard, or it is not on this node; what the engine fails with.
    pub fn compact(&self, only: Option<ShardId>) -> Result<u32> {
        let mut compacted = 0;
        for shard in self.chosen(only)?.iter().filter(|shard| shard.is_here()) {
            shard.engine()?.compact(KeyRange::ALL)?;
            compacted += 1;
        }
        match only {
            Some(id) if compacted == 0 => {
                let message = format!("{id} is not on this node; ask one that holds it");
                Err(Error::new(Reason::FailedPrecondition, message))
            }
            _ => Ok(compacted),
        }
    }

    /// Makes all that was written here durable in the engines' tables. Blocks.
    ///
    /// # Errors
    ///
    /// What the engine fails with; the other shards are flushed all the same.
    pub fn flush(&self) -> Result<()> {
        let flush = |shard: &Shard| shard.engine()?.flush().map_err(Error::from);
        let flushed: Vec<_> =
            self.shards.iter().filter(|shard| shard.is_here()).map(flush).collect();
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

    fn shard_of_id(&self, id: ShardId) -> Result<&Shard> {
        self.chosen(Some(id)).map(|chosen| &chosen[0])
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
