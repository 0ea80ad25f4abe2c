//! The contents of one memory engine as a plain value: the map, an index for reads of single keys, the order in which entries expire,
//! and the counters.
//!
//! Invariants:
//! * `index` holds exactly what `map` holds.
//! * `expiries` holds exactly the pairs (expiry, key) of the entries in `map` that have one.
//! * `keys` and `bytes` count exactly the entries in `map` whose key is not reserved. Hidden entries count until they are
//!   reclaimed.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Bound, Deref};

use bytes::Bytes;
use imbl::OrdMap;

use crate::storage::{Entry, EntryRef, KeyRange, Operation, RESERVED_PREFIX, Seqno, WriteBatch};
use crate::util::time::Timestamp;

/// Entries by key; copies share their nodes.
pub(super) type Map = OrdMap<RowKey, Row>;

/// Longest key that lies in the map's nodes: what makes both kinds of keys take the same place.
const SHORT_BYTES_MAX: usize = 38;

/// A key of the map. Short keys lie in its nodes, so that a search follows no pointer to compare them: these were a third of the time
/// of a read.
#[derive(Clone)]
pub(super) enum RowKey {
    Short { length: u8, bytes: [u8; SHORT_BYTES_MAX] },
    Long(Bytes),
}

impl RowKey {
    pub(super) fn new(key: &[u8]) -> Self {
        match u8::try_from(key.len()) {
            Ok(length) if key.len() <= SHORT_BYTES_MAX => {
                let mut bytes = [0; SHORT_BYTES_MAX];
                bytes[..key.len()].copy_from_slice(key);
                Self::Short { length, bytes }
            }
            _ => Self::Long(Bytes::copy_from_slice(key)),
        }
    }
}

impl Deref for RowKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for RowKey {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Ord for RowKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl PartialOrd for RowKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for RowKey {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for RowKey {}

/// As the bytes, by which it is looked up.
impl Hash for RowKey {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (**self).hash(hasher);
    }
}

impl fmt::Debug for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// What an entry costs besides its bytes: its places in tree and index, and a reference-counted buffer. An estimate.
const ENTRY_OVERHEAD_BYTES: u64 = 260;

/// A value with its expiry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    value: Bytes,
    expires_at: Option<Timestamp>,
}

impl Row {
    /// Whether reads at `clock` see it.
    pub(super) fn is_visible(&self, clock: Timestamp) -> bool {
        self.expires_at.is_none_or(|expires_at| expires_at > clock)
    }

    pub(super) fn as_entry<'a>(&'a self, key: &'a [u8]) -> EntryRef<'a> {
        EntryRef { key, value: &self.value, expires_at: self.expires_at }
    }

    pub(super) fn to_entry(&self) -> Entry {
        Entry { value: self.value.clone(), expires_at: self.expires_at }
    }
}

/// The entries of `map` from `start` to before `end`.
pub(super) fn range<'a>(
    map: &'a Map,
    start: &[u8],
    end: Option<&[u8]>,
) -> impl DoubleEndedIterator<Item = (&'a RowKey, &'a Row)> {
    let end = end.map_or(Bound::Unbounded, Bound::Excluded);
    map.range::<_, [u8]>((Bound::Included(start), end))
}

/// One engine's contents.
#[derive(Debug, Default)]
pub(super) struct State {
    map: Map,
    /// One or two cache misses for a read, where the tree takes a dozen.
    index: HashMap<RowKey, Row>,
    expiries: BTreeSet<(Timestamp, RowKey)>,
    clock: Timestamp,
    seqno: Seqno,
    keys: u64,
    bytes: u64,
}

impl State {
    /// Empty, at `clock` and `seqno`.
    pub(super) fn at(clock: Timestamp, seqno: Seqno) -> Self {
        Self { clock, seqno, ..Self::default() }
    }

    pub(super) const fn map(&self) -> &Map {
        &self.map
    }

    /// The row under `key`, unless the clock hides it.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Row> {
        self.index.get(key).filter(|row| row.is_visible(self.clock))
    }

    pub(super) const fn clock(&self) -> Timestamp {
        self.clock
    }

    pub(super) const fn seqno(&self) -> Seqno {
        self.seqno
    }

    pub(super) const fn keys(&self) -> u64 {
        self.keys
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// An estimate of the main memory it takes.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.bytes + self.map.len() as u64 * ENTRY_OVERHEAD_BYTES
    }

    /// The earliest expiry after the clock.
    pub(super) fn next_expiry(&self) -> Option<Timestamp> {
        let after_clock = Timestamp::from_millis(self.clock.as_millis().checked_add(1)?);
        self.expiries.range((after_clock, RowKey::new(&[]))..).next().map(|(at, _)| *at)
    }

    /// Applies a batch that was checked.
    pub(super) fn apply(&mut self, batch: &WriteBatch) -> Seqno {
        self.clock = self.clock.max(batch.clock());
        for operation in batch.operations() {
            match operation {
                Operation::Put { key, value, expires_at } => self.put(key, value, expires_at),
                Operation::Delete { key } => self.remove(key),
                Operation::DeleteRange { start, end } => self.remove_range(start, end),
            }
        }
        self.seqno = Seqno(self.seqno.0 + 1);
        self.seqno
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8], expires_at: Option<Timestamp>) {
        self.remove(key);
        let row = Row { value: Bytes::copy_from_slice(value), expires_at };
        if !row.is_visible(self.clock) {
            return;
        }
        let key = RowKey::new(key);
        if let Some(expires_at) = expires_at {
            self.expiries.insert((expires_at, key.clone()));
        }
        if is_counted(&key) {
            self.keys += 1;
            self.bytes += size_bytes(&key, &row);
        }
        self.index.insert(key.clone(), row.clone());
        self.map.insert(key, row);
    }

    /// Drops up to `count_max` entries that the clock hides; returns how many.
    pub(super) fn reclaim(&mut self, count_max: usize) -> usize {
        for count in 0..count_max {
            match self.expiries.first() {
                Some((expires_at, key)) if *expires_at <= self.clock => {
                    let key = key.clone();
                    self.remove(&key);
                }
                _ => return count,
            }
        }
        count_max
    }

    fn remove(&mut self, key: &[u8]) {
        let Some((key, row)) = self.index.remove_entry(key) else { return };
        self.map.remove(&*key);
        if is_counted(&key) {
            self.keys -= 1;
            self.bytes -= size_bytes(&key, &row);
        }
        if let Some(expires_at) = row.expires_at {
            self.expiries.remove(&(expires_at, key));
        }
    }

    fn remove_range(&mut self, start: &[u8], end: &[u8]) {
        if KeyRange::new(start, Some(end)).is_empty() {
            return;
        }
        let keys: Vec<RowKey> =
            range(&self.map, start, Some(end)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.remove(&key);
        }
    }
}

fn is_counted(key: &[u8]) -> bool {
    key.first() != Some(&RESERVED_PREFIX)
}

fn size_bytes(key: &[u8], row: &Row) -> u64 {
    (key.len() + row.value.len()) as u64
}
