//! The words every layer speaks: keys, values, versions, shards, and the limits they obey.
//!
//! Values only: no I/O, no clock. A [`Key`] or [`RequestId`] that exists is valid, so that nothing below `api/` checks again.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

/// Longest key the store can hold, in bytes; configuration may only lower it. Leaves room for the shard's own prefix.
pub const KEY_BYTES_MAX: usize = 4096;

/// Longest request id, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// How long the result of a write with a request id is kept for repeats, by the shard's clock.
pub const REQUEST_ID_KEPT: Duration = Duration::from_mins(10);

/// The key of a document: 1 to [`KEY_BYTES_MAX`] bytes of UTF-8, ordered by its bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// `text` as a key; gives it back when it is empty or longer than [`KEY_BYTES_MAX`].
    pub fn new(text: String) -> Result<Self, String> {
        if text.is_empty() || text.len() > KEY_BYTES_MAX { Err(text) } else { Ok(Self(text)) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bytes, by which keys are ordered and hashed.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The text, without a copy.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What is stored under a key. What came in as one kind comes back as that kind, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// JSON text: valid UTF-8 that was checked to be JSON.
    Json(Bytes),
    /// Any bytes.
    Raw(Bytes),
}

impl Value {
    /// The bytes of either kind.
    pub const fn bytes(&self) -> &Bytes {
        match self {
            Self::Json(bytes) | Self::Raw(bytes) => bytes,
        }
    }
}

/// Numbers the writes of one shard; a key carries that of its last write. Zero is before the first write and stands for
/// "absent" in conditions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// Of a key that is not there.
    pub const ABSENT: Self = Self(0);

    /// The version after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Numbers the slices of the hash space, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard-{}", self.0)
    }
}

/// The caller's own id of a write: 1 to [`REQUEST_ID_BYTES_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Box<str>);

impl RequestId {
    /// `text` as an id; `None` when it is empty or too long.
    pub fn new(text: &str) -> Option<Self> {
        (1..=REQUEST_ID_BYTES_MAX).contains(&text.len()).then(|| Self(text.into()))
    }

    /// The bytes of the id.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// What one request may carry and hold. Every limit is named in the error that it causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest key, in bytes; at most [`KEY_BYTES_MAX`].
    pub key_bytes: usize,
    /// Longest value, in bytes.
    pub value_bytes: usize,
    /// Most entries of a batch, and most keys of a batch read.
    pub batch_entries: usize,
    /// Most bytes of keys and values in a batch.
    pub batch_bytes: usize,
    /// Items of a page when the request does not say.
    pub page_items_default: usize,
    /// Most items of a page.
    pub page_items: usize,
    /// Most bytes of keys and values in a page or a batch read.
    pub page_bytes: usize,
    /// Most bytes of a request, after decompression.
    pub request_bytes: usize,
    /// Most operations of a session that wait for their answer.
    pub session_operations: usize,
    /// Most bytes of a session's operations that wait for their answer.
    pub session_bytes: usize,
    /// Deadline of a call that names none.
    pub deadline_default: Duration,
    /// Longest deadline; longer ones are cut.
    pub deadline_max: Duration,
    /// Whether reads may trust the leader's lease.
    pub leases: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes: KEY_BYTES_MAX,
            value_bytes: 1 << 20,
            batch_entries: 10_000,
            batch_bytes: 8 << 20,
            page_items_default: 1_000,
            page_items: 10_000,
            page_bytes: 4 << 20,
            request_bytes: 16 << 20,
            session_operations: 1_024,
            session_bytes: 8 << 20,
            deadline_default: Duration::from_secs(30),
            deadline_max: Duration::from_mins(1),
            leases: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_1_to_4096_bytes() {
        assert!(Key::new(String::new()).is_err());
        assert!(Key::new("k".repeat(KEY_BYTES_MAX)).is_ok());
        assert!(Key::new("k".repeat(KEY_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn a_request_id_is_1_to_64_bytes() {
        assert_eq!(RequestId::new(""), None);
        assert!(RequestId::new(&"r".repeat(64)).is_some());
        assert_eq!(RequestId::new(&"r".repeat(65)), None);
    }
}
