//! What a table says about itself: counts, borders, and the shape of its parts. Whoever picks compactions decides by
//! them.
//!
//! | field | coding |
//! |---|---|
//! | entries, distinct keys, deletions, expiring, range deletions, data blocks, dense blocks, raw key bytes, raw value bytes, reserved keys, reserved bytes, lowest seqno, highest seqno, earliest and latest expiry + 1 each (0: none), filter lines, filter probes, index pieces (0: whole), offset of the top of the index | varint each |
//! | smallest key, largest key | varint length, bytes each |
//! | whether the largest key is in the table (1), or only what is before it (0) | 1 byte |

use super::filter::FilterShape;
use super::format::Damage;
use super::range_deletions::RangeDeletions;
use crate::storage::lsm::key::{InternalEntry, Kind, SEQNO_MAX};
use crate::storage::{RESERVED_PREFIX, Seqno};
use crate::util::coding::{Cursor, put_slice, put_varint};
use crate::util::time::Timestamp;

/// The end of the keys of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UpperBound {
    /// A user key.
    pub(crate) key: Vec<u8>,
    /// Whether the key itself is within; it is not when a range deletion that ends there reaches furthest.
    pub(crate) inclusive: bool,
}

/// See the [module](self).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Properties {
    /// Entries of all kinds.
    pub(crate) entries: u64,
    /// User keys among them.
    pub(crate) distinct_keys: u64,
    /// Entries of kind Delete.
    pub(crate) deletions: u64,
    /// Entries of kind PutTtl.
    pub(crate) expiring: u64,
    /// Range deletions: each fragment as often as it is covered.
    pub(crate) range_deletions: u64,
    /// Data blocks.
    pub(crate) data_blocks: u32,
    /// Data blocks that are mostly tombstones.
    pub(crate) dense_blocks: u32,
    /// Bytes of all user keys.
    pub(crate) raw_key_bytes: u64,
    /// Bytes of all values.
    pub(crate) raw_value_bytes: u64,
    /// Distinct keys among them that are the caller's bookkeeping ([`RESERVED_PREFIX`]), without deleted ones.
    pub(crate) reserved_keys: u64,
    /// Bytes of the keys and values of their entries.
    pub(crate) reserved_bytes: u64,
    /// Of entries and range deletions.
    pub(crate) seqno_min: Seqno,
    /// Of entries and range deletions.
    pub(crate) seqno_max: Seqno,
    /// Of all entries; `None` when none expires.
    pub(crate) earliest_expiry: Option<Timestamp>,
    /// Of all entries; `None` when none expires.
    pub(crate) latest_expiry: Option<Timestamp>,
    /// The least user key, of entries and range deletions.
    pub(crate) smallest: Vec<u8>,
    /// The end of the user keys, of entries and range deletions.
    pub(crate) largest: UpperBound,
    /// Shape of the filter.
    pub(crate) filter: FilterShape,
    /// Pieces of the index; 0 when it is whole.
    pub(crate) index_pieces: u32,
    /// Where the top of the index begins, or the whole of it.
    pub(crate) index_top: u32,
}

impl Properties {
    /// Those of a table without entries.
    pub(crate) fn empty() -> Self {
        Self { seqno_min: SEQNO_MAX, ..Self::default() }
    }

    /// Counts the next entry; `is_new_key` when the one before has another user key.
    pub(crate) fn add_entry(&mut self, entry: &InternalEntry<'_>, is_new_key: bool) {
        if self.entries == 0 {
            self.smallest = entry.key.to_vec();
        }
        if is_new_key {
            self.distinct_keys += 1;
            self.largest.key.clear();
            self.largest.key.extend_from_slice(entry.key);
            self.largest.inclusive = true;
        }
        self.entries += 1;
        self.deletions += u64::from(entry.kind == Kind::Delete);
        self.expiring += u64::from(entry.kind == Kind::PutTtl);
        self.raw_key_bytes += entry.key.len() as u64;
        self.raw_value_bytes += entry.value.len() as u64;
        if entry.key.first() == Some(&RESERVED_PREFIX) {
            self.reserved_keys += u64::from(is_new_key && entry.kind != Kind::Delete);
            self.reserved_bytes += (entry.key.len() + entry.value.len()) as u64;
        }
        self.add_seqno(entry.seqno);
        if let Some(expires_at) = entry.expires_at {
            let earliest = self.earliest_expiry.unwrap_or(expires_at);
            self.earliest_expiry = Some(earliest.min(expires_at));
            self.latest_expiry = self.latest_expiry.max(Some(expires_at));
        }
    }

    /// Counts the range deletions, after all entries.
    pub(crate) fn add_range_deletions(&mut self, deletions: &RangeDeletions) {
        for fragment in deletions.fragments() {
            let is_first = self.entries == 0 && self.range_deletions == 0;
            if is_first || *fragment.start < *self.smallest {
                self.smallest = fragment.start.to_vec();
            }
            if *fragment.end > *self.largest.key {
                self.largest = UpperBound { key: fragment.end.to_vec(), inclusive: false };
            }
            self.range_deletions += fragment.seqnos.len() as u64;
            fragment.seqnos.iter().for_each(|&seqno| self.add_seqno(seqno));
        }
    }

    fn add_seqno(&mut self, seqno: Seqno) {
        self.seqno_min = self.seqno_min.min(seqno);
        self.seqno_max = self.seqno_max.max(seqno);
    }

    /// Appends the payload to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let expiry = |time: Option<Timestamp>| time.map_or(0, |t| t.as_millis().saturating_add(1));
        let numbers = [
            self.entries,
            self.distinct_keys,
            self.deletions,
            self.expiring,
            self.range_deletions,
            u64::from(self.data_blocks),
            u64::from(self.dense_blocks),
            self.raw_key_bytes,
            self.raw_value_bytes,
            self.reserved_keys,
            self.reserved_bytes,
            self.seqno_min.0,
            self.seqno_max.0,
            expiry(self.earliest_expiry),
            expiry(self.latest_expiry),
            u64::from(self.filter.lines),
            u64::from(self.filter.probes),
            u64::from(self.index_pieces),
            u64::from(self.index_top),
        ];
        for number in numbers {
            put_varint(out, number);
        }
        put_slice(out, &self.smallest);
        put_slice(out, &self.largest.key);
        out.push(u8::from(self.largest.inclusive));
    }

    /// Reads a payload.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, Damage> {
        let mut cursor = Cursor::new(payload);
        let properties =
            Self::decode_fields(&mut cursor).ok_or("the properties are cut or malformed")?;
        properties.filter.check()?;
        if properties.seqno_max > SEQNO_MAX || properties.seqno_min > properties.seqno_max {
            return Err("the seqnos of the properties are impossible".to_owned());
        }
        if cursor.is_empty() { Ok(properties) } else { Err("bytes follow the properties".into()) }
    }

    fn decode_fields(cursor: &mut Cursor<'_>) -> Option<Self> {
        let mut number = || cursor.varint();
        let narrow = |number: u64| u32::try_from(number).ok();
        Some(Self {
            entries: number()?,
            distinct_keys: number()?,
            deletions: number()?,
            expiring: number()?,
            range_deletions: number()?,
            data_blocks: narrow(number()?)?,
            dense_blocks: narrow(number()?)?,
            raw_key_bytes: number()?,
            raw_value_bytes: number()?,
            reserved_keys: number()?,
            reserved_bytes: number()?,
            seqno_min: Seqno(number()?),
            seqno_max: Seqno(number()?),
            earliest_expiry: number()?.checked_sub(1).map(Timestamp::from_millis),
            latest_expiry: number()?.checked_sub(1).map(Timestamp::from_millis),
            filter: FilterShape {
                lines: narrow(number()?)?,
                probes: u8::try_from(number()?).ok()?,
            },
            index_pieces: narrow(number()?)?,
            index_top: narrow(number()?)?,
            smallest: cursor.slice()?.to_vec(),
            largest: UpperBound {
                key: cursor.slice()?.to_vec(),
                inclusive: match cursor.u8()? {
                    0 => false,
                    1 => true,
                    _ => return None,
                },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn properties_read_back() {
        let properties = Properties {
            entries: 1 << 40,
            distinct_keys: 2,
            deletions: 3,
            expiring: 4,
            range_deletions: 5,
            data_blocks: 6,
            dense_blocks: 7,
            raw_key_bytes: 8,
            raw_value_bytes: 9,
            reserved_keys: 16,
            reserved_bytes: 17,
            seqno_min: Seqno(10),
            seqno_max: SEQNO_MAX,
            earliest_expiry: Some(Timestamp::BEGINNING),
            latest_expiry: Some(Timestamp::from_millis(15)),
            smallest: b"a".to_vec(),
            largest: UpperBound { key: b"z".to_vec(), inclusive: true },
            filter: FilterShape { lines: 11, probes: 12 },
            index_pieces: 13,
            index_top: 14,
        };
        for properties in [properties, Properties::default()] {
            let mut payload = Vec::new();
            properties.encode(&mut payload);
            assert_eq!(Properties::decode(&payload), Ok(properties));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_decoded(bytes: Vec<u8>) {
            let _ = Properties::decode(&bytes);
        }
    }
}
