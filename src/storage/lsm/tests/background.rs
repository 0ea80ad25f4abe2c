//! The threads in the background: who waits for whom.

use std::time::{Duration, Instant};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(started.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

fn figure(engine: &Arc<dyn StorageEngine>, name: &str) -> f64 {
    engine.status().figures[name]
}

/// Lets held syncs go on when it is dropped, so that a failure does not hang.
struct Held<'a>(&'a SimFileSystem);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.hold_syncs(false);
    }
}

#[test]
fn level_zero_does_not_wait_for_a_merge_of_deeper_levels() {
    let fs = SimFileSystem::new(1);
    let mut options = LsmOptions {
        threads: 1,
        compaction_interval: Duration::from_millis(1),
        memtable_bytes: 1 << 20,
        ..simulated(1)
    };
    options.picker.l0_tables = 2;
    let environment =
        LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, options).expect("opens");
    let engines = NAMES.map(|name| environment.open(name).expect("opens"));
    let deep = &engines[0];

    // A table in the last level of which half expires, and is to be rewritten as soon as it has.
    let mut batch = WriteBatch::new();
    for key in 0..100 {
        batch.put(&[&[key]], &[b"value"], (key % 2 == 0).then(|| Timestamp::from_millis(10)));
    }
    deep.write(&batch, Durability::None).expect("writes");
    deep.compact(KeyRange::ALL).expect("compacts");
    let held = Held(&fs);
    fs.hold_next_sync(".sst");
    let mut tick = WriteBatch::new();
    tick.advance_clock(Timestamp::from_millis(10));
    deep.write(&tick, Durability::None).expect("writes");
    deep.flush().expect("flushes");
    fs.wait_for_held_sync();

    // Level 0 of any engine is compacted while that merge goes on.
    for engine in &engines {
        for value in [b"1", b"2"] {
            engine.write(&put(b"z", value), Durability::None).expect("writes");
            engine.flush().expect("flushes");
        }
        wait_until("level 0", || figure(engine, "compactions_level_zero") > 0.0);
    }
    assert_eq!(figure(deep, "compactions_expired"), 0.0, "the merge has ended");
    drop(held);
    wait_until("the merge", || figure(deep, "compactions_expired") > 0.0);
    assert_eq!(rows(&**deep).len(), 51);
}
