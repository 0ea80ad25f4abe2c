//! Whether a key may be in a memtable at all: one word for each key, four bits of it. A miss costs one load of it.
//!
//! A filter for a full memtable has a 64th of its size, too much for one with a few entries: a node has many engines, and
//! most may be idle. So there are [`STAGES`], each large enough for a memtable of a certain size, made when the one
//! before is full and **filled again** with all keys that there are, so that a lookup asks one stage only. The last of
//! them is made when the memtable has 4 MiB: what is filled again is never much.
//!
//! # Readers beside the writer
//!
//! The writer fills the next stage, then points readers to it (release), then publishes the entry. Whoever may see an
//! entry has loaded a moment that was published after the switch, and so finds the stage that has its key. Who reads at
//! an earlier moment finds his keys in either.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::storage::lsm::key::KeyHash;

/// Bytes of a full memtable for each byte of its filter: with entries of 100 bytes that is 12 bits for a key.
const MEMTABLE_PARTS: usize = 64;

/// For which size of a memtable each stage but the last is; that one is for the full memtable.
const STAGE_BYTES: [usize; STAGES - 1] = [256 << 10, 4 << 20];

const STAGES: usize = 3;

/// Bits set for each key.
const PROBES: u32 = 4;

/// Other bits of the hash than those which filters of tables and blocks use.
const MULTIPLIER: u64 = 0xd6e8_feb8_6659_fd93;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Filter {
    /// Size of the full memtable.
    memtable_bytes: usize,
    /// The stage in use; [`STAGES`]: none yet.
    current: AtomicUsize,
    stages: [OnceLock<Words>; STAGES],
}

type Words = Box<[AtomicU64]>;

impl Filter {
    /// For a memtable of `memtable_bytes`, which is empty.
    pub(super) fn new(memtable_bytes: usize) -> Self {
        let stages = [const { OnceLock::new() }; STAGES];
        Self { memtable_bytes, current: AtomicUsize::new(STAGES), stages }
    }

    /// Adds a key to a memtable that has `used_bytes` with it. `keys` are those that it has already. One writer at a time.
    pub(super) fn add(
        &self,
        hash: KeyHash,
        used_bytes: usize,
        keys: impl FnOnce(&mut dyn FnMut(KeyHash)),
    ) {
        let wanted = self.stage_for(used_bytes);
        let current = self.current.load(Ordering::Relaxed);
        if current < STAGES && current >= wanted {
            return self.stages[current].get().into_iter().for_each(|words| add(words, hash));
        }
        let words = self.stages[wanted].get_or_init(|| {
            let words = self.stage_bytes(wanted) / MEMTABLE_PARTS / 8;
            (0..words.max(8)).map(|_| AtomicU64::new(0)).collect()
        });
        keys(&mut |hash| add(words, hash));
        add(words, hash);
        self.current.store(wanted, Ordering::Release);
    }

    /// False is certain, for keys whose entry was published before.
    #[inline]
    pub(super) fn may_contain(&self, hash: KeyHash) -> bool {
        let stage = self.stages.get(self.current.load(Ordering::Acquire));
        stage.and_then(OnceLock::get).is_some_and(|words| {
            let (word, mask) = place(words, hash);
            word.load(Ordering::Relaxed) & mask == mask
        })
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.stages.iter().filter_map(OnceLock::get).map(|words| words.len() * 8).sum()
    }

    /// The first stage that suits a memtable of this size.
    fn stage_for(&self, used_bytes: usize) -> usize {
        let suits = |&bytes: &usize| used_bytes <= bytes && bytes < self.memtable_bytes;
        STAGE_BYTES.iter().position(suits).unwrap_or(STAGES - 1)
    }

    fn stage_bytes(&self, stage: usize) -> usize {
        STAGE_BYTES.get(stage).copied().unwrap_or(self.memtable_bytes)
    }
}

fn add(words: &[AtomicU64], hash: KeyHash) {
    let (word, mask) = place(words, hash);
    let bits = word.load(Ordering::Relaxed);
    if bits & mask != mask {
        // Published with the entry: whoever may see the entry loaded what was stored after this.
        word.store(bits | mask, Ordering::Relaxed);
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a product's high half is below its factor")]
fn place(words: &[AtomicU64], hash: KeyHash) -> (&AtomicU64, u64) {
    let mixed = hash.0.wrapping_mul(MULTIPLIER);
    let index = (u128::from(mixed) * words.len() as u128) >> 64;
    let mut mask = 0;
    for probe in 0..PROBES {
        mask |= 1 << (mixed >> (6 * probe) & 63);
    }
    (&words[index as usize], mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMTABLE_BYTES: usize = 100 << 20;

    fn hash(number: u64) -> KeyHash {
        KeyHash::of(&number.to_be_bytes())
    }

    #[test]
    fn a_filter_grows_with_its_memtable_and_forgets_no_key() {
        let filter = Filter::new(MEMTABLE_BYTES);
        assert_eq!((filter.bytes(), filter.may_contain(hash(0))), (0, false));
        let (keys, key_bytes) = (60_000, 100);
        let mut sizes = Vec::new();
        for number in 0..keys {
            let used_bytes = usize::try_from(number + 1).expect("few") * key_bytes;
            filter.add(hash(number), used_bytes, |add| (0..number).for_each(|key| add(hash(key))));
            if sizes.last() != Some(&filter.bytes()) {
                sizes.push(filter.bytes());
                assert!((0..=number).all(|key| filter.may_contain(hash(key))), "after {number}");
            }
        }
        let stages = [256 << 10, 4 << 20, MEMTABLE_BYTES].map(|bytes| bytes / MEMTABLE_PARTS);
        assert_eq!(sizes, [stages[0], stages[0] + stages[1], stages.iter().sum()]);
        assert!((0..keys).all(|key| filter.may_contain(hash(key))));
        let wrong = (keys..2 * keys).filter(|&key| filter.may_contain(hash(key))).count();
        assert!(
            wrong * 50 < usize::try_from(keys).expect("few"),
            "{wrong} of {keys} missing keys may be there"
        );
    }

    #[test]
    fn a_small_memtable_has_one_stage_of_its_own_size() {
        let filter = Filter::new(64 << 10);
        filter.add(hash(1), 100, |_| {});
        filter.add(hash(2), 60 << 10, |_| unreachable!("there is no next stage"));
        assert_eq!(filter.bytes(), (64 << 10) / MEMTABLE_PARTS);
        assert!(filter.may_contain(hash(1)) && filter.may_contain(hash(2)));
    }
}
