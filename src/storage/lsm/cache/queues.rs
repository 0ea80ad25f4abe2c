//! The two queues of S3-FIFO: which block goes when there is no room.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Weak;

/// The part of the budget that the small queue may take before it is the one that gives.
const SMALL_PARTS: usize = 10;

/// The queues are swept when more than this many items of closed tables are in them and they are more than half.
const STALE_MIN: usize = 1024;

/// The slots of one table, as the queues see them. Called under the lock of the queues.
pub(super) trait Owner: fmt::Debug + Send + Sync {
    /// Whether the table was closed: its blocks are not charged any more.
    fn is_closed(&self) -> bool;

    /// How often block `index` was used since it was last asked, up to a few; takes one off when `spend`.
    fn usage(&self, index: u32, spend: bool) -> u8;

    /// Empties slot `index` and notes that this was the eviction number `now`.
    fn evict(&self, index: u32, now: u32);

    /// Notes that `bytes` went from one queue to another, or away.
    fn moved(&self, from: Queue, to: Option<Queue>, bytes: usize);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    Small,
    Main,
}

#[derive(Debug)]
struct Item {
    owner: Weak<dyn Owner>,
    index: u32,
    bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Queues {
    small: VecDeque<Item>,
    main: VecDeque<Item>,
    /// Without the items of closed tables.
    small_bytes: usize,
    main_bytes: usize,
    /// Items of closed tables that are still queued.
    stale: usize,
    evictions: u64,
}

impl Queues {
    pub(super) const fn bytes(&self) -> usize {
        self.small_bytes + self.main_bytes
    }

    pub(super) fn blocks(&self) -> usize {
        self.small.len() + self.main.len() - self.stale
    }

    #[cfg(test)]
    pub(super) fn items(&self) -> usize {
        self.small.len() + self.main.len()
    }

    pub(super) const fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Numbers evictions, wrapping; never zero, which stands for "never".
    fn now(&self) -> u32 {
        u32::try_from(self.evictions & 0x7fff_ffff).expect("31 bits") | 1 << 31
    }

    /// Whether a block that left at eviction `then` left so recently that it should have stayed: not more evictions
    /// ago than there are blocks in the main queue.
    pub(super) fn left_recently(&self, then: u32) -> bool {
        let ago = self.now().wrapping_sub(then) & 0x7fff_ffff;
        then != 0 && (ago as usize) <= self.main.len()
    }

    /// Queues a block that was put into its slot.
    pub(super) fn push(&mut self, queue: Queue, owner: Weak<dyn Owner>, index: u32, bytes: usize) {
        let item = Item { owner, index, bytes };
        match queue {
            Queue::Small => {
                self.small_bytes += bytes;
                self.small.push_back(item);
            }
            Queue::Main => {
                self.main_bytes += bytes;
                self.main.push_back(item);
            }
        }
    }

    /// A table was closed, which had so many bytes and blocks here.
    pub(super) fn forget(&mut self, small_bytes: usize, main_bytes: usize, blocks: usize) {
        self.small_bytes -= small_bytes;
        self.main_bytes -= main_bytes;
        self.stale += blocks;
        if self.stale > STALE_MIN.max(usize::midpoint(self.small.len(), self.main.len())) {
            let live = |item: &Item| item.owner.upgrade().is_some_and(|owner| !owner.is_closed());
            self.small.retain(live);
            self.main.retain(live);
            self.stale = 0;
        }
    }

    /// Evicts until the blocks take at most `budget_bytes`.
    pub(super) fn shrink(&mut self, budget_bytes: usize) {
        // Readers may use blocks as fast as they are passed over; after this many steps they have no say any more.
        let mut patience = 4 * (self.small.len() + self.main.len());
        while self.bytes() > budget_bytes {
            let from_small = self.small_bytes > budget_bytes / SMALL_PARTS || self.main.is_empty();
            if from_small {
                self.pass_small();
            } else {
                self.pass_main(patience > 0);
            }
            patience = patience.saturating_sub(1);
        }
    }

    /// The oldest of the small queue: to the main queue when it was used again, else out.
    fn pass_small(&mut self) {
        let Some(item) = self.small.pop_front() else { return };
        let Some(owner) = item.owner.upgrade().filter(|owner| !owner.is_closed()) else {
            self.stale -= 1;
            return;
        };
        self.small_bytes -= item.bytes;
        if owner.usage(item.index, true) > 0 {
            owner.moved(Queue::Small, Some(Queue::Main), item.bytes);
            self.main_bytes += item.bytes;
            self.main.push_back(item);
        } else {
            owner.moved(Queue::Small, None, item.bytes);
            self.evictions += 1;
            owner.evict(item.index, self.now());
        }
    }

    /// The oldest of the main queue: around once more when it was used, else out.
    fn pass_main(&mut self, patient: bool) {
        let Some(item) = self.main.pop_front() else { return };
        let Some(owner) = item.owner.upgrade().filter(|owner| !owner.is_closed()) else {
            self.stale -= 1;
            return;
        };
        if patient && owner.usage(item.index, true) > 0 {
            self.main.push_back(item);
        } else {
            self.main_bytes -= item.bytes;
            owner.moved(Queue::Main, None, item.bytes);
            self.evictions += 1;
            owner.evict(item.index, self.now());
        }
    }
}
