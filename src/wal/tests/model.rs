//! The commit protocol under many orders of its threads (shuttle, seeded): nobody waits for ever, and with a crash at
//! any moment no acknowledgement is false. A failure prints the schedule that led to it; `shuttle::replay` takes it
//! back.

use std::sync::Mutex;

use super::sync::set_model;
use super::*;
use crate::util::fs::sim::{Effect, Fault, Operation};

const ORDERS: usize = 300;

/// Tries orders of `story`, half of them by random choice, half with few switches.
fn explore(story: fn()) {
    set_model(true);
    shuttle::check_random(story, ORDERS);
    shuttle::check_pct(story, ORDERS, 3);
    set_model(false);
}

type Told = Arc<Mutex<Vec<Position>>>;

fn commit(
    wal: &Arc<Wal>,
    told: &Told,
    owner: Owner,
    levels: &'static [Level],
) -> shuttle::thread::JoinHandle<()> {
    let (wal, told) = (Arc::clone(wal), Arc::clone(told));
    shuttle::thread::spawn(move || {
        for &level in levels {
            let Ok(position) = wal.append(owner, Kind::FIRST, &[&[1; 300]]) else { return };
            if wal.commit(position, level).is_err() {
                return;
            }
            assert!(wal.reached(level) > position);
            if level == Level::Sync {
                told.lock().expect("not poisoned").push(position);
            }
        }
    })
}

fn check(fs: &SimFileSystem, told: &Told) {
    let told = told.lock().expect("not poisoned");
    for survival in 0..3 {
        let seen = reopen(&fs.restart(survival)).seen;
        for position in &*told {
            assert!(seen.iter().any(|seen| seen.position == *position), "{position} is lost");
        }
    }
}

#[test]
fn committers_of_both_levels_all_return_and_what_they_were_told_holds() {
    explore(|| {
        let fs = SimFileSystem::new(1);
        let (wal, told) = (Arc::new(reopen(&fs).wal), Told::default());
        let threads = [
            commit(&wal, &told, Owner(1), &[Level::Sync, Level::Sync]),
            commit(&wal, &told, Owner(2), &[Level::Buffered, Level::Sync]),
            commit(&wal, &told, Owner(3), &[Level::Sync, Level::Buffered]),
            commit(&wal, &told, Owner(4), &[Level::Sync]),
        ];
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(told.lock().expect("not poisoned").len(), 5);
        drop(wal);
        check(&fs, &told);
    });
}

#[test]
fn segments_change_and_go_under_the_committers() {
    explore(|| {
        let fs = SimFileSystem::new(1);
        let (wal, told) = (Arc::new(reopen(&fs).wal), Told::default());
        let keeper = {
            let wal = Arc::clone(&wal);
            shuttle::thread::spawn(move || {
                for _ in 0..3 {
                    wal.maintain().expect("maintained");
                    wal.release_all(TWO);
                }
            })
        };
        let threads = [
            commit(&wal, &told, ONE, &[Level::Sync, Level::Buffered, Level::Sync]),
            commit(&wal, &Told::default(), TWO, &[Level::Sync, Level::Sync, Level::Sync]),
            keeper,
        ];
        for thread in threads {
            thread.join().expect("no panic");
        }
        drop(wal);
        check(&fs, &told);
    });
}

#[test]
fn with_the_power_lost_at_any_moment_no_acknowledgement_is_false() {
    explore(|| {
        let fs = SimFileSystem::new(1);
        let (wal, told) = (Arc::new(reopen(&fs).wal), Told::default());
        let power = {
            let fs = fs.clone();
            shuttle::thread::spawn(move || fs.crash_now())
        };
        let threads = [
            commit(&wal, &told, Owner(1), &[Level::Sync, Level::Sync]),
            commit(&wal, &told, Owner(2), &[Level::Buffered, Level::Sync]),
            commit(&wal, &told, Owner(3), &[Level::Sync, Level::Sync]),
            power,
        ];
        for thread in threads {
            thread.join().expect("no panic");
        }
        drop(wal);
        check(&fs, &told);
    });
}

#[test]
fn after_a_failed_sync_everybody_gets_the_error_and_nobody_a_second_sync() {
    explore(|| {
        let fs = SimFileSystem::new(1);
        let (wal, told) = (Arc::new(reopen(&fs).wal), Told::default());
        fs.inject(Fault::after(Operation::Sync, "01.wal", 1, Effect::Io));
        let threads = [
            commit(&wal, &told, Owner(1), &[Level::Sync, Level::Sync]),
            commit(&wal, &told, Owner(2), &[Level::Sync, Level::Sync]),
            commit(&wal, &told, Owner(3), &[Level::Sync]),
        ];
        for thread in threads {
            thread.join().expect("no panic");
        }
        // A segment that is being made may be synced after it; that acknowledges nothing.
        let log = fs.log();
        let mut syncs = log.iter().filter(|entry| entry.operation == Operation::Sync);
        if let Some(failed) = syncs.find(|entry| entry.fault.is_some()) {
            assert!(!syncs.any(|entry| entry.path == failed.path), "{}", fs.log_text());
        }
        drop(wal);
        check(&fs, &told);
    });
}

#[test]
fn callbacks_are_all_called_in_order_beside_committers() {
    explore(|| {
        let fs = SimFileSystem::new(1);
        let (wal, told) = (Arc::new(reopen(&fs).wal), Told::default());
        let called: Told = Told::default();
        let driver = {
            let wal = Arc::clone(&wal);
            shuttle::thread::spawn(move || wal.shared.run_callbacks())
        };
        let appender = {
            let (wal, called) = (Arc::clone(&wal), Arc::clone(&called));
            shuttle::thread::spawn(move || {
                for _ in 0..3 {
                    let position = append(&wal, ONE, b"entry");
                    let (called, log) = (Arc::clone(&called), Arc::clone(&wal));
                    let callback = move |outcome: Result<()>| {
                        outcome.expect("synced");
                        assert!(log.reached(Level::Sync) > position);
                        called.lock().expect("not poisoned").push(position);
                    };
                    wal.on_level(position, Level::Sync, callback).expect("registered");
                }
            })
        };
        let committer = commit(&wal, &told, TWO, &[Level::Sync, Level::Sync]);
        appender.join().expect("no panic");
        committer.join().expect("no panic");
        while called.lock().expect("not poisoned").len() < 3 {
            shuttle::thread::yield_now();
        }
        wal.shared.stop();
        driver.join().expect("no panic");
        let called = called.lock().expect("not poisoned");
        assert!(called.is_sorted(), "{called:?}");
    });
}
