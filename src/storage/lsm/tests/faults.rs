//! Calls of the file system that fail, at every step: nothing that was promised is lost, a full disk is survived, and
//! whatever else fails ends writes but not reads.

use super::*;
use crate::storage::testing::{put, value};
use crate::util::fs::FileSystem as _;
use crate::util::fs::sim::{Effect, Fault, LogEntry, Operation};

const STEPS: usize = 100;

fn steps_of(seed: u64) -> u64 {
    let fs = SimFileSystem::new(seed);
    let mut workload = Workload::new(&fs, seed).expect("opens");
    for _ in 0..STEPS {
        workload.step().expect("nothing fails");
    }
    fs.steps()
}

/// The seeds of the workloads that are disturbed.
const SEEDS: [u64; 3] = [40, 41, 42];

#[test]
fn the_workloads_that_are_disturbed_show_flushes_merges_copies_and_new_manifests() {
    let (mut flushed, mut compacted, mut copies, mut switches) = (0.0, 0.0, 0, 0);
    for seed in SEEDS {
        let fs = SimFileSystem::new(seed);
        let mut workload = Workload::new(&fs, seed).expect("opens");
        let mut reported = fs.steps();
        for _ in 0..STEPS {
            workload.step().expect("nothing fails");
            for engine in &workload.engines {
                let figures = engine.status().figures;
                flushed = figures["flushes"].max(flushed);
                compacted = figures["compacted_bytes"].max(compacted);
            }
            let log = fs.log();
            let is_switch = |entry: &&LogEntry| {
                entry.step >= reported
                    && entry.operation == Operation::Rename
                    && entry.path.ends_with("CURRENT")
            };
            switches += log.iter().filter(is_switch).count();
            reported = fs.steps();
        }
        copies += workload.copies;
    }
    assert!(flushed > 1.0 && compacted > 0.0, "{flushed} flushes, {compacted} bytes merged");
    assert!(copies > 0, "copied, installed and so removed");
    assert!(switches > copies, "{switches} manifests, {copies} of them of copies");
}

/// The rows of each engine are those of the newest state, or of the one before if its write failed.
fn check_reads(workload: &Workload, what: &str) {
    for (engine, history) in workload.engines.iter().zip(&workload.histories) {
        let found = rows(&**engine);
        let near = history.states.iter().rev().take(2).any(|state| *state == found);
        assert!(near, "{what}: reads after the failure");
    }
}

fn run_with(effect: Effect, seed: u64) {
    let steps = steps_of(seed);
    let mut struck = 0;
    for step in 0..steps {
        let what = format!("{effect:?}, seed {seed}, step {step} of {steps}");
        let fs = SimFileSystem::new(seed);
        fs.inject(Fault::at_step(step, effect));
        let mut histories = vec![History::new(); NAMES.len()];
        if let Ok(mut workload) = Workload::new(&fs, seed) {
            for _ in 0..STEPS {
                match workload.step() {
                    Ok(()) => workload.check(),
                    Err(error) if is_shortage(&error) && workload.engines.len() == NAMES.len() => {
                        workload.check();
                    }
                    Err(_) if workload.engines.len() < NAMES.len() => break,
                    Err(_) => {
                        check_reads(&workload, &what);
                        break;
                    }
                }
            }
            histories.clone_from(&workload.histories);
        }
        struck += fs.faults_struck();
        for survival in 0..2 {
            let fs = fs.restart(survival * 31 + step);
            let environment = open(&fs, seed).unwrap_or_else(|error| panic!("{what}: {error}"));
            survivors(&environment, &histories, &what);
        }
    }
    assert!(struck >= steps * 9 / 10, "{struck} of {steps} faults have struck");
}

#[test]
fn a_failed_call_at_any_step_loses_nothing_that_was_promised() {
    run_with(Effect::Io, SEEDS[0]);
    run_with(Effect::ShortWrite, SEEDS[1]);
}

#[test]
fn a_full_disk_at_any_step_loses_nothing_that_was_promised() {
    run_with(Effect::DiskFull, SEEDS[2]);
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    let fs = SimFileSystem::new(9);
    let mut workload = Workload::new(&fs, 9).expect("opens");
    for _ in 0..60 {
        workload.step().expect("nothing fails");
    }
    fs.set_capacity(fs.used());
    let mut refused = 0;
    for _ in 0..400 {
        match workload.step() {
            Ok(()) => {}
            Err(Error::DiskFull { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if workload.engines.len() == NAMES.len() {
            workload.check();
        }
    }
    assert!(refused > 0, "the disk was never full");
    fs.set_capacity(u64::MAX);
    for _ in 0..100 {
        workload.step().expect("there is room again");
        workload.check();
    }
}

#[test]
fn no_handle_for_any_call_that_needs_one_loses_nothing_that_was_promised() {
    let seed = SEEDS[0];
    for operation in [Operation::Create, Operation::SyncDir, Operation::List] {
        let mut refused = 0;
        for skip in 0.. {
            let what = format!("{operation:?} {skip}");
            let fs = SimFileSystem::new(seed);
            let mut workload = Workload::new(&fs, seed).expect("opens");
            fs.inject(Fault::after(operation, "", skip, Effect::NoHandles));
            for _ in 0..STEPS {
                match workload.step() {
                    Ok(()) => {}
                    Err(error) if is_shortage(&error) => refused += 1,
                    // After a rename, of which nobody knows whether it lasts.
                    Err(_) => break,
                }
                if workload.engines.len() < NAMES.len() {
                    break;
                }
                workload.check();
            }
            let struck = fs.faults_struck() > 0;
            if operation == Operation::Create {
                let writable = |engine: &Arc<dyn StorageEngine>| engine.status().writable;
                assert!(workload.engines.iter().all(writable), "{what}");
            }
            let fs = fs.restart(skip);
            let environment = open(&fs, seed).unwrap_or_else(|error| panic!("{what}: {error}"));
            survivors(&environment, &workload.histories, &what);
            if !struck {
                break;
            }
        }
        assert!(refused > 0 || operation == Operation::List, "{operation:?}");
    }
}

#[test]
fn without_handles_writes_go_on_while_there_is_memory_and_later_as_before() {
    for log in [true, false] {
        let fs = SimFileSystem::new(9);
        let options = LsmOptions { log, open_files_max: 10_000, ..simulated(9) };
        let open = |fs: &SimFileSystem| {
            let fs = Arc::new(fs.clone());
            LsmEnvironment::open(fs, DIRECTORY, options.clone()).expect("opens")
        };
        let environment = open(&fs);
        let engine = environment.open("main").expect("opens");
        let mut expected = Vec::new();
        let mut write = || {
            let key = u32::try_from(expected.len()).expect("few").to_be_bytes();
            engine.write(&put(&key, &[7; 100]), Durability::None)?;
            expected.push((key.to_vec(), vec![7; 100], None));
            Ok(())
        };
        for _ in 0..3 {
            (0..2000).for_each(|_| write().expect("nothing fails"));
            engine.compact(KeyRange::ALL).expect("nothing fails");
            // Now its tables are open.
            let before = rows(&*engine).len();
            fs.set_handles(false);
            let refused = (0..100_000).find_map(|_| write().err()).expect("memory is bounded");
            assert!(matches!(refused, Error::NoHandles { .. }), "{refused}");
            assert!(refused.to_string().contains("kvstore.storage.open-files-max"), "{refused}");
            assert!(matches!(engine.flush(), Err(Error::NoHandles { .. })));
            assert!(engine.status().writable);
            assert!(rows(&*engine).len() > before + 10, "writes went on, and reads do");
            fs.set_handles(true);
        }
        (0..2000).for_each(|_| write().expect("nothing fails"));
        assert_eq!(rows(&*engine), expected);
        // With a log it was a segment that could not be made.
        assert!(log || engine.status().figures["background_failures"] > 0.0);
        engine.flush().expect("nothing fails");
        let environment = open(&fs.restart(1));
        assert_eq!(rows(&*environment.open("main").expect("opens")), expected);
    }
}

#[test]
fn a_table_that_cannot_be_made_is_made_later_and_writes_go_on() {
    let fs = SimFileSystem::new(3);
    let options = LsmOptions { compaction: false, ..simulated(3) };
    let environment =
        LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, options).expect("opens");
    let engine = environment.open("main").expect("opens");
    let mut expected = Vec::new();
    for (round, effect) in [(0u8, Effect::Io), (1, Effect::NoHandles), (2, Effect::DiskFull)] {
        engine.write(&put(&[b'k', round], b"1"), Durability::None).expect("writes");
        expected.push((vec![b'k', round], b"1".to_vec(), None));
        let works: [&dyn Fn() -> Result<()>; 2] =
            [&|| engine.flush(), &|| engine.compact(KeyRange::ALL)];
        for work in works {
            fs.inject(Fault::next(Operation::Create, ".sst", effect));
            let error = work().expect_err("it cannot be made");
            let kind = match effect {
                Effect::Io => matches!(error, Error::Io { operation: "create", .. }),
                Effect::NoHandles => matches!(error, Error::NoHandles { .. }),
                _ => matches!(error, Error::DiskFull { .. }),
            };
            assert!(kind, "{effect:?}: {error}");
            assert!(engine.status().writable, "{effect:?}");
            assert_eq!(rows(&*engine), expected);
        }
        engine.compact(KeyRange::ALL).expect("goes on");
    }
    let environment = open(&fs.restart(1), 3).expect("opens");
    assert_eq!(rows(&*environment.open("main").expect("opens")), expected);
}

#[test]
fn what_could_not_be_flushed_is_tried_again_at_the_interval() {
    let fs = SimFileSystem::new(3);
    let options = LsmOptions { log: false, memtables_bytes_max: 1 << 30, ..simulated(3) };
    let environment =
        LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, options).expect("opens");
    let engine = environment.open("main").expect("opens");
    engine.write(&put(b"k", b"1"), Durability::None).expect("writes");
    fs.set_handles(false);
    assert!(engine.flush().is_err());
    fs.set_handles(true);
    assert!(engine.status().figures["sealed_memtables"] > 0.0);
    while environment.drive() {}
    assert!(engine.status().figures["sealed_memtables"] > 0.0, "nothing is due");
    environment.save_space();
    while environment.drive() {}
    assert_eq!(engine.status().figures["sealed_memtables"], 0.0);
}

#[test]
fn a_table_that_finds_no_room_at_its_sync_is_written_again_as_another_file() {
    let fs = SimFileSystem::new(3);
    let options = LsmOptions { memtable_bytes: 1 << 20, compaction: false, ..simulated(3) };
    let environment =
        LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, options).expect("opens");
    let engine = environment.open("main").expect("opens");
    let tables = || {
        let names = fs.list(&Path::new(DIRECTORY).join("engine-1")).expect("lists");
        names.into_iter().filter(|name| name.contains(".sst")).collect::<Vec<_>>()
    };
    let mut expected = Vec::new();
    for round in 0..4u8 {
        engine.write(&put(&[b'k', round], b"1"), Durability::None).expect("writes");
        expected.push((vec![b'k', round], b"1".to_vec(), None));
        let before = tables();
        // Where space is given out late, a full disk shows in the sync.
        fs.inject(Fault::next(Operation::Sync, ".sst", Effect::DiskFull));
        let work = || if round < 3 { engine.flush() } else { engine.compact(KeyRange::ALL) };
        let error = work().expect_err("there is no room");
        let Error::DiskFull { path } = &error else { panic!("{error}") };
        assert!(!fs.exists(path).expect("asked"), "what was begun is gone");
        assert_eq!(tables(), before);
        assert!(engine.status().writable, "nothing was lost, so writes go on");
        assert_eq!(rows(&*engine), expected);
        work().expect("there is room again");
        assert!(!tables().iter().any(|name| path.ends_with(name)), "not the same file again");
        let of_path =
            |entry: &&LogEntry| entry.operation == Operation::Sync && *entry.path == **path;
        assert_eq!(fs.log().iter().filter(of_path).count(), 1, "a failed sync is not repeated");
    }
    let environment = open(&fs.restart(1), 3).expect("opens");
    assert_eq!(rows(&*environment.open("main").expect("opens")), expected);
}

#[test]
fn any_other_failure_of_the_sync_of_a_table_ends_writes() {
    let fs = SimFileSystem::new(3);
    let environment = open(&fs, 3).expect("opens");
    let engine = environment.open("main").expect("opens");
    engine.write(&put(b"a", b"1"), Durability::Sync).expect("writes");
    fs.inject(Fault::next(Operation::Sync, ".sst", Effect::Io));
    assert!(matches!(engine.flush(), Err(Error::Io { operation: "sync", .. })));
    let refused = engine.write(&put(b"b", b"1"), Durability::None);
    assert!(matches!(refused, Err(Error::Poisoned { .. })), "{refused:?}");
    assert_eq!(value(&*engine, b"a").as_deref(), Some(&b"1"[..]));
}

/// A database with something in memtables, tables and log, and what must be there.
fn left_behind(seed: u64) -> (SimFileSystem, Vec<History>) {
    let fs = SimFileSystem::new(seed);
    let mut workload = Workload::new(&fs, seed).expect("opens");
    for _ in 0..STEPS {
        workload.step().expect("nothing fails");
    }
    let histories = workload.histories.clone();
    (fs.restart(seed), histories)
}

#[test]
fn a_failed_call_at_any_step_of_an_opening_leaves_everything_for_the_next_one() {
    for (seed, effect) in [(50, Effect::Io), (51, Effect::DiskFull), (52, Effect::ShortWrite)] {
        let (left, histories) = left_behind(seed);
        let undisturbed = left.restart(1);
        let expected = survivors(&open(&undisturbed, seed).expect("opens"), &histories, "first");
        for step in 0..undisturbed.steps() {
            let what = format!("{effect:?}, seed {seed}, step {step} of the opening");
            let fs = left.restart(1);
            fs.inject(Fault::at_step(step, effect));
            match open(&fs, seed) {
                Ok(environment) => drop(survivors(&environment, &histories, &what)),
                Err(error) => {
                    let kind = matches!(error, Error::Io { .. } | Error::Poisoned { .. });
                    let kind = kind || is_shortage(&error);
                    assert!(kind, "{what}: {error}");
                }
            }
            // A fault that struck behind the opening is of no interest; the same disk and a power loss, either opens.
            for fs in [fs.restart_killed(), fs.restart(step)] {
                let environment = open(&fs, seed).unwrap_or_else(|error| panic!("{what}: {error}"));
                let found = survivors(&environment, &histories, &what);
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.states.len(), expected.states.len(), "{what}: another state");
                }
            }
        }
    }
}

/// A read, or the opening of what is to be read: for the first time, or again because its handle was closed meanwhile.
fn only_that_read_fails(operation: Operation) {
    let is_of_a_read =
        |error: &Error| matches!(error, Error::Io { operation: "read" | "open", .. });
    let (left, histories) = left_behind(54);
    for skip in 0.. {
        let what = format!("{operation:?} {skip}");
        let fs = left.restart(1);
        fs.inject(Fault::after(operation, "", skip, Effect::Io));
        let environment = match open(&fs, 54) {
            Ok(environment) => environment,
            Err(error) => {
                assert!(is_of_a_read(&error), "{what}: {error}");
                assert!(open(&fs, 54).is_ok(), "{what}: the next opening reads");
                continue;
            }
        };
        let mut failed = 0;
        for name in NAMES {
            let engine = environment.open(name).expect("opens");
            for key in (0..12).map(|number| [b'k', number]) {
                let Err(error) = engine.get(&key) else { continue };
                assert!(is_of_a_read(&error), "{what}: {error}");
                failed += 1;
            }
            engine.write(&put(b"later", b"1"), Durability::Sync).expect("writes go on");
            engine.write(&deleted(b"later"), Durability::Sync).expect("writes go on");
        }
        assert!(failed <= 1, "{what}: {failed} reads failed");
        let struck = fs.faults_struck() > 0;
        fs.clear_faults();
        survivors(&environment, &histories, &what);
        if !struck {
            return assert!(skip > 10, "only {skip}");
        }
    }
}

#[test]
fn a_read_that_fails_is_an_error_of_that_read_and_of_nothing_else() {
    only_that_read_fails(Operation::Read);
    only_that_read_fails(Operation::Open);
}

fn deleted(key: &[u8]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.delete(&[key]);
    batch
}
