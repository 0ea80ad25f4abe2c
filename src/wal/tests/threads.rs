//! Real threads on the real file system, with the log's own threads behind them.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock, mpsc};
use std::time::{Duration, Instant};

use super::*;
use crate::util::fs::sim::Operation;

const COMMITTERS: u64 = 8;

fn real(dir: &Path) -> Opened {
    let options = Options {
        segment_bytes: 32 << 10,
        buffer_bytes_max: 8 << 10,
        callbacks_max: 16,
        ..Options::new(42)
    };
    open_with(Arc::new(RealFileSystem), dir, options).expect("opened")
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::yield_now();
    }
}

/// What another process would find if this one were killed now.
fn reopened_copy(dir: &Path) -> Vec<Seen> {
    let copy = tempfile::tempdir().expect("a temporary directory");
    for entry in fs::read_dir(dir).expect("listed") {
        let entry = entry.expect("an entry");
        // A segment may be removed, or get its name, between the two calls.
        if entry.file_name().to_string_lossy().ends_with(".wal") {
            let _ = fs::copy(entry.path(), copy.path().join(entry.file_name()));
        }
    }
    real(copy.path()).seen
}

#[test]
fn what_many_threads_were_told_is_in_a_copy_taken_at_any_moment() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let wal = real(dir.path()).wal;
    let told: Mutex<Vec<Seen>> = Mutex::default();
    // Held by whoever commits; the copier takes it alone, for a copy of one moment.
    let gate = RwLock::new(());
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..COMMITTERS {
            let (wal, told, gate, done) = (&wal, &told, &gate, &done);
            scope.spawn(move || {
                for n in 0..60u8 {
                    let _open = gate.read().expect("not poisoned");
                    let (owner, kind) = (Owner(thread), Kind::FIRST);
                    let body = vec![n; 200 + usize::from(n) * 37 % 900];
                    let position = wal.append(owner, kind, &[&body]).expect("appended");
                    let level = if (u64::from(n) + thread).is_multiple_of(3) {
                        Level::Buffered
                    } else {
                        Level::Sync
                    };
                    wal.commit(position, level).expect("committed");
                    told.lock().expect("not poisoned").push(Seen { position, owner, kind, body });
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        while done.load(Ordering::SeqCst) < COMMITTERS {
            let alone = gate.write().expect("not poisoned");
            let mut expected = told.lock().expect("not poisoned").clone();
            expected.sort_by_key(|seen| seen.position);
            assert_eq!(reopened_copy(dir.path()), expected);
            drop(alone);
        }
    });
    let status = wal.status();
    assert!(status.counts.sync_group.count() < COMMITTERS * 60, "groups: {:?}", status.counts);
    let mut expected = told.into_inner().expect("not poisoned");
    expected.sort_by_key(|seen| seen.position);
    wal.close().expect("closed");
    assert_eq!(real(dir.path()).seen, expected);
}

#[test]
fn callbacks_of_every_owner_come_in_its_order_and_all_of_them() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let wal = real(dir.path()).wal;
    let (send, receive) = mpsc::sync_channel(100_000);
    std::thread::scope(|scope| {
        for owner in 0..4u64 {
            let (wal, send) = (&wal, send.clone());
            scope.spawn(move || {
                for n in 0..500u64 {
                    let position = append(wal, Owner(owner), &n.to_le_bytes());
                    let send = send.clone();
                    let callback = move |outcome: Result<()>| {
                        outcome.expect("synced");
                        send.send((owner, n)).expect("received");
                    };
                    wal.on_level(position, Level::Sync, callback).expect("registered");
                }
            });
        }
    });
    drop(send);
    let mut next = [0; 4];
    for (owner, n) in receive {
        let owner = usize::try_from(owner).expect("small");
        assert_eq!(n, next[owner], "owner {owner}");
        next[owner] += 1;
    }
    assert_eq!(next, [500; 4]);
}

#[test]
fn those_who_wait_while_a_sync_runs_share_the_next_one() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let syncs = fs.count(Operation::Sync);
    fs.hold_syncs(true);
    std::thread::scope(|scope| {
        let commit = || {
            let position = append(&wal, ONE, b"record");
            wal.commit(position, Level::Sync).expect("synced");
        };
        scope.spawn(commit);
        fs.wait_for_held_sync();
        for _ in 0..15 {
            scope.spawn(commit);
        }
        wait_until("all have asked", || wal.shared.state.lock().sync_requests == 15);
        // Whoever wants no sync does not wait for one.
        let position = append(&wal, TWO, b"buffered");
        wal.commit(position, Level::Buffered).expect("written");
        fs.hold_syncs(false);
    });
    assert_eq!(fs.count(Operation::Sync), syncs + 2, "sixteen commits, two syncs");
    let groups = wal.status().counts.sync_group;
    assert_eq!((groups.buckets[0], groups.buckets[4]), (2, 1), "the opening's and one; fifteen");
}

#[test]
fn the_files_thread_makes_the_next_segment_and_removes_what_is_released() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let wal = real(dir.path()).wal;
    wait_until("a segment is ready", || wal.shared.state.lock().ready.is_some());
    let synced = append(&wal, ONE, b"synced");
    wal.commit(synced, Level::Sync).expect("synced");
    let segment = || wal.end().segment();
    while segment() == synced.segment() {
        append(&wal, ONE, &[5; 1000]);
    }
    wait_until("the full segment is synced", || {
        let state = wal.shared.state.lock();
        state.active.as_ref().is_some_and(|active| state.synced >= active.previous_end)
    });
    for _ in 0..200 {
        append(&wal, ONE, &[5; 1000]);
    }
    wal.barrier(Level::Buffered).expect("written");
    wal.release_all(ONE);
    wait_until("released segments are gone", || wal.status().segments == 1);
    assert!(wal.status().counts.segments_removed > 3);
}

#[test]
fn a_callback_that_panics_poisons_the_log_and_nobody_waits_for_ever() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let wal = real(dir.path()).wal;
    let position = append(&wal, ONE, b"record");
    wal.on_level(position, Level::Sync, |_| panic!("on purpose")).expect("registered");
    wait_until("poisoned", || wal.status().poison.is_some());
    assert!(matches!(wal.append(ONE, Kind::FIRST, &[b"x"]), Err(Error::Poisoned { .. })));
    let called = Arc::new(AtomicBool::new(false));
    for _ in 0..20 {
        let called = Arc::clone(&called);
        let callback = move |_| called.store(true, Ordering::SeqCst);
        wal.on_level(position, Level::Sync, callback).expect("registered");
    }
    drop(wal);
    assert!(called.load(Ordering::SeqCst), "answered at the end");
}

#[test]
fn a_callback_may_hold_the_last_handle_of_the_log() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let wal = Arc::new(real(dir.path()).wal);
    let position = append(&wal, ONE, b"record");
    let (held, (send, receive)) = (Arc::clone(&wal), mpsc::sync_channel(1));
    let (dropped, wait) = mpsc::sync_channel(1);
    let callback = move |_| {
        wait.recv().expect("the other handle is gone");
        drop(held);
        send.send(()).expect("received");
    };
    wal.on_level(position, Level::Buffered, callback).expect("registered");
    drop(wal);
    dropped.send(()).expect("received");
    receive.recv_timeout(Duration::from_mins(1)).expect("the drop returned");
}
