//! The log against a map in memory: the same answers to every question of openraft, at any time and after any opening.

use super::workload::{Run, World, check};
use super::*;

#[test]
fn a_log_that_begins_anywhere_is_found_again() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    drop(filled(&store, GroupId(1), 5..9));
    for survival in 0..5 {
        let store = open(&fs.restart(survival)).expect("opened");
        let mut log = store.group(GroupId(1));
        let state = now(log.get_log_state()).expect("in memory");
        assert_eq!((state.last_purged_log_id, state.last_log_id), (None, Some(id(1, 8))));
        assert_eq!(now(log.try_get_log_entries(..)).expect("read").len(), 4);
    }
}

const SEEDS: u64 = 40;
const OPENINGS: u32 = 6;
const STEPS: u32 = 60;

#[test]
fn the_log_answers_as_a_map_in_memory_does() {
    let mut removed = 0;
    for seed in 0..SEEDS {
        let fs = SimFileSystem::new(seed);
        let mut world = World::new();
        for opening in 0..OPENINGS {
            // Nothing in memory; some; everything.
            let cache_bytes = [0, 2 << 10, 1 << 20][opening as usize % 3];
            let options = LogOptions { cache_bytes, ..small(seed) };
            let store = LogStore::open(Arc::new(fs.clone()), PathBuf::from(DIR), options);
            let store = store.expect("opened");
            check(&store, &world).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
            let mut run = Run::new(store, world, seed << 8 | u64::from(opening));
            for step in 0..STEPS {
                run.steps(1).expect("nothing fails");
                let context = || format!("seed {seed}, opening {opening}, step {step}");
                check(&run.store, run.world())
                    .unwrap_or_else(|what| panic!("{}: {what}", context()));
                assert!(run.store.status().cached_bytes <= cache_bytes, "{}", context());
            }
            while run.store.drive() {}
            run.ask().expect("all is durable");
            assert_eq!(run.waiting(), 0, "somebody was never told");
            removed += run.store.status().wal.counts.segments_removed;
            world = run.world().clone();
            run.store.close().expect("closed");
        }
    }
    assert!(removed > 100, "the workloads show nothing: {removed} segments were removed");
}
