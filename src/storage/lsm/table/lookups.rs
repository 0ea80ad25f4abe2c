//! How often filters and the cache answer point reads: counted for one lookup in [`SAMPLE`] of each thread, so that those who read
//! share no counter on their way.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// One lookup in so many is counted, for all of them.
const SAMPLE: u32 = 64;

thread_local! {
    static TURN: Cell<u32> = const { Cell::new(0) };
}

/// Counts of all tables that share a cache, by estimate.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    filtered: AtomicU64,
    found: AtomicU64,
    missed: AtomicU64,
    cached: AtomicU64,
    read: AtomicU64,
}

/// The counts at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LookupCounts {
    /// Lookups that a filter ended.
    pub(crate) filtered: u64,
    /// Lookups that a filter let pass and that found their key.
    pub(crate) found: u64,
    /// Lookups that a filter let pass for nothing.
    pub(crate) missed: u64,
    /// Data blocks that were in the cache.
    pub(crate) cached: u64,
    /// Data blocks that were read.
    pub(crate) read: u64,
}

impl Lookups {
    /// Itself when the present lookup of this thread is to be counted.
    #[inline]
    pub(super) fn sample(&self) -> Option<&Self> {
        let turn = TURN.with(|turn| {
            turn.set(turn.get().wrapping_add(1));
            turn.get()
        });
        turn.is_multiple_of(SAMPLE).then_some(self)
    }

    pub(super) fn count_filtered(&self) {
        add(&self.filtered);
    }

    pub(super) fn count_passed(&self, cached: bool, found: bool) {
        add(if cached { &self.cached } else { &self.read });
        add(if found { &self.found } else { &self.missed });
    }

    pub(crate) fn counts(&self) -> LookupCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LookupCounts {
            filtered: read(&self.filtered),
            found: read(&self.found),
            missed: read(&self.missed),
            cached: read(&self.cached),
            read: read(&self.read),
        }
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(u64::from(SAMPLE), Ordering::Relaxed);
}
