//! The slots of the block cache against a well-kept cache with a hash table, both with all blocks in.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use crate::storage::lsm::cache::{BlockCache, Priority, Slots};
use crate::{Race, Random, first};

const BLOCKS: u32 = 15_000;

/// Measures and prints.
pub(crate) fn race(operations: usize) {
    let cache = BlockCache::new(8 << 30);
    let slots: Slots<Vec<u8>> = Slots::new(&cache, BLOCKS, Priority::Data);
    let quick = quick_cache::sync::Cache::new(2 * BLOCKS as usize);
    for index in 0..BLOCKS {
        slots.get_or_read(index, || Ok((vec![1; 8192], 8192))).expect("no error is made");
        quick.insert((7u64, index), Arc::new(vec![1u8; 8192]));
    }
    let mut random = Random(3);
    let indexes: Vec<u32> =
        (0..operations).map(|_| (random.next() % u64::from(BLOCKS)) as u32).collect();
    let mut race = Race::new("a block from the cache", operations);
    race.add("slots", || indexes.iter().filter_map(|&i| slots.get(i)).map(|b| first(&b)).sum());
    race.add("slots, owned", || {
        indexes.iter().filter_map(|&i| slots.get_owned(i)).map(|b| first(b.block())).sum()
    });
    race.add("quick_cache", || {
        indexes.iter().filter_map(|&i| quick.get(&(7u64, i))).map(|b| first(&b)).sum()
    });
    race.run();
    for threads in [2, 4] {
        for (name, run) in [
            (
                "slots",
                Box::new(|i: u32| slots.get(i).map_or(0, |b| first(&b)))
                    as Box<dyn Fn(u32) -> u64 + Sync>,
            ),
            ("quick_cache", Box::new(|i| quick.get(&(7u64, i)).map_or(0, |b| first(&b)))),
        ] {
            let begin = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| black_box(indexes.iter().map(|&i| run(i)).sum::<u64>()));
                }
            });
            let total = (threads * operations) as f64;
            println!(
                "  {name}, {threads} threads: {:.1} M/s in all",
                total / begin.elapsed().as_secs_f64() / 1e6
            );
        }
    }
}
