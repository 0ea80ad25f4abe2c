//! Readers beside flushes and compactions, under many orders of the threads (shuttle): a read takes the tree, then the
//! moment; whatever is exchanged in between or after, no live key is missing, and no table goes that a reader holds.

use shuttle::thread;

use super::*;
use crate::storage::testing::value;
use crate::util::interleave::explore;

const ORDERS: usize = 400;
const WRITES: u8 = 8;

fn number(value: Option<Vec<u8>>) -> u8 {
    value.expect("the key was always there")[0]
}

fn write(engine: &dyn StorageEngine, number: u8) {
    let mut batch = put(b"live", &[number]);
    // Another table each time, and each a merge with the one before.
    batch.put(&[b"filler"], &[&[number; 300]], None);
    engine.write(&batch, Durability::None).expect("writes");
}

#[test]
fn a_live_key_is_never_missing_and_never_older_than_before() {
    explore("tree", ORDERS, || {
        let mut options = LsmOptions { log: false, threads: 0, ..LsmOptions::new(1) };
        options.picker.l0_tables = 1;
        let fs = Arc::new(SimFileSystem::new(1));
        let environment = LsmEnvironment::open(fs, DIRECTORY, options).expect("opens");
        let engine = environment.open(NAMES[0]).expect("opens");
        let environment = Arc::new(environment);
        write(&*engine, 0);
        let writer = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || {
                for number in 1..=WRITES {
                    write(&*engine, number);
                    thread::yield_now();
                    if number % 2 == 0 {
                        engine.flush().expect("flushes");
                        thread::yield_now();
                    }
                }
            })
        };
        let compactions = {
            let environment = Arc::clone(&environment);
            thread::spawn(move || {
                for _ in 0..2 * WRITES {
                    environment.drive();
                    thread::yield_now();
                }
            })
        };
        let reader = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || {
                let mut last = 0;
                for _ in 0..WRITES {
                    let found = number(value(&*engine, b"live"));
                    assert!(found >= last, "{found} after {last}");
                    let listed = rows(&*engine).into_iter().find(|row| row.0 == b"live");
                    last = number(listed.map(|row| row.1));
                    assert!(found <= last, "{last} after {found}");
                }
            })
        };
        let viewer = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || {
                for _ in 0..2 {
                    let view = engine.view().expect("freezes");
                    let found = number(value(&*view, b"live"));
                    for _ in 0..4 {
                        thread::yield_now();
                        assert_eq!(number(value(&*view, b"live")), found, "a view does not move");
                    }
                }
            })
        };
        for thread in [writer, compactions, reader, viewer] {
            thread.join().expect("no panic");
        }
        assert_eq!(number(value(&*engine, b"live")), WRITES);
    });
}
