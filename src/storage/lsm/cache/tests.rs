//! What the cache promises: its budget, one read for each miss, and that scans take nothing from what is hot.

use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{BlockCache, Priority, Slots};
use crate::storage::Error;

const BLOCK_BYTES: usize = 1000;
/// What a block of `BLOCK_BYTES` is charged.
const CHARGE: usize = BLOCK_BYTES + super::slots::BLOCK_OVERHEAD_BYTES;

fn slots(cache: &Arc<BlockCache>, count: u32) -> Slots<u32> {
    Slots::new(cache, count, Priority::Data)
}

/// Reads block `index`; whether it was a miss.
fn misses(slots: &Slots<u32>, index: u32) -> bool {
    let mut missed = false;
    let block = slots
        .get_or_read(index, || {
            missed = true;
            Ok((index, BLOCK_BYTES))
        })
        .expect("no error was made");
    assert_eq!(*block.block(), index);
    missed
}

#[test]
fn blocks_stay_up_to_the_budget_and_not_above() {
    let cache = BlockCache::new(50 * CHARGE);
    let slots = slots(&cache, 1000);
    for index in 0..1000 {
        assert!(misses(&slots, index));
        assert!(cache.status().block_bytes <= 50 * CHARGE);
    }
    let status = cache.status();
    assert_eq!((status.blocks, status.evictions, status.reads), (50, 950, 1000));
    assert_eq!((0..1000).filter(|&index| slots.get(index).is_some()).count(), 50);
}

#[test]
fn a_scan_takes_nothing_from_what_is_hot() {
    let cache = BlockCache::new(100 * CHARGE);
    let slots = slots(&cache, 10_000);
    for _ in 0..4 {
        (0..80).for_each(|index| {
            misses(&slots, index);
        });
    }
    for index in 1000..5000 {
        assert!(misses(&slots, index));
    }
    let lost = (0..80).filter(|&index| misses(&slots, index)).count();
    assert_eq!(lost, 0, "of 80 hot blocks");
}

#[test]
fn a_block_that_comes_back_soon_stays() {
    let cache = BlockCache::new(100 * CHARGE);
    let slots = slots(&cache, 10_000);
    // A main queue that remembers: blocks used twice.
    for _ in 0..2 {
        (0..90).for_each(|index| {
            misses(&slots, index);
        });
    }
    (500..520).for_each(|index| {
        misses(&slots, index);
    });
    assert!(slots.get(500).is_none(), "it was pushed out");
    misses(&slots, 500);
    (1000..1050).for_each(|index| {
        misses(&slots, index);
    });
    assert!(slots.get(500).is_some(), "now it is in the main queue");
}

#[test]
fn filters_and_indexes_outlive_data() {
    let cache = BlockCache::new(100 * CHARGE);
    let meta = Slots::new(&cache, 10, Priority::Meta);
    (0..10).for_each(|index| assert!(misses(&meta, index)));
    let data = slots(&cache, 5000);
    (0..5000).for_each(|index| assert!(misses(&data, index)));
    assert!((0..10).all(|index| !misses(&meta, index)));
}

#[test]
fn closing_a_table_gives_its_bytes_back() {
    let cache = BlockCache::new(10_000 * CHARGE);
    let kept = slots(&cache, 10);
    (0..10).for_each(|index| assert!(misses(&kept, index)));
    for _ in 0..100 {
        let closed = slots(&cache, 100);
        (0..100).for_each(|index| assert!(misses(&closed, index)));
    }
    let status = cache.status();
    assert_eq!((status.blocks, status.block_bytes), (10, 10 * CHARGE));
    // Items of closed tables do not pile up for ever.
    let queued = cache.queues.lock().items();
    assert!(queued < 3000, "{queued} items");
    assert!((0..10).all(|index| !misses(&kept, index)));
}

#[test]
fn pinned_bytes_take_from_the_budget_down_to_a_quarter() {
    let cache = BlockCache::new(100 * CHARGE);
    let slots = slots(&cache, 100);
    (0..100).for_each(|index| assert!(misses(&slots, index)));
    let pinned = cache.pin(60 * CHARGE);
    assert_eq!(cache.status().block_bytes, 40 * CHARGE);
    let more = cache.pin(600 * CHARGE);
    assert_eq!(cache.status().block_bytes, 25 * CHARGE);
    drop((pinned, more));
    assert_eq!(cache.status().pinned_bytes, 0);
    (0..100).for_each(|index| {
        misses(&slots, index);
    });
    assert_eq!(cache.status().block_bytes, 100 * CHARGE);
}

#[test]
fn a_block_too_large_for_the_budget_is_read_and_not_kept() {
    for budget in [0, 3 * CHARGE] {
        let cache = BlockCache::new(budget);
        let slots = slots(&cache, 1);
        assert!(misses(&slots, 0));
        assert!(misses(&slots, 0));
        assert_eq!(cache.status().block_bytes, 0);
    }
}

#[test]
fn concurrent_misses_of_one_block_share_one_read_and_its_error() {
    let cache = BlockCache::new(100 * CHARGE);
    let slots = slots(&cache, 2);
    let reads = AtomicUsize::new(0);
    let threads = 8;
    for fails in [true, false] {
        reads.store(0, Ordering::Relaxed);
        let barrier = Barrier::new(threads);
        let errors = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    barrier.wait();
                    let result = slots.get_or_read(1, || {
                        reads.fetch_add(1, Ordering::Relaxed);
                        // Until all the others wait for this read: each holds a reference to it.
                        while slots.waiting(1) < threads {
                            thread::yield_now();
                        }
                        if fails {
                            Err(Error::Invalid("no".to_owned()))
                        } else {
                            Ok((1, BLOCK_BYTES))
                        }
                    });
                    errors.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
                });
            }
        });
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        assert_eq!(errors.load(Ordering::Relaxed), if fails { threads } else { 0 });
    }
}

#[test]
fn threads_that_read_evict_and_close_see_only_their_own_blocks() {
    let cache = BlockCache::new(40 * CHARGE);
    let shared = slots(&cache, 200);
    thread::scope(|scope| {
        for seed in 0..4u32 {
            let (cache, shared) = (&cache, &shared);
            scope.spawn(move || {
                let mut state = seed;
                for round in 0..20 {
                    let own = slots(cache, 52);
                    for _ in 0..500 {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let index = state >> 16;
                        misses(if index % 3 == 0 { &own } else { shared }, index % 50 + round % 3);
                        if let Some(block) = shared.get(index % 200) {
                            assert_eq!(*block, index % 200);
                        }
                    }
                }
            });
        }
    });
    let status = cache.status();
    assert!(status.block_bytes <= 40 * CHARGE, "{status:?}");
    let resident = (0..200).filter(|&index| shared.get(index).is_some()).count();
    assert_eq!(resident, status.blocks);
    drop(shared);
    assert_eq!((cache.status().blocks, cache.status().block_bytes), (0, 0));
}
