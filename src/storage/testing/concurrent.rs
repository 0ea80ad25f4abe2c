//! Many threads on one engine: whatever they do, a reader sees moments between batches.
//!
//! Accounts hold amounts; each batch moves some from one to another, so the sum is always the same. A reader that saw half a
//! batch, or two moments in one read, would find another sum.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Home, Subject, on_each_engine, property, rows};
use crate::storage::{Direction, Durability, KeyRange, Reader, StorageEngine, WriteBatch};
use crate::util::time::Timestamp;

const ACCOUNTS: usize = 200;
const AMOUNT: u64 = 1_000;
const TOTAL: u64 = ACCOUNTS as u64 * AMOUNT;

on_each_engine!(readers_see_only_whole_batches, writers_that_wait_share_syncs_and_lose_nothing);

fn account(number: usize) -> Vec<u8> {
    format!("account/{number:03}").into_bytes()
}

fn amount(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().expect("an amount has eight bytes"))
}

fn set(batch: &mut WriteBatch, number: usize, amount: u64, expires: bool) {
    // Some amounts have an expiry, far ahead: those are kept in more places than one.
    let expires_at = expires.then(|| Timestamp::from_millis(1 << 40));
    batch.put(&[&account(number)], &[&amount.to_le_bytes(), &[7; 40]], expires_at);
}

/// The sum over all accounts by a scan in either direction.
fn scanned(reader: &dyn Reader, direction: Direction) -> u64 {
    let range = KeyRange::new(b"account/", Some(b"account0"));
    let mut scan = reader.scan(range, direction).expect("scans");
    let mut sum = 0;
    let mut count = 0;
    while let Some(entry) = scan.next().expect("reads") {
        sum += amount(entry.value);
        count += 1;
    }
    assert_eq!(count, ACCOUNTS, "accounts seen by a scan");
    sum
}

/// The sum over all accounts by one read of many keys.
fn read_at_once(reader: &dyn Reader) -> u64 {
    let keys: Vec<_> = (0..ACCOUNTS).map(account).collect();
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let mut sum = 0;
    reader.get_many(&keys, &mut |_, entry| sum += amount(entry.value)).expect("reads");
    sum
}

/// The sum over all accounts by one read each: of one moment only on a view.
fn read_one_by_one(view: &dyn Reader) -> u64 {
    let read = |number| {
        let mut found = 0;
        assert!(
            view.get_with(&account(number), &mut |entry| found = amount(entry.value))
                .expect("reads")
        );
        found
    };
    (0..ACCOUNTS).map(read).sum()
}

fn readers_see_only_whole_batches(subject: &'static Subject) {
    let seed = property::seed();
    let home = Home::new(subject);
    let engine = home.open("main");
    let mut opening = WriteBatch::new();
    for number in 0..ACCOUNTS {
        set(&mut opening, number, AMOUNT, false);
    }
    engine.write(&opening, Durability::None).expect("writes");

    let finished = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        let engine = &*engine;
        let reader = |read: fn(&dyn StorageEngine) -> u64| {
            let (finished, reads) = (&finished, &reads);
            scope.spawn(move || {
                while !finished.load(Ordering::SeqCst) {
                    assert_eq!(read(engine), TOTAL);
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
        };
        reader(|engine| scanned(engine, Direction::Forward));
        reader(|engine| scanned(engine, Direction::Reverse));
        reader(|engine| read_at_once(engine));
        reader(|engine| {
            let view = engine.view().expect("freezes");
            let sum = read_one_by_one(&*view);
            assert_eq!(scanned(&*view, Direction::Forward), sum, "a view does not move");
            assert_eq!(read_at_once(&*view), sum, "a view does not move");
            sum
        });
        // One writer, because it reads before it writes; another one does all that must not matter.
        let transfers = scope.spawn(move || transfer(engine, seed));
        let (home, finished) = (&home, &finished);
        scope.spawn(move || disturb(home, engine, finished));
        let outcome = transfers.join();
        finished.store(true, Ordering::SeqCst);
        outcome.expect("the writer does not fail");
    });
    assert!(reads.load(Ordering::SeqCst) > 0, "nothing was read meanwhile");
    assert_eq!(scanned(&*engine, Direction::Forward), TOTAL);
}

fn transfer(engine: &dyn StorageEngine, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut amounts = [AMOUNT; ACCOUNTS];
    for round in 0..1_500u64 {
        let mut batch = WriteBatch::new();
        if round % 50 == 0 {
            // All at once, by way of nothing at all.
            batch.delete_range(b"account/", b"account0");
            for (number, amount) in amounts.iter().enumerate() {
                set(&mut batch, number, *amount, false);
            }
        }
        for _ in 0..random.random_range(1..8) {
            let (from, to) = (random.random_range(0..ACCOUNTS), random.random_range(0..ACCOUNTS));
            let moved = amounts[from].min(random.random_range(0..100));
            amounts[from] -= moved;
            amounts[to] += moved;
            set(&mut batch, from, amounts[from], random.random());
            set(&mut batch, to, amounts[to], random.random());
        }
        batch.advance_clock(Timestamp::from_millis(round));
        let durability = if round % 100 == 0 { Durability::Sync } else { Durability::None };
        engine.write(&batch, durability).expect("writes");
    }
}

/// Other keys, housekeeping, copies.
fn disturb(home: &Home, engine: &dyn StorageEngine, finished: &AtomicBool) {
    let mut round = 0u64;
    while !finished.load(Ordering::SeqCst) {
        round += 1;
        let mut batch = WriteBatch::new();
        let soon = Timestamp::from_millis(engine.clock().as_millis() + 5);
        batch.put(&[b"zz", &round.to_be_bytes()], &[b"short-lived"], Some(soon));
        engine.write(&batch, Durability::None).expect("writes");
        if round.is_multiple_of(64) {
            engine.compact(KeyRange::ALL).expect("compacts");
            engine.flush().expect("flushes");
        }
        if round.is_multiple_of(128) {
            let copy = home.beside(&format!("copy-{round}"));
            engine.checkpoint(&copy).expect("is copied");
            home.environment().install("copy", &copy).expect("is installed");
            assert_eq!(scanned(&*home.open("copy"), Direction::Forward), TOTAL, "a copy");
        }
    }
}

fn writers_that_wait_share_syncs_and_lose_nothing(subject: &'static Subject) {
    const WRITERS: u64 = 8;
    const WRITES: u64 = 25;
    let mut home = Home::new(subject);
    let engines = [home.open("one"), home.open("two")];
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let engine = &*engines[(writer % 2) as usize];
            scope.spawn(move || {
                let mut last = crate::storage::Seqno(0);
                for number in 0..WRITES {
                    let key = [writer.to_be_bytes(), number.to_be_bytes()].concat();
                    let batch = super::put(&key, b"1");
                    let seqno = if number % 3 == 0 {
                        let seqno = engine.write(&batch, Durability::None).expect("writes");
                        let barrier = WriteBatch::new();
                        assert!(engine.write(&barrier, Durability::Sync).expect("syncs") >= seqno);
                        seqno
                    } else {
                        engine.write(&batch, Durability::Sync).expect("writes")
                    };
                    assert!(seqno > last, "numbers of one writer grow");
                    assert!(engine.durable() >= seqno, "what was synced is durable");
                    last = seqno;
                }
            });
        }
    });
    drop(engines);
    home.reopen();
    for name in ["one", "two"] {
        assert_eq!(rows(&*home.open(name)).len() as u64, WRITERS / 2 * WRITES, "{name}");
    }
}
