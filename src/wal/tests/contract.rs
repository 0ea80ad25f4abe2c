//! What the calls promise when nothing goes wrong but the end.

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::util::fs::sim::Operation;

#[test]
fn records_of_all_owners_come_back_in_their_order() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let first = append(&wal, ONE, b"a");
    let second = wal.append(TWO, Kind(200), &[b"b", b"", b"c"]).expect("appended");
    assert!(first < second && second < wal.end());
    wal.close().expect("closed");
    let Opened { seen, recovery, .. } = reopen(&fs);
    assert_eq!(bodies(&seen), [b"a".as_slice(), b"bc"]);
    assert_eq!((seen[1].position, seen[1].owner, seen[1].kind), (second, TWO, Kind(200)));
    assert_eq!(recovery.torn, None);
    let owner = recovery.owners[1];
    assert_eq!((owner.owner, owner.records, owner.body_bytes), (TWO, 1, 2));
}

#[test]
fn an_append_makes_no_system_call_and_a_reached_level_none_either() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let steps = fs.steps();
    let first = append(&wal, ONE, b"a");
    let last = append(&wal, TWO, b"b");
    assert_eq!(fs.steps(), steps);
    wal.commit(last, Level::Sync).expect("synced");
    assert_eq!(fs.steps(), steps + 2, "one write, one sync");
    wal.commit(first, Level::Sync).expect("synced already");
    wal.commit(last, Level::Buffered).expect("written already");
    wal.barrier(Level::Sync).expect("nothing to do");
    assert_eq!(fs.steps(), steps + 2);
    assert_eq!(wal.status().counts.sync_group.count(), 2, "the opening and the commit");
}

#[test]
fn a_buffered_commit_survives_a_kill_and_a_synced_one_a_power_loss() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let synced = append(&wal, ONE, b"synced");
    wal.commit(synced, Level::Sync).expect("synced");
    let written = append(&wal, ONE, b"written");
    wal.commit(written, Level::Buffered).expect("written");
    append(&wal, ONE, b"in the buffer");
    assert_eq!(bodies(&reopen(&fs.restart_killed()).seen), [b"synced".as_slice(), b"written"]);
    let mut lost = 0;
    for seed in 0..20 {
        let seen = reopen(&fs.restart(seed)).seen;
        assert_eq!(seen[0].body, b"synced", "seed {seed}");
        lost += usize::from(seen.len() == 1);
    }
    assert!((1..20).contains(&lost), "both outcomes are possible; lost {lost} of 20");
}

#[test]
fn a_record_is_read_back_by_position_wherever_it_is() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let body = |n: u8| vec![n; usize::from(n) * 3];
    let positions: Vec<_> = (0..100).map(|n| append(&wal, ONE, &body(n))).collect();
    for (n, &position) in (0..).zip(&positions) {
        let record = wal.read(position).expect("in buffer or file");
        assert_eq!((record.owner, record.kind, record.body), (ONE, Kind::FIRST, body(n)));
    }
    let between = Position::from_u64(positions[3].as_u64() + 8);
    let error = wal.read(between).expect_err("no record begins there");
    assert!(matches!(error, Error::Corruption { .. }), "{error}");
    for position in [wal.end(), Position::BEGINNING, Position::from_u64(positions[3].as_u64() + 1)]
    {
        let error = wal.read(position).expect_err("no position of the log");
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_own_size() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let large = vec![7; 300_000];
    append(&wal, ONE, b"before");
    let position = append(&wal, ONE, &large);
    append(&wal, ONE, b"after");
    wal.maintain().expect("maintained");
    assert_eq!(wal.read(position).expect("read").body, large);
    wal.barrier(Level::Sync).expect("synced");
    let seen = reopen(&fs.restart(0)).seen;
    assert_eq!(bodies(&seen), [b"before".as_slice(), &large, b"after"]);
}

#[test]
fn the_largest_record_is_taken_and_a_larger_one_refused() {
    let fs = SimFileSystem::new(1);
    let options = Options { segment_bytes: 1 << 20, ..small(1) };
    let wal = open_with(Arc::new(fs.clone()), Path::new(DIR), options).expect("opened").wal;
    let body = vec![1; BODY_BYTES_MAX];
    let position = append(&wal, ONE, &body);
    assert!(wal.read(position).expect("read").body == body);
    let error = wal.append(ONE, Kind::FIRST, &[&body, b"!"]).expect_err("too long");
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    let error = wal.append(ONE, Kind(15), &[b""]).expect_err("reserved");
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}

#[test]
fn a_full_buffer_is_written_by_the_append_that_finds_it_full() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    for _ in 0..100 {
        append(&wal, ONE, &[0; 200]);
        assert!(wal.status().buffer_bytes <= 4 << 10);
    }
    assert!(wal.status().counts.buffer_full > 0);
    assert!(wal.reached(Level::Buffered) > Position::BEGINNING);
}

#[test]
fn released_segments_go_from_the_front_and_the_laggard_is_named() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let laggard = append(&wal, TWO, b"only one");
    let positions: Vec<_> = (0..100).map(|_| append(&wal, ONE, &[0; 100])).collect();
    wal.barrier(Level::Sync).expect("synced");
    wal.release_all(ONE);
    wal.maintain().expect("maintained");
    let pin = wal.status().oldest.expect("pinned");
    assert_eq!((pin.owner, pin.position), (TWO, laggard));
    let before = segment_files(&fs).len();
    assert!(before > 10, "{before}");
    wal.release(TWO, positions[0]);
    wal.maintain().expect("maintained");
    assert_eq!(segment_files(&fs).len(), 2, "the active one and the next");
    assert_eq!(wal.status().oldest, None);
    let error = wal.read(laggard).expect_err("removed");
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    drop(wal);
    assert!(reopen(&fs.restart(3)).seen.iter().all(|seen| seen.owner == ONE));
}

#[test]
fn full_segments_are_synced_ahead_only_while_somebody_asks_for_syncs() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let fill = || {
        let full = wal.end().segment();
        while wal.end().segment() == full {
            let position = append(&wal, ONE, &[0; 100]);
            wal.commit(position, Level::Buffered).expect("written");
        }
        wal.maintain().expect("maintained");
    };
    let synced = || wal.reached(Level::Sync);
    // Opening is a sync.
    (0..2).for_each(|_| fill());
    let at_first = synced();
    (0..3).for_each(|_| fill());
    assert_eq!(synced(), at_first, "nobody asks");
    // What is released needs no sync any more.
    wal.release_all(ONE);
    wal.maintain().expect("maintained");
    let syncs = fs.count(Operation::Sync);
    wal.barrier(Level::Sync).expect("synced");
    assert_eq!((fs.count(Operation::Sync), synced()), (syncs + 1, wal.end()));
    fill();
    let active = wal.end().segment();
    assert_eq!(synced().segment(), active, "all before the active one");
    fill();
    assert_eq!(synced().segment(), active, "nobody has asked since that one began");
    wal.barrier(Level::Sync).expect("synced");
    assert_eq!(synced(), wal.end());
}

#[test]
fn after_opening_every_owner_holds_its_records_until_it_releases_them() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let first = append(&wal, TWO, b"held");
    (0..50).for_each(|_| _ = append(&wal, ONE, &[0; 100]));
    wal.close().expect("closed");
    let wal = reopen(&fs).wal;
    wal.release_all(ONE);
    wal.maintain().expect("maintained");
    assert_eq!(wal.read(first).expect("still there").body, b"held");
    wal.release_all(TWO);
    wal.maintain().expect("maintained");
    assert!(wal.read(first).is_err());
}

#[test]
fn callbacks_come_in_the_order_of_positions_once_the_level_is_reached() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let called = Arc::new(Mutex::new(Vec::new()));
    let note = |n: u32| {
        let called = Arc::clone(&called);
        move |outcome: Result<()>| called.lock().expect("not poisoned").push((n, outcome.is_ok()))
    };
    let positions: Vec<_> = (0..5).map(|n| append(&wal, Owner(n), b"entry")).collect();
    for n in [3usize, 0, 4, 1] {
        let order = u32::try_from(n).expect("small");
        wal.on_level(positions[n], Level::Sync, note(order)).expect("registered");
    }
    assert!(called.lock().expect("not poisoned").is_empty(), "nothing was synced");
    let syncs = fs.count(Operation::Sync);
    assert!(wal.drive());
    assert_eq!(fs.count(Operation::Sync), syncs + 1, "one sync for all");
    let expected: Vec<_> = [0, 1, 3, 4].map(|n| (n, true)).into();
    assert_eq!(*called.lock().expect("not poisoned"), expected);
    wal.on_level(positions[2], Level::Sync, note(2)).expect("registered");
    assert!(wal.drive() && !wal.drive());
    assert_eq!(called.lock().expect("not poisoned").last(), Some(&(2, true)));
    assert_eq!(fs.count(Operation::Sync), syncs + 1, "reached already");
}

#[test]
fn callbacks_are_bounded_and_may_call_the_log() {
    let fs = SimFileSystem::new(1);
    let wal = Arc::new(reopen(&fs).wal);
    let called = Arc::new(Mutex::new(0));
    for _ in 0..100 {
        let (log, called) = (Arc::clone(&wal), Arc::clone(&called));
        let position = append(&wal, ONE, b"entry");
        wal.on_level(position, Level::Buffered, move |outcome| {
            outcome.expect("written");
            append(&log, TWO, b"by a callback");
            *called.lock().expect("not poisoned") += 1;
        })
        .expect("registered");
        assert!(wal.status().callbacks <= 8);
    }
    while wal.drive() {}
    assert_eq!(*called.lock().expect("not poisoned"), 100);
}

#[test]
fn a_dropped_log_answers_every_callback() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let (send, receive) = std::sync::mpsc::sync_channel(2);
    for level in [Level::Buffered, Level::Sync] {
        let send = send.clone();
        let position = append(&wal, ONE, b"entry");
        wal.commit(position, Level::Buffered).expect("written");
        let outcome = move |outcome: Result<()>| send.send(outcome.is_ok()).expect("received");
        wal.on_level(position, level, outcome).expect("registered");
    }
    drop(wal);
    assert_eq!(receive.try_iter().collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_position_that_was_not_given_out_is_refused() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let end = wal.end();
    assert!(matches!(wal.commit(end, Level::Sync), Err(Error::Invalid(_))));
    assert!(matches!(wal.on_level(end, Level::Sync, |_| ()), Err(Error::Invalid(_))));
}

#[test]
fn one_directory_has_one_log() {
    let fs = SimFileSystem::new(1);
    let first = reopen(&fs);
    assert!(matches!(open(&fs, 2), Err(Error::Locked { .. })));
    drop(first);
    reopen(&fs);
}

#[test]
fn an_error_of_the_visitor_ends_the_opening_and_changes_nothing() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    append(&wal, ONE, b"a");
    wal.close().expect("closed");
    let steps = fs.steps();
    let refuse = |_: RecordRef<'_>| Err(Error::Invalid("not mine".to_owned()));
    let error = Wal::open(Arc::new(fs.clone()), DIR, small(2), refuse).expect_err("refused");
    assert!(error.to_string().contains("not mine"), "{error}");
    assert_eq!(fs.steps(), steps);
    assert_eq!(bodies(&reopen(&fs).seen), [b"a"]);
}

#[test]
fn files_that_were_not_finished_are_removed_and_others_left() {
    let fs = SimFileSystem::new(1);
    reopen(&fs).wal.close().expect("closed");
    for name in ["0000000009.wal.tmp", "x.tmp", "notes.txt"] {
        fs.create(&Path::new(DIR).join(name)).expect("created");
    }
    let opened = reopen(&fs);
    let names = fs.list(Path::new(DIR)).expect("listed");
    assert_eq!(names, ["0000000001.wal", "0000000010.wal", "LOCK", "notes.txt"]);
    drop(opened);
}

#[test]
fn bad_options_are_refused() {
    let fs = SimFileSystem::new(1);
    let bad = [
        Options { segment_bytes: 1000, ..small(1) },
        Options { segment_bytes: SEGMENT_BYTES_MIN + 1, ..small(1) },
        Options { segment_bytes: u32::MAX - 7, ..small(1) },
        Options { buffer_bytes_max: 0, ..small(1) },
        Options { callbacks_max: 0, ..small(1) },
    ];
    for options in bad {
        let opened = open_with(Arc::new(fs.clone()), Path::new(DIR), options);
        assert!(matches!(opened, Err(Error::Invalid(_))));
    }
}

#[test]
fn segments_of_another_size_are_read_as_they_are() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    (0..50).for_each(|_| _ = append(&wal, ONE, &[1; 100]));
    wal.close().expect("closed");
    let options = Options { segment_bytes: 8 << 10, ..small(5) };
    let opened = open_with(Arc::new(fs.clone()), Path::new(DIR), options).expect("opened");
    assert_eq!(opened.seen.len(), 50);
    let position = append(&opened.wal, ONE, &[2; 3000]);
    opened.wal.commit(position, Level::Sync).expect("synced");
    drop(opened);
    assert_eq!(reopen(&fs).seen.len(), 51);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_appended_comes_back(
        records in proptest::collection::vec((0u64..3, 16u8.., proptest::collection::vec(any::<u8>(), 0..1500)), 0..40),
        closed: bool,
    ) {
        let fs = SimFileSystem::new(1);
        let wal = reopen(&fs).wal;
        let mut expected = Vec::new();
        for (owner, kind, body) in records {
            let (owner, kind) = (Owner(owner), Kind(kind));
            let half = body.len() / 2;
            let position = wal.append(owner, kind, &[&body[..half], &body[half..]]).expect("appended");
            expected.push(Seen { position, owner, kind, body });
        }
        if closed {
            wal.close().expect("closed");
        } else {
            wal.barrier(Level::Sync).expect("synced");
        }
        prop_assert_eq!(reopen(&fs.restart(7)).seen, expected);
    }
}
