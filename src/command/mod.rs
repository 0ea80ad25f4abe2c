//! What a shard is asked to change, and what came of it.
//!
//! A command is applied by every replica alike: time comes with it, nothing in it depends on where it runs. Its bytes: `encoding.rs`.

mod encoding;

pub use self::encoding::{Malformed, Proposal, decode_outcomes, encode_outcomes};

use crate::types::{Key, RequestId, Value, Version};

/// Seconds until a key expires, at least 1.
pub type TtlSeconds = std::num::NonZeroU32;

/// One change of one shard, applied whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What to change.
    pub change: Change,
    /// Makes a repeat of this command answer as the first did.
    pub request_id: Option<RequestId>,
}

impl Command {
    /// Whether it only takes away, which a nearly full disk still allows.
    pub const fn is_delete(&self) -> bool {
        matches!(self.change, Change::Delete { .. })
    }
}

/// What to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Stores one value.
    Put {
        /// Under which key.
        key: Key,
        /// Which value.
        value: Value,
        /// When it expires, counted from the command's stamp; `None`: never.
        ttl: Option<TtlSeconds>,
        /// Only if the key has this version; [`Version::ABSENT`]: only if it is not there.
        if_version: Option<Version>,
    },
    /// Removes one key.
    Delete {
        /// Which key.
        key: Key,
        /// Only if the key has this version.
        if_version: Option<Version>,
    },
    /// Stores many values.
    PutMany {
        /// Keys with their values; of a key that repeats the last value stays.
        entries: Vec<(Key, Value)>,
        /// As in `Put`, for all of them.
        ttl: Option<TtlSeconds>,
    },
    /// Changes nothing but the shard's clock, so that keys expire while nobody writes.
    Tick,
}

impl Change {
    /// Bytes of keys and values, for bounding queues.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.as_bytes().len() + value.bytes().len(),
            Self::Delete { key, .. } => key.as_bytes().len(),
            Self::PutMany { entries, .. } => {
                entries.iter().map(|(key, value)| key.as_bytes().len() + value.bytes().len()).sum()
            }
            Self::Tick => 0,
        }
    }
}

/// What came of a command. The same on every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The value is stored.
    Put {
        /// Its version.
        version: Version,
    },
    /// The key is not there any more.
    Delete {
        /// Whether it was there.
        deleted: bool,
    },
    /// The values are stored.
    PutMany {
        /// How many.
        count: u32,
    },
    /// The condition did not hold; nothing changed.
    Mismatch {
        /// What the command asked for.
        expected: Version,
        /// What the key has.
        actual: Version,
    },
    /// The request id belongs to another kind of write; nothing changed.
    RequestIdReused,
    /// The clock moved.
    Tick,
}
