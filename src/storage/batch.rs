//! A batch of writes as one contiguous encoding, which is also its form in a log.
//!
//! | field | bytes | |
//! |---|---|---|
//! | clock | 8 | little-endian milliseconds; 0: leave the clock |
//! | operation | * | repeated to the end |
//!
//! | operation | bytes |
//! |---|---|
//! | put | `1`, varint key length, varint value length, key, value |
//! | put with expiry | `2`, expiry (8, little-endian milliseconds), varint key length, varint value length, key, value |
//! | delete | `3`, varint key length, key |
//! | delete range | `4`, varint start length, varint end length, start, end |
//!
//! Tags are never renumbered. Callers: shards build batches, engines and their logs read them.

use std::fmt;

use crate::util::coding::{Cursor, put_varint};
use crate::util::time::Timestamp;

const TAG_PUT: u8 = 1;
const TAG_PUT_EXPIRING: u8 = 2;
const TAG_DELETE: u8 = 3;
const TAG_DELETE_RANGE: u8 = 4;
const CLOCK_BYTES: usize = 8;

/// Writes that apply together or not at all, in their order.
#[derive(Clone, PartialEq, Eq)]
pub struct WriteBatch {
    encoded: Vec<u8>,
    count: usize,
}

/// One write of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Stores a value, replacing what was there together with its expiry.
    Put {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// When it expires; `None`: never.
        expires_at: Option<Timestamp>,
    },
    /// Removes a key; nothing happens when it is not there.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// Removes all keys from `start`, inclusive, to `end`, exclusive.
    DeleteRange {
        /// First key of the range.
        start: &'a [u8],
        /// First key beyond it.
        end: &'a [u8],
    },
}

impl WriteBatch {
    /// A batch that changes nothing.
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// A batch that changes nothing, with room for `bytes` of operations.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut encoded = Vec::with_capacity(CLOCK_BYTES + bytes);
        encoded.extend_from_slice(&[0; CLOCK_BYTES]);
        Self { encoded, count: 0 }
    }

    /// Reads an encoded batch; `None` when `bytes` are not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut operations = Operations { cursor: Cursor::new(bytes.get(CLOCK_BYTES..)?) };
        let mut count = 0;
        while !operations.cursor.is_empty() {
            operations.read()?;
            count += 1;
        }
        Some(Self { encoded: bytes.to_vec(), count })
    }

    /// The encoding, as the module's table says.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// Takes everything out again and keeps the room.
    pub fn clear(&mut self) {
        self.encoded.truncate(CLOCK_BYTES);
        self.encoded.fill(0);
        self.count = 0;
    }

    /// Stores the concatenation of `value` under that of `key`. Parts spare the caller a copy.
    pub fn put(&mut self, key: &[&[u8]], value: &[&[u8]], expires_at: Option<Timestamp>) {
        if let Some(expires_at) = expires_at {
            self.encoded.push(TAG_PUT_EXPIRING);
            self.encoded.extend_from_slice(&expires_at.as_millis().to_le_bytes());
        } else {
            self.encoded.push(TAG_PUT);
        }
        self.put_pair(key, value);
    }

    /// Removes the concatenation of `key`.
    pub fn delete(&mut self, key: &[&[u8]]) {
        self.encoded.push(TAG_DELETE);
        put_varint(&mut self.encoded, total(key) as u64);
        self.append(key);
        self.count += 1;
    }

    /// Removes all keys from `start`, inclusive, to `end`, exclusive.
    pub fn delete_range(&mut self, start: &[u8], end: &[u8]) {
        self.encoded.push(TAG_DELETE_RANGE);
        self.put_pair(&[start], &[end]);
    }

    /// Moves the engine's clock to `now`, when that is later. Within a batch the latest call counts, and the clock moves with
    /// the batch as a whole.
    pub fn advance_clock(&mut self, now: Timestamp) {
        let latest = self.clock().max(now);
        self.encoded[..CLOCK_BYTES].copy_from_slice(&latest.as_millis().to_le_bytes());
    }

    /// Where the batch moves the clock; the beginning of time: nowhere.
    pub fn clock(&self) -> Timestamp {
        let bytes = self.encoded.first_chunk().expect("a batch begins with its clock");
        Timestamp::from_millis(u64::from_le_bytes(*bytes))
    }

    /// Number of operations.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether it changes nothing, the clock included.
    pub fn is_empty(&self) -> bool {
        self.count == 0 && self.clock() == Timestamp::BEGINNING
    }

    /// Bytes of the encoding.
    pub const fn size_bytes(&self) -> usize {
        self.encoded.len()
    }

    /// The operations in order.
    pub fn operations(&self) -> Operations<'_> {
        Operations { cursor: Cursor::new(&self.encoded[CLOCK_BYTES..]) }
    }

    fn put_pair(&mut self, first: &[&[u8]], second: &[&[u8]]) {
        put_varint(&mut self.encoded, total(first) as u64);
        put_varint(&mut self.encoded, total(second) as u64);
        self.append(first);
        self.append(second);
        self.count += 1;
    }

    fn append(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.encoded.extend_from_slice(part);
        }
    }
}

impl Default for WriteBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for WriteBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBatch")
            .field("clock", &self.clock())
            .field("operations", &self.operations().collect::<Vec<_>>())
            .finish()
    }
}

fn total(parts: &[&[u8]]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

/// The operations of a batch, in order.
#[derive(Debug, Clone)]
pub struct Operations<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Operations<'a> {
    fn read(&mut self) -> Option<Operation<'a>> {
        match self.cursor.u8()? {
            TAG_PUT => {
                let (key, value) = self.pair()?;
                Some(Operation::Put { key, value, expires_at: None })
            }
            TAG_PUT_EXPIRING => {
                let expires_at = Some(Timestamp::from_millis(self.cursor.u64()?));
                let (key, value) = self.pair()?;
                Some(Operation::Put { key, value, expires_at })
            }
            TAG_DELETE => Some(Operation::Delete { key: self.cursor.slice()? }),
            TAG_DELETE_RANGE => {
                let (start, end) = self.pair()?;
                Some(Operation::DeleteRange { start, end })
            }
            _ => None,
        }
    }

    fn pair(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let first = usize::try_from(self.cursor.varint()?).ok()?;
        let second = usize::try_from(self.cursor.varint()?).ok()?;
        Some((self.cursor.bytes(first)?, self.cursor.bytes(second)?))
    }
}

impl<'a> Iterator for Operations<'a> {
    type Item = Operation<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.cursor.is_empty() {
            return None;
        }
        Some(self.read().expect("a batch holds only what it encoded or checked itself"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn operations_come_back_in_order() {
        let mut batch = WriteBatch::new();
        assert!(batch.is_empty());
        batch.put(&[b"a", b"b"], &[b"1", b"2"], None);
        batch.put(&[b"t"], &[b""], Some(Timestamp::from_millis(9)));
        batch.delete(&[b"", b"d"]);
        batch.delete_range(b"x", b"z");
        let expected = [
            Operation::Put { key: b"ab", value: b"12", expires_at: None },
            Operation::Put { key: b"t", value: b"", expires_at: Some(Timestamp::from_millis(9)) },
            Operation::Delete { key: b"d" },
            Operation::DeleteRange { start: b"x", end: b"z" },
        ];
        assert_eq!(batch.operations().collect::<Vec<_>>(), expected);
        assert_eq!(batch.len(), 4);
        assert_eq!(WriteBatch::decode(batch.encoded()), Some(batch));
    }

    #[test]
    fn the_clock_of_a_batch_never_goes_back() {
        let mut batch = WriteBatch::new();
        batch.advance_clock(Timestamp::from_millis(7));
        batch.advance_clock(Timestamp::from_millis(5));
        assert_eq!(batch.clock(), Timestamp::from_millis(7));
        assert!(!batch.is_empty());
        batch.clear();
        assert!(batch.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            if let Some(batch) = WriteBatch::decode(&bytes) {
                prop_assert_eq!(batch.operations().count(), batch.len());
            }
        }
    }
}
