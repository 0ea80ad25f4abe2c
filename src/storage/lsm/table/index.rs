//! The index: which data block may hold a key.
//!
//! Each block has a **separator**: an internal key after all entries of the block before it and not after its own
//! first entry, with as few bytes of user key as tell the two apart. When both are entries of the same user key, the
//! separator is the first entry's whole internal key; otherwise its ordinal is [`Ordinal::FIRST`].
//!
//! | part | bytes | |
//! |---|---|---|
//! | heads | n x 8 | first eight bytes of each separator after the common prefix, as a big-endian number, zeros for missing bytes |
//! | offsets | n x 4 | where each block begins |
//! | tail ends | n x 4 | where each tail ends within tails |
//! | head lengths | n x 1 | how many bytes of the head are there |
//! | ordinals | n x 8 or 0 | left out when all are the first |
//! | tails | `tails_bytes` | what follows the head of each separator |
//! | prefix | `prefix_bytes` | what all separators begin with |
//! | trailer | 24 | n u32, first u32: number of its first block, end u32: where the last block ends, `tails_bytes` u32, `prefix_bytes` u32, flags u32 (1: ordinals) |
//!
//! Numbers are little-endian. A search strips the common prefix and compares one number for each step, in an array where
//! eight neighbours share a cache line; tails are read only where heads are equal.
//!
//! The index of a table above [`TableOptions::index_bytes_max`](crate::storage::lsm::options::TableOptions) is cut into
//! pieces; the top then has the pieces for its blocks, with the separator of the first block of each.

use std::cmp::{Ordering, min};
use std::ops::Range;

use super::format::{Damage, PAYLOAD_BYTES_MAX, SEAL_BYTES};
use crate::storage::lsm::key::{Ordinal, common_prefix};
use crate::util::coding::Cursor;

const TRAILER_BYTES: usize = 24;
const FLAG_ORDINALS: u32 = 1;
const HEAD_BYTES: usize = 8;

/// Bytes of a separator beside its tail, with its ordinal.
const FIXED_BYTES_MAX: usize = HEAD_BYTES + 4 + 4 + 1 + 8;

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockPlace {
    /// Among the blocks of its kind in the table, from 0.
    pub(crate) number: u32,
    /// In the file.
    pub(crate) offset: u32,
    /// Sealed, in bytes.
    pub(crate) bytes: u32,
}

/// A checked index, or a piece of one, in memory.
#[derive(Debug)]
pub(crate) struct IndexBlock {
    bytes: Vec<u8>,
    len: usize,
    first: u32,
    end: u32,
    ordinals: Option<usize>,
    tails: usize,
    prefix: usize,
    trailer: usize,
}

impl IndexBlock {
    /// Takes a payload, after checking that it is what the module's table says. Allocates nothing.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, Damage> {
        let index = Self::parse_trailer(bytes).ok_or("the parts of an index do not add up")?;
        index.check()?;
        Ok(index)
    }

    fn parse_trailer(bytes: Vec<u8>) -> Option<Self> {
        let trailer = bytes.len().checked_sub(TRAILER_BYTES)?;
        let mut cursor = Cursor::new(&bytes[trailer..]);
        let len = cursor.u32()? as usize;
        let first = cursor.u32()?;
        let end = cursor.u32()?;
        let tails_bytes = cursor.u32()? as usize;
        let prefix_bytes = cursor.u32()? as usize;
        let flags = cursor.u32()?;
        if len == 0 || flags > FLAG_ORDINALS {
            return None;
        }
        // No overflow: at most 33 times 2^32, and parts below 2^32.
        let fixed = len * (HEAD_BYTES + 4 + 4 + 1);
        let has_ordinals = flags & FLAG_ORDINALS != 0;
        let tails = if has_ordinals { fixed + len * 8 } else { fixed };
        let prefix = tails + tails_bytes;
        let ordinals = has_ordinals.then_some(fixed);
        (prefix + prefix_bytes == trailer).then_some(Self {
            bytes,
            len,
            first,
            end,
            ordinals,
            tails,
            prefix,
            trailer,
        })
    }

    /// Separators that grow, and blocks of a size that a block can have.
    fn check(&self) -> Result<(), Damage> {
        for index in 0..self.len {
            let (start, end) = self.tail_range(index);
            let head_bytes = usize::from(self.head_bytes(index));
            if end < start || end > self.prefix - self.tails {
                return Err(format!("separator {index} of an index ends before it begins"));
            }
            let short = head_bytes < HEAD_BYTES;
            let padded = || self.head(index).to_be_bytes()[head_bytes..].iter().all(|&b| b == 0);
            if head_bytes > HEAD_BYTES || (short && (end > start || !padded())) {
                return Err(format!("separator {index} of an index has a head of {head_bytes}"));
            }
            let place = self.checked_place(index).filter(|place| {
                let bytes = place.bytes as usize;
                bytes > SEAL_BYTES && bytes <= PAYLOAD_BYTES_MAX + SEAL_BYTES
            });
            if place.is_none() {
                return Err(format!("block {index} of an index has an impossible size"));
            }
            if index > 0 && self.compare_separators(index - 1, index).is_ge() {
                return Err(format!("separator {index} of an index is not after the one before"));
            }
        }
        if self.first.checked_add(self.len_u32()).is_none() {
            return Err("the numbers of the blocks of an index are too large".to_owned());
        }
        Ok(())
    }

    /// Number of blocks; never zero.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Number of its first block among all of the table.
    pub(crate) const fn first(&self) -> u32 {
        self.first
    }

    /// Number of the first block after it.
    pub(crate) fn after(&self) -> u32 {
        self.first + self.len_u32()
    }

    /// Where its last block ends.
    pub(crate) const fn end(&self) -> u32 {
        self.end
    }

    /// Bytes of memory it takes.
    pub(crate) const fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + size_of::<Self>()
    }

    /// Where block `index` of this piece lies.
    #[inline]
    pub(crate) fn place(&self, index: usize) -> BlockPlace {
        self.checked_place(index).expect("places were checked when the index was read")
    }

    /// The separator of block `index`.
    pub(crate) fn separator(&self, index: usize) -> (Vec<u8>, Ordinal) {
        let head = self.head(index).to_be_bytes();
        let head = &head[..usize::from(self.head_bytes(index))];
        let key = [&self.bytes[self.prefix..self.trailer], head, self.tail(index)].concat();
        (key, self.ordinal(index))
    }

    /// The block that holds the first entry at or after (`key`, `ordinal`), unless that entry is the first of the
    /// next block because the block ends before it. Before the first separator: the first block.
    #[inline]
    pub(crate) fn find(&self, key: &[u8], ordinal: Ordinal) -> usize {
        let prefix = &self.bytes[self.prefix..self.trailer];
        let Some(rest) = key.strip_prefix(prefix) else {
            return if key < prefix { 0 } else { self.len - 1 };
        };
        let (head, head_bytes) = head_of(rest);
        let heads = self.heads();
        let mut after = search(heads, head);
        if heads.get(after).is_some_and(|&first| u64::from_le_bytes(first) == head) {
            let tail = rest.get(HEAD_BYTES..).unwrap_or_default();
            let equal = heads[after..].partition_point(|&h| u64::from_le_bytes(h) == head);
            let (mut low, mut high) = (after, after + equal);
            while low < high {
                let middle = usize::midpoint(low, high);
                let separator = (self.head_bytes(middle), self.tail(middle), self.ordinal(middle));
                if separator <= (head_bytes, tail, ordinal) {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            after = low;
        }
        after.saturating_sub(1)
    }

    fn compare_separators(&self, a: usize, b: usize) -> Ordering {
        let parts = |index| {
            (self.head(index), self.head_bytes(index), self.tail(index), self.ordinal(index))
        };
        parts(a).cmp(&parts(b))
    }

    fn checked_place(&self, index: usize) -> Option<BlockPlace> {
        let offset = self.offset(index);
        let end = if index + 1 < self.len { self.offset(index + 1) } else { self.end };
        let number = self.first.wrapping_add(u32::try_from(index).ok()?);
        Some(BlockPlace { number, offset, bytes: end.checked_sub(offset)? })
    }

    fn len_u32(&self) -> u32 {
        u32::try_from(self.len).expect("it was read from a number of 32 bits")
    }

    #[inline]
    fn heads(&self) -> &[[u8; HEAD_BYTES]] {
        self.bytes[..self.len * HEAD_BYTES].as_chunks().0
    }

    fn head(&self, index: usize) -> u64 {
        u64::from_le_bytes(self.heads()[index])
    }

    #[inline]
    fn offset(&self, index: usize) -> u32 {
        self.number(self.len * HEAD_BYTES + index * 4)
    }

    fn head_bytes(&self, index: usize) -> u8 {
        self.bytes[self.len * (HEAD_BYTES + 8) + index]
    }

    fn tail(&self, index: usize) -> &[u8] {
        let (start, end) = self.tail_range(index);
        &self.bytes[self.tails + start..self.tails + end]
    }

    fn tail_range(&self, index: usize) -> (usize, usize) {
        let ends = self.len * (HEAD_BYTES + 4);
        let end = |index: usize| self.number(ends + index * 4) as usize;
        (if index == 0 { 0 } else { end(index - 1) }, end(index))
    }

    fn ordinal(&self, index: usize) -> Ordinal {
        let Some(ordinals) = self.ordinals else { return Ordinal::FIRST };
        let at = ordinals + index * 8;
        let bytes = self.bytes[at..at + 8].try_into().expect("a slice of that length");
        Ordinal::from_u64(u64::from_le_bytes(bytes))
    }

    #[inline]
    fn number(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("a slice of that length"))
    }
}

/// Number of heads before `head`.
#[inline]
fn search(heads: &[[u8; HEAD_BYTES]], head: u64) -> usize {
    heads.partition_point(|&h| u64::from_le_bytes(h) < head)
}

/// The first eight bytes as a number that orders as they do, and how many there are.
#[inline]
fn head_of(rest: &[u8]) -> (u64, u8) {
    if let Some(head) = rest.first_chunk() {
        return (u64::from_be_bytes(*head), 8);
    }
    let mut head = [0; HEAD_BYTES];
    head[..rest.len()].copy_from_slice(rest);
    (u64::from_be_bytes(head), rest.len().to_le_bytes()[0])
}

/// Collects the separators and offsets of all blocks of a table.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    keys: Vec<u8>,
    ends: Vec<usize>,
    ordinals: Vec<Ordinal>,
    offsets: Vec<u32>,
}

impl IndexBuilder {
    /// Adds the block that begins at `offset`.
    pub(crate) fn add(&mut self, key: &[u8], ordinal: Ordinal, offset: u32) {
        self.keys.extend_from_slice(key);
        self.ends.push(self.keys.len());
        self.ordinals.push(ordinal);
        self.offsets.push(offset);
    }

    /// Number of blocks.
    pub(crate) const fn len(&self) -> usize {
        self.ends.len()
    }

    /// The most bytes that [`encode`](Self::encode) of all may make.
    pub(crate) const fn size_bytes(&self) -> usize {
        self.len() * FIXED_BYTES_MAX + self.keys.len() + TRAILER_BYTES
    }

    /// Cuts the blocks into runs whose encodings have about `bytes` each.
    pub(crate) fn cut(&self, bytes: usize) -> Vec<Range<usize>> {
        let mut runs = Vec::new();
        let (mut start, mut size) = (0, 0);
        for index in 0..self.len() {
            size += FIXED_BYTES_MAX + self.key(index).len();
            if size >= bytes || index + 1 == self.len() {
                runs.push(start..index + 1);
                (start, size) = (index + 1, 0);
            }
        }
        runs
    }

    /// The separator of block `index`.
    pub(crate) fn separator(&self, index: usize) -> (&[u8], Ordinal) {
        (self.key(index), self.ordinals[index])
    }

    /// Appends the payload for the blocks of `run` to `out`; `end` is where the last of all blocks ends.
    pub(crate) fn encode(&self, run: Range<usize>, end: u32, out: &mut Vec<u8>) {
        assert!(!run.is_empty(), "an index has at least one block");
        let first_key = self.key(run.start);
        let prefix = run
            .clone()
            .map(|index| common_prefix(first_key, self.key(index)))
            .min()
            .unwrap_or_default();
        let rests: Vec<&[u8]> = run.clone().map(|index| &self.key(index)[prefix..]).collect();
        let number = |value: usize| u32::try_from(value).expect("far smaller than 4 GiB");
        for rest in &rests {
            out.extend_from_slice(&head_of(rest).0.to_le_bytes());
        }
        for offset in &self.offsets[run.clone()] {
            out.extend_from_slice(&offset.to_le_bytes());
        }
        let tails = || rests.iter().map(|rest| rest.get(HEAD_BYTES..).unwrap_or_default());
        let mut tails_bytes = 0;
        for tail in tails() {
            tails_bytes += tail.len();
            out.extend_from_slice(&number(tails_bytes).to_le_bytes());
        }
        out.extend(rests.iter().map(|rest| head_of(rest).1));
        let ordinals = &self.ordinals[run.clone()];
        let has_ordinals = ordinals.iter().any(|&ordinal| ordinal != Ordinal::FIRST);
        if has_ordinals {
            for ordinal in ordinals {
                out.extend_from_slice(&ordinal.as_u64().to_le_bytes());
            }
        }
        tails().for_each(|tail| out.extend_from_slice(tail));
        out.extend_from_slice(&first_key[..prefix]);
        let end = self.offsets.get(run.end).copied().unwrap_or(end);
        let flags = if has_ordinals { FLAG_ORDINALS } else { 0 };
        let first = number(run.start);
        for number in [number(run.len()), first, end, number(tails_bytes), number(prefix), flags] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn key(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.keys[start..self.ends[index]]
    }
}

/// The shortest user key after `before` and not after `first`, of which it is a prefix; `before` must be less than
/// `first`.
pub(crate) fn separate<'a>(before: &[u8], first: &'a [u8]) -> &'a [u8] {
    &first[..min(common_prefix(before, first) + 1, first.len())]
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "numbers of tests are small")]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::storage::Seqno;

    const BLOCK_BYTES: u32 = 100;

    fn build(separators: &BTreeSet<(Vec<u8>, Ordinal)>) -> Vec<u8> {
        let mut builder = IndexBuilder::default();
        for ((key, ordinal), number) in separators.iter().zip(0..) {
            builder.add(key, *ordinal, number * BLOCK_BYTES);
        }
        let bound = builder.size_bytes();
        let end = BLOCK_BYTES * u32::try_from(separators.len()).expect("small");
        let mut payload = Vec::new();
        builder.encode(0..separators.len(), end, &mut payload);
        assert!(payload.len() <= bound);
        payload
    }

    fn arbitrary_key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0..3u8, 0..20)
    }

    fn arbitrary_ordinal() -> impl Strategy<Value = Ordinal> {
        (0..4u64).prop_map(|n| if n == 0 { Ordinal::FIRST } else { Ordinal::seek(Seqno(n)) })
    }

    proptest! {
        #[test]
        fn the_block_found_is_the_last_whose_separator_is_not_after_the_key(
            separators in prop::collection::btree_set((arbitrary_key(), arbitrary_ordinal()), 1..80),
            prefix in arbitrary_key(),
            probes in prop::collection::vec((arbitrary_key(), arbitrary_ordinal(), any::<bool>()), 40),
        ) {
            let separators: BTreeSet<_> = separators
                .into_iter()
                .map(|(key, ordinal)| ([&prefix[..], &key].concat(), ordinal))
                .collect();
            let index = IndexBlock::parse(build(&separators)).expect("sound");
            for (number, separator) in separators.iter().enumerate() {
                prop_assert_eq!(&index.separator(number), separator);
                prop_assert_eq!(index.find(&separator.0, separator.1), number);
                let expected = BlockPlace {
                    number: number as u32,
                    offset: number as u32 * BLOCK_BYTES,
                    bytes: BLOCK_BYTES,
                };
                prop_assert_eq!(index.place(number), expected);
            }
            for (mut key, ordinal, prefixed) in probes {
                if prefixed {
                    key = [&prefix[..], &key].concat();
                }
                let probe = (key, ordinal);
                let expected = separators.iter().filter(|&s| *s <= probe).count().saturating_sub(1);
                prop_assert_eq!(index.find(&probe.0, probe.1), expected);
            }
        }

        #[test]
        fn pieces_of_an_index_are_what_they_were_cut_from(
            separators in prop::collection::btree_set((arbitrary_key(), arbitrary_ordinal()), 1..80),
            bytes in 1..1000usize,
        ) {
            let mut builder = IndexBuilder::default();
            for ((key, ordinal), number) in separators.iter().zip(0..) {
                builder.add(key, *ordinal, number * BLOCK_BYTES);
            }
            let end = BLOCK_BYTES * separators.len() as u32;
            let mut number = 0;
            for run in builder.cut(bytes) {
                prop_assert_eq!(run.start, number);
                let mut payload = Vec::new();
                builder.encode(run, end, &mut payload);
                let piece = IndexBlock::parse(payload).expect("sound");
                for index in 0..piece.len() {
                    let (key, ordinal) = builder.separator(number);
                    prop_assert_eq!(piece.separator(index), (key.to_vec(), ordinal));
                    prop_assert_eq!(piece.place(index).number as usize, number);
                    prop_assert_eq!(piece.place(index).offset, number as u32 * BLOCK_BYTES);
                    prop_assert_eq!(piece.place(index).bytes, BLOCK_BYTES);
                    number += 1;
                }
            }
            prop_assert_eq!(number, separators.len());
        }

        #[test]
        fn a_separator_lies_between(before in arbitrary_key(), first in arbitrary_key()) {
            let (before, first) = if before < first { (before, first) } else { (first, before) };
            prop_assume!(before != first);
            let separator = separate(&before, &first);
            prop_assert!(&before[..] < separator && separator <= &first[..]);
        }

        #[test]
        fn a_damaged_index_is_refused_or_searched_without_panic(
            separators in prop::collection::btree_set((arbitrary_key(), arbitrary_ordinal()), 1..30),
            // Few at a time: more would mostly be refused for the first of them.
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut payload = build(&separators);
            for (at, byte) in damage {
                let at = at.index(payload.len());
                payload[at] = byte;
            }
            exercise(payload);
        }

        #[test]
        fn any_bytes_are_refused_or_searched_without_panic(bytes: Vec<u8>) {
            exercise(bytes);
        }
    }

    fn exercise(payload: Vec<u8>) {
        let Ok(index) = IndexBlock::parse(payload) else { return };
        for number in 0..index.len() {
            let (key, ordinal) = index.separator(number);
            index.place(number);
            assert_eq!(index.find(&key, ordinal), number);
        }
    }
}
