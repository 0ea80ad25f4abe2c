//! The range deletions of a table, as **fragments**: ranges that do not overlap, in key order, each with the seqnos
//! of all deletions that cover it, newest first.
//!
//! | part | bytes | |
//! |---|---|---|
//! | count | varint | number of fragments |
//! | fragment | * | varint length, start (inclusive); varint length, end (exclusive); varint number of seqnos, each a varint |
//!
//! Kept in memory while the table is open: they are few, and every read asks them.

use std::collections::BTreeMap;

use super::format::Damage;
use crate::storage::Seqno;
use crate::storage::lsm::key::SEQNO_MAX;
use crate::util::coding::{Cursor, put_slice, put_varint};

/// Least bytes of an encoded fragment; bounds what a damaged count can make us reserve.
const FRAGMENT_BYTES_MIN: usize = 5;

/// One range, and every deletion that covers all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// First key.
    pub(crate) start: Box<[u8]>,
    /// First key beyond.
    pub(crate) end: Box<[u8]>,
    /// Newest first; at least one.
    pub(crate) seqnos: Box<[Seqno]>,
}

/// All fragments of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeDeletions {
    fragments: Vec<Fragment>,
}

impl RangeDeletions {
    /// Cuts deletions (start, end, seqno), in any order and overlapping as they like, into fragments. Empty ranges
    /// vanish.
    pub(crate) fn fragment(deletions: &[(Vec<u8>, Vec<u8>, Seqno)]) -> Self {
        // At each border: which deletions begin, which end.
        let mut borders: BTreeMap<&[u8], Vec<(Seqno, bool)>> = BTreeMap::new();
        for (start, end, seqno) in deletions.iter().filter(|(start, end, _)| start < end) {
            borders.entry(start).or_default().push((*seqno, true));
            borders.entry(end).or_default().push((*seqno, false));
        }
        let mut fragments: Vec<Fragment> = Vec::new();
        let mut open: BTreeMap<Seqno, usize> = BTreeMap::new();
        let mut from: &[u8] = &[];
        for (border, changes) in borders {
            if !open.is_empty() {
                let seqnos = open.keys().rev().copied().collect();
                push(&mut fragments, Fragment { start: from.into(), end: border.into(), seqnos });
            }
            for (seqno, begins) in changes {
                let count = open.entry(seqno).or_insert(0usize);
                if begins {
                    *count += 1;
                } else {
                    // It began at an earlier border, so that it is open.
                    *count -= 1;
                }
                if *count == 0 {
                    open.remove(&seqno);
                }
            }
            from = border;
        }
        Self { fragments }
    }

    /// Reads a payload.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, Damage> {
        let mut cursor = Cursor::new(payload);
        let deletions = Self::decode_fragments(&mut cursor)
            .ok_or("the range deletions are not what their counts say")?;
        if !cursor.is_empty() {
            return Err("bytes follow the range deletions".to_owned());
        }
        let in_order = |pair: &[Fragment]| pair[0].end <= pair[1].start;
        if deletions.fragments.windows(2).all(in_order) {
            return Ok(deletions);
        }
        Err("the range deletions overlap".to_owned())
    }

    fn decode_fragments(cursor: &mut Cursor<'_>) -> Option<Self> {
        let count = usize::try_from(cursor.varint()?).ok()?;
        if count > cursor.rest().len() / FRAGMENT_BYTES_MIN {
            return None;
        }
        let mut fragments = Vec::with_capacity(count);
        for _ in 0..count {
            let (start, end) = (cursor.slice()?, cursor.slice()?);
            let seqnos = usize::try_from(cursor.varint()?).ok()?;
            if start >= end || seqnos == 0 || seqnos > cursor.rest().len() {
                return None;
            }
            let seqnos =
                (0..seqnos).map(|_| cursor.varint().map(Seqno)).collect::<Option<Box<_>>>()?;
            let newest_first = seqnos.is_sorted_by(|a, b| a > b) && seqnos[0] <= SEQNO_MAX;
            if !newest_first {
                return None;
            }
            fragments.push(Fragment { start: start.into(), end: end.into(), seqnos });
        }
        Some(Self { fragments })
    }

    /// Appends the payload to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.fragments.len() as u64);
        for fragment in &self.fragments {
            put_slice(out, &fragment.start);
            put_slice(out, &fragment.end);
            put_varint(out, fragment.seqnos.len() as u64);
            for seqno in &fragment.seqnos {
                put_varint(out, seqno.0);
            }
        }
    }

    /// The fragments in key order.
    pub(crate) fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// The newest deletion that covers `key` and that a read at `at` sees. An entry of the key is deleted when its
    /// seqno is lower.
    #[inline]
    pub(crate) fn newest_covering(&self, key: &[u8], at: Seqno) -> Option<Seqno> {
        let after = self.fragments.partition_point(|fragment| *fragment.start <= *key);
        let fragment = self.fragments.get(after.checked_sub(1)?)?;
        if *key >= *fragment.end {
            return None;
        }
        let newest = fragment.seqnos.partition_point(|&seqno| seqno > at);
        fragment.seqnos.get(newest).copied()
    }

    /// Bytes of memory it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        let fragment = |fragment: &Fragment| {
            fragment.start.len() + fragment.end.len() + fragment.seqnos.len() * 8
        };
        self.fragments.capacity() * size_of::<Fragment>()
            + self.fragments.iter().map(fragment).sum::<usize>()
    }
}

/// Adds a fragment, or lengthens the last one where the same deletions go on.
fn push(fragments: &mut Vec<Fragment>, fragment: Fragment) {
    match fragments.last_mut() {
        Some(last) if last.end == fragment.start && last.seqnos == fragment.seqnos => {
            last.end = fragment.end;
        }
        _ => fragments.push(fragment),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn deletion(start: &str, end: &str, seqno: u64) -> (Vec<u8>, Vec<u8>, Seqno) {
        (start.into(), end.into(), Seqno(seqno))
    }

    #[test]
    fn overlapping_deletions_become_fragments() {
        let deletions = RangeDeletions::fragment(&[
            deletion("c", "g", 7),
            deletion("a", "e", 5),
            deletion("x", "x", 9),
            deletion("g", "h", 7),
        ]);
        let fragment = |start: &str, end: &str, seqnos: &[u64]| Fragment {
            start: start.as_bytes().into(),
            end: end.as_bytes().into(),
            seqnos: seqnos.iter().map(|&n| Seqno(n)).collect(),
        };
        let expected =
            [fragment("a", "c", &[5]), fragment("c", "e", &[7, 5]), fragment("e", "h", &[7])];
        assert_eq!(deletions.fragments(), expected);
        assert_eq!(deletions.newest_covering(b"d", Seqno(9)), Some(Seqno(7)));
        assert_eq!(deletions.newest_covering(b"d", Seqno(6)), Some(Seqno(5)));
        assert_eq!(deletions.newest_covering(b"d", Seqno(4)), None);
        assert_eq!(deletions.newest_covering(b"h", Seqno(9)), None);
    }

    proptest! {
        #[test]
        fn fragments_delete_what_the_deletions_did_and_read_back(
            deletions in prop::collection::vec((0..20u8, 0..20u8, 0..8u64), 0..20), at in 0..9u64,
        ) {
            let deletions: Vec<_> =
                deletions.into_iter().map(|(s, e, n)| (vec![s], vec![e], Seqno(n))).collect();
            let fragments = RangeDeletions::fragment(&deletions);
            for key in 0..21u8 {
                let expected = deletions
                    .iter()
                    .filter(|(s, e, n)| *s <= vec![key] && vec![key] < *e && n.0 <= at)
                    .map(|&(_, _, n)| n)
                    .max();
                prop_assert_eq!(fragments.newest_covering(&[key], Seqno(at)), expected);
            }
            let mut payload = Vec::new();
            fragments.encode(&mut payload);
            prop_assert_eq!(RangeDeletions::decode(&payload), Ok(fragments));
        }

        #[test]
        fn any_bytes_are_refused_or_decoded(bytes: Vec<u8>) {
            let _ = RangeDeletions::decode(&bytes);
        }
    }
}
