//! Writes data blocks; [`block`](super::block) reads them and tells their bytes.
//!
//! Bundles are encoded as soon as they are full, so that the size of the block is known exactly but for the open
//! bundle, and a block can be closed just below the size it is meant to have.

use std::cmp::{max, min};

use super::block::{EXPIRY_BYTES, MASK_FINGERPRINTS, TRAILER_BYTES, fingerprint};
use crate::storage::lsm::key::{InternalEntry, KeyHash, Kind, common_prefix};

/// Largest offset that is stored in two bytes.
const NARROW_MAX: usize = u16::MAX as usize;

/// A block is dense in tombstones from this many on, or when they are half of its bytes (Pebble's rule): reading over
/// them costs more than the live entries are worth, so that compaction should come early.
const DENSE_TOMBSTONES: usize = 100;

/// Collects the entries of one data block. Reused from block to block.
pub(crate) struct BlockBuilder {
    bundle_entries: usize,
    fingerprinted: bool,
    /// Encoded bundles: prefix, then suffixes.
    keys: Vec<u8>,
    /// Ends of prefixes and suffixes within `keys`.
    key_ends: Vec<u32>,
    values: Vec<u8>,
    value_ends: Vec<u32>,
    ordinals: Vec<u64>,
    fingerprints: Vec<u8>,
    /// Whole keys of the bundle that is not full yet.
    open: Vec<u8>,
    open_ends: Vec<usize>,
    /// Bytes that all of them begin with.
    open_prefix: usize,
    ordinal_min: u64,
    ordinal_max: u64,
    tombstones: usize,
    tombstone_bytes: usize,
    raw_bytes: usize,
}

impl BlockBuilder {
    /// An empty block. `bundle_entries` must be a power of two up to 128.
    pub(crate) fn new(bundle_entries: usize, fingerprinted: bool) -> Self {
        assert!(
            bundle_entries.is_power_of_two() && bundle_entries <= 128,
            "a bundle has a power of two of keys, up to 128; not {bundle_entries}"
        );
        Self {
            bundle_entries,
            fingerprinted,
            keys: Vec::new(),
            key_ends: Vec::new(),
            values: Vec::new(),
            value_ends: Vec::new(),
            ordinals: Vec::new(),
            fingerprints: Vec::new(),
            open: Vec::new(),
            open_ends: Vec::new(),
            open_prefix: 0,
            ordinal_min: u64::MAX,
            ordinal_max: 0,
            tombstones: 0,
            tombstone_bytes: 0,
            raw_bytes: 0,
        }
    }

    /// Number of entries.
    pub(crate) const fn len(&self) -> usize {
        self.ordinals.len()
    }

    /// Whether there is none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.ordinals.is_empty()
    }

    /// Whether the block counts as dense in tombstones.
    pub(crate) const fn is_dense(&self) -> bool {
        self.tombstones >= DENSE_TOMBSTONES
            || (self.tombstones > 0 && self.tombstone_bytes * 2 >= self.raw_bytes)
    }

    /// Bytes of the block as it is.
    pub(crate) fn size_bytes(&self) -> usize {
        let open = self.open.len() - self.open_ends.len().saturating_sub(1) * self.open_prefix;
        let keys = self.keys.len() + if self.open_ends.is_empty() { 0 } else { open };
        let width = ordinal_width(self.ordinal_min, self.ordinal_max);
        self.size_of(self.len(), keys, self.values.len(), width)
    }

    /// Bytes the block would have with `entry` in it.
    pub(crate) fn size_with(&self, entry: &InternalEntry<'_>) -> usize {
        let packed = entry.ordinal().packed();
        let width = ordinal_width(min(self.ordinal_min, packed), max(self.ordinal_max, packed));
        let shared = match self.open_ends.len() {
            0 => entry.key.len(),
            _ => min(self.open_prefix, common_prefix(self.first_open(), entry.key)),
        };
        // What they share is stored once; so one of the open keys, as it were, is stored whole.
        let open = self.open.len() + entry.key.len() - self.open_ends.len() * shared;
        let expiry = if entry.kind == Kind::PutTtl { EXPIRY_BYTES } else { 0 };
        let values = self.values.len() + expiry + entry.value.len();
        self.size_of(self.len() + 1, self.keys.len() + open, values, width)
    }

    const fn size_of(&self, count: usize, keys: usize, values: usize, width: usize) -> usize {
        let ends = count + count.div_ceil(self.bundle_entries) + count;
        let fingerprints = if self.fingerprinted { count } else { 0 };
        keys + values
            + count * width
            + ends * offset_width(keys, values)
            + fingerprints
            + TRAILER_BYTES
    }

    /// Adds an entry; the caller keeps the order.
    pub(crate) fn add(&mut self, entry: &InternalEntry<'_>, hash: KeyHash) {
        if self.open_ends.is_empty() {
            self.open_prefix = entry.key.len();
        } else {
            let shared = common_prefix(self.first_open(), entry.key);
            self.open_prefix = min(self.open_prefix, shared);
        }
        self.open.extend_from_slice(entry.key);
        self.open_ends.push(self.open.len());
        if let Some(expires_at) = entry.expires_at {
            self.values.extend_from_slice(&expires_at.as_millis().to_le_bytes());
        }
        self.values.extend_from_slice(entry.value);
        self.value_ends.push(offset(self.values.len()));
        let packed = entry.ordinal().packed();
        self.ordinal_min = min(self.ordinal_min, packed);
        self.ordinal_max = max(self.ordinal_max, packed);
        self.ordinals.push(packed);
        if self.fingerprinted {
            self.fingerprints.push(fingerprint(hash));
        }
        self.count(entry);
        if self.open_ends.len() == self.bundle_entries {
            self.close_bundle();
        }
    }

    fn count(&mut self, entry: &InternalEntry<'_>) {
        let bytes = entry.key.len() + entry.value.len();
        self.raw_bytes += bytes;
        if entry.kind == Kind::Delete {
            self.tombstones += 1;
            self.tombstone_bytes += bytes;
        }
    }

    /// Appends the block's payload to `out` and starts over.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        assert!(!self.is_empty(), "a data block holds at least one entry");
        self.close_bundle();
        out.extend_from_slice(&self.values);
        out.extend_from_slice(&self.keys);
        let ordinal_width = ordinal_width(self.ordinal_min, self.ordinal_max);
        for packed in &self.ordinals {
            let delta = (packed - self.ordinal_min).to_le_bytes();
            out.extend_from_slice(&delta[..ordinal_width]);
        }
        let offset_width = offset_width(self.keys.len(), self.values.len());
        for end in self.key_ends.iter().chain(&self.value_ends) {
            out.extend_from_slice(&end.to_le_bytes()[..offset_width]);
        }
        out.extend_from_slice(&self.fingerprints);

        out.extend_from_slice(&self.ordinal_min.to_le_bytes());
        for number in [self.len(), self.values.len(), self.keys.len()] {
            out.extend_from_slice(&offset(number).to_le_bytes());
        }
        let shift = u8::try_from(self.bundle_entries.trailing_zeros()).expect("at most seven");
        let widths = [offset_width, ordinal_width].map(|width| width.to_le_bytes()[0]);
        let flags = if self.fingerprinted { MASK_FINGERPRINTS } else { 0 };
        out.extend_from_slice(&[shift, widths[0], widths[1], flags]);
        self.clear();
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.key_ends.clear();
        self.values.clear();
        self.value_ends.clear();
        self.ordinals.clear();
        self.fingerprints.clear();
        (self.ordinal_min, self.ordinal_max) = (u64::MAX, 0);
        (self.tombstones, self.tombstone_bytes, self.raw_bytes) = (0, 0, 0);
    }

    fn first_open(&self) -> &[u8] {
        self.open_ends.first().map_or(&[], |&end| &self.open[..end])
    }

    fn close_bundle(&mut self) {
        if self.open_ends.is_empty() {
            return;
        }
        let prefix = self.open_prefix;
        self.keys.extend_from_slice(&self.open[..prefix]);
        self.key_ends.push(offset(self.keys.len()));
        let mut start = 0;
        for &end in &self.open_ends {
            self.keys.extend_from_slice(&self.open[start + prefix..end]);
            self.key_ends.push(offset(self.keys.len()));
            start = end;
        }
        self.open.clear();
        self.open_ends.clear();
    }
}

/// Bytes that hold every difference between packed ordinals of a block.
const fn ordinal_width(min: u64, max: u64) -> usize {
    // Of an empty block the least is above the greatest.
    match max.saturating_sub(min) {
        0 => 0,
        0x01..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    }
}

const fn offset_width(keys: usize, values: usize) -> usize {
    if keys <= NARROW_MAX && values <= NARROW_MAX { 2 } else { 4 }
}

fn offset(value: usize) -> u32 {
    u32::try_from(value).expect("a block is far smaller than 4 GiB")
}
