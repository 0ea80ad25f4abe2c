//! What only this engine can show: failed syncs, a full disk, views that are given up, what a crash or another program left in
//! its files.

use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use super::*;
use crate::storage::testing::full_disk::takes_deletes_only;
use crate::storage::testing::{put, rows, value};
use crate::storage::{Direction, KeyRange, WriteBatch};
use crate::util::time::Timestamp;

fn open(directory: &Path) -> SledEnvironment {
    SledEnvironment::open(directory, SledOptions::default()).expect("opens")
}

/// Lets every later sync fail, as a broken disk would: a sync looks into this directory.
fn break_syncs(directory: &Path) {
    fs::remove_dir_all(directory.join("sled").join("blobs")).expect("it is there");
}

#[test]
fn failed_sync_poisons_all_engines_until_the_environment_is_opened_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let environment = open(directory.path());
    let (engine, other) =
        (environment.open("a").expect("opens"), environment.open("b").expect("opens"));
    let safe = engine.write(&put(b"safe", b"1"), Durability::Sync).expect("syncs");
    engine.write(&put(b"lost", b"1"), Durability::None).expect("needs no sync");
    break_syncs(directory.path());

    let error = engine.write(&put(b"unknown", b"1"), Durability::Sync).expect_err("cannot sync");
    assert!(matches!(&error, Error::Io { .. }), "{error}");
    assert_eq!(engine.durable(), safe, "nothing later is durable");
    for engine in [&engine, &other] {
        for durability in [Durability::None, Durability::Buffered, Durability::Sync] {
            for batch in [put(b"never", b"1"), WriteBatch::new()] {
                let refused = engine.write(&batch, durability).expect_err("is poisoned");
                assert!(matches!(&refused, Error::Poisoned { .. }), "{refused}");
                assert!(refused.to_string().contains("blobs"), "{refused} says what failed");
            }
        }
        assert!(matches!(engine.flush(), Err(Error::Poisoned { .. })));
        assert!(matches!(engine.compact(KeyRange::ALL), Err(Error::Poisoned { .. })));
        assert!(!engine.status().writable);
    }
    assert!(!environment.status().writable);
    assert!(matches!(environment.open("new").err(), Some(Error::Poisoned { .. })));

    // Reads go on, and what was refused never shows.
    assert_eq!(value(&*engine, b"safe").as_deref(), Some(&b"1"[..]));
    assert_eq!(value(&*engine, b"never"), None);
    assert!(engine.view().is_ok());

    drop((engine, other, environment));
    let environment = open(directory.path());
    let engine = environment.open("a").expect("opens");
    assert_eq!(value(&*engine, b"safe").as_deref(), Some(&b"1"[..]));
    engine.write(&put(b"again", b"1"), Durability::Sync).expect("takes writes again");
}

/// Somebody who waits for a sync that fails must not be told that nothing was applied.
#[test]
fn poisoned_means_that_nothing_of_the_batch_was_applied() {
    const WRITERS: u8 = 8;
    for _ in 0..5 {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let environment = open(directory.path());
        let engine = environment.open("main").expect("opens");
        let ready = Barrier::new(usize::from(WRITERS) + 1);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (engine, ready) = (&engine, &ready);
                scope.spawn(move || {
                    ready.wait();
                    for number in 0u32.. {
                        let key = [&[writer][..], &number.to_be_bytes()].concat();
                        match engine.write(&put(&key, b"1"), Durability::Sync) {
                            Ok(_) => assert!(value(&**engine, &key).is_some()),
                            Err(Error::Io { .. }) => return,
                            Err(Error::Poisoned { .. }) => {
                                assert_eq!(value(&**engine, &key), None, "it was applied");
                                return;
                            }
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
            ready.wait();
            break_syncs(directory.path());
        });
    }
}

/// Free bytes of the file system; other programs move it a little all the time.
fn free_bytes(directory: &Path) -> u64 {
    let disk = rustix::fs::statvfs(directory).expect("the file system answers");
    disk.f_bavail * disk.f_frsize
}

#[test]
fn full_disk_refuses_puts_and_takes_deletes_from_the_reserve() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let environment = open(directory.path());
    environment
        .open("main")
        .expect("opens")
        .write(&put(b"k", b"1"), Durability::Sync)
        .expect("writes");
    drop(environment);

    // As if only half of the reserve were left.
    let reserve = 2 * free_bytes(directory.path());
    let full = SledOptions { disk_reserve_bytes: reserve, ..SledOptions::default() };
    let environment = SledEnvironment::open(directory.path(), full).expect("opens");
    takes_deletes_only(&environment, directory.path());
    drop(environment);

    let environment = open(directory.path());
    let engine = environment.open("main").expect("opens");
    engine.write(&put(b"l", b"1"), Durability::Sync).expect("there is room again");
}

#[test]
fn view_beyond_the_limit_fails_and_nothing_else_does() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = SledOptions { view_bytes_max: 50_000, ..SledOptions::default() };
    let environment = SledEnvironment::open(directory.path(), options).expect("opens");
    let engine = environment.open("main").expect("opens");
    engine.write(&put(b"k", &[7; 1_000]), Durability::None).expect("writes");
    engine.write(&put(b"l", &[7; 1_000]), Durability::None).expect("writes");
    let old = engine.view().expect("freezes");
    let mut scan = old.scan(KeyRange::ALL, Direction::Forward).expect("scans");
    for number in 0..100 {
        engine.write(&put(b"k", &[number; 1_000]), Durability::None).expect("writes go on");
    }
    for refused in
        [old.get(b"k").err(), old.get(b"none").err(), old.get_many(&[b"k"], &mut |_, _| ()).err()]
    {
        assert!(
            matches!(&refused, Some(Error::Invalid(text)) if text.contains("50000")),
            "{refused:?}"
        );
    }
    assert!(scan.next().is_err(), "a scan that has not begun fails too");
    assert!(matches!(scan.next(), Ok(None)), "and is over then");
    assert!(old.scan(KeyRange::ALL, Direction::Forward).is_err());
    assert_eq!(rows(&*engine).len(), 2);
    assert_eq!(rows(&*engine.view().expect("freezes")).len(), 2, "a new view is fine");
    drop(scan);
    drop(old);
    assert!(engine.status().memory_bytes < 1_000, "images go with the views");
}

/// Opens the files as sled itself does.
fn raw(directory: &Path) -> sled::Db {
    // A pool thread of the one before may still hold the file for a moment.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match sled::open(directory.join("sled")) {
            Ok(database) => return database,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        thread::yield_now();
    }
}

#[test]
fn tree_that_no_engine_names_is_dropped_at_open() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let environment = open(directory.path());
    environment
        .open("main")
        .expect("opens")
        .write(&put(b"k", b"1"), Durability::Sync)
        .expect("writes");
    drop(environment);
    let database = raw(directory.path());
    database.open_tree("tree-7").expect("opens").insert(b"left", b"over").expect("writes");
    drop(database);

    let environment = open(directory.path());
    // Ids go on behind it, so that nothing of it can show again.
    environment.open("new").expect("opens");
    assert_eq!(environment.list().expect("lists"), ["main", "new"]);
    assert_eq!(rows(&*environment.open("main").expect("opens")).len(), 1);
    drop(environment);
    let names = raw(directory.path()).tree_names();
    assert!(names.iter().all(|name| name.as_ref() != b"tree-7"), "{names:?}");
    assert!(names.iter().any(|name| name.as_ref() == b"tree-8"), "{names:?}");
}

#[test]
fn files_of_another_version_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    drop(open(directory.path()));
    raw(directory.path()).insert(VERSION_KEY, &2u32.to_le_bytes()).expect("writes");
    let error = SledEnvironment::open(directory.path(), SledOptions::default()).err();
    assert!(
        matches!(&error, Some(Error::Invalid(text)) if text.contains("version 1")),
        "{error:?}"
    );
}

#[test]
fn malformed_row_is_corruption_that_names_the_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let environment = open(directory.path());
    let engine = environment.open("main").expect("opens");
    let mut batch = put(b"k", b"1");
    batch.put(&[b"t"], &[b"1"], Some(Timestamp::from_millis(9)));
    engine.write(&batch, Durability::Sync).expect("writes");
    drop((engine, environment));
    raw(directory.path())
        .open_tree("tree-0")
        .expect("opens")
        .insert(rows::entry_key(b"k"), &[9, 9])
        .expect("writes");

    let environment = open(directory.path());
    let engine = environment.open("main").expect("opens");
    let log = directory.path().join("sled").join("db");
    let mut scan = engine.scan(KeyRange::ALL, Direction::Forward).expect("scans");
    let overwritten = engine.write(&put(b"k", b"2"), Durability::None).map(|_| ());
    let found = [engine.get(b"k").map(|_| ()), scan.next().map(|_| ()), overwritten];
    for error in found {
        let error = error.expect_err("the row is malformed");
        assert!(matches!(&error, Error::Corruption { file, .. } if *file == log), "{error}");
    }
    assert!(matches!(scan.next(), Ok(None)), "the scan is over");
    assert_eq!(value(&*engine, b"t").as_deref(), Some(&b"1"[..]), "the others are fine");
    assert!(engine.status().writable, "damage that was read is no failed write");
}

#[test]
fn engine_without_its_state_row_is_corruption() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let environment = open(directory.path());
    environment.open("main").expect("opens");
    drop(environment);
    raw(directory.path())
        .open_tree("tree-0")
        .expect("opens")
        .remove(rows::STATE_KEY)
        .expect("removes");
    let environment = open(directory.path());
    let error = environment.open("main").err();
    assert!(matches!(&error, Some(Error::Corruption { .. })), "{error:?}");
}
