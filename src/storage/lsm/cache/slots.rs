//! The slots of one table: where its blocks are while they are in memory.
//!
//! A slot is an [`ArcSwapOption`]: a load notes the block in a list of the thread itself, not in a count that all threads
//! write; a store waits for nobody. That is what epochs or hazard pointers would do, without unsafe code here.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::Mutex;

use super::BlockCache;
use super::queues::{Owner, Queue};
use crate::storage::Result;

/// Uses counted for a block between two visits of its queue; more make no difference.
const USAGE_MAX: u8 = 3;

/// What a block takes beside its own bytes: counts of references and uses, and its item in a queue.
pub(super) const BLOCK_OVERHEAD_BYTES: usize = 64;

/// Where a block starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// In the small queue: it must be used again to stay.
    Data,
    /// In the main queue, as if it had been used often: filters and indexes, which many keys need.
    Meta,
}

/// A block with what the cache must know of it.
#[derive(Debug)]
pub(crate) struct Cached<T> {
    usage: AtomicU8,
    block: T,
}

impl<T> Cached<T> {
    /// A block that no cache has yet.
    pub(crate) const fn new(block: T) -> Self {
        Self { usage: AtomicU8::new(0), block }
    }

    /// The block.
    #[inline]
    pub(crate) const fn block(&self) -> &T {
        &self.block
    }

    /// Notes a use. Writes only the first few times, so that a hot block does not wander between processors.
    #[inline]
    fn touch(&self) {
        let usage = self.usage.load(Ordering::Relaxed);
        if usage < USAGE_MAX {
            self.usage.store(usage + 1, Ordering::Relaxed);
        }
    }
}

/// The slots of one table and one kind of block. Dropping it takes its blocks out of the cache.
#[derive(Debug)]
pub(crate) struct Slots<T: std::fmt::Debug + Send + Sync + 'static> {
    cache: Arc<BlockCache>,
    priority: Priority,
    inner: Arc<Inner<T>>,
    /// Reads that are under way, one for each block; as many as there are threads in a miss.
    reads: Mutex<Vec<(u32, Arc<SharedRead<T>>)>>,
}

type SharedRead<T> = OnceLock<Result<Arc<Cached<T>>>>;

#[derive(Debug)]
struct Inner<T> {
    slots: Box<[Slot<T>]>,
    // Written under the lock of the queues.
    closed: AtomicBool,
    small_bytes: AtomicUsize,
    main_bytes: AtomicUsize,
    blocks: AtomicUsize,
}

#[derive(Debug)]
struct Slot<T> {
    block: ArcSwapOption<Cached<T>>,
    /// The eviction that emptied it; 0: none did.
    evicted: AtomicU32,
}

impl<T: std::fmt::Debug + Send + Sync + 'static> Slots<T> {
    /// `count` empty slots.
    pub(crate) fn new(cache: &Arc<BlockCache>, count: u32, priority: Priority) -> Self {
        let slot = |_| Slot { block: ArcSwapOption::const_empty(), evicted: AtomicU32::new(0) };
        let inner = Inner {
            slots: (0..count).map(slot).collect(),
            closed: AtomicBool::new(false),
            small_bytes: AtomicUsize::new(0),
            main_bytes: AtomicUsize::new(0),
            blocks: AtomicUsize::new(0),
        };
        Self {
            cache: Arc::clone(cache),
            priority,
            inner: Arc::new(inner),
            reads: Mutex::new(Vec::new()),
        }
    }

    /// Bytes that the slots themselves take.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.inner.slots.len() * size_of::<Slot<T>>()
    }

    /// Block `index`, when it is in memory. Takes no lock and allocates nothing; the guard must be short-lived: a
    /// thread has few that are cheap.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<Held<T>> {
        let guard = self.inner.slots[index as usize].block.load();
        guard.as_ref()?.touch();
        Some(Held(guard))
    }

    /// Block `index`, to be kept for a while.
    pub(crate) fn get_owned(&self, index: u32) -> Option<Arc<Cached<T>>> {
        let block = self.inner.slots[index as usize].block.load_full()?;
        block.touch();
        Some(block)
    }

    /// Block `index`, from memory or by `read`, which also says how many bytes it takes. Threads that miss the same
    /// block at the same time wait for one `read`, and get its error as well.
    pub(crate) fn get_or_read(
        &self,
        index: u32,
        read: impl FnOnce() -> Result<(T, usize)>,
    ) -> Result<Arc<Cached<T>>> {
        if let Some(block) = self.get_owned(index) {
            return Ok(block);
        }
        let shared = self.join(index);
        let result = shared.get_or_init(|| {
            // Between the look at the slot and joining, another read may have begun and ended.
            if let Some(block) = self.get_owned(index) {
                return Ok(block);
            }
            let (block, bytes) = read()?;
            self.cache.reads.fetch_add(1, Ordering::Relaxed);
            Ok(self.insert(index, block, bytes))
        });
        self.leave(index, &shared);
        result.clone()
    }

    /// How many threads are in a read of block `index`.
    #[cfg(test)]
    pub(super) fn waiting(&self, index: u32) -> usize {
        let reads = self.reads.lock();
        let read = reads.iter().find(|(number, _)| *number == index);
        // One reference is the list's.
        read.map_or(0, |(_, shared)| Arc::strong_count(shared) - 1)
    }

    fn join(&self, index: u32) -> Arc<SharedRead<T>> {
        let mut reads = self.reads.lock();
        if let Some((_, shared)) = reads.iter().find(|(number, _)| *number == index) {
            return Arc::clone(shared);
        }
        let shared = Arc::new(OnceLock::new());
        reads.push((index, Arc::clone(&shared)));
        shared
    }

    /// Whoever comes first takes the read off the list; one of the same block that began later stays on it.
    fn leave(&self, index: u32, shared: &Arc<SharedRead<T>>) {
        let mut reads = self.reads.lock();
        let same = |(number, other): &(u32, Arc<SharedRead<T>>)| {
            *number == index && Arc::ptr_eq(other, shared)
        };
        if let Some(position) = reads.iter().position(same) {
            reads.swap_remove(position);
        }
    }

    fn insert(&self, index: u32, block: T, bytes: usize) -> Arc<Cached<T>> {
        let bytes = bytes + BLOCK_OVERHEAD_BYTES;
        let block = Arc::new(Cached::new(block));
        if !self.cache.takes(bytes) {
            return block;
        }
        let slot = &self.inner.slots[index as usize];
        let mut queues = self.cache.queues.lock();
        let queue = match self.priority {
            Priority::Meta => {
                block.usage.store(USAGE_MAX, Ordering::Relaxed);
                Queue::Main
            }
            Priority::Data if queues.left_recently(slot.evicted.load(Ordering::Relaxed)) => {
                Queue::Main
            }
            Priority::Data => Queue::Small,
        };
        // One read at a time fills a slot, so that it is empty here.
        slot.block.store(Some(Arc::clone(&block)));
        self.inner.bytes_in(queue).fetch_add(bytes, Ordering::Relaxed);
        self.inner.blocks.fetch_add(1, Ordering::Relaxed);
        let owner: Weak<Inner<T>> = Arc::downgrade(&self.inner);
        queues.push(queue, owner, index, bytes);
        queues.shrink(self.cache.block_budget_bytes());
        block
    }
}

impl<T: std::fmt::Debug + Send + Sync + 'static> Drop for Slots<T> {
    fn drop(&mut self) {
        let mut queues = self.cache.queues.lock();
        // The queues hold weak references, so the blocks are freed with the last strong one: here, or at the end of an
        // eviction that is under way. `Inner` must not lock anything when it is dropped.
        self.inner.closed.store(true, Ordering::Relaxed);
        let take = |counter: &AtomicUsize| counter.swap(0, Ordering::Relaxed);
        let small_bytes = take(&self.inner.small_bytes);
        let main_bytes = take(&self.inner.main_bytes);
        queues.forget(small_bytes, main_bytes, take(&self.inner.blocks));
    }
}

impl<T> Inner<T> {
    const fn bytes_in(&self, queue: Queue) -> &AtomicUsize {
        match queue {
            Queue::Small => &self.small_bytes,
            Queue::Main => &self.main_bytes,
        }
    }
}

impl<T: std::fmt::Debug + Send + Sync> Owner for Inner<T> {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn usage(&self, index: u32, spend: bool) -> u8 {
        let block = self.slots[index as usize].block.load();
        let Some(block) = block.as_ref() else { return 0 };
        let usage = block.usage.load(Ordering::Relaxed);
        if spend && usage > 0 {
            block.usage.store(usage - 1, Ordering::Relaxed);
        }
        usage
    }

    fn evict(&self, index: u32, now: u32) {
        let slot = &self.slots[index as usize];
        slot.evicted.store(now, Ordering::Relaxed);
        slot.block.store(None);
        self.blocks.fetch_sub(1, Ordering::Relaxed);
    }

    fn moved(&self, from: Queue, to: Option<Queue>, bytes: usize) {
        self.bytes_in(from).fetch_sub(bytes, Ordering::Relaxed);
        if let Some(to) = to {
            self.bytes_in(to).fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// A block that stays while this lives, also when it leaves the cache.
pub(crate) struct Held<T>(Guard<Option<Arc<Cached<T>>>>);

impl<T> std::ops::Deref for Held<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0.as_ref().expect("only made from a slot that is not empty").block()
    }
}
