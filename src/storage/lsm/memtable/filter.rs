//! Whether a key may be in a memtable at all: one word for each key, four bits of it. A miss costs one load.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::storage::lsm::key::KeyHash;

/// Bytes of a full memtable for each byte of its filter: with entries of 100 bytes that is 12 bits for a key.
const MEMTABLE_PARTS: usize = 64;

/// Bits set for each key.
const PROBES: u32 = 4;

/// Other bits of the hash than those which filters of tables and blocks use.
const MULTIPLIER: u64 = 0xd6e8_feb8_6659_fd93;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Filter {
    words: Box<[AtomicU64]>,
}

impl Filter {
    /// For a memtable of `memtable_bytes`.
    pub(super) fn new(memtable_bytes: usize) -> Self {
        let words = (memtable_bytes / MEMTABLE_PARTS / 8).max(8);
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds a key. One writer at a time.
    pub(super) fn add(&self, hash: KeyHash) {
        let (word, mask) = self.place(hash);
        let bits = word.load(Ordering::Relaxed);
        if bits & mask != mask {
            // Published with the entry: whoever may see the entry loaded what was stored after this.
            word.store(bits | mask, Ordering::Relaxed);
        }
    }

    /// False is certain, for keys whose entry was published before.
    #[inline]
    pub(super) fn may_contain(&self, hash: KeyHash) -> bool {
        let (word, mask) = self.place(hash);
        word.load(Ordering::Relaxed) & mask == mask
    }

    pub(super) fn bytes(&self) -> usize {
        self.words.len() * 8
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a product's high half is below its factor"
    )]
    fn place(&self, hash: KeyHash) -> (&AtomicU64, u64) {
        let mixed = hash.0.wrapping_mul(MULTIPLIER);
        let index = (u128::from(mixed) * self.words.len() as u128) >> 64;
        let mut mask = 0;
        for probe in 0..PROBES {
            mask |= 1 << (mixed >> (6 * probe) & 63);
        }
        (&self.words[index as usize], mask)
    }
}
