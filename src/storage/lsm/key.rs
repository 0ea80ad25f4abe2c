//! Internal keys: how the versions of a user's key are told apart and ordered.
//!
//! An entry of a memtable or table is one write to one key. Entries are ordered by user key, ascending, then by
//! [`Ordinal`], ascending, which is from the newest write to the oldest:
//!
//! | internal key | bytes | |
//! |---|---|---|
//! | user key | * | as the user gave it |
//! | ordinal | 8 | `!(seqno * 256 + kind)`, big-endian where it is written as bytes |
//!
//! Internal keys must be compared by their two parts: as plain bytes, the ordinal of a short key would be compared
//! with the tail of a longer one. Seqnos are 56 bits wide, one for each operation of a batch; zero is that of entries
//! that every view sees.
//!
//! One hash of the user key, computed once by whoever reads or writes it, serves filters and blocks: [`KeyHash`].

use std::cmp::Ordering;

use xxhash_rust::xxh3::xxh3_64;

use crate::storage::Seqno;
use crate::util::time::Timestamp;

/// The largest sequence number: 56 bits.
pub(crate) const SEQNO_MAX: Seqno = Seqno((1 << 56) - 1);

/// What a write did. The numbers are part of the formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Stored a value that does not expire.
    Put = 1,
    /// Stored a value that expires.
    PutTtl = 2,
    /// Removed the key.
    Delete = 3,
    /// Removed a range of keys. Never among the entries of a table: ranges have their own block.
    RangeDelete = 4,
}

impl Kind {
    /// The kind with that number.
    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Put),
            2 => Some(Self::PutTtl),
            3 => Some(Self::Delete),
            4 => Some(Self::RangeDelete),
            _ => None,
        }
    }
}

/// Orders the entries of one user key: newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ordinal(u64);

impl Ordinal {
    /// Before every entry of its user key; the same as [`Self::seek`] at the largest seqno.
    pub(crate) const FIRST: Self = Self(0);

    /// After every entry of its user key.
    pub(crate) const LAST: Self = Self(u64::MAX);

    /// That of a write.
    pub(crate) const fn new(seqno: Seqno, kind: Kind) -> Self {
        assert!(seqno.0 <= SEQNO_MAX.0, "a sequence number has 56 bits");
        Self::from_packed(seqno.0 << 8 | kind as u64)
    }

    /// Before the newest entry that a read at `seqno` sees, after all that it does not see.
    pub(crate) const fn seek(seqno: Seqno) -> Self {
        Self::from_packed(seqno.0 << 8 | 0xff)
    }

    /// From `seqno << 8 | kind`.
    pub(crate) const fn from_packed(packed: u64) -> Self {
        Self(!packed)
    }

    /// `seqno << 8 | kind`.
    pub(crate) const fn packed(self) -> u64 {
        !self.0
    }

    /// From the number that orders.
    pub(crate) const fn from_u64(value: u64) -> Self {
        Self(value)
    }

    /// The number that orders.
    pub(crate) const fn as_u64(self) -> u64 {
        self.0
    }

    /// Of which write.
    pub(crate) const fn seqno(self) -> Seqno {
        Seqno(self.packed() >> 8)
    }

    /// What it did; `None` for a number no write has, such as [`Self::seek`].
    pub(crate) const fn kind(self) -> Option<Kind> {
        Kind::from_byte(self.packed().to_le_bytes()[0])
    }
}

/// The order of internal keys.
pub(crate) fn compare(a: (&[u8], Ordinal), b: (&[u8], Ordinal)) -> Ordering {
    a.0.cmp(b.0).then(a.1.cmp(&b.1))
}

/// Bytes that `a` and `b` both begin with.
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The one hash of a user key: filters and blocks use different bits of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeyHash(pub(crate) u64);

impl KeyHash {
    /// That of `key`.
    pub(crate) fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }
}

/// One write to one key, borrowed from where it is kept.
///
/// * `expires_at` is there exactly when the kind is [`Kind::PutTtl`].
/// * The value of a [`Kind::Delete`] is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InternalEntry<'a> {
    /// The user's key.
    pub(crate) key: &'a [u8],
    /// Which write.
    pub(crate) seqno: Seqno,
    /// What it did.
    pub(crate) kind: Kind,
    /// When the value expires.
    pub(crate) expires_at: Option<Timestamp>,
    /// The value.
    pub(crate) value: &'a [u8],
}

impl<'a> InternalEntry<'a> {
    /// A stored value.
    pub(crate) const fn put(
        key: &'a [u8],
        seqno: Seqno,
        value: &'a [u8],
        expires_at: Option<Timestamp>,
    ) -> Self {
        let kind = if expires_at.is_some() { Kind::PutTtl } else { Kind::Put };
        Self { key, seqno, kind, expires_at, value }
    }

    /// A removed key.
    pub(crate) const fn delete(key: &'a [u8], seqno: Seqno) -> Self {
        Self { key, seqno, kind: Kind::Delete, expires_at: None, value: &[] }
    }

    /// Its place among the entries of its key.
    pub(crate) const fn ordinal(&self) -> Ordinal {
        Ordinal::new(self.seqno, self.kind)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_of_a_key_are_ordered_newest_first_and_longer_keys_come_later() {
        let ordered = [
            (&b"a"[..], Ordinal::FIRST),
            (b"a", Ordinal::new(SEQNO_MAX, Kind::Put)),
            (b"a", Ordinal::seek(Seqno(7))),
            (b"a", Ordinal::new(Seqno(7), Kind::Delete)),
            (b"a", Ordinal::new(Seqno(6), Kind::PutTtl)),
            (b"a", Ordinal::new(Seqno(0), Kind::Put)),
            (b"a\0", Ordinal::FIRST),
        ];
        assert!(ordered.is_sorted_by(|&a, &b| compare(a, b).is_lt()));
    }

    proptest! {
        #[test]
        fn every_ordinal_reads_back(seqno in 0..=SEQNO_MAX.0, kind in 1..=4u8) {
            let kind = Kind::from_byte(kind).expect("there are four");
            let ordinal = Ordinal::new(Seqno(seqno), kind);
            prop_assert_eq!((ordinal.seqno(), ordinal.kind()), (Seqno(seqno), Some(kind)));
        }
    }
}
