//! How a shard lays out its rows in the engine.
//!
//! | row | key | value |
//! |---|---|---|
//! | document | `01`, key of the document | kind (1), version (8), content |
//! | last version | `00 76` | version (8) |
//! | request | `00 72`, request id | outcome tag (1), fields of the outcome |
//! | applied log id, membership | `00 61`, `00 6d` | those of replication, see `raft/state/rows.rs` |
//!
//! Kinds: `1` JSON text, `2` raw bytes. Outcome tags: `1` put, version (8); `2` delete, deleted (1); `3` put many, count (4);
//! `4` mismatch, expected and actual version (8 each). Numbers
//! are little-endian, tags are never renumbered. Expiry is the engine's ([`storage`](crate::storage)). Rows under `00` are
//! not counted as keys.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::command::Outcome;
use crate::storage::RESERVED_PREFIX;
use crate::types::{RequestId, Value, Version};
use crate::util::coding::Cursor;

/// First byte of document rows.
pub(crate) const DOCUMENT: u8 = 1;

/// First byte beyond the document rows.
pub(crate) const DOCUMENTS_END: [u8; 1] = [DOCUMENT + 1];

/// The row with the last version given out.
pub(crate) const LAST_VERSION: [u8; 2] = [RESERVED_PREFIX, b'v'];

const REQUEST: [u8; 2] = [RESERVED_PREFIX, b'r'];
const KIND_JSON: u8 = 1;
const KIND_RAW: u8 = 2;
const OUTCOME_PUT: u8 = 1;
const OUTCOME_DELETE: u8 = 2;
const OUTCOME_PUT_MANY: u8 = 3;
const OUTCOME_MISMATCH: u8 = 4;

/// Bytes before a document's content.
pub(crate) const HEADER_BYTES: usize = 9;

/// A row's key; most fit without an allocation.
pub(crate) type RowKey = SmallVec<[u8; 64]>;

/// The key of a document's row.
pub(crate) fn document_key(key: &[u8]) -> RowKey {
    let mut row = RowKey::with_capacity(1 + key.len());
    row.push(DOCUMENT);
    row.extend_from_slice(key);
    row
}

/// The key of a request's row.
pub(crate) fn request_key(id: &RequestId) -> RowKey {
    let mut row = RowKey::from_slice(&REQUEST);
    row.extend_from_slice(id.as_bytes());
    row
}

/// What stands before a document's content.
pub(crate) fn document_header(value: &Value, version: Version) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = match value {
        Value::Json(_) => KIND_JSON,
        Value::Raw(_) => KIND_RAW,
    };
    header[1..].copy_from_slice(&version.0.to_le_bytes());
    header
}

/// A document as it lies in the engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) version: Version,
    json: bool,
    content: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Reads a document's row; `None` when it is not one.
    pub(crate) fn decode(value: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(value);
        let json = match cursor.u8()? {
            KIND_JSON => true,
            KIND_RAW => false,
            _ => return None,
        };
        let version = Version(cursor.u64()?);
        Some(Self { version, json, content: cursor.rest() })
    }

    /// Bytes of the content.
    pub(crate) const fn content_bytes(&self) -> usize {
        self.content.len()
    }

    /// The value, copied.
    pub(crate) fn value(&self) -> Value {
        let content = Bytes::copy_from_slice(self.content);
        if self.json { Value::Json(content) } else { Value::Raw(content) }
    }
}

/// A row of a shard's engine, for who looks into its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredRow<'a> {
    /// What was stored under a key.
    Document {
        /// The key.
        key: &'a str,
        /// What is stored.
        value: Value,
        /// The version of the write that stored it.
        version: Version,
    },
    /// The shard's own.
    Bookkeeping,
}

impl<'a> StoredRow<'a> {
    /// Reads a row; `None` when it is not one.
    pub fn read(key: &'a [u8], value: &[u8]) -> Option<Self> {
        match key.split_first()? {
            (&RESERVED_PREFIX, _) => Some(Self::Bookkeeping),
            (&DOCUMENT, key) => {
                let stored = Stored::decode(value)?;
                let (value, version) = (stored.value(), stored.version);
                Some(Self::Document { key: std::str::from_utf8(key).ok()?, value, version })
            }
            _ => None,
        }
    }
}

/// The value of a request's row; `None` for outcomes that leave none.
///
/// A condition that did not hold leaves one, too: an earlier attempt of the same request may still be on its way, and must not be applied after its caller was
/// told that it was not.
pub(crate) fn encode_outcome(outcome: Outcome) -> Option<SmallVec<[u8; 24]>> {
    let mut row = SmallVec::new();
    match outcome {
        Outcome::Put { version } => {
            row.push(OUTCOME_PUT);
            row.extend_from_slice(&version.0.to_le_bytes());
        }
        Outcome::Delete { deleted } => row.extend_from_slice(&[OUTCOME_DELETE, u8::from(deleted)]),
        Outcome::PutMany { count } => {
            row.push(OUTCOME_PUT_MANY);
            row.extend_from_slice(&count.to_le_bytes());
        }
        Outcome::Mismatch { expected, actual } => {
            row.push(OUTCOME_MISMATCH);
            row.extend_from_slice(&expected.0.to_le_bytes());
            row.extend_from_slice(&actual.0.to_le_bytes());
        }
        Outcome::RequestIdReused | Outcome::Tick => return None,
    }
    Some(row)
}

/// Reads a request's row; `None` when it is not one.
pub(crate) fn decode_outcome(row: &[u8]) -> Option<Outcome> {
    let mut cursor = Cursor::new(row);
    let outcome = match cursor.u8()? {
        OUTCOME_PUT => Outcome::Put { version: Version(cursor.u64()?) },
        OUTCOME_DELETE => Outcome::Delete { deleted: cursor.u8()? != 0 },
        OUTCOME_PUT_MANY => Outcome::PutMany { count: cursor.u32()? },
        OUTCOME_MISMATCH => {
            Outcome::Mismatch { expected: Version(cursor.u64()?), actual: Version(cursor.u64()?) }
        }
        _ => return None,
    };
    cursor.is_empty().then_some(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_read_back_in_their_kind() {
        for value in [Value::Json("{}".into()), Value::Raw(Bytes::new())] {
            let header = document_header(&value, Version(7));
            let row = [&header[..], value.bytes()].concat();
            let stored = Stored::decode(&row).expect("just encoded");
            assert_eq!((stored.version, stored.value()), (Version(7), value.clone()));
            let (key, version) = (document_key(b"k"), Version(7));
            let expected = StoredRow::Document { key: "k", value, version };
            assert_eq!(StoredRow::read(&key, &row), Some(expected));
        }
        assert!(Stored::decode(&[9; 20]).is_none());
        assert_eq!(StoredRow::read(&LAST_VERSION, &[]), Some(StoredRow::Bookkeeping));
        assert!(StoredRow::read(b"other", &[]).is_none() && StoredRow::read(b"", &[]).is_none());
        assert!(Stored::decode(&[KIND_JSON; 8]).is_none());
    }

    #[test]
    fn outcomes_read_back() {
        for outcome in [
            Outcome::Put { version: Version(300) },
            Outcome::Delete { deleted: true },
            Outcome::PutMany { count: 10_000 },
            Outcome::Mismatch { expected: Version(7), actual: Version::ABSENT },
        ] {
            let row = encode_outcome(outcome).expect("leaves a row");
            assert_eq!(decode_outcome(&row), Some(outcome));
            assert_eq!(decode_outcome(&row[..row.len() - 1]), None);
        }
    }
}
