//! An engine over its life: failures of the log, gaps in it, settings that change, engines that come and go.

use super::*;
use crate::storage::testing::value;
use crate::util::fs::FileSystem;
use crate::util::fs::sim::{Effect, Fault, Operation};

#[test]
fn a_failed_sync_poisons_all_engines_and_reads_go_on() {
    let fs = SimFileSystem::new(1);
    let environment = open(&fs, 1).expect("opens");
    let (engine, other) =
        (environment.open("a").expect("opens"), environment.open("b").expect("opens"));
    let safe = engine.write(&put(b"safe", b"1"), Durability::Sync).expect("syncs");
    fs.inject(Fault::next(Operation::Sync, "wal", Effect::Io));
    let error = engine.write(&put(b"unknown", b"1"), Durability::Sync).expect_err("cannot sync");
    assert!(matches!(&error, Error::Io { .. }), "it was applied: {error}");
    assert_eq!(engine.durable(), safe, "nothing later is durable");
    for engine in [&engine, &other] {
        for batch in [put(b"never", b"1"), WriteBatch::new()] {
            let refused = engine.write(&batch, Durability::Sync).expect_err("is poisoned");
            assert!(matches!(&refused, Error::Poisoned { .. }), "{refused}");
        }
        assert!(!engine.status().writable);
        assert_eq!(value(&**engine, b"never"), None);
    }
    assert!(!environment.status().writable);
    assert_eq!(value(&*engine, b"safe").as_deref(), Some(&b"1"[..]));
    assert!(engine.view().is_ok());
}

#[test]
fn no_log_means_that_a_restart_finds_what_was_flushed() {
    let fs = SimFileSystem::new(1);
    let options = || LsmOptions { log: false, memtable_bytes: 1 << 20, ..simulated(1) };
    let opened = |fs: &SimFileSystem| {
        LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, options()).expect("opens")
    };
    let environment = opened(&fs);
    let engine = environment.open("main").expect("opens");
    let first = engine.write(&put(b"a", b"1"), Durability::None).expect("writes");
    assert_eq!(engine.durable(), Seqno(0), "the caller replays");
    engine.flush().expect("flushes");
    assert_eq!(engine.durable(), first);
    engine.write(&put(b"b", b"1"), Durability::None).expect("writes");
    let fs = fs.restart(3);
    let environment = opened(&fs);
    let engine = environment.open("main").expect("opens");
    assert_eq!(rows(&*engine).len(), 1);
    assert_eq!(engine.durable(), first);
    let synced = engine.write(&put(b"c", b"1"), Durability::Sync).expect("flushes");
    assert_eq!(engine.durable(), synced);
}

/// The catalogue of a killed process was read, but its name was not made durable. After a power loss the one before it was there again, and so what was
/// flushed to an engine that it does not name was erased, and an engine that it does name had been erased before.
#[test]
fn what_a_killed_process_has_changed_of_the_catalogue_stays_after_a_power_loss() {
    let options = || LsmOptions { log: false, ..simulated(1) };
    let opened = |fs: &SimFileSystem| {
        LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, options()).expect("opens")
    };
    let base = SimFileSystem::new(1);
    opened(&base).open("old").expect("opens").write(&put(b"o", b"1"), Durability::Sync).expect("w");
    let mut step = 0;
    loop {
        let fs = base.restart(step);
        let environment = opened(&fs);
        fs.crash_at(fs.steps() + step);
        let changed = environment.open("new").and_then(|_| environment.remove("old"));
        let fs = fs.restart_killed();
        let environment = opened(&fs);
        let new = environment.open("new").expect("opens");
        new.write(&put(b"n", b"1"), Durability::Sync).expect("flushes");
        let left = environment.list().expect("lists");
        for survival in 0..8 {
            let environment = opened(&fs.restart(survival));
            assert_eq!(environment.list().expect("lists"), left, "step {step}, {survival}");
            let new = environment.open("new").expect("opens");
            assert_eq!(rows(&*new).len(), 1, "step {step}, survival {survival}");
        }
        if changed.is_ok() {
            break;
        }
        step += 1;
    }
    assert!(step > 10, "{step} steps");
}

#[test]
fn a_log_that_is_given_up_is_emptied_into_tables_first() {
    let fs = SimFileSystem::new(1);
    let engine_of = |environment: &LsmEnvironment| environment.open("main").expect("opens");
    {
        let environment = open(&fs, 1).expect("opens");
        engine_of(&environment).write(&put(b"a", b"1"), Durability::Sync).expect("writes");
    }
    let options = LsmOptions { log: false, ..simulated(1) };
    let environment = LsmEnvironment::open(Arc::new(fs.restart(5)), DIRECTORY, options);
    let engine = engine_of(&environment.expect("opens"));
    assert_eq!(value(&*engine, b"a").as_deref(), Some(&b"1"[..]));
    assert_eq!(engine.durable(), Seqno(1));
}

#[test]
fn records_that_are_missing_from_the_log_are_corruption() {
    let fs = SimFileSystem::new(1);
    let options =
        || LsmOptions { memtable_bytes: 1 << 20, log_segment_bytes: 4096, ..simulated(1) };
    {
        let environment =
            LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, options()).expect("opens");
        let engine = environment.open("main").expect("opens");
        for number in 0..20u8 {
            engine.write(&put(&[number], &[7; 900]), Durability::Sync).expect("writes");
        }
    }
    let log = Path::new(DIRECTORY).join("wal");
    let names = fs.list(&log).expect("lists");
    let oldest = names
        .iter()
        .find(|name| Path::new(name).extension().is_some_and(|extension| extension == "wal"))
        .expect("there are segments");
    fs.remove(&log.join(oldest)).expect("removes");
    let error = LsmEnvironment::open(Arc::new(fs), DIRECTORY, options()).expect_err("a gap");
    assert!(matches!(&error, Error::Corruption { .. }), "{error}");
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn removed_engine_leaves_nothing_and_its_name_is_free() {
    let fs = SimFileSystem::new(1);
    let environment = open(&fs, 1).expect("opens");
    let engine = environment.open("main").expect("opens");
    engine.write(&put(b"a", b"1"), Durability::Sync).expect("writes");
    engine.flush().expect("flushes");
    drop(engine);
    environment.remove("main").expect("removes");
    let names = fs.list(Path::new(DIRECTORY)).expect("lists");
    assert!(!names.iter().any(|name| name.starts_with("engine-")), "{names:?}");
    let engine = environment.open("main").expect("is made anew");
    assert_eq!(rows(&*engine), []);
    engine.write(&put(b"b", b"1"), Durability::Sync).expect("writes");
    let environment = open(&fs.restart(1), 1).expect("opens");
    assert_eq!(rows(&*environment.open("main").expect("opens")).len(), 1);
}

#[test]
fn an_idle_engine_does_not_keep_the_log_from_being_cut() {
    let fs = SimFileSystem::new(1);
    let mut options = simulated(1);
    options.memtable_bytes = 4096;
    options.log_segment_bytes = 4096;
    options.log_bytes_max = 4 * 4096;
    let environment = LsmEnvironment::open(Arc::new(fs), DIRECTORY, options).expect("opens");
    let (idle, busy) =
        (environment.open("idle").expect("opens"), environment.open("busy").expect("opens"));
    idle.write(&put(b"a", b"1"), Durability::Sync).expect("writes");
    for number in 0..400u32 {
        let batch = put(&number.to_be_bytes(), &[7; 200]);
        busy.write(&batch, Durability::Buffered).expect("writes");
        while environment.drive() {}
    }
    let figures = environment.status().figures;
    assert!(figures["log_bytes"] < 10.0 * 4096.0, "{figures:?}");
    assert_eq!(value(&*idle, b"a").as_deref(), Some(&b"1"[..]));
}
