//! The state machine of a shard: turns commands into one engine batch, and lays out its rows (`record.rs`).
//!
//! Deterministic: the same commands with the same stamps on the same rows give the same batch and the same outcomes,
//! wherever they run. Commands of one group see each other's effects before any of them is in the engine.
//!
//! Callers: the committer of a shard without replication (`shard/`), and `raft/`, which applies committed entries. Readers of documents
//! (`shard/`) read its rows.

pub(crate) mod record;

pub use self::record::StoredRow;

use std::collections::HashMap;
use std::time::Duration;

use self::record::{RowKey, Stored};
use crate::command::{Change, Command, Outcome, TtlSeconds};
use crate::error::{Error, Reason, Result};
use crate::storage::{Reader, WriteBatch};
use crate::types::{Key, REQUEST_ID_KEPT, RequestId, Value, Version};
use crate::util::time::Timestamp;

/// The last version given out in what `engine` holds.
///
/// # Errors
///
/// What its reads fail with; CORRUPTION when the row is malformed.
pub(crate) fn last_version(engine: &dyn Reader) -> Result<Version> {
    let Some(row) = engine.get(&record::LAST_VERSION)? else { return Ok(Version::ABSENT) };
    let bytes =
        row.value.as_ref().try_into().map_err(|_| {
            Error::new(Reason::Corruption, "the row of the last version is malformed")
        })?;
    Ok(Version(u64::from_le_bytes(bytes)))
}

/// Rows that the commands applied so far have changed, over what the engine holds.
struct Pending {
    /// `None`: removed.
    row: Option<PendingRow>,
}

struct PendingRow {
    version: Version,
    outcome: Option<Outcome>,
    expires_at: Option<Timestamp>,
}

/// Applies one group of commands. Nothing is written: the caller hands [`Self::finish`]'s batch to the engine, and throws the group away
/// when that fails.
pub(crate) struct Group<'a> {
    engine: &'a dyn Reader,
    batch: WriteBatch,
    pending: HashMap<RowKey, Pending>,
    clock: Timestamp,
    last_version: Version,
}

impl<'a> Group<'a> {
    /// An empty group on what `engine` holds, where `last_version` is the last one given out.
    pub(crate) fn new(engine: &'a dyn Reader, last_version: Version) -> Self {
        Self {
            engine,
            batch: WriteBatch::new(),
            pending: HashMap::new(),
            clock: engine.clock(),
            last_version,
        }
    }

    /// Applies `command`, stamped `now`. The shard's clock moves there, never backwards.
    ///
    /// # Errors
    ///
    /// Only what the engine's reads fail with; the group is void then.
    pub(crate) fn apply(&mut self, command: &Command, now: Timestamp) -> Result<Outcome> {
        self.clock = self.clock.max(now);
        self.batch.advance_clock(self.clock);
        if let Some(id) = &command.request_id
            && let Some(outcome) = self.earlier_outcome(id)?
        {
            return Ok(if same_kind(&command.change, outcome) {
                outcome
            } else {
                Outcome::RequestIdReused
            });
        }
        let outcome = self.change(&command.change)?;
        if let Some(id) = &command.request_id
            && let Some(row) = record::encode_outcome(outcome)
        {
            let key = record::request_key(id);
            let expires_at = Some(self.clock.saturating_add(REQUEST_ID_KEPT));
            self.batch.put(&[&key], &[&row], expires_at);
            let row = PendingRow { version: Version::ABSENT, outcome: Some(outcome), expires_at };
            self.pending.insert(key, Pending { row: Some(row) });
        }
        Ok(outcome)
    }

    /// The batch of all commands, and the last version they gave out.
    pub(crate) fn finish(mut self, last_version_before: Version) -> (WriteBatch, Version) {
        if self.last_version > last_version_before {
            self.batch.put(&[&record::LAST_VERSION], &[&self.last_version.0.to_le_bytes()], None);
        }
        (self.batch, self.last_version)
    }

    fn change(&mut self, change: &Change) -> Result<Outcome> {
        match change {
            Change::Put { key, value, ttl, if_version } => {
                if let Some(mismatch) = self.mismatch(key, *if_version)? {
                    return Ok(mismatch);
                }
                Ok(Outcome::Put { version: self.put(key, value, *ttl) })
            }
            Change::Delete { key, if_version } => {
                if let Some(mismatch) = self.mismatch(key, *if_version)? {
                    return Ok(mismatch);
                }
                let deleted = self.version_of(key)? != Version::ABSENT;
                if deleted {
                    self.delete(key);
                }
                Ok(Outcome::Delete { deleted })
            }
            Change::PutMany { entries, ttl } => {
                for (key, value) in entries {
                    self.put(key, value, *ttl);
                }
                let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
                Ok(Outcome::PutMany { count })
            }
            Change::Tick => Ok(Outcome::Tick),
        }
    }

    fn put(&mut self, key: &Key, value: &Value, ttl: Option<TtlSeconds>) -> Version {
        self.last_version = self.last_version.next();
        let version = self.last_version;
        let expires_at = ttl.map(|seconds| {
            self.clock.saturating_add(Duration::from_secs(u64::from(seconds.get())))
        });
        let row_key = record::document_key(key.as_bytes());
        let header = record::document_header(value, version);
        self.batch.put(&[&row_key], &[&header, value.bytes()], expires_at);
        let row = PendingRow { version, outcome: None, expires_at };
        self.pending.insert(row_key, Pending { row: Some(row) });
        version
    }

    fn delete(&mut self, key: &Key) {
        // A delete is a write: the version it takes keeps versions of this key growing over its absence.
        self.last_version = self.last_version.next();
        let row_key = record::document_key(key.as_bytes());
        self.batch.delete(&[&row_key]);
        self.pending.insert(row_key, Pending { row: None });
    }

    fn mismatch(&self, key: &Key, if_version: Option<Version>) -> Result<Option<Outcome>> {
        let Some(expected) = if_version else { return Ok(None) };
        let actual = self.version_of(key)?;
        Ok((actual != expected).then_some(Outcome::Mismatch { expected, actual }))
    }

    /// The version of a live key; absent keys and expired ones have [`Version::ABSENT`].
    fn version_of(&self, key: &Key) -> Result<Version> {
        let row_key = record::document_key(key.as_bytes());
        if let Some(pending) = self.pending.get(&row_key) {
            return Ok(self.live(pending).map_or(Version::ABSENT, |row| row.version));
        }
        let mut version = Ok(Version::ABSENT);
        self.engine.get_with(&row_key, &mut |entry| {
            if self.is_live(entry.expires_at) {
                version = Stored::decode(entry.value)
                    .map(|stored| stored.version)
                    .ok_or_else(|| malformed(key));
            }
        })?;
        version
    }

    fn earlier_outcome(&self, id: &RequestId) -> Result<Option<Outcome>> {
        let row_key = record::request_key(id);
        if let Some(pending) = self.pending.get(&row_key) {
            return Ok(self.live(pending).and_then(|row| row.outcome));
        }
        let mut outcome = Ok(None);
        self.engine.get_with(&row_key, &mut |entry| {
            if self.is_live(entry.expires_at) {
                outcome = record::decode_outcome(entry.value)
                    .map(Some)
                    .ok_or_else(|| Error::new(Reason::Corruption, "a request row is malformed"));
            }
        })?;
        outcome
    }

    fn live<'p>(&self, pending: &'p Pending) -> Option<&'p PendingRow> {
        pending.row.as_ref().filter(|row| self.is_live(row.expires_at))
    }

    /// Whether something that expires then is there at the group's clock, which may be ahead of the engine's.
    fn is_live(&self, expires_at: Option<Timestamp>) -> bool {
        expires_at.is_none_or(|expires_at| expires_at > self.clock)
    }
}

fn same_kind(change: &Change, outcome: Outcome) -> bool {
    matches!(
        (change, outcome),
        (Change::Put { .. }, Outcome::Put { .. })
            | (Change::Delete { .. }, Outcome::Delete { .. })
            | (Change::PutMany { .. }, Outcome::PutMany { .. })
            | (Change::Put { .. } | Change::Delete { .. }, Outcome::Mismatch { .. })
    )
}

fn malformed(key: &Key) -> Error {
    Error::new(Reason::Corruption, format!("the stored row of key {key:?} is malformed"))
}
