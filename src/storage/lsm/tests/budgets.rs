//! What engines take together: memory, disk, and what they say about it.

use super::*;
use crate::storage::lsm::testing::allocations;
use crate::storage::testing::full_disk::takes_deletes_only;
use crate::storage::testing::put;

fn open_with(fs: &SimFileSystem, options: LsmOptions) -> LsmEnvironment {
    LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, options).expect("opens")
}

/// The defaults, but for one thread and a small log.
fn ordinary() -> LsmOptions {
    LsmOptions { threads: 0, log_segment_bytes: 64 << 10, ..LsmOptions::new(1) }
}

#[test]
fn an_idle_engine_costs_less_than_a_mebibyte() {
    const ENGINES: usize = 32;
    let fs = SimFileSystem::new(1);
    let environment = open_with(&fs, ordinary());
    let before = environment.status().memory_bytes;
    let (mut engines, allocated) = allocations(|| {
        let open = |number| environment.open(&format!("e-{number}")).expect("opens");
        (0..ENGINES).map(open).collect::<Vec<_>>()
    });
    let each = allocated.bytes / ENGINES;
    assert!(each < 100 << 10, "{each} bytes were allocated for each empty engine");
    assert_eq!(environment.status().memory_bytes, before);
    let ((), allocated) = allocations(|| {
        for engine in &mut engines {
            engine.write(&put(b"a", b"1"), Durability::None).expect("writes");
        }
    });
    let each = allocated.bytes / ENGINES;
    assert!(each < 1 << 20, "{each} bytes were allocated for each engine with one key");
    let each = (environment.status().memory_bytes - before) / ENGINES as u64;
    assert!((1 << 10..1 << 20).contains(&each), "{each} bytes are said to be taken by each");
}

#[test]
fn memtables_keep_within_their_budget_while_the_log_is_replayed() {
    const BUDGET: usize = 8 << 20;
    let fs = SimFileSystem::new(1);
    {
        let environment = open_with(&fs, ordinary());
        for name in 0..8 {
            let engine = environment.open(&format!("e-{name}")).expect("opens");
            for number in 0..4_000u32 {
                let batch = put(&number.to_be_bytes(), &[7; 1000]);
                engine.write(&batch, Durability::None).expect("writes");
            }
            engine.write(&WriteBatch::new(), Durability::Sync).expect("syncs");
        }
    }
    let options = LsmOptions { memtable_bytes: BUDGET, memtables_bytes_max: BUDGET, ..ordinary() };
    let environment = open_with(&fs.restart_killed(), options);
    let memory = environment.status().memory_bytes;
    assert!(memory < 2 * BUDGET as u64, "{memory} bytes are left of 32 MB that were replayed");
}

#[test]
fn memtables_of_all_engines_keep_within_their_budget() {
    const BUDGET: u64 = 8 << 20;
    let fs = SimFileSystem::new(1);
    let budget = usize::try_from(BUDGET).expect("small");
    let options = LsmOptions {
        memtable_bytes: budget,
        memtables_bytes_max: budget,
        log_segment_bytes: 1 << 20,
        cache_bytes: 0,
        ..ordinary()
    };
    let environment = open_with(&fs, options);
    let engines: Vec<_> =
        (0..8).map(|number| environment.open(&format!("e-{number}")).expect("opens")).collect();
    let mut most = 0;
    for number in 0..40_000u32 {
        let batch = put(&number.to_be_bytes(), &[7; 1000]);
        engines[number as usize % engines.len()].write(&batch, Durability::None).expect("writes");
        environment.drive();
        let memory: u64 = engines.iter().map(|engine| engine.status().memory_bytes).sum();
        most = most.max(memory);
    }
    // Memory is taken in pieces of up to a quarter of what the largest has.
    assert!(most < BUDGET + BUDGET / 2, "{most} bytes, the budget is {BUDGET}");
    let flushes = |engine: &Arc<dyn StorageEngine>| engine.status().figures["flushes"];
    let flushes: f64 = engines.iter().map(flushes).sum();
    assert!((3.0..40.0).contains(&flushes), "{flushes} flushes of 40 MB at 8 MiB");
}

#[test]
fn a_disk_that_is_nearly_full_takes_deletes_only() {
    let fs = SimFileSystem::new(1);
    let reserve = 8 << 20;
    let options = || LsmOptions { disk_reserve_bytes: reserve, ..ordinary() };
    let environment = open_with(&fs, options());
    let engine = environment.open("main").expect("opens");
    engine.write(&put(b"k", b"1"), Durability::Sync).expect("there is room");
    drop((engine, environment));

    // As if half of the reserve were left.
    fs.set_capacity(fs.used() + reserve / 2);
    let environment = open_with(&fs, options());
    takes_deletes_only(&environment, Path::new(DIRECTORY));

    let engine = environment.open("main").expect("opens");
    fs.set_capacity(u64::MAX);
    engine.write(&put(b"l", b"1"), Durability::Sync).expect("there is room again");
    // Now it has a credit; other programs fill the disk, and that is found in time.
    fs.set_capacity(fs.used() + reserve / 2);
    let fills = |number: u32| put(&number.to_be_bytes(), &[7; 1000]);
    let refused = (0..2000).find(|&number| {
        matches!(engine.write(&fills(number), Durability::None), Err(Error::DiskFull { .. }))
    });
    assert!(refused.is_some(), "the disk is asked at least every thousand writes");
    assert!(engine.status().writable);
}

#[test]
fn keys_are_counted_as_far_as_one_memtable_or_table_knows() {
    let fs = SimFileSystem::new(1);
    let environment = open_with(&fs, ordinary());
    let engine = environment.open("main").expect("opens");
    let write = |batch: &WriteBatch| {
        engine.write(batch, Durability::None).expect("writes");
    };
    let counts = || (engine.status().keys, engine.status().bytes);
    for number in 0..10u8 {
        write(&put(&[b'k', number], b"first"));
        write(&put(&[b'k', number], b"now"));
        write(&put(b"\0v", &[number]));
    }
    let mut batch = WriteBatch::new();
    batch.delete(&[b"k", &[3]]);
    batch.delete(&[b"k", &[4]]);
    batch.delete(&[b"nothing"]);
    batch.put(&[b"k", &[4]], &[b"again"], None);
    write(&batch);
    assert_eq!(counts(), (9, 8 * 5 + 7), "overwritten, deleted and reserved keys are left out");
    engine.flush().expect("flushes");
    assert_eq!(counts().0, 9, "a tombstone over nothing removes nothing");
    batch.clear();
    batch.delete(&[b"k", &[5]]);
    write(&batch);
    assert_eq!(counts().0, 8);
    write(&put(&[b'k', 6], b"new"));
    assert_eq!(counts().0, 9, "taken for a new key until compaction meets both");
    engine.compact(KeyRange::ALL).expect("compacts");
    assert_eq!(counts(), (8, 6 * 5 + 5 + 7), "six as they were, one overwritten, one longer");
}
