//! A data block in memory: entries that are found and read without any state, forwards, backwards or at random.
//!
//! | part | bytes | |
//! |---|---|---|
//! | values | `values_bytes` | for each entry: the expiry (8, only of a PutTtl), the value |
//! | keys | `keys_bytes` | for each bundle of `1 << bundle_shift` entries: the prefix they share, then each one's suffix |
//! | ordinals | n x `ordinal_width` | packed ordinal minus `base` |
//! | key ends | (n + bundles) x `offset_width` | where each prefix and suffix ends within keys |
//! | value ends | n x `offset_width` | where each value ends within values |
//! | fingerprints | n or 0 | one byte of each key's hash |
//! | trailer | 24 | base u64, n u32, `values_bytes` u32, `keys_bytes` u32, `bundle_shift` u8, `offset_width` u8 (2, 4), `ordinal_width` u8 (0, 1, 2, 4, 8), flags u8 (1: fingerprints) |
//!
//! Example: `k1`=`x` at seqno 5 and `k2` deleted at 6, without fingerprints, is values `x`, keys `k` `1` `2`, ordinals
//! (base `0x501`) `0000` `0201`, key ends 1 2 3, value ends 1 1, trailer.
//!
//! Each key is relative to its bundle and not to the key before: any entry is two slices away. Keys stand apart from
//! values, so that a search reads no value, and all that a search reads lies together at the end, mostly in one page:
//! in a cache of many blocks each page costs a miss of the TLB.
//!
//! A **fingerprint** is compared eight entries at a time and names an entry, where a hash table of bundles (RocksDB's
//! data block hash index) names 16, and with 1.25 slots for each key must leave more than half of all keys to binary
//! search because another bundle has their slot.
//!
//! [`DataBlock::parse`] checks the whole structure once, so that nothing afterwards can leave the block, whatever
//! the bytes. It does not check the order of keys; [`Table::verify`](super::Table::verify) does.

use std::cmp::Ordering;

use super::format::Damage;
use crate::storage::lsm::key::{InternalEntry, KeyHash, Kind, Ordinal};
use crate::util::coding::Cursor;
use crate::util::time::Timestamp;

/// Bytes of the trailer.
pub(crate) const TRAILER_BYTES: usize = 24;

/// Bytes of an expiry before its value.
pub(crate) const EXPIRY_BYTES: usize = 8;

/// Flag: the block has fingerprints.
pub(crate) const MASK_FINGERPRINTS: u8 = 1;

/// The byte of a key's hash that a block keeps. Filters use other bits the same way: multiplied first.
pub(crate) const fn fingerprint(hash: KeyHash) -> u8 {
    hash.0.to_le_bytes()[0]
}

/// What a point lookup found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// The newest entry of the key that the read sees is this one.
    At(usize),
    /// The read sees no entry of the key, here or in the next block.
    Nothing,
    /// The block ends with entries of the key that are too new for the read; older ones may follow in the next block.
    Beyond,
}

/// A checked data block.
#[derive(Debug)]
pub(crate) struct DataBlock {
    bytes: Vec<u8>,
    base: u64,
    // Narrow, so that all of it lies in one or two cache lines.
    len: u32,
    keys: u32,
    ordinals: u32,
    key_ends: u32,
    value_ends: u32,
    fingerprints: u32,
    bundle_shift: u8,
    ordinal_width: u8,
    wide: bool,
    fingerprinted: bool,
}

impl DataBlock {
    /// Takes a payload, after checking that it is what the module's table says. Allocates nothing.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, Damage> {
        let block = Self::parse_trailer(bytes).ok_or("the parts of a data block do not add up")?;
        block.check_offsets()?;
        Ok(block)
    }

    fn parse_trailer(bytes: Vec<u8>) -> Option<Self> {
        let body = bytes.len().checked_sub(TRAILER_BYTES)?;
        let mut cursor = Cursor::new(&bytes[body..]);
        let base = cursor.u64()?;
        let len = cursor.u32()? as usize;
        let keys = cursor.u32()? as usize;
        let ordinals = keys.checked_add(cursor.u32()? as usize)?;
        let bundle_shift = cursor.u8()?;
        let offset_width = usize::from(cursor.u8()?);
        let ordinal_width = cursor.u8()?;
        let flags = cursor.u8()?;
        let sound = len > 0
            && bundle_shift <= 7
            && matches!(offset_width, 2 | 4)
            && matches!(ordinal_width, 0 | 1 | 2 | 4 | 8)
            && flags <= MASK_FINGERPRINTS;
        if !sound {
            return None;
        }
        let fingerprinted = flags & MASK_FINGERPRINTS != 0;
        let pieces = len + ((len - 1) >> bundle_shift) + 1;
        let key_ends = ordinals.checked_add(len.checked_mul(usize::from(ordinal_width))?)?;
        let value_ends = key_ends.checked_add(pieces.checked_mul(offset_width)?)?;
        let fingerprints = value_ends.checked_add(len.checked_mul(offset_width)?)?;
        let end = fingerprints.checked_add(if fingerprinted { len } else { 0 })?;
        if end != body {
            return None;
        }
        let narrow = |position: usize| u32::try_from(position).ok();
        Some(Self {
            base,
            len: narrow(len)?,
            keys: narrow(keys)?,
            ordinals: narrow(ordinals)?,
            key_ends: narrow(key_ends)?,
            value_ends: narrow(value_ends)?,
            fingerprints: narrow(fingerprints)?,
            bundle_shift,
            ordinal_width,
            wide: offset_width == 4,
            fingerprinted,
            bytes,
        })
    }

    /// Everything an accessor relies on: ends that grow up to the end of their part, kinds that exist, room for expiries.
    fn check_offsets(&self) -> Result<(), Damage> {
        let pieces = self.piece(self.len() - 1) + 1;
        let mut before = 0;
        for piece in 0..pieces {
            let end = self.offset(self.key_ends, piece);
            if end < before {
                return Err(format!("key piece {piece} of a data block ends before it begins"));
            }
            before = end;
        }
        if before != (self.ordinals - self.keys) as usize {
            return Err("the keys of a data block end elsewhere than it says".to_owned());
        }
        before = 0;
        for index in 0..self.len() {
            let end = self.offset(self.value_ends, index);
            let least = match self.checked_ordinal(index).and_then(Ordinal::kind) {
                Some(Kind::Put | Kind::Delete) => 0,
                Some(Kind::PutTtl) => EXPIRY_BYTES,
                Some(Kind::RangeDelete) | None => {
                    return Err(format!("entry {index} of a data block has an unknown kind"));
                }
            };
            if end < before || end - before < least {
                return Err(format!("value {index} of a data block ends before it begins"));
            }
            before = end;
        }
        if before != self.keys as usize {
            return Err("the values of a data block end elsewhere than it says".to_owned());
        }
        Ok(())
    }

    /// Number of entries; never zero.
    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }

    /// Bytes of memory it takes.
    pub(crate) const fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + size_of::<Self>()
    }

    /// The bundle that entry `index` is in.
    pub(crate) const fn bundle(&self, index: usize) -> usize {
        index >> self.bundle_shift
    }

    /// The key of entry `index` in two parts: what its bundle shares, and the rest.
    #[inline]
    pub(crate) fn key(&self, index: usize) -> (&[u8], &[u8]) {
        (self.prefix(self.bundle(index)), self.suffix(index))
    }

    /// What all keys of a bundle begin with.
    #[inline]
    pub(crate) fn prefix(&self, bundle: usize) -> &[u8] {
        self.key_piece(bundle * ((1 << self.bundle_shift) + 1))
    }

    /// What the key of entry `index` ends with, after the prefix of its bundle.
    #[inline]
    pub(crate) fn suffix(&self, index: usize) -> &[u8] {
        self.key_piece(self.piece(index))
    }

    /// The order among entries of the same key.
    #[inline]
    pub(crate) fn ordinal(&self, index: usize) -> Ordinal {
        Ordinal::from_packed(self.base.wrapping_add(self.ordinal_delta(index)))
    }

    /// Entry `index`, whose key the caller has put together.
    #[inline]
    pub(crate) fn entry<'a>(&'a self, index: usize, key: &'a [u8]) -> InternalEntry<'a> {
        let ordinal = self.ordinal(index);
        let kind = ordinal.kind().expect("kinds were checked when the block was read");
        let start = if index == 0 { 0 } else { self.offset(self.value_ends, index - 1) };
        let end = self.offset(self.value_ends, index);
        let stored = &self.bytes[start..end];
        let (expires_at, value) = if kind == Kind::PutTtl {
            let (expiry, value) =
                stored.split_first_chunk().expect("room for expiries was checked as well");
            (Some(Timestamp::from_millis(u64::from_le_bytes(*expiry))), value)
        } else {
            (None, stored)
        };
        InternalEntry { key, seqno: ordinal.seqno(), kind, expires_at, value }
    }

    /// The entry that a read of `key` at the seqno of `target` (an [`Ordinal::seek`]) sees.
    #[inline]
    pub(crate) fn find(&self, key: &[u8], hash: KeyHash, target: Ordinal) -> Found {
        let index = if self.fingerprinted {
            match self.first_with(key, fingerprint(hash)) {
                None => return Found::Nothing,
                Some(newest) if self.ordinal(newest) >= target => return Found::At(newest),
                Some(_) => self.lower_bound(key, target),
            }
        } else {
            self.lower_bound(key, target)
        };
        if index < self.len() {
            return if self.key_is(index, key) { Found::At(index) } else { Found::Nothing };
        }
        if self.key_is(self.len() - 1, key) { Found::Beyond } else { Found::Nothing }
    }

    /// The first entry at or after (`key`, `target`); `len` when there is none.
    pub(crate) fn lower_bound(&self, key: &[u8], target: Ordinal) -> usize {
        let bundles = self.bundle(self.len() - 1) + 1;
        let first = |bundle: usize| bundle << self.bundle_shift;
        let after =
            partition(0, bundles, |bundle| self.compare(first(bundle), key, target).is_lt());
        let Some(bundle) = after.checked_sub(1) else { return 0 };
        let end = first(after).min(self.len());
        // The bundle begins before the target. Where its prefix is not one of the target's, all of it does.
        let Some(rest) = key.strip_prefix(self.prefix(bundle)) else { return end };
        partition(first(bundle) + 1, end, |index| {
            self.suffix(index).cmp(rest).then_with(|| self.ordinal(index).cmp(&target)).is_lt()
        })
    }

    /// Entry `index` against (`key`, `ordinal`).
    pub(crate) fn compare(&self, index: usize, key: &[u8], ordinal: Ordinal) -> Ordering {
        self.compare_key(index, key).then_with(|| self.ordinal(index).cmp(&ordinal))
    }

    /// The key of entry `index` against `key`.
    pub(crate) fn compare_key(&self, index: usize, key: &[u8]) -> Ordering {
        let (prefix, suffix) = self.key(index);
        match key.split_at_checked(prefix.len()) {
            Some((head, tail)) => prefix.cmp(head).then_with(|| suffix.cmp(tail)),
            // A prefix that goes on where the key ends is greater; so is the whole.
            None => prefix.cmp(key),
        }
    }

    #[inline]
    fn key_is(&self, index: usize, key: &[u8]) -> bool {
        let (prefix, suffix) = self.key(index);
        prefix.len() + suffix.len() == key.len() && key.ends_with(suffix) && key.starts_with(prefix)
    }

    /// The first entry of `key`, by fingerprint.
    #[inline]
    fn first_with(&self, key: &[u8], fingerprint: u8) -> Option<usize> {
        let start = self.fingerprints as usize;
        let fingerprints = &self.bytes[start..start + self.len()];
        let (words, rest) = fingerprints.as_chunks::<8>();
        for (number, word) in words.iter().enumerate() {
            let mut matches = bytes_equal(u64::from_le_bytes(*word), fingerprint);
            while matches != 0 {
                let index = number * 8 + (matches.trailing_zeros() / 8) as usize;
                if self.key_is(index, key) {
                    return Some(index);
                }
                matches &= matches - 1;
            }
        }
        let first = words.len() * 8;
        (first..first + rest.len())
            .find(|&index| fingerprints[index] == fingerprint && self.key_is(index, key))
    }

    /// Position of the suffix of entry `index` among all prefixes and suffixes.
    #[inline]
    const fn piece(&self, index: usize) -> usize {
        index + (index >> self.bundle_shift) + 1
    }

    #[inline]
    fn key_piece(&self, piece: usize) -> &[u8] {
        let start = if piece == 0 { 0 } else { self.offset(self.key_ends, piece - 1) };
        let keys = self.keys as usize;
        &self.bytes[keys + start..keys + self.offset(self.key_ends, piece)]
    }

    #[inline]
    fn offset(&self, part: u32, index: usize) -> usize {
        let part = part as usize;
        if self.wide {
            u32::from_le_bytes(self.array(part + index * 4)) as usize
        } else {
            usize::from(u16::from_le_bytes(self.array(part + index * 2)))
        }
    }

    fn checked_ordinal(&self, index: usize) -> Option<Ordinal> {
        Some(Ordinal::from_packed(self.base.checked_add(self.ordinal_delta(index))?))
    }

    #[inline]
    fn ordinal_delta(&self, index: usize) -> u64 {
        let at = self.ordinals as usize + index * usize::from(self.ordinal_width);
        match self.ordinal_width {
            0 => 0,
            1 => u64::from(self.bytes[at]),
            2 => u64::from(u16::from_le_bytes(self.array(at))),
            4 => u64::from(u32::from_le_bytes(self.array(at))),
            _ => u64::from_le_bytes(self.array(at)),
        }
    }

    #[inline]
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes[at..at + N].try_into().expect("a slice of that length")
    }
}

/// The high bit of each byte of `word` that equals `byte`.
#[inline]
const fn bytes_equal(word: u64, byte: u8) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let difference = word ^ (byte as u64 * 0x0101_0101_0101_0101);
    // Carries stay within a byte, so that no neighbour of an equal byte is taken for one.
    !(((difference & LOW) + LOW) | difference | LOW)
}

/// The first number in `low..high` for which `before` does not hold; `before` must hold for those up to some point
/// and not after it.
#[inline]
fn partition(mut low: usize, mut high: usize, before: impl Fn(usize) -> bool) -> usize {
    while low < high {
        let middle = usize::midpoint(low, high);
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::block_builder::BlockBuilder;
    use super::*;
    use crate::storage::Seqno;

    fn build(entries: &[InternalEntry<'_>], bundle: usize, fingerprints: bool) -> Vec<u8> {
        let mut builder = BlockBuilder::new(bundle, fingerprints);
        let mut bound = 0;
        for entry in entries {
            bound = builder.size_with(entry);
            builder.add(entry, KeyHash::of(entry.key));
            assert_eq!(builder.size_bytes(), bound, "the size was foretold");
        }
        let mut payload = Vec::new();
        builder.finish(&mut payload);
        assert_eq!(payload.len(), bound, "the size was foretold");
        payload
    }

    #[test]
    fn the_example_of_the_module_has_these_bytes() {
        let entries = [
            InternalEntry::put(b"k1", Seqno(5), b"x", None),
            InternalEntry::delete(b"k2", Seqno(6)),
        ];
        let mut expected = b"xk12".to_vec();
        expected.extend_from_slice(&[0, 0, 2, 1]);
        expected.extend_from_slice(&[1, 0, 2, 0, 3, 0, 1, 0, 1, 0]);
        expected.extend_from_slice(&0x501u64.to_le_bytes());
        expected.extend_from_slice(&[2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 4, 2, 2, 0]);
        assert_eq!(build(&entries, 16, false), expected);
    }

    #[test]
    fn equal_bytes_are_marked_and_no_others() {
        for byte in [0u8, 1, 0x7f, 0x80, 0x81, 0xff] {
            for other in 0..=255u8 {
                let word = u64::from_le_bytes([byte, other, byte ^ 1, byte, other, 0, 255, byte]);
                let expected: u64 = word
                    .to_le_bytes()
                    .into_iter()
                    .enumerate()
                    .filter(|&(_, b)| b == byte)
                    .map(|(i, _)| 0x80 << (8 * i))
                    .sum();
                assert_eq!(bytes_equal(word, byte), expected, "{word:x} {byte:x}");
            }
        }
    }

    prop_compose! {
        fn arbitrary_rows()(
            rows in prop::collection::btree_map(
                (prop::collection::vec(0..3u8, 0..6), 0..6u64),
                (0..3u8, prop::collection::vec(any::<u8>(), 0..40)),
                1..120,
            ),
            prefix in prop::collection::vec(any::<u8>(), 0..30),
            spread in prop::sample::select(vec![1u64, 300, 1 << 20, 1 << 40]),
        ) -> Vec<(Vec<u8>, u64, u8, Vec<u8>)> {
            let mut rows: Vec<_> = rows
                .into_iter()
                .map(|((key, seqno), (kind, value))| {
                    ([&prefix[..], &key].concat(), seqno * spread, kind, value)
                })
                .collect();
            rows.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
            rows
        }
    }

    fn entries(rows: &[(Vec<u8>, u64, u8, Vec<u8>)]) -> Vec<InternalEntry<'_>> {
        rows.iter()
            .map(|(key, seqno, kind, value)| match kind {
                0 => InternalEntry::delete(key, Seqno(*seqno)),
                1 => InternalEntry::put(key, Seqno(*seqno), value, None),
                _ => {
                    let expiry = Some(Timestamp::from_millis(seqno * 7));
                    InternalEntry::put(key, Seqno(*seqno), value, expiry)
                }
            })
            .collect()
    }

    proptest! {
        #[test]
        fn every_entry_is_read_and_found(
            rows in arbitrary_rows(), shift in 0..=7usize, fingerprints: bool, probes: Vec<(usize, u64)>,
        ) {
            let entries = entries(&rows);
            let block = DataBlock::parse(build(&entries, 1 << shift, fingerprints)).expect("sound");
            prop_assert_eq!(block.len(), entries.len());
            for (index, entry) in entries.iter().enumerate() {
                let (prefix, suffix) = block.key(index);
                let key = [prefix, suffix].concat();
                prop_assert_eq!(&block.entry(index, &key), entry);
                prop_assert_eq!(block.lower_bound(entry.key, entry.ordinal()), index);
            }
            for (row, seqno) in probes {
                let mut key = rows[row % rows.len()].0.clone();
                if row % 3 == 0 {
                    key.push(1);
                }
                let target = Ordinal::seek(Seqno(seqno % (1 << 43)));
                let expected = entries
                    .partition_point(|e| (e.key, e.ordinal()) < (&key[..], target));
                prop_assert_eq!(block.lower_bound(&key, target), expected);
                let found = match entries.get(expected) {
                    Some(entry) if entry.key == key => Found::At(expected),
                    None if entries.last().is_some_and(|e| e.key == key) => Found::Beyond,
                    _ => Found::Nothing,
                };
                prop_assert_eq!(block.find(&key, KeyHash::of(&key), target), found);
            }
        }

        #[test]
        fn a_damaged_block_is_refused_or_read_without_panic(
            rows in arbitrary_rows(), fingerprints: bool, damage: Vec<(usize, u8)>, cut in 0..30usize,
        ) {
            let mut payload = build(&entries(&rows), 4, fingerprints);
            let len = payload.len();
            for (at, byte) in damage {
                // Mostly the trailer and what is near it: the rest is only bytes.
                payload[if at % 2 == 0 { len - 1 - at % len.min(40) } else { at % len }] = byte;
            }
            payload.truncate(len - cut.min(len).saturating_sub(25));
            exercise(payload);
        }

        #[test]
        fn any_bytes_are_refused_or_read_without_panic(bytes: Vec<u8>) {
            exercise(bytes);
        }
    }

    fn exercise(payload: Vec<u8>) {
        let Ok(block) = DataBlock::parse(payload) else { return };
        for index in 0..block.len() {
            let (prefix, suffix) = block.key(index);
            let key = [prefix, suffix].concat();
            block.entry(index, &key);
            block.lower_bound(&key, Ordinal::FIRST);
            block.find(&key, KeyHash::of(&key), Ordinal::FIRST);
        }
    }
}
