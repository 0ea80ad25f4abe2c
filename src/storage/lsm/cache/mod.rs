//! The block cache: the blocks of all open tables of a process, in main memory, up to one budget.
//!
//! There is no hash table. Each table has an array of **slots**, one for each block ([`Slots`]); a slot is empty or
//! points to a block. Whoever knows the number of a block, and the index of a table knows it, is one load away from
//! it: no lock, no allocation, no count that readers share. What the cache itself keeps are two queues of (table,
//! number), touched only when a block comes or goes.
//!
//! **Who goes** is decided by S3-FIFO (Yang et al., SOSP '23): a new block enters a small queue (a tenth of the budget) and
//! leaves the cache from there unless it was used again meanwhile; then it moves to the main queue, around which it
//! travels for as long as it is used. A scan passes through the small queue and takes nothing from the main one. A
//! block that comes back soon after it left goes to the main queue at once; when it left is noted in its empty slot,
//! so that the list of departed blocks that the paper keeps is not needed.
//!
//! **Concurrent misses** of one block share one read ([`Slots::get_or_read`]).
//!
//! **What is charged**: every block in a slot, with its own overhead, and what tables keep in memory as long as they
//! are open ([`BlockCache::pin`]). Pinned bytes take from the budget for blocks, down to a quarter of it: below that
//! reads would come to a stand, and the owner of too many open tables must close some. A block that takes more than a
//! quarter of the budget is not kept.
//!
//! Invariants: the bytes of the two queues are those of the blocks in slots of open tables; a block is in at most one
//! queue. Lock order: a table's list of reads, then the queues. No file is read under the queues' lock.

mod queues;
mod slots;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use self::queues::Queues;
pub(crate) use self::slots::{Cached, Priority, Slots};
use super::table::Lookups;

/// A block that takes a larger part of the budget than one in this many is not kept.
const BLOCK_PARTS_MIN: usize = 4;

/// Pinned bytes leave at least one part in this many of the budget to blocks.
const FLOOR_PARTS: usize = 4;

/// The blocks of all tables of a process. See the [module](self).
#[derive(Debug)]
pub(crate) struct BlockCache {
    budget_bytes: usize,
    // Own synchronisation.
    pinned_bytes: AtomicUsize,
    reads: AtomicU64,
    queues: Mutex<Queues>,
    lookups: Arc<Lookups>,
}

/// Figures of a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CacheStatus {
    /// What it may hold.
    pub(crate) budget_bytes: usize,
    /// Blocks in slots.
    pub(crate) block_bytes: usize,
    /// How many these are.
    pub(crate) blocks: usize,
    /// What open tables hold outside the queues.
    pub(crate) pinned_bytes: usize,
    /// Blocks read from files, since the start. Hits are not counted: that would make readers share a counter.
    pub(crate) reads: u64,
    /// Blocks pushed out, since the start.
    pub(crate) evictions: u64,
}

impl BlockCache {
    /// An empty cache of `budget_bytes`; 0 keeps nothing.
    pub(crate) fn new(budget_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            budget_bytes,
            pinned_bytes: AtomicUsize::new(0),
            reads: AtomicU64::new(0),
            queues: Mutex::new(Queues::default()),
            lookups: Arc::default(),
        })
    }

    /// Charges `bytes` for as long as the guard lives.
    pub(crate) fn pin(self: &Arc<Self>, bytes: usize) -> Pinned {
        self.pinned_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.queues.lock().shrink(self.block_budget_bytes());
        Pinned { cache: Arc::clone(self), bytes }
    }

    /// The counts of point reads in all tables of the cache.
    pub(crate) const fn lookups(&self) -> &Arc<Lookups> {
        &self.lookups
    }

    /// The figures now.
    pub(crate) fn status(&self) -> CacheStatus {
        let queues = self.queues.lock();
        CacheStatus {
            budget_bytes: self.budget_bytes,
            block_bytes: queues.bytes(),
            blocks: queues.blocks(),
            pinned_bytes: self.pinned_bytes.load(Ordering::Relaxed),
            reads: self.reads.load(Ordering::Relaxed),
            evictions: queues.evictions(),
        }
    }

    /// Whether a block of that size is kept at all.
    const fn takes(&self, bytes: usize) -> bool {
        bytes <= self.budget_bytes / BLOCK_PARTS_MIN
    }

    /// What blocks may take now.
    fn block_budget_bytes(&self) -> usize {
        let pinned = self.pinned_bytes.load(Ordering::Relaxed);
        self.budget_bytes.saturating_sub(pinned).max(self.budget_bytes / FLOOR_PARTS)
    }
}

/// Bytes charged to a cache until this is dropped.
#[derive(Debug)]
pub(crate) struct Pinned {
    cache: Arc<BlockCache>,
    bytes: usize,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.cache.pinned_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
