//! A memtable against a plain sorted list, and readers beside a writer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::storage::KeyRange;
use crate::storage::lsm::key::SEQNO_MAX;

fn empty() -> Memtable {
    Memtable::new(Moment::default())
}

fn put(key: &[u8], value: &[u8]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.put(&[key], &[value], None);
    batch
}

/// Value of the newest put of `key` at `at`; `None`: no entry, or not a put.
fn value(memtable: &Memtable, key: &[u8], at: u64) -> Option<Vec<u8>> {
    let mut found = None;
    memtable.get(key, KeyHash::of(key), Seqno(at), |entry| {
        found = (entry.kind != Kind::Delete).then(|| entry.value.to_vec());
    });
    found
}

#[test]
fn read_sees_the_newest_version_up_to_its_seqno() {
    let memtable = empty();
    assert_eq!(memtable.apply(Seqno(1), &put(b"k", b"one")).seqno, Seqno(1));
    memtable.apply(Seqno(2), &put(b"k", b"two"));
    memtable.apply(Seqno(3), &put(b"k0", b"other"));
    assert_eq!(value(&memtable, b"k", 0), None);
    assert_eq!(value(&memtable, b"k", 1).as_deref(), Some(&b"one"[..]));
    assert_eq!(value(&memtable, b"k", SEQNO_MAX.0).as_deref(), Some(&b"two"[..]));
    assert_eq!(value(&memtable, b"", 9), None);
    assert_eq!(memtable.counts().entries, 3);
}

#[test]
fn moment_moves_with_whole_batches_and_the_clock_never_back() {
    let at = Timestamp::from_millis;
    let start = Moment { seqno: Seqno(7), clock: at(50) };
    let memtable = Memtable::new(start);
    assert_eq!(memtable.moment(), start);
    let mut batch = put(b"a", b"");
    batch.delete(&[b"b"]);
    batch.delete_range(b"c", b"d");
    batch.advance_clock(at(40));
    assert_eq!(memtable.apply(Seqno(8), &batch), Moment { seqno: Seqno(10), clock: at(50) });
    let mut clock = WriteBatch::new();
    clock.advance_clock(at(60));
    let moment = memtable.apply(Seqno(11), &clock);
    assert_eq!(moment, Moment { seqno: Seqno(11), clock: at(60) });
    assert_eq!(memtable.moment(), moment);
}

#[test]
fn range_deletions_cover_by_seqno_however_many_there_are() {
    let memtable = empty();
    for seqno in 1..=100u64 {
        let mut batch = WriteBatch::new();
        batch.delete_range(&[(seqno % 10) as u8], &[(seqno % 10) as u8 + 2]);
        memtable.apply(Seqno(seqno), &batch);
    }
    assert!(memtable.range_deletions().len() < 8, "runs are merged");
    for key in 0..12u8 {
        for at in 0..=101u64 {
            let covers = |seqno: &u64| {
                let start = (seqno % 10) as u8;
                start <= key && key < start + 2
            };
            let expected = (1..=at.min(100)).rev().find(covers).map(Seqno);
            assert_eq!(memtable.newest_covering(&[key], Seqno(at)), expected, "{key} at {at}");
        }
    }
}

#[test]
fn expiries_and_bytes_are_noted() {
    let memtable = empty();
    assert_eq!(memtable.expiries(), None);
    let at = Timestamp::from_millis;
    let mut batch = WriteBatch::new();
    for time in [30, 10, 20] {
        batch.put(&[b"k"], &[&[7; 1000]], Some(at(time)));
    }
    memtable.apply(Seqno(1), &batch);
    assert_eq!(memtable.expiries(), Some((at(10), at(30))));
    assert!((3_000..6_000).contains(&memtable.used_bytes()), "{}", memtable.used_bytes());
    let large = vec![1; 3 << 20];
    memtable.apply(Seqno(4), &put(b"large", &large));
    assert_eq!(value(&memtable, b"large", 9), Some(large));
    assert!(memtable.memory_bytes() > 3 << 20);
}

#[test]
fn keys_of_the_largest_size_are_taken() {
    let memtable = empty();
    let key = vec![0xff; crate::storage::KEY_BYTES_MAX];
    memtable.apply(Seqno(1), &put(&key, b"v"));
    assert_eq!(value(&memtable, &key, 1).as_deref(), Some(&b"v"[..]));
}

type Found = (Vec<u8>, u64, Vec<u8>);

fn walked(memtable: &Memtable, range: KeyRange<'_>, forward: bool) -> Vec<Found> {
    walked_at(memtable, range, None, forward)
}

fn walked_at(
    memtable: &Memtable,
    range: KeyRange<'_>,
    at: Option<u64>,
    forward: bool,
) -> Vec<Found> {
    let mut cursor = MemtableCursor::new(memtable, range).seen_at(at.map(Seqno));
    let mut found = Vec::new();
    let mut there = if forward { cursor.seek_to_first() } else { cursor.seek_to_last() };
    while there {
        let entry = cursor.entry().expect("it stands on one");
        found.push((entry.key.to_vec(), entry.seqno.0, entry.value.to_vec()));
        there = if forward { cursor.next() } else { cursor.prev() };
    }
    assert!(cursor.entry().is_none());
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]
    #[test]
    fn memtable_is_a_sorted_map_of_versions(
        keys in prop_oneof![
            vec(vec(prop::sample::select(vec![0u8, b'a', 0xff]), 0..12), 1..60),
            // Many versions of few keys.
            vec(vec(prop::sample::select(vec![0u8, b'a', 0xff]), 0..2), 1..60),
        ],
        start in vec(prop::sample::select(vec![0u8, b'a', 0xff]), 0..4),
        end in prop::option::of(vec(prop::sample::select(vec![0u8, b'a', 0xff]), 0..4)),
        at in 0..70u64,
        alike in prop_oneof![Just(0), Just(40u8)],
    ) {
        let mut before = WriteBatch::new();
        for number in 0..alike {
            before.put(&[b"aa", &[number]], &[], None);
        }
        let memtable = empty();
        memtable.apply(Seqno(0), &before);
        // It expects keys that begin with `aa`, when there were enough of them.
        let memtable = memtable.next();
        let mut model = BTreeMap::new();
        for (seqno, key) in (1u64..).zip(&keys) {
            memtable.apply(Seqno(seqno), &put(key, &seqno.to_le_bytes()));
            model.insert((key.clone(), !seqno), seqno);
        }
        let range = KeyRange::new(&start, end.as_deref());
        let mut expected: Vec<Found> = model
            .iter()
            .filter(|((key, _), _)| range.contains(key))
            .map(|((key, _), seqno)| (key.clone(), *seqno, seqno.to_le_bytes().to_vec()))
            .collect();
        prop_assert_eq!(&walked(&memtable, range, true), &expected);
        let mut seen = expected.clone();
        seen.retain(|(_, seqno, _)| *seqno <= at);
        seen.dedup_by(|older, newer| older.0 == newer.0);
        prop_assert_eq!(&walked_at(&memtable, range, Some(at), true), &seen);
        seen.reverse();
        prop_assert_eq!(&walked_at(&memtable, range, Some(at), false), &seen);
        expected.reverse();
        prop_assert_eq!(&walked(&memtable, range, false), &expected);
        for key in &keys {
            let newest = model.range((key.clone(), !at)..=(key.clone(), u64::MAX)).next();
            let newest = newest.map(|(_, seqno)| seqno.to_le_bytes().to_vec());
            prop_assert_eq!(value(&memtable, key, at), newest);
        }
    }
}

#[test]
fn every_version_of_many_keys_is_found() {
    let (keys, versions) = if cfg!(miri) { (70, 12) } else { (3000, 12) };
    let memtable = empty();
    let key = |number: u64| format!("key {number}").into_bytes();
    for seqno in 1..=keys * versions {
        memtable.apply(Seqno(seqno), &put(&key(seqno % keys), &seqno.to_le_bytes()));
    }
    for number in 0..keys {
        for at in (0..=versions).map(|version| (version * keys + number).min(keys * versions)) {
            let since = (at + keys - number) % keys;
            let newest = at.checked_sub(since).filter(|&newest| newest > 0);
            let expected = newest.map(|seqno| seqno.to_le_bytes().to_vec());
            assert_eq!(value(&memtable, &key(number), at), expected, "{number} {at}");
        }
        assert_eq!(value(&memtable, &[key(number), b"x".to_vec()].concat(), u64::MAX >> 8), None);
    }
}

/// Runs of slots that are too long for a probe come by chance, and more often the more keys there are.
#[test]
fn no_key_is_lost_while_the_table_of_hashes_grows() {
    let keys = if cfg!(miri) { 300u32 } else { 60_000 };
    let memtable = empty();
    for number in 0..keys {
        let key = format!("user{number:08}");
        memtable.apply(Seqno(u64::from(number) + 1), &put(key.as_bytes(), &number.to_le_bytes()));
        // The last ones at once, and old ones now and then, while the table is as it is.
        for earlier in [number, number / 2, number / 7] {
            let key = format!("user{earlier:08}");
            let found = value(&memtable, key.as_bytes(), SEQNO_MAX.0);
            assert_eq!(found.as_deref(), Some(&earlier.to_le_bytes()[..]), "{key} of {number}");
        }
    }
    for number in 0..keys {
        let key = format!("user{number:08}");
        let found = value(&memtable, key.as_bytes(), SEQNO_MAX.0);
        assert_eq!(found.as_deref(), Some(&number.to_le_bytes()[..]), "{key}");
        assert_eq!(value(&memtable, format!("{key}x").as_bytes(), SEQNO_MAX.0), None);
    }
}

/// A batch writes the same value under two keys and moves the clock to it: readers must find all three equal.
#[test]
fn readers_see_only_whole_batches_while_one_writes() {
    let batches: u64 = if cfg!(miri) { 60 } else { 20_000 };
    let memtable = Arc::new(Memtable::new(Moment::default()));
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut newest = 0;
                loop {
                    let last = finished.load(Ordering::SeqCst);
                    let moment = memtable.moment();
                    let number = moment.clock.as_millis();
                    assert!(number >= newest, "the clock does not go back");
                    newest = number;
                    assert_eq!(moment.seqno.0, number * 3);
                    let expected = (number > 0).then(|| number.to_le_bytes().to_vec());
                    assert_eq!(value(&memtable, b"a", moment.seqno.0), expected);
                    assert_eq!(value(&memtable, b"z", moment.seqno.0), expected);
                    let between = (number > 0).then(|| (number % 97).to_le_bytes());
                    if let Some(key) = between {
                        assert_eq!(value(&memtable, &key, moment.seqno.0), expected);
                    }
                    if last {
                        return;
                    }
                }
            });
        }
        for number in 1..=batches {
            let value = number.to_le_bytes();
            let mut batch = put(b"a", &value);
            batch.put(&[b"z"], &[&value], None);
            batch.put(&[&(number % 97).to_le_bytes()], &[&value], None);
            batch.advance_clock(Timestamp::from_millis(number));
            memtable.apply(Seqno(number * 3 - 2), &batch);
        }
        finished.store(true, Ordering::SeqCst);
    });
    let walked = walked(&memtable, KeyRange::ALL, true);
    assert_eq!(walked.len() as u64, batches * 3);
}

/// Orders of the threads, tried one by one. Miri cannot change stacks.
#[cfg(not(miri))]
#[test]
fn what_is_published_is_seen_as_one_pair_and_is_there() {
    interleave::explore("memtable", 2_000, || {
        let memtable = Arc::new(empty());
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let memtable = Arc::clone(&memtable);
                shuttle::thread::spawn(move || {
                    let mut last = 0;
                    for _ in 0..4 {
                        let Moment { seqno, clock } = memtable.moment();
                        assert_eq!(clock.as_millis(), seqno.0 * 10, "a pair");
                        assert!(seqno.0 >= last && seqno.0 % 2 == 0, "whole batches, in order");
                        last = seqno.0;
                        for key in [b"a", b"b"] {
                            let found = value(&memtable, key, last).map(|value| value[0]);
                            assert_eq!(u64::from(found.unwrap_or(0)), last);
                        }
                    }
                })
            })
            .collect();
        for number in [2, 4, 6u8] {
            let mut batch = put(b"a", &[number]);
            batch.put(&[b"b"], &[&[number]], None);
            batch.advance_clock(Timestamp::from_millis(u64::from(number) * 10));
            memtable.apply(Seqno(u64::from(number) - 1), &batch);
        }
        for reader in readers {
            reader.join().expect("no panic");
        }
    });
}
