//! The rows of an engine's sled tree. Everything of an engine lies in one tree, because sled's batches are atomic within one.
//!
//! Numbers in keys are big-endian, so that rows sort by them; those in values are little-endian.
//!
//! | row | key | value |
//! |---|---|---|
//! | state | `0` | version (1) = 1, seqno (8), clock in milliseconds (8), keys (8), bytes (8) |
//! | expiry | `1`, expiry in milliseconds (8, big-endian), key | empty |
//! | entry | `2`, key | flags (1), expiry in milliseconds (8, only if bit 0 of flags is set), value |
//!
//! Entries come last and together, so a scan of them meets nothing else. Each entry with an expiry has its expiry row, and no
//! expiry row is without its entry. The state row goes into every batch. sled checks a CRC of every page that it reads.

use sled::IVec;

use crate::storage::{EntryRef, RESERVED_PREFIX, Seqno};
use crate::util::coding::Cursor;
use crate::util::time::Timestamp;

pub(super) const STATE_KEY: &[u8] = &[0];
const STATE_VERSION: u8 = 1;
const EXPIRY_PREFIX: u8 = 1;
const ENTRY_PREFIX: u8 = 2;
/// First row key beyond all entries.
const BEYOND_ENTRIES: &[u8] = &[ENTRY_PREFIX + 1];
const FLAG_EXPIRES: u8 = 1;

/// What an engine knows besides its entries, as of one batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct State {
    /// The newest batch.
    pub(super) seqno: Seqno,
    /// The clock.
    pub(super) clock: Timestamp,
    /// Entries without reserved keys; hidden ones count until they are reclaimed.
    pub(super) keys: u64,
    /// Bytes of their keys and values.
    pub(super) bytes: u64,
}

impl State {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut row = vec![STATE_VERSION];
        for field in [self.seqno.0, self.clock.as_millis(), self.keys, self.bytes] {
            row.extend_from_slice(&field.to_le_bytes());
        }
        row
    }

    /// `None`: not the row of this version.
    pub(super) fn decode(row: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(row);
        if cursor.u8()? != STATE_VERSION {
            return None;
        }
        let state = Self {
            seqno: Seqno(cursor.u64()?),
            clock: Timestamp::from_millis(cursor.u64()?),
            keys: cursor.u64()?,
            bytes: cursor.u64()?,
        };
        cursor.is_empty().then_some(state)
    }

    /// Counts the entry `value` under `entry_key` in.
    pub(super) fn count(&mut self, entry_key: &[u8], value: &[u8]) {
        if let Some(size) = counted_bytes(entry_key, value) {
            self.keys += 1;
            self.bytes += size;
        }
    }

    /// Counts it out again.
    pub(super) fn discount(&mut self, entry_key: &[u8], value: &[u8]) {
        if let Some(size) = counted_bytes(entry_key, value) {
            self.keys = self.keys.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(size);
        }
    }
}

fn counted_bytes(entry_key: &[u8], value: &[u8]) -> Option<u64> {
    let key = user_key(entry_key);
    (key.first() != Some(&RESERVED_PREFIX)).then_some((key.len() + value.len()) as u64)
}

/// The key of the row of the entry under `key`.
pub(super) fn entry_key(key: &[u8]) -> IVec {
    [&[ENTRY_PREFIX], key].concat().into()
}

/// The key of the first row beyond the range that ends at `end`.
pub(super) fn entry_end(end: Option<&[u8]>) -> IVec {
    end.map_or_else(|| BEYOND_ENTRIES.into(), entry_key)
}

/// The user's key in the key of an entry row.
pub(super) fn user_key(entry_key: &[u8]) -> &[u8] {
    &entry_key[1..]
}

/// The row of an entry.
pub(super) fn encode_entry(value: &[u8], expires_at: Option<Timestamp>) -> IVec {
    let mut row = Vec::with_capacity(1 + 8 + value.len());
    if let Some(expires_at) = expires_at {
        row.push(FLAG_EXPIRES);
        row.extend_from_slice(&expires_at.as_millis().to_le_bytes());
    } else {
        row.push(0);
    }
    row.extend_from_slice(value);
    row.into()
}

/// The entry in a row; `None` when it is not one.
pub(super) fn decode_entry<'a>(entry_key: &'a [u8], row: &'a [u8]) -> Option<EntryRef<'a>> {
    let mut cursor = Cursor::new(row);
    let expires_at = match cursor.u8()? {
        0 => None,
        FLAG_EXPIRES => Some(Timestamp::from_millis(cursor.u64()?)),
        _ => return None,
    };
    Some(EntryRef { key: user_key(entry_key), value: cursor.rest(), expires_at })
}

/// The key of the expiry row of an entry.
pub(super) fn expiry_key(expires_at: Timestamp, entry_key: &[u8]) -> Vec<u8> {
    let mut key = expiry_bound(expires_at);
    key.extend_from_slice(user_key(entry_key));
    key
}

/// Expiry rows before this key expire before `expires_at`, those from it on then or later.
pub(super) fn expiry_bound(expires_at: Timestamp) -> Vec<u8> {
    let mut key = vec![EXPIRY_PREFIX];
    key.extend_from_slice(&expires_at.as_millis().to_be_bytes());
    key
}

/// The first key beyond all expiry rows.
pub(super) const BEYOND_EXPIRIES: &[u8] = &[ENTRY_PREFIX];

/// When and under which entry row key; `None` when it is not the key of an expiry row.
pub(super) fn decode_expiry_key(row_key: &[u8]) -> Option<(Timestamp, IVec)> {
    let (&prefix, rest) = row_key.split_first()?;
    let (millis, key) = rest.split_first_chunk()?;
    let expires_at = Timestamp::from_millis(u64::from_be_bytes(*millis));
    (prefix == EXPIRY_PREFIX).then(|| (expires_at, entry_key(key)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_reads_back(key: Vec<u8>, value: Vec<u8>, expiry: Option<u64>, numbers: [u64; 4]) {
            let expires_at = expiry.map(Timestamp::from_millis);
            let row_key = entry_key(&key);
            let row = encode_entry(&value, expires_at);
            let entry = EntryRef { key: &key, value: &value, expires_at };
            prop_assert_eq!(decode_entry(&row_key, &row), Some(entry));

            if let Some(expires_at) = expires_at {
                let expiry = expiry_key(expires_at, &row_key);
                prop_assert!(expiry.as_slice() < BEYOND_EXPIRIES && expiry >= expiry_bound(expires_at));
                prop_assert_eq!(decode_expiry_key(&expiry), Some((expires_at, row_key)));
            }

            let [seqno, clock, keys, bytes] = numbers;
            let clock = Timestamp::from_millis(clock);
            let state = State { seqno: Seqno(seqno), clock, keys, bytes };
            prop_assert_eq!(State::decode(&state.encode()), Some(state));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            let _ = State::decode(&bytes);
            let _ = decode_entry(&entry_key(b"k"), &bytes);
            let _ = decode_expiry_key(&bytes);
        }
    }
}
